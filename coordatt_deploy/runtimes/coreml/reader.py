"""Read a Core ML package: its metadata and its graph.

The evaluator, and coremltools with it, is imported by the functions that need it: the format's words need neither.
"""

import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from coordatt_deploy.artifact_specs import About, AppInterface, AppValue
from coordatt_deploy.errors import BundleError
from coordatt_deploy.formats import Format
from coordatt_deploy.host import Host
from coordatt_deploy.runtime_versions import RuntimeNeeds
from coordatt_deploy.runtimes.argument_checks import first_line
from coordatt_deploy.runtimes.coreml import needs
from coordatt_deploy.runtimes.coreml.delegates import neural_engine
from coordatt_deploy.runtimes.coreml.vocabulary import VOCABULARY
from coordatt_deploy.runtimes.delegate import Delegate
from coordatt_deploy.runtimes.file_graph import (
    FileGraph,
    Node,
    OperatorCount,
    Shape,
    Tensor,
    most_frequent_first,
    spec_of,
)
from coordatt_deploy.runtimes.vocabulary import Vocabulary

if TYPE_CHECKING:
    from coordatt_deploy.runtimes.coreml.coremltools_import import proto

NARROW: Final = re.compile(r"u?int([1-7])")  # types of fewer than eight bits, which NumPy has not

FEATURES: Final = {
    "imageType": "image", "multiArrayType": "multi-array", "stringType": "text", "stringKeyType": "numbers by text",
    "int64KeyType": "numbers by whole number",
}  # fmt: skip


def metadata(path: Path) -> dict[str, object]:
    """See ``Reader.metadata``."""
    from coordatt_deploy.runtimes.coreml.evaluator.package import read_model

    model, _ = read_model(path)
    return dict(model.description.metadata.userDefined)


def graph(path: Path) -> FileGraph:
    """See ``Reader.graph``."""
    from coordatt_deploy.runtimes.coreml.evaluator.package import read_model

    model, _ = read_model(path)
    try:
        return _graph(model)
    except Exception as error:  # a message may lack whatever a graph needs
        what = f"{type(error).__name__}: {first_line(error)}"
        raise BundleError(f"{path.name} cannot be read as an ML Program: {what}") from error


def _graph(model: "proto.Model_pb2.Model") -> FileGraph:
    from coordatt_deploy.runtimes.coreml.evaluator.package import block_of, input_ports, output_names

    block = block_of(model)
    tensors: dict[str, Tensor] = {}
    nodes = []
    ports = input_ports(model)
    for port in ports:
        tensors[port.name] = Tensor(port.shape, port.dtype)
    for operation in block.operations:
        constant = operation.type == "const" or operation.type.startswith("constexpr_")
        for output in operation.outputs:
            shape, dtype = _declared(output.type.tensorType)
            tensors[output.name] = Tensor(shape, dtype, _constant_bytes(operation, shape, dtype) if constant else None)
        if constant:
            continue
        arguments = {
            key: tuple(item.name if item.name else f"{operation.outputs[0].name}/{key}" for item in value.arguments)
            for key, value in operation.inputs.items()
        }
        window = None
        if "kernel_sizes" in arguments:
            window = _numbers(operation, "kernel_sizes", block)
        order = [key for key in ("x", "y", "weight", "bias", "values", "data") if key in arguments]
        order += [key for key in arguments if key not in order]
        inputs = tuple(name for key in order for name in arguments[key])
        nodes.append(Node(operation.type, inputs, tuple(output.name for output in operation.outputs), window))
    return FileGraph(
        format=Format.COREML,
        nodes=tuple(nodes),
        tensors=tensors,
        inputs=tuple(spec_of(port.name, tensors) for port in ports),
        outputs=tuple(spec_of(name, tensors) for name in output_names(model)),
        flexible=any(port.choices or any(low != high for low, high in port.ranges) for port in ports),
    )


def _declared(tensor: "proto.MIL_pb2.TensorType") -> tuple[Shape, str]:
    from coordatt_deploy.runtimes.coreml.coremltools_import import mil_types

    shape = tuple(
        int(axis.constant.size) if axis.WhichOneof("dimension") == "constant" else None for axis in tensor.dimensions
    )
    builtin = mil_types.PROTO_TO_BUILTIN_TYPE.get(tensor.dataType)
    # the name of the class is "int" for integers of every width
    name = "unknown" if builtin is None else str(mil_types.builtin_to_string(builtin))
    return shape, name.replace("fp", "float")


