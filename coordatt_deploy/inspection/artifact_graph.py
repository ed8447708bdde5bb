"""Read an ONNX, TFLite or Core ML file as one kind of graph: operators, tensors, weights. Nothing in it is executed.

The three formats name operators differently and lay weights out differently; ``works`` knows both, so parameters,
multiply-accumulates and attention blocks are read off any of them by the same rules as off a captured graph
(``counting``). Each reader needs its own format's package and no other.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from coordatt_deploy.errors import BundleError, MissingDependencyError, UsageError
from coordatt_deploy.specs import Format, TensorSpec

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of a file.

    Attributes:
        operator: As the format names it: ``Conv``, ``CONV_2D``, ``conv``.
        inputs: Names of the tensors it takes, weights included; empty strings for those left out.
        outputs: Names of the tensors it gives.
        window: Kernel size of a pool; None otherwise.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    window: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        shape: None for a dynamic axis; None as a whole where the file does not say.
        dtype: NumPy's name, or the format's own for what NumPy has not (``int4``).
        bytes: Of its data in the file; None for what is computed.
    """

    shape: Shape | None
    dtype: str
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class FileGraph:
    """What a file holds.

    Attributes:
        format: Of the file.
        nodes: In execution order; constants are tensors, not nodes.
        tensors: By name.
        inputs: What the file takes.
        outputs: What it gives.
        flexible: Whether an input may have several sizes.
    """

    format: Format
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    flexible: bool = False

    def operators(self) -> dict[str, int]:
        """How many of each operator, most frequent first."""
        counts = Counter(node.operator for node in self.nodes)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def is_weight(self, name: str) -> bool:
        """Whether the tensor's data lie in the file."""
        tensor = self.tensors.get(name)
        return tensor is not None and tensor.bytes is not None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, a dynamic axis taken as 1; empty where it is not known."""
        tensor = self.tensors.get(name)
        return () if tensor is None or tensor.shape is None else tuple(size or 1 for size in tensor.shape)


def format_of(path: Path) -> Format | None:
    """Return the format of the artifact at *path*, by its suffix; None for what is no artifact."""
    return {".onnx": Format.ONNX, ".tflite": Format.TFLITE, ".mlpackage": Format.COREML}.get(path.suffix)


def read_artifact(path: Path) -> FileGraph:
    """Read the artifact at *path*.

    Raises:
        UsageError: It is missing, or of no known format.
        BundleError: It is damaged.
        MissingDependencyError: The package that reads the format is not installed.
    """
    kind = format_of(path)
    if kind is None:
        raise UsageError(f"{path.name} is no artifact; expected a file that ends in .onnx, .tflite or .mlpackage")
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    try:
        return {Format.ONNX: _read_onnx, Format.TFLITE: _read_tflite, Format.COREML: _read_coreml}[kind](path)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"reading {kind} files needs {error.name}, which is not installed;"
            f" run: pip install 'coordatt-deploy[{kind}]'"
        ) from error


def _read_onnx(path: Path) -> FileGraph:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=False)
    except (OSError, ValueError, DecodeError, RuntimeError) as error:
        raise BundleError(f"{path.name} cannot be read as ONNX: {error}") from error
    if not model.graph.node:
        raise BundleError(f"{path.name} holds no ONNX graph")
    tensors: dict[str, Tensor] = {}

    def name_of(kind: int) -> str:
        try:
            return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name)
        except KeyError:
            return str(onnx.TensorProto.DataType.Name(kind)).lower()

    def add(name: str, tensor: Any) -> None:
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
    weights = {initializer.name for initializer in model.graph.initializer}
    inputs = tuple(_spec(value.name, tensors) for value in model.graph.input if value.name not in weights)
    return FileGraph(
        format=Format.ONNX,
        nodes=tuple(nodes),
        tensors=tensors,
        inputs=inputs,
        outputs=tuple(_spec(value.name, tensors) for value in model.graph.output),
        flexible=any(None in spec.shape for spec in inputs),
    )


def _spec(name: str, tensors: Mapping[str, Tensor], layout: str = "NCHW") -> TensorSpec:
    tensor = tensors[name]
    shape = tensor.shape or ()
    return TensorSpec(name, shape, tensor.dtype, layout[: len(shape)] if len(shape) == 4 else "NC"[: len(shape)])


def _read_tflite(path: Path) -> FileGraph:
    import flatbuffers  # noqa: F401 - the schema needs it, and its absence should name it
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise BundleError(f"{path.name} is no TFLite file: it has no TFL3 mark")
    try:
        model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        graph = model.subgraphs[0]
        codes = [_operator_name(schema, code) for code in model.operatorCodes]
    except Exception as error:  # a damaged FlatBuffer makes the generated reader raise many kinds
        raise BundleError(f"{path.name} cannot be read as TFLite: {error}") from error
    dtypes = {number: name for name, number in vars(schema.TensorType).items() if not name.startswith("_")}
    names = [tensor.name.decode() for tensor in graph.tensors]
    tensors = {}
    for name, tensor in zip(names, graph.tensors, strict=True):
        signature = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
        shape = tuple(int(size) if size >= 0 else None for size in (signature if signature is not None else ()))
        data = model.buffers[tensor.buffer].data
        held = None if data is None or len(data) == 0 else len(data)
        tensors[name] = Tensor(shape, dtypes[tensor.type].lower(), held)
    nodes = []
    for operator in graph.operators:
        options = operator.builtinOptions
        window = (options.filterHeight, options.filterWidth) if hasattr(options, "filterHeight") else None
        nodes.append(
            Node(
                codes[operator.opcodeIndex],
                tuple(names[index] if index >= 0 else "" for index in operator.inputs),
                tuple(names[index] for index in operator.outputs),
                window,
            )
        )
    inputs = tuple(_spec(names[index], tensors, "NHWC") for index in graph.inputs)
    return FileGraph(
        format=Format.TFLITE,
        nodes=tuple(nodes),
        tensors=tensors,
        inputs=inputs,
        outputs=tuple(_spec(names[index], tensors, "NHWC") for index in graph.outputs),
        flexible=any(None in spec.shape for spec in inputs),
    )


def _operator_name(schema: Any, code: Any) -> str:
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = next(key for key, value in vars(schema.BuiltinOperator).items() if value == number)
    return f"CUSTOM {code.customCode.decode()}" if name == "CUSTOM" and code.customCode else name


def _read_coreml(path: Path) -> FileGraph:
    from coordatt_deploy.runtimes.mlprogram import block_of, input_ports, output_names, read_model

    model, _ = read_model(path)
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
        inputs=tuple(_spec(port.name, tensors) for port in ports),
        outputs=tuple(_spec(name, tensors) for name in output_names(model)),
        flexible=any(port.choices or any(low != high for low, high in port.ranges) for port in ports),
    )


def _declared(tensor: Any) -> tuple[Shape, str]:
    from coordatt_deploy.coremltools_quietly import mil_types

    shape = tuple(
        int(axis.constant.size) if axis.WhichOneof("dimension") == "constant" else None for axis in tensor.dimensions
    )
    kind = mil_types.PROTO_TO_BUILTIN_TYPE.get(tensor.dataType)
    return shape, str(getattr(kind, "__name__", "unknown")).replace("fp", "float")


def _constant_bytes(operation: Any, shape: Shape, dtype: str) -> int:
    """Bytes of a constant in the file; a compressed one has those of its parts."""
    if operation.type == "const":
        return math.prod(size or 1 for size in shape) * _item_bytes(dtype)
    total = 0
    for value in operation.attributes.values():
        if value.WhichOneof("value") == "blobFileValue":
            inner, kind = _declared(value.type.tensorType)
            total += math.prod(size or 1 for size in inner) * _item_bytes(kind)
    return total


def _item_bytes(dtype: str) -> int:
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        return 1


def _numbers(operation: Any, key: str, block: Any) -> tuple[int, ...] | None:
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


# What each format calls the operators that multiply and add; the function gives the multiply-accumulates.
Rule = Callable[[FileGraph, Node], int]


def _elements(graph: FileGraph, name: str) -> int:
    return math.prod(graph.shape(name))


def _weight_of(graph: FileGraph, node: Node) -> tuple[int, ...]:
    """The shape of the weight of a convolution or linear operator: its first constant of two axes or more."""
    shapes = (graph.shape(name) for name in node.inputs if len(graph.shape(name)) >= 2 and graph.is_weight(name))
    return next(shapes, ())


def _per_result(times: int = 1) -> Rule:
    return lambda graph, node: _elements(graph, node.outputs[0]) * times


def _read(graph: FileGraph, node: Node) -> int:
    return _elements(graph, node.inputs[0])


def _window(graph: FileGraph, node: Node) -> int:
    return _elements(graph, node.outputs[0]) * math.prod(node.window or (1,))


def _per_result_and_kernel(graph: FileGraph, node: Node) -> int:
    """Weight: (C_out, everything that one result sums up)."""
    return _elements(graph, node.outputs[0]) * math.prod(_weight_of(graph, node)[1:])


def _per_input_and_kernel(graph: FileGraph, node: Node) -> int:
    """Transposed convolution, weight (C_in, C_out / groups, kH, kW)."""
    return _elements(graph, node.inputs[0]) * math.prod(_weight_of(graph, node)[1:])


def _tflite_depthwise(graph: FileGraph, node: Node) -> int:
    """Weight: (1, kH, kW, C)."""
    return _elements(graph, node.outputs[0]) * math.prod(_weight_of(graph, node)[1:3])


def _tflite_transposed(graph: FileGraph, node: Node) -> int:
    """Inputs: output shape, weight (C_out, kH, kW, C_in), data."""
    return _elements(graph, node.inputs[2]) * math.prod(graph.shape(node.inputs[1])[:3])


def _matrix_product(graph: FileGraph, node: Node) -> int:
    inner = graph.shape(node.inputs[0])
    return _elements(graph, node.outputs[0]) * (inner[-1] if inner else 1)


_SUMS: Final = ("Add", "Sub", "Mul", "Div", "ADD", "SUB", "MUL", "DIV", "add", "sub", "mul", "real_div", "silu", "Pow")
WORK: Final[Mapping[str, tuple[str, Rule]]] = {
    **dict.fromkeys(("Conv", "CONV_2D", "conv", "QLinearConv", "ConvInteger"), ("convolution", _per_result_and_kernel)),
    **dict.fromkeys(("ConvTranspose", "conv_transpose"), ("convolution", _per_input_and_kernel)),
    "DEPTHWISE_CONV_2D": ("convolution", _tflite_depthwise),
    "TRANSPOSE_CONV": ("convolution", _tflite_transposed),
    **dict.fromkeys(("FULLY_CONNECTED", "linear"), ("linear", _per_result_and_kernel)),
    **dict.fromkeys(("Gemm", "MatMul", "BATCH_MATMUL", "matmul", "QLinearMatMul", "MatMulInteger"),
                    ("linear", _matrix_product)),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "GlobalAveragePool", "MEAN", "SUM", "reduce_mean", "reduce_sum"),
                    ("pooling", _read)),
    **dict.fromkeys(("AveragePool", "AVERAGE_POOL_2D", "avg_pool"), ("pooling", _window)),
    **dict.fromkeys(_SUMS, ("elementwise", _per_result())),
    **dict.fromkeys(("HardSigmoid", "sigmoid_hard"), ("elementwise", _per_result(2))),
    **dict.fromkeys(("HardSwish", "HARD_SWISH"), ("elementwise", _per_result(3))),
}  # fmt: skip


def macs(graph: FileGraph) -> dict[str, int]:
    """Multiply-accumulates of one inference by what they are spent on; a dynamic axis counts as 1."""
    spent: Counter[str] = Counter()
    for node in graph.nodes:
        if node.operator in WORK:
            work, rule = WORK[node.operator]
            spent[work] += rule(graph, node)
    return {work: spent[work] for work in ("convolution", "linear", "pooling", "elementwise")}


def parameters(graph: FileGraph) -> int:
    """Elements of all weights: constants of floating or quantized type that operators compute with."""
    used = {name for node in graph.nodes for name in node.inputs if graph.is_weight(name)}
    kinds = ("float", "int8", "uint8", "int4", "bfloat")
    return sum(
        _elements(graph, name) for name in used if graph.tensors[name].dtype.startswith(kinds) or _is_bias(graph, name)
    )


def _is_bias(graph: FileGraph, name: str) -> bool:
    """int32 vectors beside a quantized weight."""
    if graph.tensors[name].dtype != "int32":
        return False
    users = [node for node in graph.nodes if name in node.inputs]
    return any(node.operator in WORK and WORK[node.operator][0] in ("convolution", "linear") for node in users)
