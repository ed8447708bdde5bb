"""Shuffles, turns, pads and codes in views, transpositions of five axes at most, slices and concatenations."""

import itertools
import math
import sys
from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, input_node, integer, integers, source
from coordatt_deploy.graph.graph import aten, op_name, reshape_sizes, static_shape
from coordatt_deploy.graph.rewriter import Rewriter

_MOST_AXES: Final = 5  # of a tensor of Core ML
_VIEWS: Final = frozenset({"view", "reshape", "_unsafe_view", "unflatten"})


def channel_shuffle(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a channel shuffle as a transposition of groups and channels."""
    value, groups = source(node), integer(node, 1, "groups")
    sizes = reshape_sizes(value.meta["val"])
    if sizes is None or len(sizes) != 4:
        return None
    batch, channels, height, width = sizes
    apart = rewriter.call(aten.reshape.default, value, [batch, groups, channels // groups, height, width])
    moved = rewriter.call(aten.transpose.int, apart, 1, 2)
    return rewriter.call(aten.reshape.default, moved, [batch, channels, height, width])


def circular(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a circular pad as the end of each axis, the axis, and its beginning."""
    value, shape = source(node), static_shape(source(node).meta["val"])
    if argument(node, 2, "mode", "constant") != "circular" or None in shape[1:]:
        return None
    pads = integers(argument(node, 1, "pad"))
    for position in range(len(pads) // 2):
        axis = len(shape) - 1 - position
        before, after = pads[2 * position : 2 * position + 2]
        size = shape[axis] or 0
        first = [rewriter.call(aten.slice.Tensor, value, axis, size - before, size)] if before else []
        last = [rewriter.call(aten.slice.Tensor, value, axis, 0, after)] if after else []
        value = rewriter.call(aten.cat.default, [*first, value, *last], axis) if first or last else value
    return value


def crop(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a pad by negative numbers as slices, and a pad of what is positive."""
    value = source(node)
    pads = integers(argument(node, 1, "pad"))
    if min(pads, default=0) >= 0 or argument(node, 2, "mode", "constant") != "constant":
        return None
    for position in range(len(pads) // 2):
        axis = value.meta["val"].ndim - 1 - position
        before, after = (max(0, -pad) for pad in pads[2 * position : 2 * position + 2])
        if before or after:  # counted from the end, so at every size
            value = rewriter.call(aten.slice.Tensor, value, axis, before, -after if after else sys.maxsize)
    rest = [max(0, pad) for pad in pads]
    filling = argument(node, 3, "value")
    return rewriter.call(aten.constant_pad_nd.default, value, rest, filling or 0.0) if any(rest) else value


def quarter_turns(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write quarter turns as a transposition and flips."""
    turns, axes = integer(node, 1, "k", 1) % 4, list(integers(argument(node, 2, "dims", [0, 1])))
    value = source(node)
    if turns in {1, 3}:
        value = rewriter.call(aten.transpose.int, value, axes[0], axes[1])
    flipped = {0: [], 1: [axes[0]], 2: axes, 3: [axes[1]]}[turns]
    return rewriter.call(aten.flip.default, value, flipped) if flipped else value


def assigned(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write the assignment of one position of an axis as the parts before and behind it, joined with the new one."""
    value, new = source(node), input_node(node, 1, "src")
    axis, index = integer(node, 2, "dim"), integer(node, 3, "index")
    size = static_shape(value.meta["val"])[axis]
    if size is None or new is None:
        return None
    at = index % size
    parts = [
        rewriter.call(aten.slice.Tensor, value, axis, *ends) for ends in ((0, at), (at + 1, size)) if ends[0] < ends[1]
    ]
    parts.insert(1 if at else 0, rewriter.call(aten.unsqueeze.default, new, axis))
    return rewriter.call(aten.cat.default, parts, axis)


def triangle(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write ``tril`` or ``triu`` as a product with zeros and ones."""
    value, diagonal = source(node), integer(node, 1, "diagonal", 0)
    shape = static_shape(value.meta["val"])
    if None in shape[-2:] or not value.meta["val"].is_floating_point():
        return None
    ones = torch.ones([size or 1 for size in shape[-2:]])
    kept = ones.tril(diagonal) if op_name(node) == "tril" else ones.triu(diagonal)
    return rewriter.call(aten.mul.Tensor, value, rewriter.constant(f"{node.name}_kept", kept))


def reduced_windows(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a reduction of a view of six axes and more on one of fewer: neighbours that stay together become one axis.

    Core ML has five. ``x.view(n, c, h, 2, w, 2).mean((3, 5))`` is ``x.view(n c h, 2, w, 2).mean((1, 3))``, but for a
    view.
    """
    value, shape = source(node), static_shape(source(node).meta["val"])
    given = argument(node, 1, "dim")
    if len(shape) <= _MOST_AXES or None in shape or not given or op_name(value) not in _VIEWS or len(value.users) > 1:
        return None
    reduced = {axis % len(shape) for axis in integers(given)}
    together = [list(items) for _, items in itertools.groupby(range(len(shape)), lambda axis: axis in reduced)]
    if len(together) > _MOST_AXES:
        return None
    merged = [math.prod(shape[axis] or 1 for axis in axes) for axes in together]
    flat = rewriter.call(aten.reshape.default, source(value), merged)
    assert callable(node.target)  # noqa: S101 - it is a call
    over = [at for at, axes in enumerate(together) if axes[0] in reduced]
    result = rewriter.call(node.target, flat, over, False)
    rewriter.fuse(value.name, node.name)
    return rewriter.call(aten.reshape.default, result, list(static_shape(node.meta["val"])))


def one_hot(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a one-hot code as a comparison with all classes."""
    classes = integer(node, 1, "num_classes", -1)
    if classes < 1:
        return None
    of_all = rewriter.constant(f"classes_{classes}", torch.arange(classes))
    same = rewriter.call(aten.eq.Tensor, rewriter.call(aten.unsqueeze.default, source(node), -1), of_all)
    return rewriter.call(aten._to_copy.default, same, dtype=torch.int64)
