"""What ONNX Runtime is fastest with: on ARM64 with the channels last, on x86-64 in its own blocked layout."""

from dataclasses import replace
from typing import Final

from coordatt_deploy.formats import TargetCpu
from coordatt_deploy.graph.lowering.blocks import Kind
from coordatt_deploy.graph.lowering.decompositions.table import Decomposition
from coordatt_deploy.graph.lowering.forms import Form
from coordatt_deploy.graph.lowering.target import LoweringTarget
from coordatt_deploy.graph.lowering.term_writer import Kernels, Order, TermStyle

# What torch.onnx or ONNX Runtime refuse or compute differently; ``docs/operators.md`` has what they say of each. Of a
# product inside another operator the map would not know that it was fused into the convolution before it.
DECOMPOSITIONS: Final = (
    Decomposition.NEEDLESS_COPY,
    Decomposition.ADAPTIVE_MAX,
    Decomposition.EXTREMUM,
    Decomposition.UNEVEN_AVERAGE,
    Decomposition.ADDCMUL,
    Decomposition.SCALED_SUM,
    Decomposition.LOG_SIGMOID_OF_SOFTPLUS,
    Decomposition.NEAREST_RESIZE,
    Decomposition.FRACTIONAL_NEAREST_EXACT,
    Decomposition.FRACTIONAL_RESIZE,
    Decomposition.ATTENTION_OF_FOUR_AXES,
)

# On x86-64 the blocked layout decides, and every other form costs more reorders than the user's own.
FASTER: Final = frozenset({
    Kind.ECA, Kind.CBAM, Kind.CHANNEL_GATE, Kind.SPATIAL_GATE, Kind.TRIPLET, Kind.STRIP_POOLING, Kind.SIMPLE_COORD,
})  # fmt: skip
TERMS: Final = TermStyle(FASTER, Order.CHANNELS_FIRST, by_rows=True, kernels=Kernels.ROWS)
ARM64: Final = LoweringTarget(
    "onnx-arm64",
    (Form.CHANNELS_LAST, Form.MEANS),
    TERMS,
    decompositions=DECOMPOSITIONS,
)
ARM64_INT8: Final = replace(
    ARM64, name="onnx-arm64-int8", terms=replace(TERMS, kernels=Kernels.WHOLE, sums_first=False)
)
X86_64: Final = LoweringTarget("onnx-x86_64", (Form.BLOCKED, Form.MEANS), decompositions=DECOMPOSITIONS)


def targets() -> tuple[LoweringTarget, ...]:
    """See ``Lowering.targets``."""
    return ARM64, ARM64_INT8, X86_64


def target(cpu: TargetCpu | None, *, integer: bool) -> LoweringTarget:
    """See ``Lowering.target``; ARM64 where no CPU is given."""
    if cpu is TargetCpu.X86_64:
        return X86_64
    return ARM64_INT8 if integer else ARM64
