"""Multiply-accumulates and parameters of a file, counted on its graph."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from coordatt_deploy.runtimes.file_graph import FileGraph, Node

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
