"""One small network per operator, and per variant of its arguments that converters treat differently.

Each row stands behind a convolution with eight channels on an image of 8 by 12, so that the operator meets the layout
that a converter gives to feature maps, and before a pointwise one where the result is a feature map again. Eight
channels on eight rows: a converter that takes one axis for the other is caught by the values, not by the shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

CHANNELS: Final = 8
HEIGHT, WIDTH = 8, 12
SEED: Final = 3

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """One operator in one variant.

    Attributes:
        operator: The ATen operator that the row is about, as a captured graph calls it.
        what: The variant in a few words; empty for the operator in its usual form.
        make: Makes what stands between the two convolutions.
        size: Height and width of the image.
    """

    operator: str
    what: str
    make: Callable[[], Callable[[Tensor], Tensor]]
    size: tuple[int, int] = (HEIGHT, WIDTH)

    @property
    def name(self) -> str:
        """How reports and tests call the row."""
        return f"{self.operator} ({self.what})" if self.what else self.operator


class Between(nn.Module):
    """A convolution, the operator of the row, and a pointwise convolution where a feature map comes out."""

    def __init__(self, middle: Callable[[Tensor], Tensor], size: tuple[int, int]) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, CHANNELS, 3, 1, 1), middle
        with torch.no_grad():
            result = middle(self.stem(torch.zeros(1, 3, *size)))
        is_map = result.ndim == 4 and result.is_floating_point()
        self.head = nn.Conv2d(result.shape[1], 4, 1) if is_map else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Return what the row is judged by."""
        result: Tensor = self.head(self.middle(self.stem(image)))
        return result


def network(row: Row) -> nn.Module:
    """Return the network of a row, with weights that are the same every time."""
    torch.manual_seed(SEED)
    middle = row.make()
    if isinstance(middle, nn.Module):
        _settle(middle)
    return Between(middle, row.size).eval()


def _settle(module: nn.Module) -> None:
    """Give slopes, scales and statistics values that are not those of a fresh layer: a lost one shows."""
    module.eval()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.ndim == 1 and tensor.is_floating_point():
            positive = name.endswith(("var", "weight"))
            tensor.data.uniform_(0.5, 2) if positive else tensor.data.uniform_(-1, 1)


def plain(function: Callable[[Tensor], Tensor]) -> Callable[[], Callable[[Tensor], Tensor]]:
    """What a function without weights is made by."""
    return lambda: function


