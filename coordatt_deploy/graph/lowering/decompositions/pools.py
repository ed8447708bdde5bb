"""Pools with windows that a converter does not have: uneven ones, and those that reach beyond the feature map."""

import math
from operator import getitem
from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, integer, pair, source, static_pair
from coordatt_deploy.graph.graph import aten, op_name, static_shape
from coordatt_deploy.graph.rewriter import Rewriter

_AXES: Final = (2, 3)


def average(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write an average pool that rounds its size up, or has a divisor of its own, with full windows.

        y = avg_pool(pad(x)) * (kernel elements / elements that torch divides by)

    The factor is torch's own, from a map of ones: it takes in ``ceil_mode``, ``count_include_pad`` and
    ``divisor_override`` alike.
    """
    value = source(node)
    before, after = static_shape(value.meta["val"]), static_shape(node.meta["val"])
    uneven = argument(node, 4, "ceil_mode", False) or argument(node, 6, "divisor_override") is not None
    if not uneven or None in before[1:] or len(before) != 4:
        return None
    kernel = static_pair(argument(node, 1, "kernel_size"))
    stride = static_pair(argument(node, 2, "stride") or list(kernel))
    padding = static_pair(argument(node, 3, "padding", 0))
    ends = [
        max(0, (after[axis] or 0) * s - s + k - (before[axis] or 0) - p)
        for axis, k, s, p in zip(_AXES, kernel, stride, padding, strict=True)
    ]
    plain = value
    if any(ends) or any(padding):
        edges = [padding[1], ends[1], padding[0], ends[0]]
        plain = rewriter.call(aten.constant_pad_nd.default, value, edges, 0.0)
    needed = [((after[axis] or 0) - 1) * s + k for axis, k, s in zip(_AXES, kernel, stride, strict=True)]
    for axis, size in zip(_AXES, needed, strict=True):  # a last stretch that no window reaches
        if plain.meta["val"].shape[axis] > size:
            plain = rewriter.call(aten.slice.Tensor, plain, axis, 0, size)
    pooled = rewriter.call(aten.avg_pool2d.default, plain, list(kernel), list(stride))
    factor = _factor(node, (before[2] or 1, before[3] or 1), kernel, stride, padding)
    if torch.equal(factor, torch.ones_like(factor)):
        return pooled
    constant = rewriter.constant(f"{node.name}_share", factor.float())
    return rewriter.call(aten.mul.Tensor, pooled, constant)


def _factor(
    node: fx.Node, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> torch.Tensor:
    """What a sum over full windows of zero-padded values is to be divided by, compared with the full window."""
    ones = torch.ones(1, 1, *size, dtype=torch.float64)
    ceil = bool(argument(node, 4, "ceil_mode", False))
    assert callable(node.target)  # noqa: S101 - it is a call
    averaged = node.target(ones, *node.args[1:], **node.kwargs)  # elements inside / elements that torch divides by
    inside = aten.avg_pool2d.default(ones, list(kernel), list(stride), list(padding), ceil, True, 1)
    return torch.where(inside > 0, averaged / inside.clamp_min(1), 1.0) * math.prod(kernel)


def greatest_of_stretches(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write the values of an adaptive max pool as a max pool, or as the greatest of each stretch of each axis."""
    pool = source(node)
    value = source(pool)
    shape = static_shape(value.meta["val"])
    wanted = pair(argument(pool, 1, "output_size"))
    if node.args[1] != 0 or None in shape[1:] or len(shape) != 4:
        return None
    result = value
    for axis, size in zip(_AXES, wanted, strict=True):
        have = shape[axis] or 0
        if not isinstance(size, int) or size == have:
            continue
        if size == 1:
            result = rewriter.call(aten.amax.default, result, [axis], True)
            continue
        if have % size == 0:
            window = [have // size if at == axis else 1 for at in _AXES]
            result = rewriter.call(aten.max_pool2d.default, result, window, window)
            continue
        # torch's own bounds: from floor(i * have / size) to ceil((i + 1) * have / size)
        stretches = [(at * have // size, -(-(at + 1) * have // size)) for at in range(size)]
        slices = [rewriter.call(aten.slice.Tensor, result, axis, low, high) for low, high in stretches]
        parts = [rewriter.call(aten.amax.default, part, [axis], True) for part in slices]
        result = rewriter.call(aten.cat.default, parts, axis)
    return result


def extremum(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write the values, or the positions, of ``max`` or ``min`` along an axis by the operator that gives them alone."""
    both = source(node)
    if node.target is not getitem or both.target not in (aten.max.dim, aten.min.dim):  # of two tensors, or of a whole
        return None
    name, axis, keep = op_name(both), integer(both, 1, "dim"), bool(argument(both, 2, "keepdim", False))
    if node.args[1] == 0:
        return rewriter.call(getattr(aten, f"a{name}").default, source(both), [axis], keep)
    return rewriter.call(getattr(aten, f"arg{name}").default, source(both), axis, keep)
