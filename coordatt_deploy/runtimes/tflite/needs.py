"""What a TFLite file needs: the runtime that knows the version of each of its operators.

A file says the version of each operator, and ai-edge-quantizer leaves what the float file said: a runtime that is too
old then opens the file and computes something else. So the version here is the one that the types of the tensors ask
for, or what the file says where that is higher.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from coordatt_deploy.runtime_versions import RuntimeNeeds, in_order

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema

# The first runtime that knows versions 1, 2, 3 … of each operator; the numbers are TensorFlow's, which LiteRT goes on
# counting. From TensorFlow's and LiteRT's runtime_version.cc (LiteRT f677454); "-" is a version that never was.
RUNTIMES: Final = {
    "ABS": "1.13 2.4 2.5 2.6 2.12",
    "ADD": "1.5 1.14 2.4 2.6 2.13 2.23",
    "ADD_N": "1.14",
    "ARG_MAX": "1.9 1.14 2.9",
    "ARG_MIN": "1.9 1.14 2.9",
    "ASSIGN_VARIABLE": "2.6",
    "ATAN2": "2.10",
    "AVERAGE_POOL_2D": "1.5 1.14 2.3",
    "BATCH_MATMUL": "2.3 2.3 2.4 2.5",
    "BATCH_TO_SPACE_ND": "1.6 1.14 2.3 2.12",
    "BIDIRECTIONAL_SEQUENCE_LSTM": "1.14 1.14 1.14",
    "BIDIRECTIONAL_SEQUENCE_RNN": "1.14 1.14 2.3",
    "BITCAST": "2.13",
    "BITWISE_XOR": "2.13",
    "BROADCAST_ARGS": "2.6",
    "BROADCAST_TO": "- 2.5 2.5 2.23",
    "BUCKETIZE": "2.8",
    "CALL_ONCE": "2.5",
    "CAST": "1.5 2.7 2.8 2.9 2.12 2.15 2.17 2.21 2.23",
    "CEIL": "1.14",
    "COMPLEX_ABS": "2.5",
    "CONCATENATION": "1.5 1.14 2.3 2.14 2.21 2.23 2.23",
    "CONV_2D": "1.5 1.14 1.14 2.3 2.4 2.9 2.11 2.15",
    "CONV_3D": "2.5",
    "CONV_3D_TRANSPOSE": "2.6",
    "COS": "1.14 2.23",
    "CUMSUM": "2.4",
    "DENSIFY": "2.2",
    "DEPTHWISE_CONV_2D": "1.5 1.12 1.14 2.2 2.3 2.3 2.11",
    "DEPTH_TO_SPACE": "2.1 2.5",
    "DEQUANTIZE": "1.13.1 1.14 1.15 2.2 2.7 2.18 2.21 2.22 2.23",
    "DILATE": "2.15",
    "DIV": "1.6 2.3",
    "DYNAMIC_UPDATE_SLICE": "2.9 2.17 2.19 2.20 2.21 2.22",
    "ELU": "1.14",
    "EMBEDDING_LOOKUP": "1.13 1.14 1.14 2.18 2.21",
    "EMBEDDING_LOOKUP_SPARSE": "1.5",
    "EQUAL": "1.14 1.14 2.3 2.13 2.21",
    "EXP": "1.7 2.12",
    "EXPAND_DIMS": "1.10",
    "FAKE_QUANT": "1.5 1.10",
    "FILL": "1.13 2.3 2.5 2.12 2.23",
    "FLOOR": "1.9",
    "FLOOR_DIV": "1.14 1.14 2.13",
    "FLOOR_MOD": "1.13 2.13",
    "FULLY_CONNECTED": "1.5 1.10 1.14 1.14 2.0 2.1 2.3 2.3 2.3 2.11 2.15 2.17 2.18 2.21",
    "GATHER": "1.6 1.14 1.15 2.4 2.5 2.13 2.15 2.23",
    "GATHER_ND": "1.14 2.3 2.5 2.13 2.16 2.23",
    "GELU": "2.9 2.9 2.23",
    "GREATER": "1.14 1.14",
    "GREATER_EQUAL": "1.14 1.14 2.13",
    "HARD_SWISH": "1.15",
    "HASHTABLE": "2.5",
    "HASHTABLE_FIND": "2.5",
    "HASHTABLE_IMPORT": "2.5",
    "HASHTABLE_LOOKUP": "1.5",
    "HASHTABLE_SIZE": "2.5",
    "IF": "1.15",
    "IMAG": "2.5",
    "L2_NORMALIZATION": "1.5 1.14",
    "L2_POOL_2D": "1.5",
    "LEAKY_RELU": "1.13.1 2.3",
    "LESS": "1.14 1.14 2.13",
    "LESS_EQUAL": "1.14 1.14",
    "LOCAL_RESPONSE_NORMALIZATION": "1.5",
    "LOG": "1.14 2.15",
    "LOGICAL_AND": "1.11",
    "LOGICAL_NOT": "1.11",
    "LOGICAL_OR": "1.11",
    "LOGISTIC": "1.14 1.14 2.3",
    "LOG_SOFTMAX": "1.14 1.14",
    "LSH_PROJECTION": "1.5",
    "LSTM": "1.7 1.10 1.14 2.3",
    "MATRIX_DIAG": "1.14",
    "MATRIX_SET_DIAG": "1.14",
    "MAXIMUM": "1.14 1.14 2.3 2.3",
    "MAX_POOL_2D": "1.5 1.14 2.3",
    "MEAN": "1.6 1.14 2.4",
    "MINIMUM": "1.14 1.14 2.3 2.3",
    "MIRROR_PAD": "1.13.1 2.3 2.12",
    "MUL": "1.5 1.14 1.15 2.3 2.6 2.11 2.13 2.23",
    "MULTINOMIAL": "2.8",
    "NEG": "1.9",
    "NON_MAX_SUPPRESSION_V4": "2.1",
    "NON_MAX_SUPPRESSION_V5": "2.1",
    "NOT_EQUAL": "1.14 1.14 2.3 2.21",
    "ONE_HOT": "1.11",
    "PACK": "1.11 1.14 2.3 2.13 2.23",
    "PAD": "1.5 1.14 2.4 2.6 2.20 2.23",
    "PADV2": "1.9 1.14 2.4 2.6 2.20 2.23",
    "POW": "1.10",
    "PRELU": "1.8",
    "QUANTIZE": "1.14 1.15 2.7 2.21 2.21 2.21",
    "RANDOM_STANDARD_NORMAL": "2.8",
    "RANDOM_UNIFORM": "2.8",
    "RANGE": "1.13 2.14",
    "RANK": "1.14",
    "READ_VARIABLE": "2.6",
    "REAL": "2.5",
    "REDUCE_ALL": "2.6",
    "REDUCE_ANY": "1.11",
    "REDUCE_MAX": "1.11 1.14 2.5",
    "REDUCE_MIN": "1.11 1.14 2.5",
    "REDUCE_PROD": "1.11 2.6",
    "REDUCE_WINDOW": "2.15",
    "RELU": "1.5 2.1 2.5",
    "RELU6": "1.5 1.14 2.5",
    "RELU_0_TO_1": "2.10",
    "RELU_N1_TO_1": "1.5",
    "RESHAPE": "1.5",
    "RESIZE_BILINEAR": "1.7 1.14 2.2 2.5",
    "RESIZE_NEAREST_NEIGHBOR": "1.13.1 1.14 2.3 2.4",
    "REVERSE_SEQUENCE": "1.14",
    "REVERSE_V2": "1.14 2.2 2.5 2.23",
    "RFFT2D": "2.5",
    "RIGHT_SHIFT": "2.13",
    "RNN": "1.5 1.14 2.3",
    "ROUND": "1.14",
    "RSQRT": "1.10 2.5 2.15",
    "SCATTER_ND": "2.1",
    "SEGMENT_SUM": "2.2",
    "SELECT": "1.14 1.14 2.12 2.12",
    "SELECT_V2": "2.2 2.12",
    "SHAPE": "1.10",
    "SIGN": "2.11 2.12",
    "SIN": "1.9 2.23",
    "SKIP_GRAM": "1.5",
    "SLICE": "1.14 1.14 1.14 2.4 2.5 2.14 2.21 2.23",
    "SOFTMAX": "1.5 1.14 2.3 2.23",
    "SPACE_TO_BATCH_ND": "1.6 1.14 2.3 2.12",
    "SPACE_TO_DEPTH": "1.5 1.14",
    "SPARSE_TO_DENSE": "1.9 1.14 1.15",
    "SPLIT": "1.5 1.14 1.14 2.3 2.23",
    "SPLIT_V": "1.13.1 2.3 2.23",
    "SQRT": "1.10 2.21",
    "SQUARE": "1.12",
    "SQUARED_DIFFERENCE": "1.13.1 2.5",
    "SQUEEZE": "1.6 2.5",
    "STABLEHLO_ADD": "2.16",
    "STABLEHLO_AND": "2.17",
    "STABLEHLO_CASE": "2.17",
    "STABLEHLO_CBRT": "2.17",
    "STABLEHLO_COMPOSITE": "2.17",
    "STABLEHLO_GATHER": "2.16",
    "STABLEHLO_MAXIMUM": "2.16",
    "STABLEHLO_MINIMUM": "2.16",
    "STABLEHLO_MULTIPLY": "2.16",
    "STABLEHLO_PAD": "2.16",
    "STABLEHLO_REDUCE_WINDOW": "2.16",
    "STABLEHLO_RNG_BIT_GENERATOR": "2.15",
    "STABLEHLO_SCATTER": "2.15",
    "STABLEHLO_SHIFT_LEFT": "2.17",
    "STRIDED_SLICE": "1.6 1.14 2.1 2.2 2.5 2.6 2.14 2.14",
    "SUB": "1.6 1.14 2.3 2.4 2.4",
    "SUM": "1.10 1.15",
    "SVDF": "1.5 1.14 2.2 2.3",
    "TANH": "1.14 1.14 2.3",
    "TILE": "1.10.1 2.2 2.8",
    "TOPK_V2": "1.7 1.14 2.13",
    "TRANSPOSE": "1.6 1.14 1.15 2.3 2.4 2.12 2.14.4 2.22 2.23",
    "TRANSPOSE_CONV": "1.9 2.2 2.3 2.13 2.15",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "1.13.1 1.14 2.3 2.12",
    "UNIDIRECTIONAL_SEQUENCE_RNN": "1.14 1.14 2.3",
    "UNIQUE": "1.14",
    "UNPACK": "1.11 1.14 2.2 2.3 2.22 2.23",
    "UNSORTED_SEGMENT_MAX": "2.10",
    "UNSORTED_SEGMENT_MIN": "2.11",
    "UNSORTED_SEGMENT_PROD": "2.10",
    "UNSORTED_SEGMENT_SUM": "2.10",
    "VAR_HANDLE": "2.6",
    "WHERE": "1.14 2.8",
    "WHILE": "1.15",
    "ZEROS_LIKE": "1.12",
}  # fmt: skip

# The version that an operator has because of the type of its first input; from op_version.cc beside that table.
OF_INT8: Final = dict.fromkeys((
    "ABS", "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "DEQUANTIZE", "EQUAL", "GATHER",
    "L2_NORMALIZATION", "LOGISTIC", "LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL",
    "PACK", "PAD", "PADV2", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR",
    "RSQRT", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "STRIDED_SLICE", "SUB", "TANH", "TRANSPOSE",
    "TRANSPOSE_CONV",
), 2) | {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "TILE": 3}  # fmt: skip
OF_INT16: Final = dict.fromkeys((
    "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "DEQUANTIZE", "LOGISTIC", "MAX_POOL_2D", "MEAN", "PACK",
    "PAD", "PADV2", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RSQRT", "SOFTMAX", "TANH", "TRANSPOSE_CONV",
), 3) | {
    "CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 7, "LEAKY_RELU": 2, "MAXIMUM": 4, "MINIMUM": 4, "MUL": 4,
    "RESIZE_BILINEAR": 4, "RESIZE_NEAREST_NEIGHBOR": 4, "SLICE": 4, "SPLIT": 4, "STRIDED_SLICE": 4, "SUB": 5,
    "TRANSPOSE": 4,
}  # fmt: skip
OF_FLOAT16: Final = {"DEQUANTIZE": 3}
# Float values, int8 weights: with one scale, and with one for each output channel.
HYBRID: Final = {"CONV_2D": (2, 5), "DEPTHWISE_CONV_2D": (4, 6), "FULLY_CONNECTED": (3, 12), "BATCH_MATMUL": (1, 4)}
OF_CHANNELS: Final = {"DEQUANTIZE": 5, "QUANTIZE": 3}
QUANTIZE_TO_INT16: Final = 2


def runtime_needs(model: "schema.ModelT") -> RuntimeNeeds:
    """Return what a file needs."""
    versions: dict[str, int] = {}
    where: dict[str, str] = {}  # what the first operator of that version makes
    for name, version, made in operator_versions(model):
        if version > versions.get(name, 0):
            versions[name], where[name] = version, made
    asked = {name: _first(name, version) for name, version in versions.items() if name in RUNTIMES}
    unknown = [f"{name} version {versions[name]}" for name, least in asked.items() if least is None]
    unknown += [name for name in versions if name not in RUNTIMES]
    operators = dict(sorted(versions.items()))
    schema_version = {"schema": int(model.version)}
    if unknown:
        return RuntimeNeeds({}, ", ".join(unknown), schema_version, operators)
    least = max((runtime for runtime in asked.values() if runtime), key=in_order, default="1.5")
    latest = [name for name, runtime in sorted(asked.items()) if runtime == least]
    because = ", ".join(f"{name} version {versions[name]} in {where[name]}" for name in latest)
    return RuntimeNeeds({"tflite": least}, because, schema_version, operators)


def operator_versions(model: "schema.ModelT") -> Iterator[tuple[str, int, str]]:
    """Yield each operator's name, the version that it needs by its types or says, and the name of what it makes."""
    for graph in model.subgraphs:
        for operation in graph.operators:
            code = model.operatorCodes[operation.opcodeIndex]
            name = _name(code)
            made = graph.tensors[operation.outputs[0]].name.decode() if len(operation.outputs) else "?"
            yield name, max(int(code.version), _of_types(name, graph, operation)), made


