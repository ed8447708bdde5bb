"""What XNNPACK takes in one piece from ExecuTorch, and is fastest with."""

from dataclasses import replace
from typing import Final

from coordatt_deploy.formats import TargetCpu
from coordatt_deploy.graph.lowering.decompositions.table import Decomposition
from coordatt_deploy.graph.lowering.forms import Form
from coordatt_deploy.graph.lowering.pointwise import HardSwishForm
from coordatt_deploy.graph.lowering.target import GlobalPool, LoweringTarget

# What executorch 1.5 refuses or XNNPACK computes otherwise; ``docs/operators.md`` has what comes of each.
DECOMPOSITIONS: Final = (
    Decomposition.NEEDLESS_COPY,
    Decomposition.ADAPTIVE_MAX,
    Decomposition.GELU_TANH,
    Decomposition.FRACTIONAL_RESIZE,
    Decomposition.ANTIALIASED_RESIZE,
    Decomposition.CROP,
    Decomposition.SORTED,
)
NORMALISATIONS: Final = (Decomposition.GROUP_NORM, Decomposition.INSTANCE_NORM, Decomposition.LAYER_NORM)
FLOAT: Final = LoweringTarget(
    "executorch",
    (Form.POOLED, Form.MEANS),
    global_pool=GlobalPool.DEEP,
    decompositions=(*DECOMPOSITIONS, *NORMALISATIONS),
)
# A variance on integer grids is none: a normalisation stays the runtime's own, in float.
INT8: Final = replace(FLOAT, name="executorch-int8", hard_swish=HardSwishForm.SCALED, decompositions=DECOMPOSITIONS)


def targets() -> tuple[LoweringTarget, ...]:
    """See ``Lowering.targets``."""
    return FLOAT, INT8


def target(cpu: TargetCpu | None, *, integer: bool) -> LoweringTarget:  # noqa: ARG001 - one file serves every CPU
    """See ``Lowering.target``."""
    return INT8 if integer else FLOAT
