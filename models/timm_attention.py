"""Coordinate attention and its relatives as timm has them, from 1.0.23 on: ``coord``, ``scoord``, ``ela``, ``strip``.

    coord:   y = x * sigmoid(conv_w(f_w)) * sigmoid(conv_h(f_h)),   f = act(bn1(conv1([mean_j x; mean_i x])))
    scoord:  y = x * sigmoid(fc_h(f_h) + fc_w(f_w)),                f = act(fc1(mean x)), for each direction
    ela:     y = x * a_h * a_w,                                     a = sigmoid(act(norm(conv(mean x)))), likewise
    strip:   y = x * sigmoid(conv_h(mean_j x) + conv_w(mean_i x))

Layout and keys are those of ``timm/layers/coord_attn.py``, so that the weights of a network that was built with
``se_layer='coord'`` fit. ``coord`` differs from the paper's block by its width, its missing biases and its means.
"""

import torch
from torch import Tensor, nn

from coordatt_deploy.models.activations import activation_layer
from coordatt_deploy.models.attention_options import (
    CoordAttnOptions,
    EfficientLocalAttnOptions,
    SimpleCoordAttnOptions,
    StripAttnOptions,
)


class CoordAttn(nn.Module):
    """``coord``: a gate per row and one per column from one convolution for both."""

    def __init__(self, channels: int, options: CoordAttnOptions) -> None:
        """Build the block for a feature map of so many channels."""
        super().__init__()
        squeezed = _squeezed(channels, options)
        self.conv1 = nn.Conv2d(channels, squeezed, 1, bias=options.bias)
        self.bn1 = nn.BatchNorm2d(squeezed)
        self.act = activation_layer(options.activation)
        self.conv_h = nn.Conv2d(squeezed, channels, 1, bias=options.bias)
        self.conv_w = nn.Conv2d(squeezed, channels, 1, bias=options.bias)
        self.skip = options.skip

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W); the shape stays."""
        rows, columns = _strips(x)
        mixed = self.act(self.bn1(self.conv1(torch.cat([rows, columns.transpose(-1, -2)], dim=2))))
        rows, columns = torch.split(mixed, [x.shape[2], x.shape[3]], dim=2)  # (N, squeezed, H, 1), (N, squeezed, W, 1)
        a_h = self.conv_h(rows).sigmoid()  # (N, C, H, 1)
        a_w = self.conv_w(columns.transpose(-1, -2)).sigmoid()  # (N, C, 1, W)
        gated: Tensor = x * a_w * a_h
        return gated + x if self.skip else gated


class SimpleCoordAttn(nn.Module):
    """``scoord``: one gate per element, from linear layers over the strips."""

    def __init__(self, channels: int, options: SimpleCoordAttnOptions) -> None:
        """Build the block for a feature map of so many channels."""
        super().__init__()
        squeezed = _squeezed(channels, options)
        self.fc1 = nn.Linear(channels, squeezed, bias=options.bias)
        self.act = activation_layer(options.activation)
        self.fc_h = nn.Linear(squeezed, channels, bias=options.bias)
        self.fc_w = nn.Linear(squeezed, channels, bias=options.bias)
        self.skip = options.skip

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W); the shape stays."""
        rows = self.act(self.fc1(x.mean(3).transpose(1, 2)))  # (N, H, squeezed)
        columns = self.act(self.fc1(x.mean(2).transpose(1, 2)))  # (N, W, squeezed)
        a_h = self.fc_h(rows).transpose(1, 2).unsqueeze(-1)  # (N, C, H, 1)
        a_w = self.fc_w(columns).transpose(1, 2).unsqueeze(-2)  # (N, C, 1, W)
        gated: Tensor = x * torch.sigmoid(a_h + a_w)
        return gated + x if self.skip else gated


class EfficientLocalAttn(nn.Module):
    """``ela``: a gate per row and one per column, each from a depthwise convolution along its strip."""

    def __init__(self, channels: int, options: EfficientLocalAttnOptions) -> None:
        """Build the block for a feature map of so many channels."""
        super().__init__()
        self.conv_h, self.conv_w = _along_strips(channels, options.kernel_size, bias=options.bias)
        self.norm_h = nn.GroupNorm(1, channels)
        self.norm_w = nn.GroupNorm(1, channels)
        self.act = activation_layer(options.activation)
        self.skip = options.skip

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W); the shape stays."""
        rows, columns = _strips(x)
        a_h = self.act(self.norm_h(self.conv_h(rows))).sigmoid()  # (N, C, H, 1)
        a_w = self.act(self.norm_w(self.conv_w(columns))).sigmoid()  # (N, C, 1, W)
        gated: Tensor = x * a_h * a_w
        return gated + x if self.skip else gated


class StripAttn(nn.Module):
    """``strip``: one gate per element, from the sum of both strips."""

    def __init__(self, channels: int, options: StripAttnOptions) -> None:
        """Build the block for a feature map of so many channels."""
        super().__init__()
        self.conv_h: nn.Module = nn.Identity()
        self.conv_w: nn.Module = nn.Identity()
        if options.use_conv:
            self.conv_h, self.conv_w = _along_strips(channels, options.kernel_size, bias=options.bias)
        self.skip = options.skip

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W); the shape stays."""
        rows, columns = _strips(x)
        gated: Tensor = x * torch.sigmoid(self.conv_h(rows) + self.conv_w(columns))
        return gated + x if self.skip else gated


def _strips(x: Tensor) -> tuple[Tensor, Tensor]:
    """The means of the rows, (N, C, H, 1), and of the columns, (N, C, 1, W)."""
    return x.mean(3, keepdim=True), x.mean(2, keepdim=True)


def _squeezed(channels: int, options: CoordAttnOptions) -> int:
    """A multiple of 8, in the order in which timm computes it: 288 / 16 * 2/3 is 12, which rounds up."""
    return max(8, int(channels * (1 / options.reduction) * (2 / 3) + 4) // 8 * 8)


def _along_strips(channels: int, length: int, *, bias: bool) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Depthwise convolutions along a column of row means and along a row of column means."""
    half = length // 2
    down = nn.Conv2d(channels, channels, (length, 1), padding=(half, 0), groups=channels, bias=bias)
    across = nn.Conv2d(channels, channels, (1, length), padding=(0, half), groups=channels, bias=bias)
    return down, across
