"""How the values inside an attention block lie in memory, whatever operators moved them about.

A *strip* is a tensor (N, C, positions) that holds one stretch of positions per pool, along some order of axes. Layout
operators (permute, view, split, ...) only change where a strip lies; pointwise operators act on each position alone, so
a chain of them means the same whatever the layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, integer, integers, pair, same_size, sizes, source
from coordatt_deploy.graph.graph import op_name, weight
from coordatt_deploy.graph.operators import Trait, having

Size = int | torch.SymInt

ROWS: Final = "rows"
COLUMNS: Final = "columns"
WHOLE: Final = "whole"
DIRECTIONS: Final = {(3,): ROWS, (2,): COLUMNS, (2, 3): WHOLE}
"""What is left when these axes of (N, C, H, W) are averaged away."""

STRIP_AXIS: Final = {ROWS: 2, COLUMNS: 3}
BROADCAST: Final = {ROWS: "NCP1", COLUMNS: "NC1P", WHOLE: "NC11"}
"""How a gate must lie to meet its own positions in a product with (N, C, H, W)."""

CONVOLUTIONS: Final = having(Trait.MIXES_CHANNELS)
GATES: Final = having(Trait.GATE)
UNARY: Final = having(Trait.UNARY)
SPLITS: Final = having(Trait.SPLIT)
LAYOUT: Final = having(Trait.LAYOUT)
POOLS: Final = having(Trait.POOL)
REDUCTIONS: Final = having(Trait.REDUCTION)
AVERAGES: Final = having(Trait.AVERAGE)


@dataclass(frozen=True, slots=True)
class Strip:
    """What a node inside a block holds: stretches of positions, and how they lie.

    Attributes:
        directions: The direction of each stretch, in order.
        axes: One letter per axis of the tensor: N, C, P (positions) and 1 for the others.
        chain: Pointwise nodes that made it, beginning after the pool.
        pools: The pooling node of each stretch.
    """

    directions: tuple[str, ...]
    axes: str
    chain: tuple[str, ...]
    pools: tuple[str, ...]

    def stretch(self, index: int) -> "Strip":
        """Return one of its stretches."""
        return replace(self, directions=(self.directions[index],), pools=(self.pools[index],))


def pooled_axes(node: fx.Node, feature: fx.Node) -> tuple[tuple[int, ...], bool] | None:
    """Return the axes of *feature* that *node* reduces completely, and whether it takes the mean (else the maximum)."""
    value, operator = feature.meta.get("val"), op_name(node)
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or not node.args or node.args[0] is not feature:
        return None
    axes: tuple[int, ...]
    if operator in REDUCTIONS:
        dims = argument(node, 1, "dim")
        if dims is None or isinstance(dims, fx.Node) or node.kwargs.get("dtype") is not None:
            return None
        axes = tuple(sorted(axis % 4 for axis in integers(dims)))
    elif operator in POOLS:
        reduced = windowed_axes(node, value)
        if reduced is None:
            return None
        axes = reduced
    else:
        return None
    return (axes, operator in AVERAGES) if axes in DIRECTIONS else None


def windowed_axes(node: fx.Node, value: torch.Tensor) -> tuple[int, ...] | None:
    """Axes that a pooling window covers, if it leaves the others alone."""
    result = node.meta["val"]
    shape = (result if isinstance(result, torch.Tensor) else result[0]).shape
    axes = tuple(axis for axis in (2, 3) if same_size(shape[axis], 1) and not same_size(value.shape[axis], 1))
    if not all(same_size(shape[axis], value.shape[axis]) for axis in (2, 3) if axis not in axes):
        return None
    if op_name(node).startswith("adaptive"):
        return axes
    window, padding = pair(argument(node, 1, "kernel_size")), pair(argument(node, 3, "padding", 0))
    covers = all(same_size(window[axis - 2], value.shape[axis] if axis in axes else 1) for axis in (2, 3))
    return axes if covers and padding == (0, 0) and argument(node, 6, "divisor_override") is None else None


def pooled_letters(node: fx.Node, axes: tuple[int, ...]) -> str:
    """Return how a pool's result lies."""
    keeps = op_name(node) != "mean" or argument(node, 2, "keepdim", False)
    letters = ["1" if axis in axes else "NCPP"[axis] for axis in range(4)]
    return "".join(letter for axis, letter in enumerate(letters) if keeps or axis not in axes)


