"""What Core ML is fastest with, and coremltools converts with the fewest operators.

coremltools needs an operator more to flatten a pool, hence the flat one; and has no operator for hard-swish.
"""

from typing import Final

from coordatt_deploy.formats import TargetCpu
from coordatt_deploy.graph.lowering.forms import Form
from coordatt_deploy.graph.lowering.pointwise import HardSwishForm
from coordatt_deploy.graph.lowering.target import GlobalPool, LoweringTarget

PROGRAM: Final = LoweringTarget("coreml", (Form.PAIRED, Form.MEANS), HardSwishForm.PRODUCT, GlobalPool.FLAT)


def targets() -> tuple[LoweringTarget, ...]:
    """See ``Lowering.targets``."""
    return (PROGRAM,)


def target(cpu: TargetCpu | None, *, integer: bool) -> LoweringTarget:  # noqa: ARG001 - one package serves them all
    """See ``Lowering.target``."""
    return PROGRAM
