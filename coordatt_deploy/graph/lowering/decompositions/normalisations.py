"""Normalisations as means, differences and products, as a runtime without a good kernel for them is exacter.

    y = (x - mean x) / sqrt(mean (x - mean x)^2 + eps) * gamma + beta

    group norm       each mean over the places and the channels of a group: of the means over places a 1x1 convolution
    instance norm    each mean over the places
    layer norm       each mean over the last axis: a product with a column of 1 / length

ExecuTorch's own kernels take the variance for mean(x^2) - mean(x)^2, which loses the digits of x where its mean is far
from 0 (of a map whose mean is 100, 0.02 to 0.1 was seen), and stand outside XNNPACK, which takes all of these.
"""

from collections.abc import Callable, Sequence

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, input_node, integer, integers, is_number, source
from coordatt_deploy.graph.graph import aten, static_shape
from coordatt_deploy.graph.rewriter import Rewriter

_PLACES = [2, 3]
Mean = Callable[[fx.Node], fx.Node]


def group_norm(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a group norm of a map, (N, C, H, W); of other tensors, or of affine weights that are computed, nothing."""
    value, groups = source(node), integer(node, 1, "num_groups")
    if value.meta["val"].ndim != 4:
        return None
    channels = static_shape(value.meta["val"])[1]
    if channels is None:
        return None
    size = channels // groups
    # One group has one mean, (N, 1, 1, 1), that is subtracted from every channel; of several, each channel has its own.
    kernel = torch.full((1 if groups == 1 else channels, size, 1, 1), 1.0 / size)

    def mean(item: fx.Node) -> fx.Node:
        of_channels = rewriter.call(aten.mean.dim, item, _PLACES, True)
        if size == 1:
            return of_channels
        over = rewriter.constant(f"{node.name}_over_group", kernel)
        return rewriter.call(aten.conv2d.default, of_channels, over, None, [1, 1], [0, 0], [1, 1], groups)

    affine = input_node(node, 2, "weight"), input_node(node, 3, "bias")
    return _normalised(rewriter, value, mean, affine, (1, -1, 1, 1), argument(node, 4, "eps", 1e-5))


def instance_norm(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write an instance norm of a map, (N, C, H, W), that uses the statistics of what it reads."""
    value = source(node)
    if value.meta["val"].ndim != 4 or argument(node, 5, "use_input_stats") is not True:
        return None

    def mean(item: fx.Node) -> fx.Node:
        return rewriter.call(aten.mean.dim, item, _PLACES, True)

    affine = input_node(node, 1, "weight"), input_node(node, 2, "bias")
    return _normalised(rewriter, value, mean, affine, (1, -1, 1, 1), argument(node, 7, "eps", 1e-5))


def layer_norm(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a layer norm over the last of several axes."""
    value, over = source(node), integers(argument(node, 1, "normalized_shape"))
    if len(over) != 1 or value.meta["val"].ndim < 2:
        return None
    column = torch.full((1, over[0]), 1.0 / over[0])

    def mean(item: fx.Node) -> fx.Node:
        return rewriter.call(aten.linear.default, item, rewriter.constant(f"{node.name}_over_last", column))

    affine = input_node(node, 2, "weight"), input_node(node, 3, "bias")
    return _normalised(rewriter, value, mean, affine, over, argument(node, 4, "eps", 1e-5))


def _normalised(
    rewriter: Rewriter,
    value: fx.Node,
    mean: Mean,
    affine: tuple[fx.Node | None, fx.Node | None],
    shape: Sequence[int],
    epsilon: object,
) -> fx.Node | None:
    """Write the formula; None where an affine weight is computed.

    Args:
        rewriter: Of the graph.
        value: What is normalised.
        mean: Writes a mean of what it is given, in a shape that broadcasts.
        affine: Gamma and beta, where there are any.
        shape: In which these broadcast.
        epsilon: As the operator has it.
    """
    given = [(rewriter.weight(item), item) for item in affine]
    if not is_number(epsilon) or any(tensor is None and item is not None for tensor, item in given):
        return None
    call = rewriter.call
    centred = call(aten.sub.Tensor, value, mean(value))
    variance = mean(call(aten.mul.Tensor, centred, centred))
    result = call(aten.mul.Tensor, centred, call(aten.rsqrt.default, call(aten.add.Tensor, variance, float(epsilon))))
    for (tensor, item), operator in zip(given, (aten.mul.Tensor, aten.add.Tensor), strict=True):
        if tensor is not None and item is not None:
            result = call(operator, result, rewriter.constant(f"{item.target}_deep", tensor.reshape(tuple(shape))))
    return result