def not_pointwise(module: fx.GraphModule, node: fx.Node, axes: str) -> str | None:
    """Return why a convolution or linear layer does more than mix the channels of each position; None if it doesn't."""
    kernel, bias = weight(module, argument(node, 1, "weight")), argument(node, 2, "bias")
    if kernel is None or (bias is not None and weight(module, bias) is None):
        return f"{node.name} has a weight that is computed while the model runs"
    if op_name(node) == "linear":
        return None if axes[-1] == "C" else f"{node.name} mixes the positions of a strip"
    if axes[:2] != "NC":
        return f"{node.name} convolves over a strip that does not lie as (N, C, positions)"
    if any(size != 1 for size in kernel.shape[2:]):
        extent = "x".join(str(size) for size in kernel.shape[2:])
        return f"{node.name} is a {extent} convolution; only a pointwise one acts on each position alone"
    padding = argument(node, 4, "padding", 0)
    if pair(argument(node, 3, "stride", 1)) != (1, 1) or (not isinstance(padding, str) and pair(padding) != (0, 0)):
        return f"{node.name} has a stride or padding"
    return None if argument(node, 6, "groups", 1) == 1 else f"{node.name} is a grouped convolution"


def moved(node: fx.Node, axes: str) -> str | None:
    """Return how a strip lies after a layout operator; None if it is not a strip any more."""
    operator = op_name(node)
    if operator == "permute":
        return "".join(axes[axis] for axis in integers(argument(node, 1, "dims")))
    if operator in {"transpose", "swapaxes"}:
        letters = list(axes)
        first, second = integer(node, 1, "dim0"), integer(node, 2, "dim1")
        letters[first], letters[second] = letters[second], letters[first]
        return "".join(letters)
    if operator == "unsqueeze":
        axis = integer(node, 1, "dim") % (len(axes) + 1)
        return axes[:axis] + "1" + axes[axis:]
    return _squeezed(node, axes) if operator == "squeeze" else _viewed(node, axes)


def _squeezed(node: fx.Node, axes: str) -> str | None:
    asked = {axis % len(axes) for axis in integers(argument(node, 1, "dim", range(len(axes))))}
    dropped = {axis for axis in asked if same_size(sizes(source(node))[axis], 1)}
    if any(axes[axis] != "1" for axis in dropped):
        return None
    return "".join(letter for axis, letter in enumerate(axes) if axis not in dropped)


def _viewed(node: fx.Node, axes: str) -> str | None:
    """Read a reshape that only adds or drops axes of size 1."""
    pending = [(letter, size) for letter, size in zip(axes, sizes(source(node)), strict=True) if letter != "1"]
    letters = ""
    for size in sizes(node):
        if pending and same_size(size, pending[0][1]):
            letters += pending.pop(0)[0]
        elif same_size(size, 1):
            letters += "1"
        else:
            return None
    return letters if not pending else None


def parted(node: fx.Node, strip: Strip, lengths: Sequence[Size]) -> tuple[Strip, ...] | None:
    """Return the pieces of a split, if it parts a strip where its stretches (of *lengths*) were joined."""
    dim = integer(node, 2, "dim", 0)
    pieces = [value.shape[dim] for value in node.meta["val"]]
    fits = len(pieces) == len(lengths) and all(map(same_size, pieces, lengths))
    return tuple(strip.stretch(index) for index in range(len(pieces))) if fits and strip.axes[dim] == "P" else None


def sliced(node: fx.Node, strip: Strip, lengths: Sequence[Size]) -> Strip | None:
    """Return the stretch that a slice takes; None if it takes anything else."""
    dim, begin = integer(node, 1, "dim", 0), argument(node, 2, "start") or 0
    if strip.axes[dim] != "P" or (op_name(node) == "slice" and argument(node, 4, "step", 1) != 1):
        return None
    offset: Size = 0
    for index, length in enumerate(lengths):
        if same_size(begin, offset) and same_size(sizes(node)[dim], length):
            return strip.stretch(index)
        offset = offset + length
    return None


def joined(node: fx.Node, parts: Sequence[Strip | None]) -> Strip | str:
    """Return what a concatenation of strips holds, or why it is not a strip."""
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or len({(part.axes, part.chain) for part in known}) != 1:
        return f"{node.name} joins a strip with something else"
    if known[0].axes[integer(node, 1, "dim", 0)] != "P":
        return f"{node.name} joins the strips along another axis than their positions"
    directions = tuple(direction for part in known for direction in part.directions)
    return replace(known[0], directions=directions, pools=tuple(pool for part in known for pool in part.pools))
