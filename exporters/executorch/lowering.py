"""What XNNPACK takes in one piece from ExecuTorch, and is fastest with."""

from typing import Final

from coordatt_deploy.formats import TargetCpu
from coordatt_deploy.graph.lowering.decompositions.table import Decomposition
from coordatt_deploy.graph.lowering.forms import Form
from coordatt_deploy.graph.lowering.target import LoweringTarget

DECOMPOSITIONS: Final = (Decomposition.NEEDLESS_COPY,)
FLOAT: Final = LoweringTarget("executorch", (Form.POOLED, Form.MEANS), decompositions=DECOMPOSITIONS)


def targets() -> tuple[LoweringTarget, ...]:
    """See ``Lowering.targets``."""
    return (FLOAT,)


def target(cpu: TargetCpu | None, *, integer: bool) -> LoweringTarget:  # noqa: ARG001 - one file serves every CPU
    """See ``Lowering.target``."""
    return FLOAT
