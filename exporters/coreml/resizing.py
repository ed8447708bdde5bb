"""What torch knows of a graph's resizing operators and coremltools does not: their sizes, and where they look."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import sympy  # type: ignore[import-untyped]
import torch
from torch import fx

NEAREST: Final = ("aten.upsample_nearest2d.default", "aten.upsample_nearest2d.vec")
BILINEAR: Final = ("aten.upsample_bilinear2d.default", "aten.upsample_bilinear2d.vec")
MANY_SIZES: Final = 1 << 14  # sizes that a factor is proven at; more are not tried

Size = int | torch.SymInt


@dataclass(frozen=True, slots=True)
class Resizing:
    """How one operator resizes.

    Attributes:
        factors: Whole factors of height and width that hold at every size that the graph takes; None if there are none.
        places: Rows and columns that torch looks at, where the size is fixed and Core ML would look elsewhere.
    """

    factors: tuple[int, int] | None = None
    places: tuple[tuple[int, ...], tuple[int, ...]] | None = None


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
            places = _places(node, tuple(before)) if kind in NEAREST else None
            if places is not None and places != tuple(_core_ml(*sizes) for sizes in zip(before, after, strict=True)):
                found[node.name] = Resizing(places=places)
            continue
        height, width = (_factor(*sizes, program.range_constraints) for sizes in zip(before, after, strict=True))
        found[node.name] = Resizing(None if height is None or width is None else (height, width))
    return found


def _places(node: fx.Node, size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows and columns that the node takes, found by letting torch resize their numbers."""
    height, width = size
    grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).double()[None]
    rows, columns = node.target(grid, *node.args[1:], **node.kwargs)[0].int()  # type: ignore[operator]
    return tuple(rows[:, 0].tolist()), tuple(columns[0].tolist())


def _core_ml(size: int, out: int) -> tuple[int, ...]:
    """What Core ML's ``upsample_nearest_neighbor`` looks at."""
    return tuple((np.arange(out) * size // out).tolist())


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
