"""Evaluate a saved Core ML ML Program anywhere, operator by operator, with NumPy.

Only the ``.mlpackage`` is read: the manifest names the model file, the model file holds the program, and the weights
lie beside it. coremltools parses them (its MIL loader fills in defaults and infers every shape, which here checks each
operator's result); the arithmetic is this project's own.

fp32 programs compute in float32. fp16 programs *store* fp16: each operator computes in float32 (so sums accumulate in
float32), and its result is rounded to fp16, where what is too large becomes infinite. Between operators such values
stay in float32 arrays, rounded (``float16``); only what is asked for becomes float16. The package is never written to:
coremltools' own package reader rewrites the manifest of whatever it opens, so it is not used here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.documents import from_json, parse
from coordatt_deploy.errors import BundleError, DeployError, InferenceError
from coordatt_deploy.runtimes.coreml.coremltools_import import load_mil, mil, mil_types, proto
from coordatt_deploy.runtimes.coreml.evaluator.float16 import pack_float16, round_to_float16
from coordatt_deploy.runtimes.coreml.evaluator.operators import MOVES, OPERATORS
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError

Array = NumberArray

CLASSIFY: Final = "classify"  # turns the values of a classifier's output into names

PLANS_KEPT: Final = 1024  # one for each layer of a network that is cut apart


class UnknownOperatorError(DeployError):
    """The evaluator has no such operator; Core ML itself has, and that is what is missing on this machine."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the program.

    Attributes:
        name: As in the package.
        dtype: NumPy's name.
        shape: None for a flexible axis.
        ranges: Smallest and largest size of each axis (None: no upper limit); empty where the shape is fixed.
        choices: The only shapes that are allowed, where the package enumerates them.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    ranges: tuple[tuple[int, int | None], ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()

    def refuses(self, shape: Sequence[int]) -> str | None:
        """Why an array of *shape* is not accepted; None if it is."""
        if shape == self.shape and not self.choices and not self.ranges:  # asked for every result of every operator
            return None
        wanted = " × ".join("?" if size is None else str(size) for size in self.shape)
        given = " × ".join(map(str, shape)) or "a scalar"
        if len(shape) != len(self.shape) or any(
            want not in (None, have) for want, have in zip(self.shape, shape, strict=True)
        ):
            return f"{self.name} is {given}, the package takes {wanted}"
        if self.choices and tuple(shape) not in self.choices:
            return f"{self.name} is {given}, the package takes one of {', '.join(map(str, self.choices))}"
        for axis, (size, (low, high)) in enumerate(zip(shape, self.ranges or [(1, None)] * len(shape), strict=True)):
            if size < low or (high is not None and size > high):
                return f"{self.name} is {given}, axis {axis} of the package takes {low} to {high or 'any size'}"
        return None


@dataclass(frozen=True, slots=True)
class Step:
    """One operator of the program.

    Attributes:
        operator: Its type, a key of ``OPERATORS``.
        arguments: Name of the value that each argument takes, or several for a list.
        outputs: Name, dtype and shape of each result.
    """

    operator: str
    arguments: Mapping[str, str | tuple[str, ...]]
    outputs: tuple[Port, ...]

    def reads(self) -> set[str]:
        """Names of the values that this step takes."""
        names: set[str] = set()
        for source in self.arguments.values():
            names.update((source,) if isinstance(source, str) else source)
        return names

    def run(self, values: Mapping[str, object]) -> dict[str, Array]:
        """Compute the results, rounded to the declared types; what is declared float16 comes as float32."""
        arguments = {
            name: _widened(values[source]) if isinstance(source, str) else [_widened(values[item]) for item in source]
            for name, source in self.arguments.items()
        }
        leading = [arguments.pop(name) for name in ("x", "y") if name in arguments]
        try:
            given = OPERATORS[self.operator](*leading, **arguments)
        except UnsupportedFormError as error:
            raise UnsupportedFormError(
                f"operator {self.operator} at {self.outputs[0].name}: {error}; it can be run on macOS only"
            ) from None
        results = given if isinstance(given, tuple) else (given,)
        return {port.name: _stored(result, port, self) for port, result in zip(self.outputs, results, strict=True)}


def _results(step: Step, values: Mapping[str, object]) -> dict[str, Array]:
    try:
        return step.run(values)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        what = f"operator {step.operator} at {step.outputs[0].name}"
        raise InferenceError(f"the ML Program cannot be run: {what}: {error}") from error


def _widened(value: object) -> object:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype == np.float16:
        return value.astype(np.float32)
    return value


def _stored(result: object, port: Port, step: Step) -> Array:
    array = np.asarray(result)
    if port.dtype != "float16" or array.dtype != np.float32:
        array = np.asarray(_widened(array.astype(port.dtype, copy=False)))
    elif step.operator not in MOVES:  # those hand on what is rounded already
        array = round_to_float16(array)
    if port.refuses(array.shape):
        raise RuntimeError(f"{step.operator} gave {array.shape} for {port.name}, the program declares {port.shape}")
    return array


# Steps in execution order, each with the values that nobody reads after it.
Plan = list[tuple[Step, list[str]]]


@dataclass(frozen=True)
class Program:
    """A parsed ML Program, ready to be evaluated any number of times.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
        steps: The operators in execution order; those that only work on constants are already done.
        constants: Every constant by name, weights decompressed.
        quantized: For tensors on an integer grid: scale, zero point and axis by name.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, object]
    quantized: Mapping[str, tuple[Array, Array, int | None]]
    _plan: Callable[[frozenset[str], tuple[str, ...]], Plan] = field(init=False, repr=False, compare=False)
    _halves: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        made = (port for step in self.steps for port in step.outputs)
        object.__setattr__(self, "_halves", frozenset(port.name for port in made if port.dtype == "float16"))
        object.__setattr__(self, "_plan", lru_cache(PLANS_KEPT)(self._make_plan))

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors that can be asked for or fed."""
        inner = (port.name for step in self.steps for port in step.outputs)
        return frozenset([*inner, *self.constants, *(port.name for port in self.inputs)])

    def evaluate(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Compute the values *wanted* from *feeds*, and nothing that they do not need.

        Args:
            feeds: Arrays by name. An inner tensor may be fed as well; what lies before it is then not computed, which
                cuts a piece out of the program.
            wanted: Names of outputs or inner tensors.

        Returns:
            New arrays in the program's own types.

        Raises:
            KeyError: A name is not in the program, or a value that is needed was not fed.
            UnsupportedFormError: An operator in a form that the evaluator does not have.
            InferenceError: An operator refuses what it gets, or makes another shape of it than the program declares.
        """
        values = {**self.constants, **feeds}
        # infinities and NaN are results here, to be seen by whoever judges them
        with np.errstate(all="ignore"):
            for step, dead in self._plan(frozenset(feeds), tuple(wanted)):
                for name, value in _results(step, values).items():
                    values.setdefault(name, value)  # one result of a split may have been fed, another not
                for name in dead:
                    del values[name]
        return {name: self._given(name, values[name]) for name in wanted}

    def _given(self, name: str, value: object) -> Array:
        """A new array, in the type that the program declares."""
        array = np.array(value)
        return pack_float16(array) if name in self._halves and array.dtype == np.float32 else array

    def dequantized(self, name: str, value: Array) -> Array:
        """Return the floats that *value*, evaluated for tensor *name*, stands for."""
        if name not in self.quantized:
            return value
        scale, zero_point, axis = self.quantized[name]
        return np.asarray(OPERATORS["dequantize"](value, scale=scale, zero_point=zero_point, axis=axis))

    def _make_plan(self, fed: frozenset[str], wanted: tuple[str, ...]) -> Plan:
        """The steps that are needed, each with the values that nobody reads after it."""
        available = fed | self.constants.keys()
        needed = set(wanted) - available
        chosen: list[Step] = []
        for step in reversed(self.steps):
            if any(port.name in needed for port in step.outputs):
                needed -= {port.name for port in step.outputs}
                needed |= step.reads() - available
                chosen.append(step)
        if needed:
            known = self.names
            raise KeyError(
                "; ".join(
                    f"{name} was not fed" if name in known else f"{name} is not in the program"
                    for name in sorted(needed)
                )
            )
        kept = {*wanted, *self.constants, *fed}
        plan: Plan = []
        for step in chosen:  # from the last to the first: the first reader seen is the last to run
            made = {port.name for port in step.outputs}
            dead = [name for name in sorted(step.reads() | made) if name not in kept]
            kept.update(dead)
            plan.append((step, dead))
        return plan[::-1]


def load(path: Path) -> Program:
    """Parse the package at *path*.

    Raises:
        BundleError: It is missing, damaged, or holds no ML Program.
        UnknownOperatorError: It uses an operator that the evaluator does not have.
    """
    model, folder = read_model(path)
    _check_operators(model, path)
    try:
        parsed = load_mil(model, model.specificationVersion, str(folder / "weights"))
    except (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        what = f"{type(error).__name__}: {error}"
        raise BundleError(f"{path.name}: coremltools cannot read the program ({what})") from error
    return _program(parsed.functions[_main(model)], model)


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
    """Return what the program takes, with the sizes that its flexible axes may have; images as (1, 3, H, W)."""
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
    if image.WhichOneof("SizeFlexibility") == "enumeratedSizes":
        sizes = image.enumeratedSizes.sizes
        return replace(port, choices=tuple((1, 3, int(size.height), int(size.width)) for size in sizes))
    if image.WhichOneof("SizeFlexibility") != "imageSizeRange":
        return port
    axes = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
    sizes = ((int(axis.lowerBound), int(axis.upperBound) if axis.upperBound > 0 else None) for axis in axes)
    return replace(port, ranges=((1, 1), (3, 3), *sizes))


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
    quantized: dict[str, tuple[Array, Array, int | None]] = {}
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
            constants[var.name] = _widened(np.asarray(var.val))
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
    return Step(operation.op_type, arguments, tuple(_port(var) for var in operation.outputs))


def _source(var: mil.Var, place: str, constants: dict[str, object]) -> str:
    """Return the name of a value; a constant's is its place of use, for the loader's defaults share names."""
    if var.op is None or var.op.op_type != "const":
        return str(var.name)
    constants[place] = _widened(var.val)
    return place


def _grid(step: Step, constants: Mapping[str, object]) -> tuple[Array, Array, int | None]:
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
    return Port(var.name, _numpy_name(var.dtype), shape)