class _Joined(nn.Module):
    """Applies a layer of another rank to a reshaped feature map."""

    def __init__(self, before: Callable[[Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.before, self.layer = before, layer

    def forward(self, value: Tensor) -> Tensor:
        result: Tensor = self.layer(self.before(value))
        return result


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)

    def forward(self, value: Tensor) -> Tensor:
        tokens = value.flatten(2).transpose(1, 2)
        result: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return result


class _Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(CHANNELS, 5)

    def forward(self, value: Tensor) -> Tensor:
        result: Tensor = self.table(value.argmax(1))
        return result


def _tokens(value: Tensor) -> Tensor:
    return value.flatten(2).transpose(1, 2)


def _gate(value: Tensor) -> Tensor:
    return torch.sigmoid(F.adaptive_avg_pool2d(value, 1))


def _strip(value: Tensor) -> Tensor:
    return torch.sigmoid(value.mean(3, keepdim=True))


def _heads(value: Tensor) -> Tensor:
    return value.view(1, 2, CHANNELS // 2, HEIGHT, WIDTH)


def _boxes(value: Tensor) -> Tensor:
    return _heads(value).permute(0, 1, 3, 4, 2).sigmoid()


def _both(found: tuple[Tensor, Tensor]) -> Tensor:
    """Values and positions, in one tensor."""
    return torch.cat([found[0], found[1].float()], 1)


def _assigned(value: Tensor) -> Tensor:
    result = value * 2
    result[:, 1] = value[:, 0]
    return result


def _filter(value: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(value) * 0.5, s=(HEIGHT, WIDTH))


CONVOLUTIONS: Final = (
    Row("conv2d", "strided, grouped", lambda: nn.Conv2d(8, 8, 3, 2, 1, groups=4)),
    Row("conv2d", "depthwise, dilated", lambda: nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=8)),
    Row("conv2d", "depthwise, two per channel", lambda: nn.Conv2d(8, 16, 3, 1, 1, groups=8)),
    Row("conv2d", "padding to one side of the width", lambda: nn.Conv2d(8, 8, (1, 5), 1, (0, 2))),
    Row("conv2d", "padding='same', even kernel", lambda: nn.Conv2d(8, 8, 4, padding="same")),
    Row("conv2d", "padding='same', dilated", lambda: nn.Conv2d(8, 8, 3, padding="same", dilation=2)),
    Row("conv1d", "", lambda: _Joined(lambda x: x.flatten(2), nn.Conv1d(8, 8, 3, padding=1))),
    Row("conv1d", "over channels, as ECA does", lambda: _Joined(
        lambda x: x.mean((2, 3)).unsqueeze(1), nn.Conv1d(1, 1, 3, padding=1, bias=False))),
    Row("conv3d", "", lambda: _Joined(lambda x: x.unsqueeze(1), nn.Conv3d(1, 2, 3, padding=1))),
    Row("conv_transpose2d", "", lambda: nn.ConvTranspose2d(8, 8, 2, 2)),
    Row("conv_transpose2d", "padding", lambda: nn.ConvTranspose2d(8, 8, 4, 2, 1)),
    Row("conv_transpose2d", "output padding", lambda: nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1)),
    Row("conv_transpose2d", "kernel smaller than stride", lambda: nn.ConvTranspose2d(8, 8, 2, 3)),
    Row("conv_transpose2d", "grouped", lambda: nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1, groups=2)),
    Row("conv_transpose2d", "depthwise", lambda: nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8)),
    Row("conv_transpose2d", "dilated",
        lambda: nn.ConvTranspose2d(8, 8, 3, 2, 2, dilation=2, output_padding=1)),
    Row("conv_transpose2d", "stride 1", lambda: nn.ConvTranspose2d(8, 8, 3, 1, 1)),
    Row("conv_transpose2d", "padding, neither of full nor of strided size", lambda: nn.ConvTranspose2d(8, 8, 3, 2, 1)),
    Row("conv_transpose2d", "one stride of 1", lambda: nn.ConvTranspose2d(8, 8, 3, (2, 1), 1)),
    Row("conv_transpose2d", "output padding alone", lambda: nn.ConvTranspose2d(8, 8, 2, 2, output_padding=1)),
    Row("conv_transpose1d", "padding, neither of full nor of strided size",
        lambda: _Joined(lambda x: x.flatten(2), nn.ConvTranspose1d(8, 8, 3, 2, 1))),
    Row("conv_transpose1d", "", lambda: _Joined(lambda x: x.flatten(2), nn.ConvTranspose1d(8, 8, 4, 2, 1))),
    Row("linear", "of tokens", lambda: _Joined(_tokens, nn.Linear(8, 5))),
    Row("linear", "of channels last", lambda: _Joined(lambda x: x.permute(0, 2, 3, 1), nn.Linear(8, 5))),
    Row("matmul", "", plain(lambda x: _tokens(x) @ x.flatten(2))),
    Row("matmul", "of four axes", plain(lambda x: x @ x.transpose(2, 3))),
    Row("bmm", "", plain(lambda x: torch.bmm(_tokens(x), x.flatten(2)))),
    Row("einsum", "", plain(lambda x: torch.einsum("nchw,ncvw->nchv", x, x))),
    Row("scaled_dot_product_attention", "", plain(
        lambda x: F.scaled_dot_product_attention(x.transpose(2, 3), x.transpose(2, 3), x.transpose(2, 3)))),
    Row("scaled_dot_product_attention", "nn.MultiheadAttention", _Attention),
    Row("scaled_dot_product_attention", "without heads", plain(
        lambda x: F.scaled_dot_product_attention(_tokens(x), _tokens(x), _tokens(x)))),
)  # fmt: skip

