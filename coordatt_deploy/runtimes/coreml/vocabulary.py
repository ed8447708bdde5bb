"""What the operators of an ML Program mean."""

from typing import Final

from coordatt_deploy.runtimes.vocabulary import (
    Vocabulary,
    Work,
    matrix_product,
    per_input,
    per_input_and_kernel,
    per_result,
    per_result_and_kernel,
    per_window,
)

VOCABULARY: Final = Vocabulary(
    work={
        "conv": (Work.CONVOLUTION, per_result_and_kernel),
        "conv_transpose": (Work.CONVOLUTION, per_input_and_kernel),
        "linear": (Work.LINEAR, per_result_and_kernel),
        "matmul": (Work.LINEAR, matrix_product),
        **dict.fromkeys(("reduce_mean", "reduce_sum"), (Work.POOLING, per_input)),
        "avg_pool": (Work.POOLING, per_window),
        **dict.fromkeys(("add", "sub", "mul", "real_div", "silu"), (Work.ELEMENTWISE, per_result())),
        "sigmoid_hard": (Work.ELEMENTWISE, per_result(2)),
    },
    products=frozenset({"mul"}),
    carriers=frozenset({
        "reshape", "transpose", "squeeze", "expand_dims", "tile", "cast", "upsample_nearest_neighbor",
        "resize_nearest_neighbor", "resize", "quantize", "dequantize",
    }),
    gates=frozenset({"sigmoid", "sigmoid_hard", "clip", "relu6", "mul"}),
    maxima=frozenset({"reduce_max", "max_pool", "maximum"}),
    softmaxes=frozenset({"softmax"}),
    splits=frozenset({"split"}),
    outer=frozenset({"matmul"}),
    grids=frozenset({"quantize", "dequantize"}),
)  # fmt: skip
