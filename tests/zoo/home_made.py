"""Coordinate attention as three people might write it who have only read the paper."""

import torch
import torch.nn.functional as F
from torch import nn


class OneDimensional(nn.Module):
    """Rows and columns as sequences: Conv1d, no axis of size one until the gates are applied."""

    def __init__(self, channels):
        super().__init__()
        squeezed = max(8, channels // 4)
        self.squeeze = nn.Conv1d(channels, squeezed, 1, bias=False)
        self.norm = nn.BatchNorm1d(squeezed)
        self.rows = nn.Conv1d(squeezed, channels, 1)
        self.columns = nn.Conv1d(squeezed, channels, 1)

    def forward(self, x):
        height = x.shape[-2]
        joined = torch.cat((x.mean(-1), x.mean(-2)), dim=-1)
        joined = F.hardswish(self.norm(self.squeeze(joined)))
        rows = torch.sigmoid(self.rows(joined[..., :height]))
        columns = torch.sigmoid(self.columns(joined[..., height:]))
        return x * rows.unsqueeze(-1) * columns.unsqueeze(-2)


class Einsum(OneDimensional):
    """The same gates, applied by an operator that no runtime has under this name."""

    def forward(self, x):
        height = x.shape[-2]
        joined = self.norm(self.squeeze(torch.cat((x.mean(-1), x.mean(-2)), dim=-1)))
        rows, columns = (
            torch.sigmoid(self.rows(joined[..., :height])),
            torch.sigmoid(self.columns(joined[..., height:])),
        )
        return torch.einsum("bchw,bch,bcw->bchw", x, rows, columns)


class TwoBranches(nn.Module):
    """No concatenation: the shared convolution is called twice; the gates are multiplied with each other first."""

    def __init__(self, channels):
        super().__init__()
        squeezed = max(8, channels // 4)
        self.shared = nn.Sequential(nn.Conv2d(channels, squeezed, 1), nn.BatchNorm2d(squeezed), nn.Hardswish())
        self.gates = nn.ModuleDict({"h": nn.Conv2d(squeezed, channels, 1), "w": nn.Conv2d(squeezed, channels, 1)})

    def forward(self, x):
        h = self.gates["h"](self.shared(F.adaptive_avg_pool2d(x, (x.shape[2], 1)))).sigmoid()
        w = self.gates["w"](self.shared(F.adaptive_avg_pool2d(x, (1, x.shape[3])))).sigmoid()
        return x * (h * w)


class Functional(nn.Module):
    """Everything by hand: parameters instead of layers, avg_pool2d with a kernel, chunked weights, in-place gating."""

    def __init__(self, channels):
        super().__init__()
        squeezed = max(8, channels // 4)
        self.down = nn.Parameter(torch.randn(squeezed, channels, 1, 1) * 0.1)
        self.up = nn.Parameter(torch.randn(2 * channels, squeezed, 1, 1) * 0.1)
        self.bias = nn.Parameter(torch.zeros(2 * channels))

    def forward(self, x):
        height, width = x.shape[2], x.shape[3]
        rows = F.avg_pool2d(x, (1, width))
        columns = F.avg_pool2d(x, (height, 1))
        up_h, up_w = self.up.chunk(2)
        bias_h, bias_w = self.bias.chunk(2)
        h = F.conv2d(F.relu6(F.conv2d(rows, self.down)), up_h, bias_h).sigmoid_()
        w = F.conv2d(F.relu6(F.conv2d(columns, self.down)), up_w, bias_w).sigmoid_()
        out = x.clone()
        out *= h
        out *= w
        return out


class SmallNet(nn.Module):
    def __init__(self, attention, num_classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.attention = attention(16)
        self.mix = nn.Conv2d(16, 24, 3, 2, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(24)
        self.head = nn.Linear(24, num_classes)

    def forward(self, image):
        x = F.relu6(self.norm(self.stem(image)), inplace=True)
        x = F.relu6(self.norm2(self.mix(self.attention(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def one_dimensional():
    return SmallNet(OneDimensional)


def einsum():
    return SmallNet(Einsum)


def two_branches():
    return SmallNet(TwoBranches)


def functional():
    return SmallNet(Functional)