NORMALISATION: Final = (
    Row("layer_norm", "of tokens", lambda: _Joined(_tokens, nn.LayerNorm(8))),
    Row("layer_norm", "of channels last", lambda: _Joined(lambda x: x.permute(0, 2, 3, 1), nn.LayerNorm(8, eps=1e-6))),
    Row("group_norm", "", lambda: nn.GroupNorm(4, 8)),
    Row("group_norm", "one group", lambda: nn.GroupNorm(1, 8)),
    Row("instance_norm", "", lambda: nn.InstanceNorm2d(8)),
    Row("instance_norm", "affine", lambda: nn.InstanceNorm2d(8, affine=True)),
    Row("rms_norm", "", lambda: _Joined(_tokens, nn.RMSNorm(8))),
    Row("linalg_vector_norm", "normalize", plain(lambda x: F.normalize(x, dim=1))),
    Row("avg_pool3d", "local response normalisation", lambda: nn.LocalResponseNorm(3)),
    Row("div", "by one less than a count, as SimAM does", plain(
        lambda x: (x - x.mean((2, 3), keepdim=True)).pow(2).sum((2, 3), keepdim=True) / (40 * 32 - 1)), (40, 32)),
    Row("var", "unbiased", plain(lambda x: x.var((2, 3), keepdim=True))),
    Row("var", "of channels", plain(lambda x: x.var(1, keepdim=True, unbiased=False))),
    Row("std", "", plain(lambda x: x.std(1, keepdim=True))),
)  # fmt: skip

