"""The forms of an attention block: one function, written the way that one runtime runs fastest.

In all of them p_h and p_w are the means of x over its columns and rows, s a squeeze (1x1 convolution and activation),
a = gate(excite(s)) with a_h (N, C, H, 1) and a_w (N, C, 1, W):

    y[c, i, j] = x[c, i, j] * a_h[c, i] * a_w[c, j]

The squeeze acts on every position alone, so s([p_h ; p_w]) = [s(p_h) ; s(p_w)]: the concat, the split and both
transpositions of the usual code are not needed. ``docs/performance.md`` has what each form costs where.
"""

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument
from coordatt_deploy.graph.graph import aten, op_name, static_shape
from coordatt_deploy.graph.lowering.pointwise import pointwise, read_pointwise
from coordatt_deploy.graph.lowering.strip_axes import COLUMNS, ROWS, WHOLE, not_pointwise
from coordatt_deploy.graph.lowering.writer import Writer
from coordatt_deploy.graph.rewriter import Placed

# Channels per block of ONNX Runtime's blocked layout with AVX-512; the block of AVX2, 8, divides it.
BLOCK: Final = 16


class Form(enum.StrEnum):
    """A way to write an attention block."""

    MEANS = "means"
    BLOCKED = "blocked"
    CHANNELS_LAST = "channels_last"
    PAIRED = "paired"
    POOLED = "pooled"


@dataclass(frozen=True, slots=True)
class FormRule:
    """How a form is written and when it cannot be.

    Attributes:
        write: Writes the block.
        unsupported_reason: Says why a block cannot be written so; None if it can.
    """

    write: Callable[[Writer], None]
    unsupported_reason: Callable[[Writer], str | None]


def means(writer: Writer) -> None:
    """Two branches of means; the gates are multiplied together before they meet the feature map.

    The small product is one broadcast, the large one has equal shapes: the order that runtimes without a blocked
    layout, and XNNPACK, are fastest with. It serves every size and every block.
    """
    call, x = writer.call, writer.feature
    if writer.has(WHOLE):
        a = writer.gate(WHOLE, call(aten.mean.dim, x, [2, 3], True), "NC11")
    else:
        a_h = writer.gate(ROWS, call(aten.mean.dim, x, [3], True), "NCP1")
        a_w = writer.gate(COLUMNS, call(aten.mean.dim, x, [2], True), "NC1P")
        a = call(aten.mul.Tensor, a_h, a_w)
    writer.finish(call(aten.mul.Tensor, x, a))


def means_unsupported_reason(_: Writer) -> str | None:
    """Return None: every block can be written as means."""
    return None


def pooled(writer: Writer) -> None:
    """As ``means``, with strip pools for the means over one axis.

    ExecuTorch hands XNNPACK no mean over one axis: with one, a block is three pieces with portable kernels between.
    """
    call, x = writer.call, writer.feature
    if writer.has(WHOLE):
        means(writer)
        return
    height, width = writer.size()
    a_h = writer.gate(ROWS, call(aten.avg_pool2d.default, x, [1, width]), "NCP1")
    a_w = writer.gate(COLUMNS, call(aten.avg_pool2d.default, x, [height, 1]), "NC1P")
    writer.finish(call(aten.mul.Tensor, x, call(aten.mul.Tensor, a_h, a_w)))


def pooled_unsupported_reason(writer: Writer) -> str | None:
    """Why the strip kernels do not fit."""
    if writer.block.height is None or writer.block.width is None:
        return "strip kernels cannot follow a dynamic size"
    return None


def blocked(writer: Writer) -> None:
    """Nothing but what ONNX Runtime computes in its blocked layout on x86: no value is ever reordered.

    Pools with strip kernels, gates broadcast by a nearest Resize, products of equal shapes, squeezed channels padded to
    whole blocks.
    """
    call, y = writer.call, writer.feature
    height, width = writer.size()
    for direction, axes, window in ((ROWS, "NCP1", (1, width)), (COLUMNS, "NC1P", (height, 1)),
                                    (WHOLE, "NC11", (height, width))):  # fmt: skip
        if writer.has(direction):
            pooled = call(aten.avg_pool2d.default, writer.feature, list(window))
            a = writer.gate(direction, pooled, axes, block=BLOCK)
            spread = call(aten.upsample_nearest2d.vec, a, None, [float(scale) for scale in window])
            y = call(aten.mul.Tensor, spread, y) if direction == ROWS else call(aten.mul.Tensor, y, spread)
    writer.finish(y)


def blocked_unsupported_reason(writer: Writer) -> str | None:
    """Why the strip kernels, the Resize or the blocks do not fit."""
    if writer.block.height is None or writer.block.width is None:
        return "strip kernels and Resize gates cannot follow a dynamic size"
    if writer.block.channels % BLOCK:
        return f"{writer.block.channels} channels are no whole number of blocks of {BLOCK}"
    return None


