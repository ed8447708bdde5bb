"""What torch knows of resizing operators of sizes that only the run knows, and coremltools does not: their factors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import sympy  # type: ignore[import-untyped]
import torch

NEAREST: Final = ("aten.upsample_nearest2d.default", "aten.upsample_nearest2d.vec")
BILINEAR: Final = ("aten.upsample_bilinear2d.default", "aten.upsample_bilinear2d.vec")
MANY_SIZES: Final = 1 << 14  # sizes that a factor is proven at; more are not tried

Size = int | torch.SymInt


@dataclass(frozen=True, slots=True)
class Resizing:
    """How one operator resizes.

    Attributes:
        factors: Whole factors of height and width that hold at every size that the graph takes; None if there are none.
    """

    factors: tuple[int, int] | None = None


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
        found[node.name] = Resizing(None if height is None or width is None else (height, width))
    return found


def _factor(before: Size, after: Size, ranges: Mapping[sympy.Symbol, object]) -> int | None:
    """Return the whole number that *after* is of *before* at every size; None if there is none."""
    if isinstance(before, int) and isinstance(after, int):
        return after // before if after % before == 0 else None
    small, large = (sympy.sympify(size if isinstance(size, int) else size.node.expr) for size in (before, after))
    factors = set()
    for values in _values(small.free_symbols | large.free_symbols, ranges):
        small_size, large_size = int(small.subs(values)), int(large.subs(values))
        factors.add(large_size / small_size)
        if len(factors) > 1:
            return None
    (factor,) = factors or {0.0}
    return int(factor) if factor >= 1 and factor.is_integer() else None


def _values(symbols: set[sympy.Symbol], ranges: Mapping[sympy.Symbol, object]) -> Iterator[dict[sympy.Symbol, int]]:
    """Yield every value of the one symbol that a size depends on; nothing where that would be too many."""
    if len(symbols) != 1:
        return
    (symbol,) = symbols
    bounds = ranges[symbol]
    low, high = int(bounds.lower), int(bounds.upper)  # type: ignore[attr-defined]
    if high - low < MANY_SIZES:
        yield from ({symbol: value} for value in range(low, high + 1))