POOLS: Final = (
    Row("max_pool2d", "", lambda: nn.MaxPool2d(3, 2, 1)),
    Row("max_pool2d", "ceil_mode", lambda: nn.MaxPool2d(3, 2, ceil_mode=True), (8, 12)),
    Row("max_pool2d", "ceil_mode, a window outside", lambda: nn.MaxPool2d(2, 3, ceil_mode=True), (8, 11)),
    Row("max_pool2d", "dilation", lambda: nn.MaxPool2d(3, 1, 1, dilation=2)),
    Row("max_pool2d", "stride 1, as SPP does", lambda: nn.MaxPool2d(5, 1, 2)),
    Row("max_pool1d", "", plain(lambda x: F.max_pool1d(x.flatten(2), 3, 2, 1))),
    Row("max_pool3d", "", plain(lambda x: F.max_pool3d(_heads(x), 2))),
    Row("avg_pool2d", "", lambda: nn.AvgPool2d(2)),
    Row("avg_pool2d", "padding counts", lambda: nn.AvgPool2d(3, 2, 1)),
    Row("avg_pool2d", "padding does not count", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    Row("avg_pool2d", "ceil_mode", lambda: nn.AvgPool2d(2, 3, ceil_mode=True)),
    Row("avg_pool2d", "ceil_mode, padding counts", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    Row("avg_pool2d", "ceil_mode, padding does not count",
        lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    Row("avg_pool2d", "divisor_override", lambda: nn.AvgPool2d(2, 2, divisor_override=3)),
    Row("avg_pool1d", "", plain(lambda x: F.avg_pool1d(x.flatten(2), 3, 2, 1))),
    Row("avg_pool3d", "", plain(lambda x: F.avg_pool3d(_heads(x), 2))),
    Row("adaptive_avg_pool2d", "to 1", lambda: nn.AdaptiveAvgPool2d(1)),
    Row("adaptive_avg_pool2d", "to a strip", lambda: nn.AdaptiveAvgPool2d((None, 1))),
    Row("adaptive_avg_pool2d", "to a divisor", lambda: nn.AdaptiveAvgPool2d((4, 3))),
    Row("adaptive_avg_pool2d", "to no divisor", lambda: nn.AdaptiveAvgPool2d((3, 5))),
    Row("adaptive_avg_pool2d", "to more than there is", lambda: nn.AdaptiveAvgPool2d((10, 7))),
    Row("adaptive_max_pool2d", "to no divisor", lambda: nn.AdaptiveMaxPool2d((3, 5))),
    Row("adaptive_avg_pool1d", "", plain(lambda x: F.adaptive_avg_pool1d(x.flatten(2), 4))),
    Row("avg_pool2d", "lp_pool2d", plain(lambda x: F.lp_pool2d(x.abs() + 0.1, 2, 2))),
)  # fmt: skip

REDUCTIONS: Final = (
    Row("mean", "height and width", plain(lambda x: x.mean((2, 3)))),
    Row("mean", "of windows", plain(lambda x: x.reshape(1, 8, 4, 2, 6, 2).mean((3, 5)))),
    Row("mean", "channels", plain(lambda x: x.mean(1, keepdim=True))),
    Row("sum", "", plain(lambda x: x.sum((2, 3), keepdim=True))),
    Row("amax", "", plain(lambda x: x.amax((2, 3), keepdim=True))),
    Row("amin", "", plain(lambda x: x.amin(1, keepdim=True))),
    Row("max", "of channels, positions alone", plain(lambda x: x.max(1).indices)),
    Row("prod", "", plain(lambda x: x.prod(1, keepdim=True))),
    Row("logsumexp", "", plain(lambda x: x.logsumexp(1, keepdim=True))),
    Row("cumsum", "", plain(lambda x: x.cumsum(3))),
    Row("linalg_vector_norm", "of channels", plain(lambda x: x.norm(dim=1, keepdim=True))),
    Row("argmax", "", plain(lambda x: x.argmax(1))),
    Row("argmax", "of one channel", plain(lambda x: x.mean(1, keepdim=True).argmax(1))),
    Row("argmax", "of the last axis", plain(lambda x: x.flatten(1).argmax(1))),
    Row("topk", "", plain(lambda x: _both(x.flatten(1).topk(5)))),
    Row("sort", "", plain(lambda x: _both(x.flatten(1).sort()))),
    Row("median", "", plain(lambda x: _both(x.median(1, keepdim=True)))),
)  # fmt: skip

ARITHMETIC: Final = (
    Row("add", "", plain(lambda x: x + _gate(x))),
    Row("add", "alpha", plain(lambda x: torch.add(x, _gate(x), alpha=0.3))),
    Row("sub", "a gate", plain(lambda x: x - _gate(x))),
    Row("rsub", "", plain(lambda x: 1 - x)),
    Row("mul", "a strip", plain(lambda x: x * _strip(x))),
    Row("div", "by a strip", plain(lambda x: x / (1 + _strip(x)))),
    Row("div", "rounding_mode='floor'", plain(lambda x: torch.div(x, 0.3, rounding_mode="floor"))),
    Row("pow", "square", plain(lambda x: x ** 2)),
    Row("pow", "square of five axes", plain(lambda x: (_boxes(x)[..., 2:4] * 2) ** 2)),
    Row("pow", "cube", plain(lambda x: x ** 3)),
    Row("pow", "fraction", plain(lambda x: x.abs() ** 0.7)),
    Row("pow", "negative", plain(lambda x: (x.abs() + 1) ** -1.5)),
    Row("pow", "of a number", plain(lambda x: 2.0 ** x.tanh())),
    Row("pow", "learnt exponent, as GeM does", lambda: _Gem()),
    Row("sqrt", "", plain(lambda x: (x.abs() + 0.1).sqrt())),
    Row("rsqrt", "", plain(lambda x: (x.abs() + 0.1).rsqrt())),
    Row("exp", "", plain(lambda x: x.exp())),
    Row("log", "", plain(lambda x: (x.abs() + 0.1).log())),
    Row("log1p", "", plain(lambda x: x.abs().log1p())),
    Row("expm1", "", plain(lambda x: x.expm1())),
    Row("abs", "", plain(lambda x: x.abs())),
    Row("neg", "", plain(lambda x: -x)),
    Row("reciprocal", "", plain(lambda x: (x.abs() + 0.5).reciprocal())),
    Row("sign", "", plain(lambda x: x.sign())),
    Row("erf", "", plain(lambda x: x.erf())),
    Row("sin", "", plain(lambda x: x.sin())),
    Row("cos", "", plain(lambda x: x.cos())),
    Row("atan", "", plain(lambda x: x.atan())),
    Row("floor", "", plain(lambda x: (x * 3).floor())),
    Row("ceil", "", plain(lambda x: (x * 3).ceil())),
    Row("round", "", plain(lambda x: (x * 3).round())),
    Row("remainder", "", plain(lambda x: x % 0.3)),
    Row("maximum", "", plain(lambda x: torch.maximum(x, x.mean(1, keepdim=True)))),
    Row("minimum", "", plain(lambda x: torch.minimum(x, x.mean(1, keepdim=True)))),
    Row("min", "of two values", plain(lambda x: torch.min(x * 2, x.abs()))),
    Row("clamp", "", plain(lambda x: x.clamp(-0.5, 0.7))),
    Row("clamp_min", "", plain(lambda x: x.clamp_min(0.1))),
    Row("clamp_max", "", plain(lambda x: x.clamp_max(0.1))),
    Row("clamp", "integer bounds", plain(lambda x: (x * 4).clamp(-1, 2))),
    Row("where", "", plain(lambda x: torch.where(x > 0, x, 0.1 * x))),
    Row("masked_fill", "", plain(lambda x: x.masked_fill(x < 0, -1.0))),
    Row("gt", "as numbers", plain(lambda x: (x > 0.1).float())),
    Row("__and__", "", plain(lambda x: ((x > -0.3) & (x < 0.3)).float())),
    Row("lerp", "", plain(lambda x: torch.lerp(x, x.abs(), 0.3))),
    Row("addcmul", "", plain(lambda x: torch.addcmul(x, x, x, value=0.5))),
)  # fmt: skip


class _Gem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, value: Tensor) -> Tensor:
        return F.avg_pool2d(value.clamp(min=1e-6).pow(self.p), (HEIGHT, WIDTH)).pow(1.0 / self.p)


ACTIVATIONS: Final = (
    Row("relu", "", lambda: nn.ReLU()),
    Row("hardtanh", "nn.ReLU6", lambda: nn.ReLU6()),
    Row("relu6", "", plain(lambda x: F.relu6(x))),
    Row("leaky_relu", "", lambda: nn.LeakyReLU(0.3)),
    Row("prelu", "per channel", lambda: nn.PReLU(8)),
    Row("prelu", "one slope", lambda: nn.PReLU()),
    Row("elu", "", lambda: nn.ELU()),
    Row("elu", "alpha", lambda: nn.ELU(0.5)),
    Row("elu", "alpha left out", plain(lambda x: F.elu(x))),
    Row("leaky_relu", "an integer", plain(lambda x: F.leaky_relu(x, 2))),
    Row("celu", "", lambda: nn.CELU(0.5)),
    Row("selu", "", lambda: nn.SELU()),
    Row("gelu", "", lambda: nn.GELU()),
    Row("gelu", "tanh", lambda: nn.GELU("tanh")),
    Row("silu", "", lambda: nn.SiLU()),
    Row("mish", "", lambda: nn.Mish()),
    Row("sigmoid", "", lambda: nn.Sigmoid()),
    Row("hardsigmoid", "", lambda: nn.Hardsigmoid()),
    Row("hardswish", "", lambda: nn.Hardswish()),
    Row("hardtanh", "", lambda: nn.Hardtanh(-0.5, 0.7)),
    Row("hardtanh", "integer bounds", plain(lambda x: F.hardtanh(x * 4, -2, 2))),
    Row("hardshrink", "", lambda: nn.Hardshrink(0.2)),
    Row("softshrink", "", lambda: nn.Softshrink(0.2)),
    Row("tanh", "tanhshrink", lambda: nn.Tanhshrink()),
    Row("threshold", "", lambda: nn.Threshold(0.1, -2.0)),
    Row("softplus", "", lambda: nn.Softplus()),
    Row("softplus", "beta and threshold", lambda: nn.Softplus(2, 5)),
    Row("div", "softsign", lambda: nn.Softsign()),
    Row("log_sigmoid", "", plain(lambda x: F.logsigmoid(x * 20))),
    Row("tanh", "", lambda: nn.Tanh()),
    Row("softmax", "channels", lambda: nn.Softmax(1)),
    Row("softmax", "width", lambda: nn.Softmax(3)),
    Row("softmax", "of five axes", plain(lambda x: _heads(x).softmax(2))),
    Row("log_softmax", "", lambda: nn.LogSoftmax(1)),
    Row("glu", "", lambda: nn.GLU(1)),
)  # fmt: skip

LAYOUT: Final = (
    Row("view", "channel shuffle", plain(lambda x: x.view(1, 2, 4, 8, 12).transpose(1, 2).reshape(1, 8, 8, 12))),
    Row("channel_shuffle", "", lambda: nn.ChannelShuffle(4)),
    Row("pixel_shuffle", "", lambda: nn.PixelShuffle(2)),
    Row("pixel_unshuffle", "", lambda: nn.PixelUnshuffle(2)),
    Row("permute", "windows, as Swin does", plain(
        lambda x: x.view(1, 8, 2, 4, 3, 4).permute(0, 2, 4, 3, 5, 1).reshape(6, 16, 8))),
    Row("permute", "channels last", plain(lambda x: x.permute(0, 2, 3, 1) * 2)),
    Row("transpose", "height and width", plain(lambda x: x.transpose(2, 3))),
    Row("flatten", "", plain(lambda x: x.flatten(1))),
    Row("unflatten", "", plain(lambda x: x.unflatten(1, (2, 4)).mean(2))),
    Row("squeeze", "", plain(lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1))),
    Row("movedim", "", plain(lambda x: x.movedim(1, -1) + 1)),
    Row("flip", "", plain(lambda x: x.flip(3))),
    Row("roll", "", plain(lambda x: x.roll((2, 3), (2, 3)))),
    Row("rot90", "", plain(lambda x: x.rot90(1, (2, 3)))),
    Row("im2col", "unfold", plain(lambda x: F.unfold(x, 2, stride=2))),
    Row("col2im", "fold", plain(lambda x: F.fold(x.reshape(1, 32, 24), (8, 12), 2, stride=2))),
    Row("split", "", plain(lambda x: _swapped(x.split(4, 1)))),
    Row("split_with_sizes", "", plain(lambda x: _swapped(x.split([3, 5], 1)))),
    Row("chunk", "", plain(lambda x: _swapped(x.chunk(2, 1)))),
    Row("chunk", "of rows", plain(lambda x: torch.cat(x.chunk(2, 2), 1))),
    Row("slice", "with a step, as Focus does", plain(lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], 1))),
    Row("narrow", "", plain(lambda x: x.narrow(2, 1, 4))),
    Row("select", "", plain(lambda x: x[:, 2])),
    Row("stack", "", plain(lambda x: torch.stack([x, x.abs()], 2).flatten(1, 2))),
    Row("cat", "rows", plain(lambda x: torch.cat([x, x.abs()], 2))),
    Row("index", "channels by a list", plain(lambda x: x[:, [2, 0, 1, 5]])),
    Row("index_select", "", plain(lambda x: x.index_select(2, torch.tensor([3, 1, 6])))),
    Row("gather", "", plain(lambda x: x.gather(1, x.argmax(1, keepdim=True)))),
    Row("embedding", "", _Embedding),
    Row("select_scatter", "a slice assigned", plain(_assigned)),
    Row("tril", "", plain(lambda x: x.tril())),
)  # fmt: skip


