"""Read an ``.mlpackage``: the manifest names the model file, the model file holds the program, weights lie beside it.

coremltools parses them (its MIL loader fills in defaults and infers every shape, which here checks each operator's
result); the arithmetic is this project's own. The package is never written to: coremltools' own package reader rewrites
the manifest of whatever it opens, so it is not used here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.documents import from_json, parse
from coordatt_deploy.errors import BundleError, DeployError, MissingDependencyError
from coordatt_deploy.runtimes.argument_checks import first_line
from coordatt_deploy.runtimes.bounded_memory import bounded_memory
from coordatt_deploy.runtimes.coreml.coremltools_import import load_mil, mil, mil_types, proto
from coordatt_deploy.runtimes.coreml.evaluator.float16 import widened
from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS
from coordatt_deploy.runtimes.coreml.evaluator.program import Port, Program, Step

LARGEST_VALUE: Final = 1 << 28  # numbers: 1 GiB in float32; an image of two megapixels with 64 channels has half of it
CLASSIFY: Final = "classify"  # turns the values of a classifier's output into names


class UnknownOperatorError(MissingDependencyError):
    """The evaluator has no such operator; Core ML itself has, and that is what is missing on this machine."""

    exit_code = 3


def load(path: Path) -> Program:
    """Parse the package at *path*.

    Raises:
        BundleError: It is missing, damaged, or holds no ML Program.
        UnknownOperatorError: It uses an operator that the evaluator does not have.
    """
    model, folder = read_model(path)
    _check_operators(model, path)
    try:
        with bounded_memory():
            parsed = load_mil(model, model.specificationVersion, str(folder / "weights"))
            return _program(parsed.functions[_main(model)], model)
    except DeployError:
        raise
    except Exception as error:  # coremltools raises whatever the numbers of the file lead it to
        what = f"{type(error).__name__}: {first_line(error)}"
        raise BundleError(f"{path.name}: coremltools cannot read the program ({what})") from error


@dataclass(frozen=True, slots=True)
class PackageItem:
    """One file of a package; ``path`` is relative to its ``Data`` folder."""

    path: str


@dataclass(frozen=True, slots=True)
class PackageManifest:
    """``Manifest.json`` of an ``.mlpackage``, as Apple names its keys."""

    rootModelIdentifier: str  # noqa: N815
    itemInfoEntries: Mapping[str, PackageItem]  # noqa: N815


def read_model(path: Path) -> tuple[proto.Model_pb2.Model, Path]:
    """Return the model's protobuf message and the folder that its weights are relative to.

    Raises:
        BundleError: The package is missing or damaged.
    """
    try:
        manifest = from_json(PackageManifest, parse((path / "Manifest.json").read_text(encoding="utf-8")))
        entry = PurePosixPath(manifest.itemInfoEntries[manifest.rootModelIdentifier].path)
        if entry.is_absolute() or ".." in entry.parts:
            raise BundleError(f"{path.name}: its manifest names a file outside the package ({entry})")
        file = path / "Data" / entry
        model = proto.Model_pb2.Model.FromString(file.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
        raise BundleError(f"{path.name} is not a readable .mlpackage ({type(error).__name__}: {error})") from None
    if model.WhichOneof("Type") != "mlProgram" or _main(model) not in model.mlProgram.functions:
        raise BundleError(f"{path.name} holds no ML Program with a function {_main(model)}")
    return model, file.parent


def _main(model: proto.Model_pb2.Model) -> str:
    return str(model.description.defaultFunctionName or "main")


def block_of(model: proto.Model_pb2.Model) -> proto.MIL_pb2.Block:
    """Return the block of operations that the model's default function runs."""
    function = model.mlProgram.functions[_main(model)]
    return function.block_specializations[function.opset]


def output_names(model: proto.Model_pb2.Model) -> tuple[str, ...]:
    """Return the names of the tensors that the model gives; of a classifier, what it takes its classes from."""
    block = block_of(model)
    for operation in block.operations:
        if operation.type == CLASSIFY:
            return (str(operation.inputs["probabilities"].arguments[0].name),)
    return tuple(block.outputs)


def inner_ports(model: proto.Model_pb2.Model) -> dict[str, Port]:
    """Return everything that the operations of the model give, by name."""
    operations = (operation for operation in block_of(model).operations if operation.type != CLASSIFY)
    return {value.name: _declared(value) for operation in operations for value in operation.outputs}


def input_ports(model: proto.Model_pb2.Model) -> tuple[Port, ...]:
    """Return what the program takes, with the sizes that its flexible axes may have.

    Images are (1, 3, H, W), grey ones (1, 1, H, W).
    """
    features = {feature.name: feature.type for feature in model.description.input}
    ports = []
    for value in model.mlProgram.functions[_main(model)].inputs:
        if features[value.name].WhichOneof("Type") == "imageType":
            ports.append(_image_port(value, features[value.name].imageType))
            continue
        array = features[value.name].multiArrayType
        ranges = tuple(
            (int(size.lowerBound), int(size.upperBound) if size.upperBound > 0 else None)
            for size in array.shapeRange.sizeRanges
        )
        choices = tuple(tuple(int(size) for size in shape.shape) for shape in array.enumeratedShapes.shapes)
        ports.append(replace(_declared(value), ranges=ranges, choices=choices))
    return tuple(ports)


