"""The forms of an attention block: one function, written the way that one runtime runs fastest.

In all of them p_h and p_w are the means of x over its columns and rows, s a squeeze (1x1 convolution and activation),
a = gate(excite(s)) with a_h (N, C, H, 1) and a_w (N, C, 1, W):

    y[c, i, j] = x[c, i, j] * a_h[c, i] * a_w[c, j]

The squeeze acts on every position alone, so s([p_h ; p_w]) = [s(p_h) ; s(p_w)]: the concat, the split and both
transpositions of the usual code are not needed. ``docs/performance.md`` has what each form costs where.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import fx

from coordatt_deploy.activations import HardActivation
from coordatt_deploy.calls import argument, kind
from coordatt_deploy.capture import aten
from coordatt_deploy.recognise import AttentionBlock, Branch
from coordatt_deploy.rewriter import Placed, Rewriter
from coordatt_deploy.strips import COLUMNS, ROWS, WHOLE, not_pointwise

# Channels per block of ONNX Runtime's blocked layout with AVX-512; the block of AVX2, 8, divides it.
BLOCK: Final = 16


class Form(enum.StrEnum):
    """A way to write an attention block; each is a function of this module."""

    UNCHANGED = "unchanged"
    MEANS = "means"
    BLOCKED = "blocked"
    CHANNELS_LAST = "channels_last"


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A 1x1 convolution.

    Attributes:
        name: Dotted name of the module that holds it.
        kernel: (C_out, C_in).
        bias: (C_out,).
        variant: Added to the names of its weights; says what was done to them.
    """

    name: str
    kernel: torch.Tensor
    bias: torch.Tensor
    variant: str = ""

    def scaled(self, factor: float, shift: float = 0.0) -> "Pointwise":
        """Return the convolution that gives ``factor * y + shift``; computed in double, rounded once."""
        kernel = (self.kernel.double() * factor).to(self.kernel.dtype)
        bias = (self.bias.double() * factor + shift).to(self.bias.dtype)
        return Pointwise(self.name, kernel, bias, f"{self.variant}_scaled")

    def fed(self, factor: float) -> "Pointwise":
        """Return the convolution that gives y for an input that is *factor* times what it should be."""
        if factor == 1.0:
            return self
        kernel = (self.kernel.double() / factor).to(self.kernel.dtype)
        return Pointwise(self.name, kernel, self.bias, f"{self.variant}_scaled")

    def padded(self, outputs: int, inputs: int) -> "Pointwise":
        """Return the convolution with channels of zeros behind its own."""
        if self.kernel.shape == (outputs, inputs):
            return self
        kernel, bias = self.kernel.new_zeros(outputs, inputs), self.bias.new_zeros(outputs)
        kernel[: self.kernel.shape[0], : self.kernel.shape[1]] = self.kernel
        bias[: self.bias.shape[0]] = self.bias
        return Pointwise(self.name, kernel, bias, f"{self.variant}_padded")


