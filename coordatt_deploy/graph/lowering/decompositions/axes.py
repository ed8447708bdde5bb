"""Operators that are linear in each axis of a feature map: resizes and adaptive means, as matrix products.

    y = A_h x A_w^T,   A_h (H_out, H_in) and A_w (W_out, W_in) by applying the operator itself to the basis of each axis

so that the weights are torch's own, whatever its rules for sizes, scales, corners and antialiasing say. Operators that
only choose (nearest) and pads become an index list per axis, in the same way.
"""

import math
import operator

import numpy as np
import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch.fx.node import Argument

from coordatt_deploy.graph import call_arguments
from coordatt_deploy.graph.call_arguments import argument, integer, is_number, source
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
    """Write a nearest resize as ``choices`` unless it is by whole numbers, which every converter writes right.

    ONNX Runtime divides by the ratio of the sizes in float32, and takes the neighbour where that is just below a whole
    number: from 28 rows to 4, the row behind 7 is 6.
    """
    value, wanted = source(node), argument(node, 1, "output_size")
    before, after = call_arguments.sizes(value), call_arguments.sizes(node)
    if all(_is_multiple(old, new) for old, new in zip(before[2:], after[2:], strict=True)):
        return None
    if None not in static_shape(value.meta["val"])[1:] + static_shape(node.meta["val"])[1:]:
        return choices(rewriter, node)
    if not isinstance(wanted, (list, tuple)):
        return None
    result = value
    for axis, size in zip((_HEIGHT, _WIDTH), wanted, strict=True):
        rows = _computed_rows(rewriter, value, axis, size, at_centre="exact" in op_name(node))
        result = rewriter.call(aten.index_select.default, result, axis, rows)
    return result


def _is_multiple(old: int | torch.SymInt, new: int | torch.SymInt) -> bool:
    """Whether *new* is a whole multiple of *old* at every size."""
    first, second = (sympy.sympify(size.node.expr if isinstance(size, torch.SymInt) else size) for size in (old, new))
    return bool((second / first).is_Integer)


def _computed_rows(rewriter: Rewriter, value: fx.Node, axis: int, wanted: Argument, *, at_centre: bool) -> fx.Node:
    """The rows that a nearest resize to a size that only the run knows takes: r = floor(o have / wanted).

    At the centre of each: r = floor((o + 1/2) have / wanted) = floor((2 o + 1) have / (2 wanted)).
    """
    have = rewriter.call(aten.sym_size.int, value, axis)
    place = rewriter.call(aten.arange.default, wanted)
    if at_centre:
        place = rewriter.call(aten.add.Tensor, rewriter.call(aten.mul.Tensor, place, 2), 1)
        wanted = rewriter.call(operator.mul, wanted, 2)
    return rewriter.call(
        aten.div.Tensor_mode, rewriter.call(aten.mul.Tensor, place, have), wanted, rounding_mode="floor"
    )


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
    """Write a resize by a factor as ``products`` where the factor, a float32 in a file, does not give the size exactly.

    torch goes by the factor, and runtimes by the ratio of the sizes or by a factor that gives another size.
    """
    before, after = static_shape(source(node).meta["val"]), static_shape(node.meta["val"])
    factors = argument(node, 3, "scale_factors")
    if not isinstance(factors, (list, tuple)) or None in before[1:] or None in after[1:]:
        return None
    exact = all(
        is_number(factor) and float(np.float32(factor)) == factor and (old or 0) * factor == new
        for old, new, factor in zip(before[2:], after[2:], factors, strict=True)
    )
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


def only_position(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write the position of the greatest or least of an axis of size 1, which is 0, as a whole number times 0.

    litert-torch makes a reduction of it that it cannot write. A number with a fraction would not do: infinity times 0.
    """
    value, axis = source(node), argument(node, 1, "dim")
    if not isinstance(axis, int) or value.meta["val"].shape[axis] != 1:
        return None
    whole = rewriter.call(aten._to_copy.default, value, dtype=torch.int64)
    result = rewriter.call(aten.mul.Tensor, whole, 0)
    return result if argument(node, 2, "keepdim", False) else rewriter.call(aten.squeeze.dim, result, axis)


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
