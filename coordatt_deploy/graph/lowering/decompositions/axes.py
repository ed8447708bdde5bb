"""Operators that are linear in each axis of a feature map: resizes and adaptive means, as matrix products.

    y = A_h x A_w^T,   A_h (H_out, H_in) and A_w (W_out, W_in) by applying the operator itself to the basis of each axis

so that the weights are torch's own, whatever its rules for sizes, scales, corners and antialiasing say. Operators that
only choose (nearest) and pads become an index list per axis, in the same way.
"""

import math
import operator

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, integer, source
from coordatt_deploy.graph.graph import aten, op_name, static_shape
from coordatt_deploy.graph.rewriter import Rewriter

_HEIGHT, _WIDTH = 2, 3


def products(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a linear operator as one matrix product per axis."""
    result = value = source(node)
    if value.meta["val"].ndim != 4 or None in static_shape(value.meta["val"])[1:]:
        return None
    for axis in (_WIDTH, _HEIGHT):
        matrix = _matrix(node, axis)
        if torch.equal(matrix, torch.eye(matrix.shape[0], matrix.shape[1], dtype=matrix.dtype)):
            continue
        weight = matrix.to(torch.float32)
        name = f"{node.name}_over_{'height' if axis == _HEIGHT else 'width'}"
        if axis == _WIDTH:
            result = rewriter.call(aten.matmul.default, result, rewriter.constant(name, weight.t()))
        else:
            turned = rewriter.call(aten.transpose.int, result, 2, 3)
            product = rewriter.call(aten.matmul.default, turned, rewriter.constant(name, weight.t()))
            result = rewriter.call(aten.transpose.int, product, 2, 3)
    return result


def choices(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write an operator that only moves or repeats whole rows and columns as stretches joined again."""
    result = value = source(node)
    if value.meta["val"].ndim != 4 or None in static_shape(value.meta["val"])[1:]:
        return None
    for axis in (_HEIGHT, _WIDTH):
        chosen = _matrix(node, axis).argmax(1).tolist()
        if chosen != list(range(value.meta["val"].shape[axis])):
            result = _chosen(rewriter, result, axis, chosen)
    return result


def fractional_choices(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a nearest resize as ``choices`` unless it is by whole numbers, which every converter writes right."""
    before, after = static_shape(source(node).meta["val"]), static_shape(node.meta["val"])
    if None in before[1:] or None in after[1:]:
        return None
    whole = all((new or 0) % (old or 1) == 0 for old, new in zip(before[2:], after[2:], strict=True))
    return None if whole else choices(rewriter, node)


def choices_by_factor(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a nearest resize as ``choices`` where torch goes by a factor that the ratio of the sizes is not."""
    before, after = static_shape(source(node).meta["val"]), static_shape(node.meta["val"])
    if None in before[1:] or None in after[1:] or len(before) != 4:
        return None
    by_ratio = all(
        _matrix(node, axis).argmax(1).tolist() == [at * (before[axis] or 0) // size for at in range(size)]
        for axis, size in ((_HEIGHT, after[_HEIGHT] or 0), (_WIDTH, after[_WIDTH] or 0))
    )
    return None if by_ratio else choices(rewriter, node)


def _chosen(rewriter: Rewriter, value: fx.Node, axis: int, chosen: list[int]) -> fx.Node:
    index = rewriter.constant(f"rows_{'_'.join(map(str, chosen[:8]))}_{len(chosen)}", torch.tensor(chosen))
    return rewriter.call(aten.index_select.default, value, axis, index)


def _matrix(node: fx.Node, axis: int) -> torch.Tensor:
    """Apply the operator of *node* to each basis vector along *axis*; (out, in), float64."""
    shape = tuple(source(node).meta["val"].shape)
    have, across = shape[axis], shape[_WIDTH + _HEIGHT - axis]
    basis = torch.eye(have, dtype=torch.float64)[:, :, None].expand(have, have, across)
    basis = basis if axis == _HEIGHT else basis.transpose(1, 2)
    assert callable(node.target)  # noqa: S101 - it is a call
    pieces = torch.split(basis, _step(shape))
    parts = [node.target(piece[None].contiguous(), *node.args[1:], **node.kwargs)[0] for piece in pieces]
    answer = torch.cat(parts)
    return answer[:, :, 0].t() if axis == _HEIGHT else answer[:, 0, :].t()


def _step(shape: tuple[int, ...]) -> int:
    """How many basis vectors are resized at once: about 4 million elements."""
    return max(1, 4_000_000 // math.prod(shape[2:]))


def fractional_products(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a resize by a factor as ``products`` where the factor does not give the size exactly."""
    before, after = static_shape(source(node).meta["val"]), static_shape(node.meta["val"])
    factors = argument(node, 3, "scale_factors")
    if not isinstance(factors, (list, tuple)) or None in before[1:] or None in after[1:]:
        return None
    exact = all((old or 0) * factor == new for old, new, factor in zip(before[2:], after[2:], factors, strict=True))
    return None if exact else products(rewriter, node)


def running_sum(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a cumulative sum as a product with a triangle of ones."""
    value, axis = source(node), argument(node, 1, "dim")
    shape = static_shape(value.meta["val"])
    if not isinstance(axis, int) or shape[axis] is None or not value.meta["val"].is_floating_point():
        return None
    triangle = rewriter.constant(f"triangle_of_{shape[axis]}", torch.ones(shape[axis] or 1, shape[axis] or 1).triu())
    last = len(shape) - 1
    if axis % len(shape) == last:
        return rewriter.call(aten.matmul.default, value, triangle)
    turned = rewriter.call(aten.transpose.int, value, axis, last)
    return rewriter.call(aten.transpose.int, rewriter.call(aten.matmul.default, turned, triangle), axis, last)


def greatest(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write the greatest or least values of an axis, or all of them in order, by the positions of the greatest.

    The positions are looked for along the last axis, of the negated value where the least are wanted, and the values
    are taken from there: litert-torch makes a sort, which LiteRT does not have, of what asks for values alone.
    """
    call, wanted = source(node), argument(node, 1, "index")
    value, sorts = source(call), op_name(call) == "sort"
    shape = static_shape(value.meta["val"])
    if sorts and call.target is not aten.sort.default:
        return None
    axis = integer(call, 1 if sorts else 2, "dim", -1) % len(shape)
    count = shape[axis] if sorts else argument(call, 1, "k")
    descending = argument(call, 2, "descending", False) if sorts else argument(call, 3, "largest", True)
    last = len(shape) - 1
    if not isinstance(count, int) or (wanted == 1 and not sorts and descending and axis == last):
        return None
    moved = value if axis == last else rewriter.call(aten.transpose.int, value, axis, last)
    mirrored = moved if descending else rewriter.call(aten.neg.default, moved)
    result = rewriter.call(operator.getitem, rewriter.call(aten.topk.default, mirrored, count, last), 1)
    if wanted == 0:
        result = rewriter.call(aten.gather.default, moved, last, result)
    return result if axis == last else rewriter.call(aten.transpose.int, result, axis, last)