class Writer:
    """What all forms of one block share: its nodes, its gates, and where the old values are."""

    def __init__(
        self, rewriter: Rewriter, block: AttentionBlock, hard: Mapping[str, HardActivation], *, spell_out: bool
    ) -> None:
        """Prepare to write *block*.

        Args:
            rewriter: Edits the copy of the graph.
            block: What was recognised in the graph.
            hard: The graph's hard activations, by output node.
            spell_out: Write hard-swish as ``t * relu6(t + 3)``, with the 1/6 in the convolution after it.
        """
        self.rewriter, self.block, self.hard, self.spell_out = rewriter, block, hard, spell_out
        self.call = rewriter.call
        self.feature, self.output = rewriter.nodes[block.feature], rewriter.nodes[block.output]
        self.values: dict[tuple[str, str], Placed] = {}
        self.fused: dict[str, str] = {}

    def branch(self, direction: str) -> Branch:
        """Return the branch of that direction."""
        return next(branch for branch in self.block.branches if branch.direction == direction)

    def size(self, axis: int) -> int:
        """Return the static height (axis 2) or width (axis 3) of the feature map."""
        size = self.feature.meta["val"].shape[axis]
        assert isinstance(size, int)  # noqa: S101 - forms that ask for it are chosen for static sizes only
        return size

    def gate(self, direction: str, pooled: fx.Node, axes: str, *, block: int = 1) -> fx.Node:
        """Write squeeze, activation, excite and gate of one branch, and note what holds which old value.

        Args:
            direction: Of the branch.
            pooled: Means of the feature map; (N, C, ...) for convolutions, (..., C) for linear layers.
            axes: How *pooled* lies; the result lies alike.
            block: Pad the squeezed channels with zeros to a multiple of this.
        """
        branch = self.branch(direction)
        squeeze, excite = self._read(branch.squeeze), self._read(branch.excite)
        squeezed, channels = squeeze.kernel.shape[0], self.block.channels
        if branch.activation is None or self._keeps_zero(branch.activation):
            width = -(-squeezed // block) * block
            squeeze, excite = squeeze.padded(width, channels), excite.padded(channels, width)
        kept = (0, squeezed) if squeeze.kernel.shape[0] > squeezed else None
        value = self._pointwise(squeeze, pooled, axes)
        self.values[direction, branch.pool] = Placed(pooled, axes)
        self.values[direction, branch.squeeze] = Placed(value, axes, 1.0, kept)
        if branch.activation is not None:
            value, factor = self._activate(branch.activation, value)
            self.values[direction, branch.activation] = Placed(value, axes, factor, kept)
            excite = excite.fed(factor)
        if self._operator(branch.gate) == "sigmoid":
            value = self._pointwise(excite, value, axes)
            self.values[direction, branch.excite] = Placed(value, axes)
            value = self.call(aten.sigmoid.default, value)
        else:  # hard-sigmoid: scale and shift go into the convolution, the bounds are the gate
            value = self.call(aten.hardtanh.default, self._pointwise(excite.scaled(1 / 6, 0.5), value, axes), 0.0, 1.0)
            self.fused[branch.excite] = branch.gate
        self.values[direction, branch.gate] = Placed(value, axes)
        return value

    def finish(self, output: fx.Node, axes: str = "NCHW") -> None:
        """Put *output*, which lies as *axes*, in the place of the block's, and hand on where every value is.

        The users of the old output are left to the form where *axes* is not NCHW.
        """
        rewriter, block = self.rewriter, self.block
        for name in block.inner:
            strip = block.strips.get(name)
            last = None if strip is None else (strip.chain or strip.pools)[-1]
            if strip is None or last is None or last in self.fused:
                rewriter.fuse(name, self._judged_at(name if last is None else last))
                continue
            held = [self.values.get((direction, last if strip.chain else pool))
                    for direction, pool in zip(strip.directions, strip.pools, strict=True)]  # fmt: skip
            if all(item is not None for item in held):
                rewriter.put(
                    name, strip.axes, [item for item in held if item is not None], "P" if "P" in strip.axes else "N"
                )
            else:
                rewriter.fuse(name, block.output)
        rewriter.put(block.output, "NCHW", [Placed(output, axes)])
        if axes == "NCHW":
            self.output.replace_all_uses_with(output)

    def _judged_at(self, name: str) -> str:
        """The old node at which a value that has no tensor of its own any more is judged."""
        inside = next((item.output for item in self.hard.values() if name in item.inner), None)
        return self.fused.get(name, inside or self.block.output)

    def _read(self, name: str) -> Pointwise:
        return read_pointwise(self.rewriter, self.rewriter.nodes[name])

    def _pointwise(self, layer: Pointwise, value: fx.Node, axes: str) -> fx.Node:
        return pointwise(self.rewriter, layer, value, axes)

    def _operator(self, name: str) -> str:
        return self.hard[name].kind if name in self.hard else kind(self.rewriter.nodes[name])

    def _keeps_zero(self, name: str) -> bool:
        """Whether the activation maps 0 to 0, so that padded channels stay zero."""
        return self._operator(name) in {
            "relu",
            "relu6",
            "hardswish",
            "silu",
            "gelu",
            "leaky_relu",
            "elu",
            "mish",
            "tanh",
        }

    def _activate(self, name: str, value: fx.Node) -> tuple[fx.Node, float]:
        """Apply the activation that the old node *name* ends; the result and its factor."""
        if name in self.hard:
            return write_hard(self.rewriter, self.hard[name].kind, value, spell_out=self.spell_out)
        node = self.rewriter.nodes[name]
        return self.call(node.target, value, *node.args[1:], **node.kwargs), 1.0  # type: ignore[arg-type]


def read_pointwise(rewriter: Rewriter, node: fx.Node) -> Pointwise:
    """Read a pointwise convolution or linear layer."""
    kernel, bias = rewriter.weight(argument(node, 1, "weight")), rewriter.weight(argument(node, 2, "bias"))
    assert kernel is not None  # noqa: S101 - recognition has checked it
    matrix = kernel.reshape(kernel.shape[0], kernel.shape[1])
    name = str(argument(node, 1, "weight").target).rpartition(".")[0]
    return Pointwise(name, matrix, kernel.new_zeros(kernel.shape[0]) if bias is None else bias)


def pointwise(rewriter: Rewriter, layer: Pointwise, value: fx.Node, axes: str) -> fx.Node:
    """Apply a 1x1 convolution to (N, C, ...), or the same as a linear layer to (..., C)."""
    bias = rewriter.constant(f"{layer.name}.bias{layer.variant}", layer.bias)
    if axes[-1] == "C":
        kernel = rewriter.constant(f"{layer.name}.matrix{layer.variant}", layer.kernel)
        return rewriter.call(aten.linear.default, value, kernel, bias)
    kernel = rewriter.constant(f"{layer.name}.weight{layer.variant}", layer.kernel[:, :, None, None])
    return rewriter.call(aten.conv2d.default, value, kernel, bias)


def write_hard(rewriter: Rewriter, operator: str, value: fx.Node, *, spell_out: bool) -> tuple[fx.Node, float]:
    """Write a hard-swish or hard-sigmoid; the result and the factor by which it is too large."""
    if spell_out and operator == "hardswish":
        shifted = rewriter.call(aten.relu6.default, rewriter.call(aten.add.Tensor, value, 3.0))
        return rewriter.call(aten.mul.Tensor, value, shifted), 6.0
    return rewriter.call(getattr(aten, operator).default, value), 1.0


def means(writer: Writer) -> None:
    """Two branches of means; the gates are multiplied together before they meet the feature map.

    The small product is one broadcast, the large one has equal shapes: the order that runtimes without a blocked
    layout, and XNNPACK, are fastest with.
    """
    call, x = writer.call, writer.feature
    if writer.block.kind == "squeeze_excite":
        a = writer.gate(WHOLE, call(aten.mean.dim, x, [2, 3], True), "NC11")
    else:
        a_h = writer.gate(ROWS, call(aten.mean.dim, x, [3], True), "NCP1")
        a_w = writer.gate(COLUMNS, call(aten.mean.dim, x, [2], True), "NC1P")
        a = call(aten.mul.Tensor, a_h, a_w)
    writer.finish(call(aten.mul.Tensor, x, a))


def blocked(writer: Writer) -> None:
    """Nothing but what ONNX Runtime computes in its blocked layout on x86: no value is ever reordered.

    Pools with strip kernels, gates broadcast by a nearest Resize, products of equal shapes, squeezed channels padded to
    whole blocks.
    """
    call, x = writer.call, writer.feature
    height, width = writer.size(2), writer.size(3)
    y = x
    for direction, axes, window in ((ROWS, "NCP1", [1, width]), (COLUMNS, "NC1P", [height, 1]),
                                    (WHOLE, "NC11", [height, width])):  # fmt: skip
        if any(branch.direction == direction for branch in writer.block.branches):
            gate = writer.gate(direction, call(aten.avg_pool2d.default, x, window), axes, block=BLOCK)
            scales = [float(window[0]), float(window[1])]
            y = call(aten.mul.Tensor, y, call(aten.upsample_nearest2d.vec, gate, None, scales))
    writer.finish(y)


def channels_last(writer: Writer) -> None:
    """The block in (N, H, W, C), up to and including the pointwise convolution after it.

    ONNX Runtime's ARM64 kernels pay for every row of a broadcast or a reduction; with the channels last a row is as
    long as the channels, all pointwise convolutions are matrix products with weights packed once, and only the
    projection's small result is brought back to (N, C, H, W).
    """
    call, x = writer.call, writer.feature
    batch, channels, height, width = x.meta["val"].shape
    last = call(aten.permute.default, x, [0, 2, 3, 1])
    # Both means are taken of reshaped tensors, or ONNX Runtime moves the transposition behind them again.
    p_h = call(aten.mean.dim, call(aten.reshape.default, last, [batch * height, width, channels]), [1])
    mean = writer.rewriter.constant(f"mean_over_{height}", torch.full((1, height), 1 / height))
    p_w = call(aten.matmul.default, mean, call(aten.reshape.default, last, [batch, height, width * channels]))
    lies = {ROWS: ("PC", [height, channels]), COLUMNS: ("PC", [width, channels])}
    if batch > 1:
        lies = {ROWS: ("NP1C", [batch, height, 1, channels]), COLUMNS: ("N1PC", [batch, 1, width, channels])}
    y = last
    for direction, pooled, shape in ((COLUMNS, p_w, [batch, 1, width, channels]),
                                     (ROWS, p_h, [batch, height, 1, channels])):  # fmt: skip
        axes, flat = lies[direction]
        a = writer.gate(direction, call(aten.reshape.default, pooled, flat), axes)
        y = call(aten.mul.Tensor, y, call(aten.reshape.default, a, shape))
    writer.finish(y, "NHWC")
    _leave(writer, y)


def _leave(writer: Writer, y: fx.Node) -> None:
    """Take *y*, (N, H, W, C), back to where the users of the block's output expect it."""
    rewriter, call = writer.rewriter, writer.call
    for user in list(writer.output.users):
        if (
            kind(user) == "conv2d"
            and not_pointwise(rewriter.module, user, "NC1P") is None
            and argument(user, 0, "input") is writer.output
        ):
            with rewriter.before(user, user):
                result = pointwise(rewriter, read_pointwise(rewriter, user), y, "NHWC")
                back = call(aten.permute.default, result, [0, 3, 1, 2])
            user.replace_all_uses_with(back)
            rewriter.put(user.name, "NCHW", [Placed(back, "NCHW")])
    if writer.output.users:
        writer.output.replace_all_uses_with(call(aten.permute.default, y, [0, 3, 1, 2]))


FORMS: Final[Mapping[Form, Callable[[Writer], None]]] = {
    Form.MEANS: means,
    Form.BLOCKED: blocked,
    Form.CHANNELS_LAST: channels_last,
}
