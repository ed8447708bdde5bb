"""What ONNX operators mean."""

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
        **dict.fromkeys(("Conv", "QLinearConv", "ConvInteger"), (Work.CONVOLUTION, per_result_and_kernel)),
        "ConvTranspose": (Work.CONVOLUTION, per_input_and_kernel),
        **dict.fromkeys(("Gemm", "MatMul", "QLinearMatMul", "MatMulInteger"), (Work.LINEAR, matrix_product)),
        **dict.fromkeys(("ReduceMean", "ReduceSum", "GlobalAveragePool"), (Work.POOLING, per_input)),
        "AveragePool": (Work.POOLING, per_window),
        **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow"), (Work.ELEMENTWISE, per_result())),
        "HardSigmoid": (Work.ELEMENTWISE, per_result(2)),
        "HardSwish": (Work.ELEMENTWISE, per_result(3)),
    },
    products=frozenset({"Mul"}),
    carriers=frozenset({
        "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Tile", "Resize", "Identity", "Cast", "Flatten",
        "QuantizeLinear", "DequantizeLinear",
    }),
    gates=frozenset({"Sigmoid", "HardSigmoid", "Clip", "Mul", "Div", "Min", "FusedConv", "Conv"}),
    maxima=frozenset({"ReduceMax", "MaxPool", "GlobalMaxPool", "Max"}),
    softmaxes=frozenset({"Softmax"}),
    splits=frozenset({"Split"}),
    outer=frozenset({"MatMul"}),
    grids=frozenset({"QuantizeLinear", "DequantizeLinear"}),
)  # fmt: skip
