"""Transposed convolutions as ordinary ones of fewer taps, one per phase of the stride, and their results interleaved.

    y[o] = sum over i, k with o = i s - p + k d of x[i] w[k]
    with o + p = q s + r:   y[q s + r - p] = sum over j of x[q - j] w'[r + s j],   w' = w with its gaps filled by zeros

so phase r is a convolution of x with every s-th tap, in as many groups as the transposed one has. No product is made
that a transposed convolution would not make, apart from taps that dilation or a rest of k / s leaves at zero.
"""

from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph import call_arguments
from coordatt_deploy.graph.call_arguments import argument, input_node, integer, integers, source, static_pair
from coordatt_deploy.graph.graph import aten, static_shape
from coordatt_deploy.graph.rewriter import Rewriter

_AXES: Final = (2, 3)


def phases(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write a transposed convolution of two axes as an ordinary one and its interleaved channels."""
    value, weight = source(node), rewriter.weight(input_node(node, 1, "weight"))
    bias_node = input_node(node, 2, "bias")
    size, wanted = static_shape(value.meta["val"]), static_shape(node.meta["val"])
    if weight is None or None in size or len(size) != 4:
        return None
    stride, padding = static_pair(argument(node, 3, "stride", 1)), static_pair(argument(node, 4, "padding", 0))
    groups, dilation = integer(node, 6, "groups", 1), static_pair(argument(node, 7, "dilation", 1))
    bias = rewriter.weight(bias_node)
    if bias_node is not None and bias is None:
        return None
    kernel, taps = phase_kernel(weight, stride, dilation, groups)
    repeated = None if bias is None else bias.repeat_interleave(stride[0] * stride[1])
    ends = [pad + (wanted[axis] or 0) for axis, pad in zip(_AXES, padding, strict=True)]
    # Output padding may reach beyond the last tap, where there is nothing but the bias.
    beyond = [
        max(0, -(-end // step) - (size[axis] or 0) - tap + 1)
        for axis, end, step, tap in zip(_AXES, ends, stride, taps, strict=True)
    ]
    if any(beyond):
        value = rewriter.call(aten.constant_pad_nd.default, value, [0, beyond[1], 0, beyond[0]], 0.0)
    result = rewriter.call(
        aten.conv2d.default, value,
        rewriter.constant(f"{node.name}_phases", kernel),
        None if repeated is None else rewriter.constant(f"{node.name}_phases_bias", repeated),
        [1, 1], [taps[0] - 1, taps[1] - 1], [1, 1], groups,
    )  # fmt: skip
    result = interleave(rewriter, result, stride)
    for axis, pad, end in zip(_AXES, padding, ends, strict=True):
        if pad or end < int(result.meta["val"].shape[axis]):
            result = rewriter.call(aten.slice.Tensor, result, axis, pad, end)
    return result


def uncommon_phases(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write as ``phases`` what is grouped (but not depthwise), dilated or has output padding, or an unusual padding.

    LiteRT has VALID (no padding) and SAME (s times the size: k - 2 p = s) for both axes together. litert-torch refuses
    another padding, or writes something else.
    """
    weight = rewriter.weight(input_node(node, 1, "weight"))
    if weight is None:
        return None
    axes = weight.ndim - 2
    stride, padding, ends, groups, dilation = _numbers(node, axes)
    same = all(k - 2 * p == s for k, p, s in zip(weight.shape[2:], padding, stride, strict=True))
    usual = stride == (1,) * axes or not any(padding) or same
    grouped = groups not in {1, weight.shape[0]}
    return _phases(rewriter, node) if grouped or max(dilation) > 1 or any(ends) or not usual else None


def beyond_the_taps(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Write output padding without padding, which coremltools fails at, as zeros behind the result, and the bias added.

    The last tap of the last element ends where the result would without it.
    """
    kernel, bias = input_node(node, 1, "weight"), input_node(node, 2, "bias")
    if kernel is None:
        return None
    axes = len(call_arguments.sizes(kernel)) - 2
    stride, padding, ends, groups, dilation = _numbers(node, axes)
    if any(padding) or not any(ends):
        return None
    assert callable(node.target)  # noqa: S101 - it is a call
    zeros = [0] * axes
    result = rewriter.call(
        node.target, source(node), kernel, None, list(stride), zeros, zeros, groups, list(dilation)
    )  # fmt: skip
    around = [width for end in reversed(ends) for width in (0, end)]
    result = rewriter.call(aten.constant_pad_nd.default, result, around, 0.0)
    if bias is None:
        return result
    return rewriter.call(aten.add.Tensor, result, rewriter.call(aten.reshape.default, bias, [1, -1, *[1] * axes]))


def _numbers(
    node: fx.Node, axes: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]:
    """Stride, padding, output padding, groups and dilation of a transposed convolution, a number for each axis."""
    found = []
    for at, name, usual in ((3, "stride", 1), (4, "padding", 0), (5, "output_padding", 0), (7, "dilation", 1)):
        numbers = integers(argument(node, at, name, usual)) or (usual,)
        found.append(numbers * axes if len(numbers) == 1 else numbers)
    stride, padding, ends, dilation = found
    return stride, padding, ends, integer(node, 6, "groups", 1), dilation


def _phases(rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """``phases``, of one axis as of two of which the first has size 1."""
    weight, bias = rewriter.weight(input_node(node, 1, "weight")), input_node(node, 2, "bias")
    if weight is None or weight.ndim != 3:
        return phases(rewriter, node)
    stride, padding, ends, groups, dilation = _numbers(node, 1)
    value = rewriter.call(aten.unsqueeze.default, source(node), 2)
    kernel = rewriter.constant(f"{node.name}_flat", weight[:, :, None])
    flat = rewriter.call(
        aten.conv_transpose2d.input,
        value,
        kernel,
        bias,
        [1, *stride],
        [0, *padding],
        [0, *ends],
        groups,
        [1, *dilation],
    )
    written = phases(rewriter, flat)
    return None if written is None else rewriter.call(aten.squeeze.dim, written, 2)


def phase_kernel(
    weight: torch.Tensor, stride: tuple[int, int], dilation: tuple[int, int], groups: int
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return the kernel of the ordinary convolution, and its height and width.

    Args:
        weight: Of the transposed convolution, (C_in, C_out / groups, kH, kW).
        stride: Of height and width.
        dilation: Likewise.
        groups: Of both.

    Returns:
        (C_out * sH * sW, C_in / groups, tH, tW): for each output channel its phases, row by row.
    """
    c_in, c_out, *kernel = weight.shape
    taps = [-(-(d * (k - 1) + 1) // s) for k, s, d in zip(kernel, stride, dilation, strict=True)]
    whole = weight.new_zeros(c_in, c_out, taps[0] * stride[0], taps[1] * stride[1])
    whole[
        :, :, : dilation[0] * (kernel[0] - 1) + 1 : dilation[0], : dilation[1] * (kernel[1] - 1) + 1 : dilation[1]
    ] = weight
    # tap r + s j of (C_in, C_out, ...): split into j (the new tap, read backwards) and r (the phase)
    split = whole.reshape(groups, c_in // groups, c_out, taps[0], stride[0], taps[1], stride[1]).flip(3, 5)
    moved = split.permute(0, 2, 4, 6, 1, 3, 5)  # groups, C_out, rH, rW, C_in, tH, tW
    phased = moved.reshape(groups * c_out * stride[0] * stride[1], c_in // groups, taps[0], taps[1])
    return phased.contiguous(), (taps[0], taps[1])


def interleave(rewriter: Rewriter, value: fx.Node, stride: tuple[int, int]) -> fx.Node:
    """Write (N, C sH sW, H, W) as (N, C, H sH, W sW), with tensors of five axes at most."""
    batch, channels, height, width = (int(size) for size in value.meta["val"].shape)
    rows, columns = stride
    if columns > 1:
        apart = rewriter.call(aten.reshape.default, value, [batch, channels // columns, columns, height, width])
        moved = rewriter.call(aten.permute.default, apart, [0, 1, 3, 4, 2])
        value = rewriter.call(aten.reshape.default, moved, [batch, channels // columns, height, width * columns])
    if rows > 1:
        kept, width = channels // (rows * columns), width * columns
        apart = rewriter.call(aten.reshape.default, value, [batch, kept, rows, height, width])
        moved = rewriter.call(aten.permute.default, apart, [0, 1, 3, 2, 4])
        value = rewriter.call(aten.reshape.default, moved, [batch, kept, height * rows, width])
    return value
