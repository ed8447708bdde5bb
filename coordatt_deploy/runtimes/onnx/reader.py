"""Read an ONNX file: its metadata and its graph.

Packages are imported by the functions that need them: metadata is read with ONNX Runtime alone, which boards have, and
graphs with onnx alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coordatt_deploy.artifact_specs import About, AppInterface
from coordatt_deploy.errors import BundleError
from coordatt_deploy.formats import Format
from coordatt_deploy.host import Host
from coordatt_deploy.runtime_versions import RuntimeNeeds
from coordatt_deploy.runtimes.argument_checks import first_line
from coordatt_deploy.runtimes.delegate import Delegate
from coordatt_deploy.runtimes.file_graph import FileGraph, Node, OperatorCount, Tensor, most_frequent_first, spec_of
from coordatt_deploy.runtimes.onnx import needs
from coordatt_deploy.runtimes.onnx.saturation import saturation_cause
from coordatt_deploy.runtimes.onnx.vocabulary import VOCABULARY
from coordatt_deploy.runtimes.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx


def metadata(path: Path) -> dict[str, object]:
    """See ``Reader.metadata``."""
    # ONNX Runtime is an extra: the words of the format are there without
    import onnxruntime

    from coordatt_deploy.runtimes.onnx.runner import LOG_ERRORS, start_session

    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_ERRORS
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = start_session(path, options)
    return dict(session.get_modelmeta().custom_metadata_map)


def graph(path: Path) -> FileGraph:
    """See ``Reader.graph``."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=False)
    except Exception as error:  # onnx's exceptions share no base but Exception
        raise BundleError(f"{path.name} cannot be read as ONNX: {first_line(error)}") from error
    if not model.graph.node:
        raise BundleError(f"{path.name} holds no ONNX graph")
    try:
        return _graph(model)
    except (LookupError, ValueError, TypeError) as error:  # a message may lack whatever a graph needs
        what = f"{type(error).__name__}: {first_line(error)}"
        raise BundleError(f"{path.name} cannot be read as ONNX: {what}") from error


def _graph(model: "onnx.ModelProto") -> FileGraph:
    import onnx

    tensors: dict[str, Tensor] = {}

    def name_of(data_type: int) -> str:
        try:
            return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).name)
        except KeyError:
            return str(onnx.TensorProto.DataType.Name(data_type)).lower()

    def add(name: str, tensor: "onnx.TensorProto") -> None:
        size = sum(len(getattr(tensor, field)) for field in ("float_data", "int32_data", "int64_data", "double_data"))
        held = len(tensor.raw_data) or size * np.dtype(np.float32).itemsize
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            held = next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), 0)
        tensors[name] = Tensor(tuple(tensor.dims), name_of(tensor.data_type), held)

    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        tensor = value.type.tensor_type
        known = tensor.HasField("shape")
        shape = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim)
        tensors[value.name] = Tensor(shape if known else None, name_of(tensor.elem_type))
    for initializer in model.graph.initializer:
        add(initializer.name, initializer)
    nodes = []
    for node in model.graph.node:
        attributes = {item.name: item for item in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            add(node.output[0], attributes["value"].t)
            continue
        window = tuple(attributes["kernel_shape"].ints) if "kernel_shape" in attributes else None
        nodes.append(Node(node.op_type, tuple(node.input), tuple(node.output), window))
    nodes = _reading_stored_weights(nodes, tensors)
    weights = {initializer.name for initializer in model.graph.initializer}
    turned = _with_channels_last(model)
    inputs = tuple(
        spec_of(value.name, tensors, "NHWC" if value.name in turned else "NCHW")
        for value in model.graph.input
        if value.name not in weights
    )
    return FileGraph(
        format=Format.ONNX,
        nodes=tuple(nodes),
        tensors=tensors,
        inputs=inputs,
        outputs=tuple(spec_of(value.name, tensors) for value in model.graph.output),
        flexible=any(None in spec.shape for spec in inputs),
    )


def _with_channels_last(model: "onnx.ModelProto") -> set[str]:
    """Names of what only a Transpose reads that brings the channels before height and width."""
    readers: dict[str, list[bool]] = {}
    for node in model.graph.node:
        turns = node.op_type == "Transpose" and [*node.attribute[0].ints] == [0, 3, 1, 2] if node.attribute else False
        for name in node.input:
            readers.setdefault(name, []).append(turns)
    return {name for name, turns in readers.items() if all(turns)}


def _reading_stored_weights(nodes: list[Node], tensors: Mapping[str, Tensor]) -> list[Node]:
    """Let operators read the integers that are stored instead of a DequantizeLinear, to which the grid is left.

    Only so a convolution of integers has a weight, and a layer its bytes.
    """
    stored = {
        node.outputs[0]: node.inputs
        for node in nodes
        if node.operator == "DequantizeLinear" and all(name in tensors and tensors[name].bytes is not None
                                                       for name in node.inputs)
    }  # fmt: skip
    return [
        replace(node, inputs=node.inputs[1:])
        if node.outputs and node.outputs[0] in stored
        else replace(node, inputs=tuple(stored.get(name, (name,))[0] for name in node.inputs))
        for node in nodes
    ]


def operators(path: Path) -> OperatorCount:
    """See ``Reader.operators``."""
    return OperatorCount(most_frequent_first(node.op_type for node in _loaded(path).graph.node))


def runtime_needs(path: Path) -> RuntimeNeeds:
    """See ``Reader.runtime_needs``."""
    model = _loaded(path)
    return needs.runtime_needs(model.ir_version, [(item.domain, item.version) for item in model.opset_import])


def about(path: Path) -> About:
    """See ``Reader.about``."""
    model = _loaded(path)
    values = {item.key: item.value for item in model.metadata_props}
    description = values.get("description") or model.doc_string
    return About(values.get("author") or None, values.get("license") or None, description or None)


def _loaded(path: Path) -> "onnx.ModelProto":
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(path, load_external_data=False)
    except (OSError, ValueError, DecodeError) as error:
        raise BundleError(f"{path.name} cannot be read as ONNX: {error}; build the bundle again") from error


def vocabulary() -> Vocabulary:
    """See ``Reader.vocabulary``."""
    return VOCABULARY


def delegates(path: Path, graph: FileGraph) -> tuple[Delegate, ...]:  # noqa: ARG001 - ONNX Runtime's are other builds
    """See ``Reader.delegates``."""
    return ()


def host_effect(path: Path, machine: Host) -> str | None:
    """See ``Reader.host_effect``."""
    return saturation_cause(path, machine)


def app_interface(path: Path) -> AppInterface | None:  # noqa: ARG001 - an app meets the tensors
    """See ``Reader.app_interface``."""
    return None
