"""What TFLite's operators mean."""

import math
from typing import Final

from coordatt_deploy.runtimes.file_graph import FileGraph, Node
from coordatt_deploy.runtimes.vocabulary import (
    Vocabulary,
    Work,
    elements,
    matrix_product,
    per_input,
    per_result,
    per_result_and_kernel,
    per_window,
    weight_shape,
)


def _depthwise(graph: FileGraph, node: Node) -> int:
    """Weight: (1, kH, kW, C)."""
    return elements(graph, node.outputs[0]) * math.prod(weight_shape(graph, node)[1:3])


def _transposed(graph: FileGraph, node: Node) -> int:
    """Inputs: output shape, weight (C_out, kH, kW, C_in), data."""
    return elements(graph, node.inputs[2]) * math.prod(graph.shape(node.inputs[1])[:3])


VOCABULARY: Final = Vocabulary(
    work={
        "CONV_2D": (Work.CONVOLUTION, per_result_and_kernel),
        "DEPTHWISE_CONV_2D": (Work.CONVOLUTION, _depthwise),
        "TRANSPOSE_CONV": (Work.CONVOLUTION, _transposed),
        "FULLY_CONNECTED": (Work.LINEAR, per_result_and_kernel),
        "BATCH_MATMUL": (Work.LINEAR, matrix_product),
        **dict.fromkeys(("MEAN", "SUM"), (Work.POOLING, per_input)),
        "AVERAGE_POOL_2D": (Work.POOLING, per_window),
        **dict.fromkeys(("ADD", "SUB", "MUL", "DIV"), (Work.ELEMENTWISE, per_result())),
        "HARD_SWISH": (Work.ELEMENTWISE, per_result(3)),
    },
    products=frozenset({"MUL"}),
    carriers=frozenset({
        "RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "BROADCAST_TO", "TILE", "RESIZE_NEAREST_NEIGHBOR",
        "QUANTIZE", "DEQUANTIZE",
    }),
    gates=frozenset({"LOGISTIC", "RELU6", "MUL", "DIV", "RELU_0_TO_1", "MINIMUM", "CONV_2D"}),
    maxima=frozenset({"REDUCE_MAX", "MAX_POOL_2D", "MAXIMUM"}),
    softmaxes=frozenset({"SOFTMAX"}),
    channel_axis=3,
    splits=frozenset({"SPLIT", "SPLIT_V"}),
    outer=frozenset({"BATCH_MATMUL"}),
)  # fmt: skip
