"""Operators on what was pooled, in the way that runtimes with slow kernels for them are fastest with.

XNNPACK computes eight channels of a convolution at once, needed or not. ONNX Runtime's kernels for ARM64 pay for every
element that they cannot take by the row: a reduction over the channels of (N, C, H, W), and a convolution from two
channels to one, whose patches cost more to gather than to multiply. ``docs/performance.md`` has what each costs.
"""

from itertools import product
from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument, input_node, sizes
from coordatt_deploy.graph.graph import aten, op_name, static_shape
from coordatt_deploy.graph.rewriter import Rewriter

BLOCKS: Final = (8, 4)  # neighbours that are computed at once: XNNPACK's kernels for ARM64 are eight wide
STEPS: Final = 4  # parts that the greatest of all channels is taken in; 2 and 8 cost as much


def mean_of_channels(rewriter: Rewriter, value: fx.Node) -> fx.Node:
    """The mean over the channels of (N, C, H, W) as a 1x1 convolution, (N, 1, H, W)."""
    channels = sizes(value)[1]
    kernel = rewriter.constant(f"mean_of_{channels}_channels", torch.full((1, int(channels), 1, 1), 1 / int(channels)))
    return rewriter.call(aten.conv2d.default, value, kernel)


def greatest_of_channels(rewriter: Rewriter, value: fx.Node) -> fx.Node:
    """The greatest channel of (N, C, H, W), (N, 1, H, W): of parts of the channels first, then of the parts.

    The first reduction is one of several rows then, which the runtime takes by the row. Dynamic sizes, and channels
    without such parts, get the plain reduction.
    """
    batch, channels, height, width = static_shape(value.meta["val"])
    if channels is None or height is None or width is None or channels % STEPS or channels == STEPS:
        return rewriter.call(aten.amax.default, value, [1], True)
    parts = rewriter.call(aten.reshape.default, value, [-1, channels // STEPS, height, width])
    greatest = rewriter.call(aten.amax.default, parts, [1], True)
    images = -1 if batch is None else batch
    together = rewriter.call(aten.reshape.default, greatest, [images, STEPS, height, width])
    return rewriter.call(aten.amax.default, together, [1], True)


def convolved_in_blocks(
    rewriter: Rewriter, value: fx.Node, kernel: torch.Tensor, bias: fx.Node | None, name: str
) -> fx.Node:
    """Convolve (N, C, A, B), static but for N, with a square *kernel*, (1, C, k, k), that keeps the size.

    Matrix kernels compute several channels at once, and one channel out leaves the others idle. So b neighbours along B
    are taken as channels, in and out: with the channels last that moves nothing, and the kernel is three blocks wide,

        w[o, (p, c), r, q] = kernel[0, c, r, d + k // 2],    d = (q - 1) * b + p - o    where |d| <= k // 2, else 0
    """
    length = block_of(value, kernel)
    assert length is not None  # noqa: S101 - asked for by the callers
    batch, channels, rows, columns = static_shape(value.meta["val"])
    assert channels is not None  # noqa: S101 - asked for by the callers
    assert rows is not None  # noqa: S101
    assert columns is not None  # noqa: S101
    images, size, call = -1 if batch is None else batch, int(kernel.shape[2]), rewriter.call
    wide = kernel.new_zeros(length, length, channels, size, 3)
    for out, place, block in product(range(length), range(length), range(3)):
        distance = (block - 1) * length + place - out + size // 2
        if 0 <= distance < size:
            wide[out, place, :, :, block] = kernel[0, :, :, distance]
    weights = rewriter.constant(f"{name}_blocks", wide.reshape(length, length * channels, size, 3))
    biases = None
    if bias is not None:
        tensor = rewriter.weight(bias)
        assert tensor is not None  # noqa: S101 - recognition has checked it
        biases = rewriter.constant(f"{bias.target}_blocks", tensor.repeat(length))
    blocks = _as_channels(rewriter, value, [images, rows, columns // length, length * channels])
    convolved = call(aten.conv2d.default, blocks, weights, biases, [1, 1], [size // 2, 1])
    return _as_channels(rewriter, convolved, [images, rows, columns, 1])


def _as_channels(rewriter: Rewriter, value: fx.Node, shape: list[int]) -> fx.Node:
    """Reshape (N, C, A, B) with the channels last to *shape*, and put them back in front."""
    last = rewriter.call(aten.permute.default, value, [0, 2, 3, 1])
    return rewriter.call(aten.permute.default, rewriter.call(aten.reshape.default, last, shape), [0, 3, 1, 2])


def block_of(value: fx.Node, kernel: torch.Tensor) -> int | None:
    """How many neighbours ``convolved_in_blocks`` takes as channels; None where it cannot be applied."""
    rows, columns = static_shape(value.meta["val"])[2:]
    if rows is None or columns is None:
        return None
    return next((length for length in BLOCKS if columns % length == 0 and kernel.shape[2] // 2 <= length), None)


def place_weights(rewriter: Rewriter, mask: fx.Node) -> fx.Node:
    """The softmax of (N, 1, H, W) over all places, (N, 1, H * W)."""
    batch, _, height, width = static_shape(mask.meta["val"])
    assert height is not None  # noqa: S101 - asked for by the callers
    assert width is not None  # noqa: S101
    flat = rewriter.call(aten.reshape.default, mask, [-1 if batch is None else batch, 1, height * width])
    return rewriter.call(aten.softmax.int, flat, 2)


def context_of(rewriter: Rewriter, feature: fx.Node, weights: fx.Node) -> fx.Node:
    """The feature map, (N, C, H, W), summed with *weights*, (N, 1, H * W), for its places: (N, C, 1, 1).

    As a product with the channels last: where the map lies so, nothing of it is moved. litert-torch 0.10 cannot
    convert the product the other way round.
    """
    batch, channels, height, width = static_shape(feature.meta["val"])
    assert channels is not None  # noqa: S101 - asked for by the callers
    assert height is not None  # noqa: S101
    assert width is not None  # noqa: S101
    images = -1 if batch is None else batch
    last = rewriter.call(aten.permute.default, feature, [0, 2, 3, 1])
    places = rewriter.call(aten.reshape.default, last, [images, height * width, channels])
    summed = rewriter.call(aten.matmul.default, weights, places)  # (N, 1, C)
    return rewriter.call(
        aten.permute.default, rewriter.call(aten.reshape.default, summed, [images, 1, 1, channels]), [0, 3, 1, 2]
    )


def normalised(rewriter: Rewriter, norm: fx.Node, value: fx.Node, *, spelt_out: bool = False) -> fx.Node:
    """Apply the layer or group norm *norm* to *value*, (N, C, ...), whatever order of axes it was applied in.

    Args:
        rewriter: Of the graph.
        norm: Of the old graph.
        value: Of the new one, (N, C, H, W).
        spelt_out: Whether a norm of one group becomes means, sums and products.
    """
    if op_name(norm) == "group_norm" and spelt_out and argument(norm, 1, "num_groups") == 1:
        return _of_one_group(rewriter, norm, value)
    if op_name(norm) == "group_norm":
        return rewriter.call(norm.target, value, *norm.args[1:], **norm.kwargs)
    channels = static_shape(value.meta["val"])[1]
    assert channels is not None  # noqa: S101 - only sizes and the batch are dynamic
    shape = [channels, 1, 1]
    affine: list[fx.Node | None] = []
    for node in (input_node(norm, 2, "weight"), input_node(norm, 3, "bias")):
        tensor = rewriter.weight(node)
        if tensor is None or node is None:
            affine.append(None)
        else:
            affine.append(rewriter.constant(f"{node.target}_deep", tensor.reshape(shape)))
    epsilon = argument(norm, 4, "eps", 1e-5)
    return rewriter.call(aten.layer_norm.default, value, shape, *affine, epsilon)


def _of_one_group(rewriter: Rewriter, norm: fx.Node, value: fx.Node) -> fx.Node:
    """Y = (x - mean x) / sqrt(mean (x - mean x)^2 + eps) * gamma + beta, each mean over all but the batch."""
    call, over = rewriter.call, [1, 2, 3]
    centred = call(aten.sub.Tensor, value, call(aten.mean.dim, value, over, True))
    variance = call(aten.mean.dim, call(aten.mul.Tensor, centred, centred), over, True)
    epsilon = argument(norm, 4, "eps", 1e-5)
    result = call(aten.mul.Tensor, centred, call(aten.rsqrt.default, call(aten.add.Tensor, variance, epsilon)))
    affine = zip(((2, "weight"), (3, "bias")), (aten.mul.Tensor, aten.add.Tensor), strict=True)
    for (place, name), operator in affine:
        node = input_node(norm, place, name)
        tensor = rewriter.weight(node)
        if tensor is not None and node is not None:
            constant = rewriter.constant(f"{node.target}_deep", tensor.reshape(1, -1, 1, 1))
            result = call(operator, result, constant)
    return result


def convolved_by_rows(
    rewriter: Rewriter, value: fx.Node, kernel: torch.Tensor, bias: fx.Node | None, name: str
) -> fx.Node:
    """Convolve (N, C, A, B) of a static size with a square *kernel*, (1, C, k, k), that keeps the size.

    Each row of the kernel is a convolution of its own, so that a patch is a k-th as large; the results, one below the
    other, are summed each a row further on:

        z[r, i, j] = sum_c sum_d kernel[0, c, r, d] x[c, i, j + d],      y[i, j] = sum_r z[r, i + r, j]

    Read without the ends of the rows, z has its values for one (i, j) below each other after k * B zeros more.
    """
    images, _, rows, columns = static_shape(value.meta["val"])
    assert images is not None  # noqa: S101 - asked for by the callers
    assert rows is not None  # noqa: S101
    assert columns is not None  # noqa: S101
    size, call = int(kernel.shape[2]), rewriter.call
    weights = rewriter.constant(f"{name}_rows", kernel[0].transpose(0, 1)[:, :, None])  # (k, C, 1, k)
    half = size // 2
    z = call(aten.conv2d.default, value, weights, None, [1, 1], [half, half])  # (N, k, A + k - 1, B)
    flat = call(aten.reshape.default, z, [images, size * (rows + size - 1) * columns])
    longer = call(aten.constant_pad_nd.default, flat, [0, size * columns])
    skewed = call(aten.reshape.default, longer, [images, size, (rows + size) * columns])
    below = call(aten.slice.Tensor, skewed, 2, 0, rows * columns)
    ones = rewriter.constant(f"sum_of_{size}_rows", torch.ones(1, size, 1))
    return call(aten.reshape.default, call(aten.conv1d.default, below, ones, bias), [images, 1, rows, columns])