def _swapped(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(parts[::-1], 1)


PADS_AND_SIZES: Final = (
    Row("pad", "zeros", lambda: nn.ZeroPad2d((1, 2, 0, 3))),
    Row("pad", "a value", lambda: nn.ConstantPad2d((1, 2, 0, 3), -1.5)),
    Row("pad", "channels", plain(lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)))),
    Row("pad", "negative: a crop", plain(lambda x: F.pad(x, (-1, -2, 0, -3)))),
    Row("pad", "reflect", lambda: nn.ReflectionPad2d((1, 2, 0, 3))),
    Row("pad", "replicate", lambda: nn.ReplicationPad2d((1, 2, 0, 3))),
    Row("pad", "circular", lambda: nn.CircularPad2d((1, 2, 0, 3))),
    Row("pad", "five axes", plain(lambda x: F.pad(_heads(x), (1, 1)))),
    Row("upsample_nearest2d", "twice", lambda: nn.Upsample(scale_factor=2)),
    Row("upsample_nearest2d", "half", plain(lambda x: F.interpolate(x, scale_factor=0.5))),
    Row("upsample_nearest2d", "ratio no whole number", plain(lambda x: F.interpolate(x, size=(13, 19)))),
    Row("upsample_nearest2d", "smaller, ratio no whole number", plain(lambda x: F.interpolate(x, size=(5, 7)))),
    Row("upsample_nearest2d", "smaller by a whole number", plain(lambda x: F.interpolate(x, size=(4, 2))), (28, 14)),
    Row("upsample_nearest2d", "scale factor no whole number", plain(lambda x: F.interpolate(x, scale_factor=1.3))),
    Row("_upsample_nearest_exact2d", "ratio no whole number",
        plain(lambda x: F.interpolate(x, size=(13, 19), mode="nearest-exact"))),
    Row("_upsample_nearest_exact2d", "smaller, ratio no whole number",
        plain(lambda x: F.interpolate(x, size=(11, 9), mode="nearest-exact")), (26, 30)),
    Row("_upsample_nearest_exact2d", "twice", plain(lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"))),
    Row("upsample_bilinear2d", "twice", lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    Row("upsample_bilinear2d", "to a size", plain(lambda x: F.interpolate(x, size=(13, 19), mode="bilinear"))),
    Row("upsample_bilinear2d", "smaller", plain(lambda x: F.interpolate(x, size=(5, 7), mode="bilinear"))),
    Row("upsample_bilinear2d", "scale factor no whole number",
        plain(lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear"))),
    Row("upsample_bilinear2d", "scale factor that no float32 is",
        plain(lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear")), (10, 20)),
    Row("upsample_bilinear2d", "align_corners",
        plain(lambda x: F.interpolate(x, size=(13, 19), mode="bilinear", align_corners=True))),
    Row("_upsample_bilinear2d_aa", "antialias",
        plain(lambda x: F.interpolate(x, size=(3, 5), mode="bilinear", antialias=True))),
    Row("_upsample_bicubic2d_aa", "antialias",
        plain(lambda x: F.interpolate(x, size=(3, 5), mode="bicubic", antialias=True))),
    Row("upsample_bicubic2d", "twice", lambda: nn.Upsample(scale_factor=2, mode="bicubic")),
    Row("upsample_bicubic2d", "align_corners",
        plain(lambda x: F.interpolate(x, size=(13, 19), mode="bicubic", align_corners=True))),
    Row("adaptive_avg_pool2d", "mode='area'", plain(lambda x: F.interpolate(x, size=(4, 6), mode="area"))),
    Row("upsample_linear1d", "", plain(lambda x: F.interpolate(x.flatten(2), scale_factor=2, mode="linear"))),
    Row("upsample_nearest1d", "", plain(lambda x: F.interpolate(x.flatten(2), scale_factor=2))),
    Row("upsample_nearest3d", "", plain(lambda x: F.interpolate(_heads(x), scale_factor=2))),
    Row("grid_sampler", "", plain(lambda x: F.grid_sample(
        x, F.affine_grid(torch.tensor([[[0.8, 0.1, 0.0], [-0.1, 0.9, 0.1]]]), [1, 8, 8, 12], align_corners=False),
        align_corners=False))),
)  # fmt: skip

COPIES: Final = (
    Row("expand", "a gate, multiplied", plain(lambda x: x * _gate(x).expand(-1, -1, HEIGHT, WIDTH))),
    Row("expand_as", "a gate, multiplied", plain(lambda x: x * _gate(x).expand_as(x))),
    Row("expand_as", "a strip, multiplied", plain(lambda x: x * _strip(x).expand_as(x))),
    Row("expand_as", "rows as many as channels, ECA", lambda: _Eca()),
    Row("expand", "joined to the feature map", plain(
        lambda x: torch.cat([x, _gate(x).expand(-1, -1, HEIGHT, WIDTH)], 1))),
    Row("expand", "channels", plain(lambda x: torch.cat([x.mean(1, keepdim=True).expand(-1, 4, -1, -1), x], 1))),
    Row("expand", "channels, then channels last", plain(
        lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1).permute(0, 2, 3, 1).flatten(1, 2))),
    Row("expand", "of tokens", plain(
        lambda x: torch.cat([_tokens(x), _tokens(x).mean(1, keepdim=True).expand(-1, 5, -1)], 1))),
    Row("repeat", "a gate, multiplied", plain(lambda x: x * _gate(x).repeat(1, 1, HEIGHT, WIDTH))),
    Row("repeat", "joined to the feature map", plain(
        lambda x: torch.cat([x, _gate(x).repeat(1, 1, HEIGHT, WIDTH)], 1))),
    Row("repeat", "a feature map", plain(lambda x: x.repeat(1, 2, 1, 3))),
    Row("tile", "", plain(lambda x: x.tile((1, 1, 2, 2)))),
    Row("repeat_interleave", "", plain(lambda x: x.repeat_interleave(2, 1))),
    Row("to", "integers and back", plain(lambda x: (x * 5).to(torch.int32).float() / 5)),
    Row("to", "float64 and back", plain(lambda x: (x.double() * 2).float())),
    Row("new_ones", "of the feature map's size", plain(lambda x: x + x.new_ones(x.shape[2], x.shape[3]) * 0.3)),
    Row("new_full", "", plain(lambda x: torch.cat([x, x.new_full((1, 1, HEIGHT, WIDTH), 0.7)], 1))),
    Row("zeros_like", "", plain(lambda x: torch.cat([x, torch.zeros_like(x)], 1))),
    Row("one_hot", "", plain(lambda x: F.one_hot(x.argmax(1), CHANNELS).float())),
    Row("fft_rfft2", "", plain(_filter)),
)  # fmt: skip


class _Eca(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, value: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(value, 1)
        gate = self.conv(pooled.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return value * gate.sigmoid().expand_as(value)


FAMILIES: Final = {
    "Convolutions and products": CONVOLUTIONS,
    "Normalisation": NORMALISATION,
    "Pools": POOLS,
    "Reductions": REDUCTIONS,
    "Arithmetic": ARITHMETIC,
    "Activations": ACTIVATIONS,
    "Layout": LAYOUT,
    "Pads and resizes": PADS_AND_SIZES,
    "Copies, types and others": COPIES,
}
ROWS: Final = tuple(row for rows in FAMILIES.values() for row in rows)
