"""Group normalisation as means, differences and products, as a runtime without a kernel for it is faster and exacter.

    mean_g = sum over the channels c of group g of (mean of x_c over its places) / channels of a group
    y      = (x - mean_g) / sqrt(mean over g of (x - mean_g)^2 + eps) * gamma + beta

ExecuTorch's own kernel takes the variance for mean(x^2) - mean(x)^2, which loses the digits of x where its mean is far
from 0, and stands outside XNNPACK. The mean over the channels of a group is a 1x1 convolution, which XNNPACK takes.
"""

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, input_node, integer, is_number, source
from coordatt_deploy.graph.graph import aten, static_shape
from coordatt_deploy.graph.rewriter import Rewriter

_PLACES = [2, 3]


def group_norm(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a group norm of a map, (N, C, H, W); of other tensors, or of affine weights that are computed, nothing."""
    value, epsilon = source(node), argument(node, 4, "eps", 1e-5)
    groups = integer(node, 1, "num_groups")
    if value.meta["val"].ndim != 4 or not is_number(epsilon):
        return None
    channels = static_shape(value.meta["val"])[1]
    affine = [(input_node(node, 2, "weight"), aten.mul.Tensor), (input_node(node, 3, "bias"), aten.add.Tensor)]
    weights = [(rewriter.weight(item), item, operator) for item, operator in affine if item is not None]
    if channels is None or any(tensor is None for tensor, _, _ in weights):
        return None
    call = rewriter.call
    size = channels // groups
    # One group has one mean, (N, 1, 1, 1), that is subtracted from every channel; of several, each channel has its own.
    over = None if size == 1 else torch.full((1 if groups == 1 else channels, size, 1, 1), 1.0 / size)
    kernel = None if over is None else rewriter.constant(f"{node.name}_over_group", over)

    def mean(item: fx.Node) -> fx.Node:
        of_channels = call(aten.mean.dim, item, _PLACES, True)
        if kernel is None:
            return of_channels
        return call(aten.conv2d.default, of_channels, kernel, None, [1, 1], [0, 0], [1, 1], groups)

    centred = call(aten.sub.Tensor, value, mean(value))
    variance = mean(call(aten.mul.Tensor, centred, centred))
    result = call(aten.mul.Tensor, centred, call(aten.rsqrt.default, call(aten.add.Tensor, variance, float(epsilon))))
    for tensor, item, operator in weights:
        assert tensor is not None  # noqa: S101 - asked for above
        result = call(operator, result, rewriter.constant(f"{item.target}_deep", tensor.reshape(1, -1, 1, 1)))
    return result