def _image_port(value: proto.MIL_pb2.NamedValueType, image: proto.FeatureTypes_pb2.ImageFeatureType) -> Port:
    port = _declared(value)
    channels = 1 if image.colorSpace == image.GRAYSCALE else 3
    if image.WhichOneof("SizeFlexibility") == "enumeratedSizes":
        sizes = image.enumeratedSizes.sizes
        return replace(port, choices=tuple((1, channels, int(size.height), int(size.width)) for size in sizes))
    if image.WhichOneof("SizeFlexibility") != "imageSizeRange":
        return port
    axes = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
    sizes = ((int(axis.lowerBound), int(axis.upperBound) if axis.upperBound > 0 else None) for axis in axes)
    return replace(port, ranges=((1, 1), (channels, channels), *sizes))


def _declared(value: proto.MIL_pb2.NamedValueType) -> Port:
    tensor = value.type.tensorType
    shape = tuple(
        int(axis.constant.size) if axis.WhichOneof("dimension") == "constant" else None for axis in tensor.dimensions
    )
    return Port(value.name, _numpy_name(mil_types.PROTO_TO_BUILTIN_TYPE[tensor.dataType]), shape)


def _numpy_name(builtin: type) -> str:
    return str(np.dtype(mil_types.nptype_from_builtin(builtin)).name)


def _check_operators(model: proto.Model_pb2.Model, path: Path) -> None:
    """Name every operator that is missing, with the tensor it makes, before anything else is done."""
    missing: dict[str, str] = {}
    for operation in block_of(model).operations:
        if operation.type not in OPERATORS and operation.type not in ("const", CLASSIFY):
            missing.setdefault(operation.type, operation.outputs[0].name if operation.outputs else "no output")
    if missing:
        found = ", ".join(f"{operator} (first at {name})" for operator, name in missing.items())
        raise UnknownOperatorError(
            f"{path.name}: the ML Program evaluator does not have the operator {found};"
            " run this package on macOS, where Core ML itself executes it"
        )


def _program(function: mil.Function, model: proto.Model_pb2.Model) -> Program:
    """Turn coremltools' objects into plain data, and do at once whatever works on constants alone."""
    constants: dict[str, object] = {}
    steps: list[Step] = []
    quantized: dict[str, tuple[NumberArray, NumberArray, int | None]] = {}
    for operation in function.operations:
        if operation.op_type in ("const", CLASSIFY):
            continue  # constants are taken where they are used, and names of classes are no numbers
        step = _step(operation, constants)
        if step.operator == "quantize":
            quantized[step.outputs[0].name] = _grid(step, constants)
        if step.reads() <= constants.keys():
            with np.errstate(all="ignore"):
                constants.update(step.run(constants))
        else:
            steps.append(step)
    given = {var.name: var for operation in function.operations for var in operation.outputs} | function.inputs
    outputs = [given[name] for name in output_names(model)]
    for var in outputs:
        if var.op is not None and var.op.op_type == "const":
            constants[var.name] = widened(np.asarray(var.val))
    return Program(
        inputs=input_ports(model),
        outputs=tuple(_port(var) for var in outputs),
        steps=tuple(steps),
        constants=constants,
        quantized=quantized,
    )


def _step(operation: mil.Operation, constants: dict[str, object]) -> Step:
    arguments: dict[str, str | tuple[str, ...]] = {}
    for name, source in operation.inputs.items():
        if source is None:
            continue
        if isinstance(source, (list, tuple)):
            arguments[name] = tuple(
                _source(var, f"{operation.name}/{name}/{number}", constants) for number, var in enumerate(source)
            )
        else:
            arguments[name] = _source(source, f"{operation.name}/{name}", constants)
    if operation.op_type == "pow" and _is_two(operation.x):
        arguments = {"x": arguments["y"], "y": arguments["x"]}
    return Step(operation.op_type, arguments, tuple(_port(var) for var in operation.outputs))


def _is_two(base: mil.Var) -> bool:
    """Whether Core ML takes ``pow(2, y)`` for ``pow(y, 2)``: it does where the base is a constant of floats, all 2.

    apple/coremltools#2628 prints 0 for 2 to the power of 0; #2742 found the square behind it.
    """
    value = None if base.op is None or base.op.op_type != "const" else np.asarray(base.val)
    return value is not None and np.issubdtype(value.dtype, np.floating) and bool((value == 2).all())


def _source(var: mil.Var, place: str, constants: dict[str, object]) -> str:
    """Return the name of a value; a constant's is its place of use, for the loader's defaults share names."""
    if var.op is None or var.op.op_type != "const":
        return str(var.name)
    constants[place] = widened(var.val)
    return place


def _grid(step: Step, constants: Mapping[str, object]) -> tuple[NumberArray, NumberArray, int | None]:
    def constant(name: str) -> object:
        source = step.arguments.get(name)
        return constants[source] if isinstance(source, str) else None

    zero_point, axis = constant("zero_point"), constant("axis")
    return (
        np.asarray(constant("scale")),
        np.asarray(0 if zero_point is None else zero_point),
        None if axis is None else int(np.asarray(axis)),
    )


def _port(var: mil.Var) -> Port:
    shape = tuple(int(size) if isinstance(size, (int, np.integer)) else None for size in var.shape)
    if math.prod(size or 1 for size in shape) > LARGEST_VALUE:
        raise BundleError(f"the ML Program computes {var.name} of shape {shape}, more than {LARGEST_VALUE:,} numbers")
    return Port(var.name, _numpy_name(var.dtype), shape)
