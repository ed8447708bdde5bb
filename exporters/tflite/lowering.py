"""What XNNPACK is fastest with, and litert-torch converts without detours.

litert-torch reads an (N, C) mean in the order of the original and transposes the whole feature map for it, hence the
deep pool. XNNPACK takes no HARD_SWISH of integers, hence the spelt-out one, and no BROADCAST_TO, which litert-torch
makes of group norms.
"""

from dataclasses import replace
from typing import Final

from coordatt_deploy.formats import TargetCpu
from coordatt_deploy.graph.lowering.blocks import Kind
from coordatt_deploy.graph.lowering.decompositions.table import Decomposition
from coordatt_deploy.graph.lowering.pointwise import HardSwishForm
from coordatt_deploy.graph.lowering.target import GlobalPool, LoweringTarget
from coordatt_deploy.graph.lowering.term_writer import Kernels, Order, TermStyle

# What litert-torch 0.10 refuses or writes wrongly; ``docs/operators.md`` has what it says of each.
DECOMPOSITIONS: Final = (
    Decomposition.COPY,
    Decomposition.REPEAT_INTERLEAVE,
    Decomposition.NEAREST_RESIZE,
    Decomposition.FRACTIONAL_RESIZE,
    Decomposition.BICUBIC_RESIZE,
    Decomposition.ANTIALIASED_RESIZE,
    Decomposition.ADAPTIVE_MAX,
    Decomposition.EXTREMUM,
    Decomposition.UNEVEN_AVERAGE,
    Decomposition.TRANSPOSED_CONVOLUTION,
    Decomposition.POWER,
    Decomposition.SCALED_SUM,
    Decomposition.ASSIGNED,
    Decomposition.ONE_HOT,
    Decomposition.GREATEST,
    Decomposition.ONLY_POSITION,
    Decomposition.LERP,
)

FASTER: Final = frozenset({
    Kind.CBAM, Kind.CHANNEL_GATE, Kind.SPATIAL_GATE, Kind.TRIPLET, Kind.STRIP_POOLING, Kind.GLOBAL_CONTEXT,
    Kind.SIMPLE_COORD,
})  # fmt: skip
TERMS: Final = TermStyle(FASTER, Order.CHANNELS_LAST, kernels=Kernels.BLOCKS)
FLOAT: Final = LoweringTarget("tflite", terms=TERMS, global_pool=GlobalPool.DEEP, decompositions=DECOMPOSITIONS)
INT8: Final = LoweringTarget(
    "tflite-int8",
    terms=replace(TERMS, kinds=FASTER | {Kind.LOCAL}, sums_first=False, spelt_norms=True),
    hard_swish=HardSwishForm.SCALED,
    global_pool=GlobalPool.DEEP,
    decompositions=DECOMPOSITIONS,
)


def targets() -> tuple[LoweringTarget, ...]:
    """See ``Lowering.targets``."""
    return FLOAT, INT8


def target(cpu: TargetCpu | None, *, integer: bool) -> LoweringTarget:  # noqa: ARG001 - one file serves every CPU
    """See ``Lowering.target``."""
    return INT8 if integer else FLOAT
