"""Powers, quotients and normalisation with stored statistics, in products and sums."""

import math
from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, input_node, integers, is_number, source
from coordatt_deploy.graph.graph import aten, op_name, reshape_sizes, static_shape
from coordatt_deploy.graph.rewriter import LETTERS, Placed, Rewriter

_ATTENTION_AXES: Final = 4
_GREATEST_POWER: Final = 4  # beyond it a runtime's own power is the shorter way


def power(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a small whole power as products: x ** 3 = (x * x) * x."""
    value, exponent = node.args[0], argument(node, 1, "exponent")
    if (
        not isinstance(value, fx.Node)
        or not is_number(exponent)
        or exponent != int(exponent)
        or not 2 <= exponent <= _GREATEST_POWER
    ):
        return None
    result = value
    for _ in range(int(exponent) - 1):
        result = rewriter.call(aten.mul.Tensor, result, value)
    return result


def power_of_many_axes(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a power of more than four axes as products, or on a flat tensor."""
    shape = static_shape(node.meta["val"])
    if len(shape) <= 4:
        return None
    product = power(rewriter, node)
    sizes = reshape_sizes(node.meta["val"])
    if product is not None or sizes is None or len(node.all_input_nodes) != 1:
        return product
    assert callable(node.target)  # noqa: S101 - it is a call
    flat = [
        rewriter.call(aten.reshape.default, item, [1, -1]) if isinstance(item, fx.Node) else item for item in node.args
    ]
    result = rewriter.call(node.target, *flat, **node.kwargs)
    return rewriter.call(aten.reshape.default, result, sizes)


def quotient_of_sum(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a sum that is divided by a number as a mean times a number.

    coremltools takes ``sum(x) * k`` for a mean if k is within 1e-6 of one over the count, as it is where a sum over
    more than a thousand values is divided by one less (its pass ``fuse_reduce_mean``).
    """
    total = source(node)
    by = argument(node, 1, "other")
    if op_name(total) != "sum" or not is_number(by) or not by or argument(node, 2, "rounding_mode") is not None:
        return None
    value, axes = source(total), argument(total, 1, "dim")
    shape = static_shape(value.meta["val"])
    over = integers(axes) if axes else tuple(range(len(shape)))
    if any(shape[axis] is None for axis in over):
        return None
    count = math.prod(shape[axis] or 1 for axis in over)
    mean = rewriter.call(aten.mean.dim, value, list(over), bool(argument(total, 2, "keepdim", False)))
    if len(total.users) == 1:  # the sum itself is gone: the mean holds it
        letters = LETTERS[: mean.meta["val"].ndim]
        rewriter.put(total.name, letters, [Placed(mean, letters, 1 / count)])
    return rewriter.call(aten.mul.Tensor, mean, count / by)


def rms_norm(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write y = x / sqrt(mean(x^2) + eps) * gamma over the last axes."""
    value, shape = source(node), argument(node, 1, "normalized_shape")
    gamma, eps = input_node(node, 2, "weight"), argument(node, 3, "eps")
    axes = [-1 - axis for axis in range(len(integers(shape)))]
    smallest = eps if is_number(eps) else torch.finfo(value.meta["val"].dtype).eps
    square = rewriter.call(aten.mul.Tensor, value, value)
    mean = rewriter.call(aten.add.Tensor, rewriter.call(aten.mean.dim, square, axes, True), float(smallest))
    result = rewriter.call(aten.mul.Tensor, value, rewriter.call(aten.rsqrt.default, mean))
    return result if gamma is None else rewriter.call(aten.mul.Tensor, result, gamma)


def product_of_slices(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write the product over one short axis as products of slices."""
    value, axis = source(node), argument(node, 1, "dim")
    shape = static_shape(value.meta["val"])
    if not isinstance(axis, int) or shape[axis] is None:
        return None
    parts = [rewriter.call(aten.slice.Tensor, value, axis, at, at + 1) for at in range(shape[axis] or 0)]
    result = parts[0]
    for part in parts[1:]:
        result = rewriter.call(aten.mul.Tensor, result, part)
    return result if argument(node, 2, "keepdim", False) else rewriter.call(aten.squeeze.dim, result, axis)


def scaled_sum(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write x + alpha y as a product and a sum: coremltools leaves alpha out."""
    alpha, other = argument(node, 2, "alpha", 1), argument(node, 1, "other")
    if not is_number(alpha) or alpha == 1:
        return None
    assert callable(node.target)  # noqa: S101 - it is a call
    scaled = rewriter.call(aten.mul.Tensor, other, alpha) if isinstance(other, fx.Node) else None
    if scaled is None and not is_number(other):
        return None
    return rewriter.call(node.target, source(node), other * alpha if is_number(other) else scaled)


def reciprocal(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write 1 / x as a quotient: the operator of ML Programs adds 0.0001 to x."""
    value = source(node)
    ones = rewriter.constant("one", torch.ones([1] * value.meta["val"].ndim))
    return rewriter.call(aten.div.Tensor, ones, value)


def interpolation(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write lerp: x + w (y - x)."""
    value, end, share = source(node), input_node(node, 1, "end"), argument(node, 2, "weight")
    if end is None or not (is_number(share) or isinstance(share, fx.Node)):
        return None
    step = rewriter.call(aten.mul.Tensor, rewriter.call(aten.sub.Tensor, end, value), share)
    return rewriter.call(aten.add.Tensor, value, step)


def sum_and_product(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write addcmul: x + value y z."""
    factor = node.kwargs.get("value", 1)
    first, second = input_node(node, 1, "tensor1"), input_node(node, 2, "tensor2")
    if first is None or second is None or not is_number(factor):
        return None
    product = rewriter.call(aten.mul.Tensor, first, second)
    product = product if factor == 1 else rewriter.call(aten.mul.Tensor, product, factor)
    return rewriter.call(aten.add.Tensor, source(node), product)


def attention_of_four_axes(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write attention of fewer axes than four with axes of size 1 before them, and of more with those in one.

    torch.onnx takes (batch, heads, tokens, width) alone.
    """
    query, key, value = (input_node(node, at, name) for at, name in enumerate(("query", "key", "value")))
    mask = argument(node, 3, "attn_mask")
    if query is None or key is None or value is None or mask is not None:
        return None
    shapes = [static_shape(item.meta["val"]) for item in (query, key, value)]
    axes = len(shapes[0])
    if axes == _ATTENTION_AXES or any(None in shape or shape[:-2] != shapes[0][:-2] for shape in shapes):
        return None
    leading = math.prod(size or 1 for size in shapes[0][:-2])
    four = [
        rewriter.call(aten.reshape.default, item, [1, leading, *shape[-2:]])
        for item, shape in zip((query, key, value), shapes, strict=True)
    ]
    assert callable(node.target)  # noqa: S101 - it is a call
    result = rewriter.call(node.target, *four, *node.args[3:], **node.kwargs)
    return rewriter.call(aten.reshape.default, result, [*shapes[0][:-1], shapes[2][-1]])


def logical(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write & and | of truth values by the name that converters know."""
    first, second = source(node), input_node(node, 1, "other")
    if second is None or any(item.meta["val"].dtype != torch.bool for item in (first, second)):
        return None
    target = aten.logical_and.default if "and" in op_name(node) else aten.logical_or.default
    return rewriter.call(target, first, second)