def operators(path: Path) -> OperatorCount:
    """See ``Reader.operators``."""
    from coordatt_deploy.runtimes.coreml.evaluator.package import load

    return OperatorCount(most_frequent_first(step.operator for step in load(path).steps))


def _constant_bytes(operation: "proto.MIL_pb2.Operation", shape: Shape, dtype: str) -> int:
    """Bytes of a constant in the file; a compressed one has those of its parts."""
    if operation.type == "const":
        return _stored_bytes(shape, dtype)
    total = 0
    for value in operation.attributes.values():
        if value.WhichOneof("value") == "blobFileValue":
            inner, stored = _declared(value.type.tensorType)
            total += _stored_bytes(inner, stored)
    return total


def _stored_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of values beside each other: those of fewer than eight bits share them."""
    narrow = NARROW.fullmatch(dtype)
    try:
        bits = int(narrow[1]) if narrow else 8 * np.dtype(dtype).itemsize
    except TypeError:
        bits = 8
    return math.ceil(math.prod(size or 1 for size in shape) * bits / 8)


def _numbers(operation: "proto.MIL_pb2.Operation", key: str, block: "proto.MIL_pb2.Block") -> tuple[int, ...] | None:
    """The whole numbers of a constant argument."""
    argument = operation.inputs[key].arguments[0]
    value = argument.value
    if argument.name:
        made = {output.name: item for item in block.operations for output in item.outputs}
        source = made.get(argument.name)
        if source is None or "val" not in source.attributes:
            return None
        value = source.attributes["val"]
    return tuple(int(number) for number in value.immediateValue.tensor.ints.values) or None


def vocabulary() -> Vocabulary:
    """See ``Reader.vocabulary``."""
    return VOCABULARY


def delegates(path: Path, graph: FileGraph) -> tuple[Delegate, ...]:  # noqa: ARG001 - the graph says it all
    """See ``Reader.delegates``."""
    return (neural_engine(graph),)


def host_effect(path: Path, machine: Host) -> str | None:  # noqa: ARG001 - which machine it is, the runner knows
    """See ``Reader.host_effect``; what Core ML itself runs is what a device runs."""
    if find_spec("coremltools") is None:  # it is not run here either
        return None
    from coordatt_deploy.runtimes.coreml.evaluator.evidence import without
    from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS
    from coordatt_deploy.runtimes.coreml.evaluator.package import block_of, read_model
    from coordatt_deploy.runtimes.coreml.runner import core_ml_works

    if core_ml_works():
        return None
    try:
        model, _ = read_model(path)
    except BundleError:  # whoever opens it says so
        return None
    unproven = without(operation.type for operation in block_of(model).operations if operation.type in OPERATORS)
    if not unproven:
        return None
    return (
        f"evaluated by rules of which no independent evidence is known for {', '.join(unproven)}"
        " (docs/coreml-evaluator.md); a Mac would tell"
    )


def runtime_needs(path: Path) -> RuntimeNeeds:
    """See ``Reader.runtime_needs``."""
    from coordatt_deploy.runtimes.coreml.evaluator.package import read_model

    model, _ = read_model(path)
    return needs.runtime_needs(model.specificationVersion)


def about(path: Path) -> About:
    """See ``Reader.about``; what this project writes where the user said nothing is not theirs."""
    from coordatt_deploy.runtimes.coreml.evaluator.package import read_model

    model, _ = read_model(path)
    described = model.description.metadata
    values = dict(described.userDefined)
    if "producer" not in values:  # of another tool
        values = {"author": described.author, "license": described.license, "description": described.shortDescription}
    return About(*(values.get(name) or None for name in ("author", "license", "description")))


def app_interface(path: Path) -> AppInterface | None:
    """See ``Reader.app_interface``; Vision and the app meet the features that the package describes."""
    from coordatt_deploy.runtimes.coreml.evaluator.package import read_model

    model, _ = read_model(path)
    sides = [tuple(map(_app_value, side)) for side in (model.description.input, model.description.output)]
    if all(value.type == "multi-array" for side in sides for value in side):
        return None
    return AppInterface(*sides)


def _app_value(feature: "proto.Model_pb2.FeatureDescription") -> AppValue:
    kind = str(feature.type.WhichOneof("Type"))
    if kind == "dictionaryType":
        kind = str(feature.type.dictionaryType.WhichOneof("KeyType"))
    return AppValue(feature.name, FEATURES.get(kind, kind), feature.shortDescription)
