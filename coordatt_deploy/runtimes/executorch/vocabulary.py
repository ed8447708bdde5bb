"""What the operators of an ExecuTorch file mean: XNNPACK's, and the kernels that stand between its pieces."""

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
    """Weight: (C_out, kH, kW, C_in)."""
    return elements(graph, node.inputs[0]) * math.prod(weight_shape(graph, node)[:3])


VOCABULARY: Final = Vocabulary(
    work={
        "XNNConv2d": (Work.CONVOLUTION, per_result_and_kernel),
        "XNNDepthwiseConv2d": (Work.CONVOLUTION, _depthwise),
        "XNNConvTranspose2d": (Work.CONVOLUTION, _transposed),
        "aten::convolution.out": (Work.CONVOLUTION, per_result_and_kernel),
        "XNNFullyConnected": (Work.LINEAR, per_result_and_kernel),
        **dict.fromkeys(("XNNBatchMatrixMultiply", "aten::bmm.out", "aten::mm.out"), (Work.LINEAR, matrix_product)),
        **dict.fromkeys(
            ("XNNGlobalAvgPooling2d", "aten::mean.out", "aten::sum.IntList_out"), (Work.POOLING, per_input)
        ),
        "XNNAvgPooling2d": (Work.POOLING, per_window),
        **dict.fromkeys(
            ("XNNAdd", "XNNSubtract", "XNNMultiply", "XNNDiv", "aten::add.out", "aten::sub.out", "aten::mul.out",
             "aten::div.out"),
            (Work.ELEMENTWISE, per_result()),
        ),
        "XNNHardswish": (Work.ELEMENTWISE, per_result(3)),
    },
    products=frozenset({"XNNMultiply", "aten::mul.out"}),
    carriers=frozenset({
        "XNNStaticReshape", "XNNStaticTranspose", "XNNConvert", "XNNCopy", "executorch_prim::et_view.default",
        "aten::view_copy.out", "aten::expand_copy.out", "aten::permute_copy.out", "aten::unsqueeze_copy.out",
        "aten::squeeze_copy.dims_out",
    }),
    gates=frozenset({
        "XNNSigmoid", "XNNClamp", "XNNMultiply", "XNNDiv", "XNNMinimum", "XNNConv2d", "aten::sigmoid.out",
    }),
    maxima=frozenset({"XNNMaxPooling2d", "XNNMaximum", "aten::amax.out", "aten::max.unary_out"}),
    softmaxes=frozenset({"XNNSoftmax", "aten::_softmax.out"}),
    channel_axis=3,
    splits=frozenset({"XNNStaticSlice", "aten::split_with_sizes_copy.out"}),
    outer=frozenset({"XNNBatchMatrixMultiply"}),
    grids=frozenset({"XNNConvert"}),
)  # fmt: skip
