"""Copies of a tensor to a greater shape: left out where broadcasting does the same, and spelled out elsewhere.

x * gate.expand_as(x)      =  x * gate
gate.expand(N, C, H, W)    =  2 gate * halves(1, 1, H, W)
x.repeat(1, 2, 1, 1)       =  concat(x, x)

Halves, for litert-torch makes a copy of a product with ones, and then writes one that is transposed as if it were not:
a file that no interpreter opens, or a wrong one where the sizes happen to fit. Twice a half is exact.
"""

from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, integers, same_size, source
from coordatt_deploy.graph.graph import aten, op_name, static_shape
from coordatt_deploy.graph.rewriter import Rewriter

# They broadcast their tensors by themselves, in every runtime.
BROADCASTING: Final = frozenset({"mul", "add", "sub", "div", "maximum", "minimum"})


def needless(_: Rewriter, node: fx.Node) -> fx.Node | None:
    """Leave a copy out where whoever reads it broadcasts by itself, at every size, or where nothing is copied."""
    value = source(node)
    before, after = value.meta["val"].shape, node.meta["val"].shape
    if len(before) == len(after) and all(map(same_size, before, after)):
        return value
    stretched = all(
        old == 1 or same_size(old, new) for old, new in zip(reversed(before), reversed(after), strict=False)
    )
    return value if stretched and all(_broadcasts(user, node, value) for user in node.users) else None


def copies(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write ``expand``, ``expand_as``, ``repeat`` or ``tile`` as a product with halves, or as a concatenation."""
    value = source(node)
    left_out = needless(rewriter, node)
    if left_out is not None:
        return left_out
    before, after = static_shape(value.meta["val"]), static_shape(node.meta["val"])
    padded = (1,) * (len(after) - len(before)) + before
    if None in after or None in before or not value.meta["val"].is_floating_point():
        return None
    if len(before) < len(after):
        value = rewriter.call(aten.reshape.default, value, list(padded))
    if op_name(node) in {"repeat", "tile"}:
        return _joined(rewriter, value, padded, after)
    return _widened(rewriter, value, [new or 1 if old != new else 1 for old, new in zip(padded, after, strict=True)])


def _widened(rewriter: Rewriter, value: fx.Node, times: list[int]) -> fx.Node:
    """Copy *value* along each axis as often as *times* says; axes that are copied have size 1."""
    halves = rewriter.constant(f"halves_{'x'.join(map(str, times))}", torch.full(times, 0.5))
    return rewriter.call(aten.mul.Tensor, rewriter.call(aten.mul.Tensor, value, 2.0), halves)


def _joined(
    rewriter: Rewriter, value: fx.Node, before: tuple[int | None, ...], after: tuple[int | None, ...]
) -> fx.Node:
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new and old == 1:
            value = _widened(rewriter, value, [new or 1 if at == axis else 1 for at in range(len(after))])
        elif old != new:
            assert old is not None  # noqa: S101 - the caller has static sizes
            assert new is not None  # noqa: S101
            value = rewriter.call(aten.cat.default, [value] * (new // old), axis)
    return value


def _broadcasts(user: fx.Node, node: fx.Node, value: fx.Node) -> bool:
    """Whether *user* gives a result of the same shape from *value* as it does from the copy *node*."""
    if op_name(user) not in BROADCASTING:
        return False
    shapes = [
        (value if item is node else item).meta["val"].shape for item in user.args[:2] if isinstance(item, fx.Node)
    ]
    whole = user.meta["val"].shape
    return all(
        any(len(shape) >= back and same_size(shape[-back], whole[-back]) for shape in shapes)
        for back in range(1, len(whole) + 1)
    )


def filled(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write ``new_ones``, ``new_zeros`` and ``new_full``, which take the type of a tensor, as ``full`` of that type."""
    value = argument(node, 2, "fill_value") if op_name(node) == "new_full" else float(op_name(node) == "new_ones")
    dtype = node.meta["val"].dtype
    return rewriter.call(aten.full.default, argument(node, 1, "size"), value, dtype=dtype)


def interleaved(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write ``repeat_interleave`` by a number: every element stands that many times in a row."""
    value, times = source(node), argument(node, 1, "repeats")
    axis = argument(node, 2, "dim")
    shape = static_shape(value.meta["val"])
    if not isinstance(times, int) or not isinstance(axis, int) or None in shape:
        return None
    (at,) = integers(axis % len(shape))
    rows = [value] * times
    stacked = rewriter.call(
        aten.cat.default, [rewriter.call(aten.unsqueeze.default, row, at + 1) for row in rows], at + 1
    )
    return rewriter.call(aten.reshape.default, stacked, [*shape[:at], (shape[at] or 0) * times, *shape[at + 1 :]])
