"""What Core ML is fastest with, and coremltools converts with the fewest operators.

coremltools needs an operator more to flatten a pool, hence the flat one; and has no operator for hard-swish.
"""

from typing import Final

from coordatt_deploy.formats import TargetCpu
from coordatt_deploy.graph.lowering.blocks import Kind
from coordatt_deploy.graph.lowering.decompositions.table import Decomposition
from coordatt_deploy.graph.lowering.forms import Form
from coordatt_deploy.graph.lowering.pointwise import HardSwishForm
from coordatt_deploy.graph.lowering.target import GlobalPool, LoweringTarget
from coordatt_deploy.graph.lowering.term_writer import TermStyle

# What coremltools 9.0 refuses or writes wrongly; ``docs/operators.md`` has what it says of each.
DECOMPOSITIONS: Final = (
    Decomposition.NEEDLESS_COPY,
    Decomposition.BICUBIC_RESIZE,
    Decomposition.ANTIALIASED_RESIZE,
    Decomposition.ADAPTIVE_MAX,
    Decomposition.EXTREMUM,
    Decomposition.UNEVEN_AVERAGE,
    Decomposition.GELU_TANH,
    Decomposition.CELU,
    Decomposition.LOG_SIGMOID,
    Decomposition.FLOAT_NUMBERS,
    Decomposition.SCALED_SUM,
    Decomposition.RECIPROCAL,
    Decomposition.QUOTIENT_OF_SUM,
    Decomposition.RMS_NORM,
    Decomposition.PRODUCT,
    Decomposition.CHANNEL_SHUFFLE,
    Decomposition.NEAREST_BY_FACTOR,
    Decomposition.NEAREST_EXACT_RESIZE,
    Decomposition.SOFTPLUS,
    Decomposition.HARD_SHRINK,
    Decomposition.CIRCULAR_PAD,
    Decomposition.CROP,
    Decomposition.QUARTER_TURNS,
    Decomposition.ASSIGNED,
    Decomposition.TRIANGLE,
    Decomposition.LERP,
    Decomposition.ADDCMUL,
    Decomposition.LOGICAL,
    Decomposition.FRACTIONAL_RESIZE,
    Decomposition.CUMULATIVE_SUM,
    Decomposition.ONE_HOT,
    Decomposition.SORTED,
    Decomposition.OUTPUT_PADDING,
    Decomposition.FILLED,
    Decomposition.REDUCED_WINDOWS,
)

TERMS: Final = TermStyle(
    frozenset(
        {
            Kind.ECA,
            Kind.CBAM,
            Kind.CHANNEL_GATE,
            Kind.SPATIAL_GATE,
            Kind.TRIPLET,
            Kind.SIMPLE_COORD,
        }
    )
)
PROGRAM: Final = LoweringTarget(
    "coreml", (Form.PAIRED, Form.MEANS), TERMS, HardSwishForm.PRODUCT, GlobalPool.FLAT, DECOMPOSITIONS
)


def targets() -> tuple[LoweringTarget, ...]:
    """See ``Lowering.targets``."""
    return (PROGRAM,)


def target(cpu: TargetCpu | None, *, integer: bool) -> LoweringTarget:  # noqa: ARG001 - one package serves them all
    """See ``Lowering.target``."""
    return PROGRAM
