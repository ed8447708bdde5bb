"""Who, beside torch, says what each operator computes in real Core ML.

Most evidence is coremltools' own tests of its operators, of release 9.0: they hold Core ML on macOS to values that are
written into them. ``tests/support/coremltools_suite.py`` runs the same tests with the evaluator in the place of Core
ML. What they expect to fail on macOS, and what issues report, stands under ``departures``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

REPOSITORY: Final = "https://github.com/apple/coremltools"
OPERATOR_TESTS: Final = "coremltools/converters/mil/mil/ops/tests/"
TORCH_TESTS: Final = "coremltools/converters/mil/frontend/torch/test/test_torch_ops.py"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one operator from real Core ML.

    Attributes:
        file: Of coremltools' repository: the tests that Core ML passes on macOS. None where there are none.
        test: The class in it.
        compared: What these tests hold Core ML and the evaluator to.
        departures: Where Core ML is known to compute something else than its documentation or torch, with the source,
            and what the evaluator does about it.
    """

    file: str | None
    test: str | None
    compared: str
    departures: tuple[str, ...] = ()

    @property
    def independent(self) -> bool:
        """Whether somebody ran it in Core ML and published what it must give."""
        return self.file is not None

    @property
    def address(self) -> str | None:
        """Where the tests can be read."""
        return None if self.file is None else f"{REPOSITORY}/blob/9.0/{self.file}"


NONE: Final = Evidence(None, None, "nothing: its documentation and torch alone")


def _written(file: str, test: str) -> Evidence:
    return Evidence(f"{OPERATOR_TESTS}{file}", test, "the values that the test gives, in float32")


def _by_torch(test: str) -> Evidence:
    return Evidence(TORCH_TESTS, test, "what torch gives for modules that hold it, in float32")


def _each(operators: Iterable[str], evidence: Evidence) -> dict[str, Evidence]:
    return dict.fromkeys(operators, evidence)


def _classes(file: str, tests: dict[str, str]) -> dict[str, Evidence]:
    return {operator: _written(file, test) for operator, test in tests.items()}


_UNARY = (
    "abs", "acos", "asin", "atan", "atanh", "cast", "clip", "cos", "cosh", "erf", "exp", "exp2", "floor", "inverse",
    "log", "round", "rsqrt", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "threshold",
)  # fmt: skip
_BINARY = ("add", "floor_div", "maximum", "minimum", "mod", "mul", "pow", "real_div", "sub")
_REDUCTIONS = (
    "reduce_l1_norm", "reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp", "reduce_max", "reduce_mean",
    "reduce_min", "reduce_prod", "reduce_sum", "reduce_sum_square",
)  # fmt: skip

_FOUND: Final[dict[str, Evidence]] = {
    **_each(_UNARY, _written("iOS14/test_elementwise_unary.py", "TestElementwiseUnary")),
    **_each(_BINARY, _written("iOS14/test_elementwise_binary.py", "TestElementwiseBinary")),
    **_classes("iOS14/test_elementwise_binary.py", {
        "equal": "TestEqual", "greater": "TestGreater", "greater_equal": "TestGreaterEqual", "less": "TestLess",
        "less_equal": "TestLessEqual", "not_equal": "TestNotEqual"}),
    **_classes("iOS14/test_activation.py", {
        "clamped_relu": "TestClampedReLU", "elu": "TestELU", "gelu": "TestGeLU", "leaky_relu": "TestLeakyReLU",
        "linear_activation": "TestLinearActivation", "prelu": "TestPReLU", "relu": "TestReLU", "relu6": "TestReLU6",
        "scaled_tanh": "TestScaledTanh", "sigmoid": "TestSigmoid", "sigmoid_hard": "TestSigmoidHard",
        "silu": "TestSiLU", "softmax": "TestSoftmax", "softplus": "TestSoftplus",
        "softplus_parametric": "TestSoftplusParametric", "softsign": "TestSoftsign",
        "thresholded_relu": "TestThresholdedReLU"}),
    **_each(("reduce_argmax", "reduce_argmin"), _written("iOS14/test_reduction.py", "TestReduction")),
    **_each(_REDUCTIONS, _written("iOS14/test_reduction.py", "TestReduction")),
    **_classes("iOS14/test_tensor_operation.py", {
        "concat": "TestConcat", "fill": "TestFill", "flatten2d": "TestFlatten2d", "identity": "TestIdentity",
        "pad": "TestPad", "range_1d": "TestRange1d", "shape": "TestShape", "tile": "TestTile",
        "topk": "TestTopK"}),
    **_classes("iOS14/test_tensor_transformation.py", {
        "depth_to_space": "TestDepthToSpace", "expand_dims": "TestExpandDims", "pixel_shuffle": "TestPixelShuffle",
        "reshape": "TestReshape", "reverse": "TestReverse", "slice_by_index": "TestSliceByIndex",
        "slice_by_size": "TestSliceBySize", "space_to_depth": "TestSpaceToDepth", "split": "TestSplit",
        "squeeze": "TestSqueeze", "stack": "TestStack", "transpose": "TestTranspose"}),
    **_classes("iOS16/test_tensor_operation.py", {"fill_like": "TestFillLike"}),
    **_classes("iOS16/test_tensor_transformation.py", {"pixel_unshuffle": "TestPixelUnshuffle"}),
    **_classes("iOS14/test_scatter_gather.py", {"gather": "TestGather", "gather_along_axis": "TestGatherAlongAxis"}),
    **_classes("iOS14/test_image_resizing.py", {
        "crop": "TestCrop", "resize_nearest_neighbor": "TestResizeNearestNeighbor",
        "upsample_bilinear": "TestUpsampleBilinear"}),
    **_classes("iOS15/test_image_resizing.py", {
        "resize_bilinear": "TestResizeBilinear",
        "upsample_nearest_neighbor": "TestUpsampleNearestNeighborFractionalScales"}),
    **_classes("iOS17/test_image_resizing.py", {"resize": "TestResize"}),
    **_classes("iOS14/test_pool.py", {"avg_pool": "TestAvgPool", "max_pool": "TestMaxPool"}),
    **_classes("iOS14/test_conv.py", {"conv": "TestConv", "conv_transpose": "TestConvTranspose"}),
    **_classes("iOS14/test_linear.py", {"einsum": "TestEinsum", "linear": "TestLinear", "matmul": "TestMatMul"}),
    **_classes("iOS14/test_normalization.py", {
        "batch_norm": "TestNormalizationBatchNorm", "instance_norm": "TestNormalizationInstanceNorm",
        "l2_norm": "TestNormalizationL2Norm", "layer_norm": "TestNormalizationLayerNorm"}),
    **_classes("iOS16/test_constexpr_ops.py", {
        "constexpr_affine_dequantize": "TestConstexprAffineDequantize", "constexpr_cast": "TestConstexprCast",
        "constexpr_lut_to_dense": "TestConstexprLutToDense"}),
    **_classes("iOS18/test_compression.py", {
        "constexpr_blockwise_shift_scale": "TestConstexprBlockwiseDequantize",
        "constexpr_lut_to_sparse": "TestConstexprLutToSparse",
        "constexpr_sparse_blockwise_shift_scale": "TestConstexprSparseBlockwiseShiftScale",
        "constexpr_sparse_to_dense": "TestConstexprSparseToDense"}),
    **_classes("iOS17/test_quantization.py", {"dequantize": "TestDequantize", "quantize": "TestQuantize"}),
    "logical_and": _by_torch("TestAtan2"),
    "select": _by_torch("TestExpand"),
    **_each(("ceil", "logical_not", "logical_or", "logical_xor"), NONE),
}  # fmt: skip