def channels_last(writer: Writer) -> None:
    """The block in (N, H, W, C), up to and including the pointwise convolution after it.

    ONNX Runtime's ARM64 kernels pay for every row of a broadcast or a reduction; with the channels last a row is as
    long as the channels, all pointwise convolutions are matrix products with weights packed once, and only the
    projection's small result is brought back to (N, C, H, W).
    """
    call, x = writer.call, writer.feature
    channels, (height, width) = writer.block.channels, writer.size()
    batch = static_shape(x.meta["val"])[0]
    images = -1 if batch is None else batch  # a reshape finds a dynamic batch out by itself
    last = call(aten.permute.default, x, [0, 2, 3, 1])
    # Both means are taken of reshaped tensors, or ONNX Runtime moves the transposition behind them again.
    p_h = call(
        aten.mean.dim, call(aten.reshape.default, last, [images * height if batch else -1, width, channels]), [1]
    )
    mean = writer.rewriter.constant(f"mean_over_{height}", torch.full((1, height), 1 / height))
    p_w = call(aten.matmul.default, mean, call(aten.reshape.default, last, [images, height, width * channels]))
    y = last
    for direction, pooled, axes, shape in (
        (COLUMNS, p_w, "N1PC", [images, 1, width, channels]),
        (ROWS, p_h, "NP1C", [images, height, 1, channels]),
    ):
        if batch == 1:  # matrices: linear layers of them need no reshape around them
            axes, flat = "PC", [max(shape[1:3]), channels]
        else:
            flat = shape
        a = writer.gate(direction, call(aten.reshape.default, pooled, flat), axes)
        y = call(aten.mul.Tensor, y, call(aten.reshape.default, a, shape))
    writer.finish(y, "NHWC")
    _leave(writer, y)


def channels_last_unsupported_reason(writer: Writer) -> str | None:
    """Why the block cannot be taken through (N, H, W, C)."""
    if writer.has(WHOLE):
        return "one gate per channel is multiplied in whole planes, which needs no other layout"
    if writer.block.height is None or writer.block.width is None:
        return "the mean over columns is a product with a constant, which cannot follow a dynamic size"
    return None


def _leave(writer: Writer, y: fx.Node) -> None:
    """Take *y*, (N, H, W, C), back to where the users of the block's output expect it."""
    rewriter, call = writer.rewriter, writer.call
    others = []
    for user in list(writer.output.users):
        takes = op_name(user) == "conv2d" and argument(user, 0, "input") is writer.output
        if takes and not_pointwise(rewriter.module, user, "NC11") is None:
            with rewriter.before(user, user):
                result = pointwise(rewriter, read_pointwise(rewriter, user), y, "NHWC")
                back = call(aten.permute.default, result, [0, 3, 1, 2])
            rewriter.replace(user, back)
            rewriter.put(user.name, "NCHW", [Placed(back, "NCHW")])
        else:
            others.append(user)
    if others:
        rewriter.replace(writer.output, call(aten.permute.default, y, [0, 3, 1, 2]))


def paired(writer: Writer) -> None:
    """Both branches as one, the channels of the columns behind those of the rows: the fewest operators.

    The column means are a product with the transposed feature map, so that both strips lie along the same axis; the
    outer product of the gates is a product of matrices as well. A converter for Core ML folds the transpositions into
    these products.
    """
    call, x = writer.call, writer.feature
    size, channels = writer.size()[0], writer.block.channels
    unit = 2.0 ** -math.ceil(math.log2(size))  # a power of two is exact in float16, 1 / size is not
    ones = writer.rewriter.constant(f"sum_over_{size}", torch.full((size, 1), unit))
    p_h = call(aten.mean.dim, x, [3], True)
    p_w = call(aten.matmul.default, call(aten.transpose.int, x, 2, 3), ones)  # (N, C, W, 1), unit * size * mean
    both = call(aten.cat.default, [p_h, p_w], 1)
    strips = {ROWS: Placed(p_h, "NCP1"), COLUMNS: Placed(p_w, "NCP1", unit * size)}
    gates = writer.gates(both, "NCP1", strips)
    halves = call(aten.split_with_sizes.default, gates, [channels, channels], 1)
    a_h, a_w = (call(getitem, halves, index) for index in (0, 1))
    a = call(aten.matmul.default, a_h, call(aten.transpose.int, a_w, 2, 3))
    writer.finish(call(aten.mul.Tensor, x, a))


def paired_unsupported_reason(writer: Writer) -> str | None:
    """Why the two branches cannot be one."""
    block = writer.block
    if block.height is None or block.height != block.width:
        return "strips of unequal or dynamic length cannot share a tensor"
    branches = writer.anatomy.branches
    if len(branches) != 2:
        return "there is only one branch"
    widths = {read_pointwise(writer.rewriter, writer.rewriter.nodes[item.squeeze]).kernel.shape for item in branches}
    activations = {_activation(writer, item.activation) for item in branches}
    alike = len(widths) == 1 and len(activations) == 1 and len({writer.operator(item.gate) for item in branches}) == 1
    return None if alike else "its branches differ in width, activation or gate"


def _activation(writer: Writer, name: str | None) -> str | None:
    return None if name is None else f"{writer.operator(name)}{writer.rewriter.nodes[name].args[1:]}"


FORMS: Final[Mapping[Form, FormRule]] = {
    Form.MEANS: FormRule(means, means_unsupported_reason),
    Form.BLOCKED: FormRule(blocked, blocked_unsupported_reason),
    Form.CHANNELS_LAST: FormRule(channels_last, channels_last_unsupported_reason),
    Form.PAIRED: FormRule(paired, paired_unsupported_reason),
    Form.POOLED: FormRule(pooled, pooled_unsupported_reason),
}
