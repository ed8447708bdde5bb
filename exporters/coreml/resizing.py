"""What torch knows of resizing operators of sizes that only the run knows, and coremltools does not: their factors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import sympy  # type: ignore[import-untyped]
import torch

NEAREST: Final = ("aten.upsample_nearest2d.default", "aten.upsample_nearest2d.vec")
BILINEAR: Final = ("aten.upsample_bilinear2d.default", "aten.upsample_bilinear2d.vec")
MANY_SIZES: Final = 1 << 14  # sizes that a factor is proven at; more are not tried
LARGEST_DENOMINATOR: Final = 1 << 10  # a factor that is no such fraction is left to coremltools

Size = int | torch.SymInt


@dataclass(frozen=True, slots=True)
class Resizing:
    """How one operator resizes.

    Attributes:
        factors: Whole factors of height and width that hold at every size that the graph takes; None if there are none.
        fractions: What the code multiplies height and width by, where it gives a factor and no size: the size is the
            whole part of the product, and places are counted by the factor itself.
    """

    factors: tuple[int, int] | None = None
    fractions: tuple[Fraction, Fraction] | None = None


def resizings(program: torch.export.ExportedProgram) -> dict[str, Resizing]:
    """Return what coremltools has to be told of the program's resizing operators, by name of their node.

    Of one that is not listed coremltools' own conversion is right.
    """
    found: dict[str, Resizing] = {}
    for node in program.graph.nodes:
        kind = str(node.target)
        if node.op != "call_function" or kind not in NEAREST + BILINEAR:
            continue
        before, after = node.args[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
        if all(isinstance(size, int) for size in (*before, *after)):
            continue  # lowering has left what coremltools converts right
        height, width = (_factor(*sizes, program.range_constraints) for sizes in zip(before, after, strict=True))
        found[node.name] = Resizing(
            None if height is None or width is None else (height, width),
            _fractions(node.args[-1], before, after, program.range_constraints),
        )
    return found


def _fractions(
    given: object, before: Sequence[Size], after: Sequence[Size], ranges: Mapping[sympy.Symbol, object]
) -> tuple[Fraction, Fraction] | None:
    """Return the factors that the code gives, if they give the sizes as fractions at every size; None if not."""
    if not isinstance(given, Sequence) or not all(isinstance(item, (int, float)) for item in given):
        return None
    fractions = [Fraction(float(item)).limit_denominator(LARGEST_DENOMINATOR) for item in given]
    for fraction, small, large in zip(fractions, before, after, strict=True):
        pairs = list(_pairs(small, large, ranges))
        if not pairs or any(wanted != have * fraction.numerator // fraction.denominator for have, wanted in pairs):
            return None
    height, width = fractions
    return height, width


def _factor(before: Size, after: Size, ranges: Mapping[sympy.Symbol, object]) -> int | None:
    """Return the whole number that *after* is of *before* at every size; None if there is none."""
    factors = set()
    for small, large in _pairs(before, after, ranges):
        factors.add(large / small)
        if len(factors) > 1:
            return None
    (factor,) = factors or {0.0}
    return int(factor) if factor >= 1 and factor.is_integer() else None


def _pairs(before: Size, after: Size, ranges: Mapping[sympy.Symbol, object]) -> Iterator[tuple[int, int]]:
    """Yield both sizes at every size that the graph takes; nothing where those would be too many."""
    if isinstance(before, int) and isinstance(after, int):
        yield before, after
        return
    small, large = (sympy.sympify(size if isinstance(size, int) else size.node.expr) for size in (before, after))
    for values in _values(small.free_symbols | large.free_symbols, ranges):
        yield int(small.subs(values)), int(large.subs(values))


def _values(symbols: set[sympy.Symbol], ranges: Mapping[sympy.Symbol, object]) -> Iterator[dict[sympy.Symbol, int]]:
    """Yield every value of the one symbol that a size depends on; nothing where that would be too many."""
    if len(symbols) != 1:
        return
    (symbol,) = symbols
    bounds = ranges[symbol]
    low, high = int(bounds.lower), int(bounds.upper)  # type: ignore[attr-defined]
    if high - low < MANY_SIZES:
        yield from ({symbol: value} for value in range(low, high + 1))