_DEPARTURES: Final[dict[str, tuple[str, ...]]] = {
    "avg_pool": (
        f"with ceil_mode, what hangs over the edge counts as padding does: {REPOSITORY}/pull/2844 prints 4.75, 15.25"
        " and 12 where torch has 9.5, 30.5 and 48. Computed so; exported as torch means it",
        f"a kernel of 7, stride 4 and counted padding of 3 goes wrong: {REPOSITORY}/issues/1901. More than 1 element"
        " of counted padding is refused; exported with the padding as an operator of its own",
        "over one axis with pad_type same_lower: expected to fail on macOS (rdar://98852008). Refused",
    ),
    "max_pool": ("over one axis with pad_type same_lower: expected to fail on macOS (rdar://98852008). Refused",),
    "pow": (
        f"a constant base of 2 squares the exponent: {REPOSITORY}/issues/2628 prints 0 for 2 to the power of 0."
        " Computed so; exported as exp2",
    ),
    "matmul": (f"a vector on one side: {REPOSITORY}/issues/2263. Refused",),
    "prelu": (
        "several slopes on 3 or 5 axes: expected to fail on macOS (rdar://91442339). Refused by coremltools;"
        " exported as a sum",
        "in float16: expected to fail on macOS (rdar://92175249), nobody says how",
    ),
    "conv": (
        f"a kernel of 3 × 2 with padding 1 and stride 2 on 5 × 5: {REPOSITORY}/issues/2515 finds the last element"
        " wrong, on units that it does not name. Not reproduced here",
    ),
    "conv_transpose": (
        f"with output_shape the CPU and the other units differ: {REPOSITORY}/issues/2281 and 2324. Computed as the"
        " tests have it on the CPU; never exported",
    ),
    "upsample_nearest_neighbor": (
        "looks at floor(o · size / out), where torch with a scale factor looks at floor(o / factor). Computed so;"
        " exported as gathers where both differ",
    ),
    "resize_nearest_neighbor": (
        "its test has no fractional ratio: coremltools writes TensorFlow's resize with half-pixel centres as it."
        " Computed so; never exported",
    ),
    "resize": (
        "nearest neighbours look at floor((o + 1/2) · size / out): the one reading of its test that TensorFlow's half"
        "-pixel centres share. Other sampling modes are refused; never exported",
    ),
    "slice_by_index": ("an axis of one element backwards: expected to fail on macOS (rdar://99664032). Refused",),
    "squeeze": ("an axis that is not 1: expected to fail on the CPU (rdar://124555262). Refused by coremltools",),
}

EVIDENCE: Final[dict[str, Evidence]] = {
    operator: replace(found, departures=_DEPARTURES.get(operator, ())) for operator, found in _FOUND.items()
}
"""One for each operator of the table ``OPERATORS``; a new one says at least ``NONE``."""


def without(operators: Iterable[str]) -> tuple[str, ...]:
    """Return those of *operators* that nobody is known to have run in Core ML and published, each once, sorted."""
    return tuple(sorted(name for name in set(operators) if not EVIDENCE[name].independent))