def say_versions(model: "schema.ModelT") -> None:
    """Let a model say the version of each operator that its types ask for, where it says an older one."""
    versions: dict[str, int] = {}
    for name, version, _ in operator_versions(model):
        versions[name] = max(version, versions.get(name, 1))
    for code in model.operatorCodes:
        code.version = versions.get(_name(code), int(code.version))


def _of_types(name: str, graph: "schema.SubGraphT", operation: "schema.OperatorT") -> int:
    from ai_edge_litert import schema_py_generated as schema

    types = schema.TensorType
    read = [graph.tensors[index] for index in _indices(operation.inputs)]
    made = [graph.tensors[index] for index in _indices(operation.outputs)]
    if not read or not made:
        return 1
    first = read[1] if name in {"SPLIT", "TRANSPOSE_CONV"} and len(read) > 1 else read[0]
    if name in HYBRID and len(read) > 1 and first.type == types.FLOAT32 and read[1].type == types.INT8:
        return HYBRID[name][_scales(read[1]) > 1]
    if name in OF_CHANNELS and max(_scales(first), _scales(made[0])) > 1:
        return OF_CHANNELS[name]
    if name == "QUANTIZE":
        return QUANTIZE_TO_INT16 if made[0].type == types.INT16 else 1
    table = {types.INT8: OF_INT8, types.INT16: OF_INT16, types.FLOAT16: OF_FLOAT16}.get(first.type, {})
    return table.get(name, 1)


def _scales(tensor: "schema.TensorT") -> int:
    grid = tensor.quantization
    return 0 if grid is None or grid.scale is None else len(grid.scale)


def _indices(indices: Sequence[int] | None) -> list[int]:
    return [] if indices is None else [int(index) for index in indices if index >= 0]


def _name(code: "schema.OperatorCodeT") -> str:
    from ai_edge_litert import schema_py_generated as schema

    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return str(next(name for name, value in vars(schema.BuiltinOperator).items() if value == number and name[0] != "_"))


def _first(name: str, version: int) -> str | None:
    """The first runtime that knows a version of an operator."""
    known = RUNTIMES[name].split()
    found = known[version - 1] if 0 < version <= len(known) else "-"
    return None if found == "-" else found
