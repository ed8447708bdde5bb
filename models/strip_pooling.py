"""Strip pooling (Hou et al., CVPR 2020): the strip pooling module (SPM) and the mixed pooling module (MPM).

    SPM:  f[c, i, j] = act(bn1(conv1(mean_j x))[c, i] + bn2(conv2(mean_i x))[c, j])
          y = x * sigmoid(conv3(f))
    MPM:  y = act(x + bn(conv3([grids; strips])))       means of two grids and of both strips, each convolved

Layout and keys are those of houqb/SPNet: ``models/resnet.py::SPBlock`` with the product that its bottleneck forms, and
``models/customize.py::StripPooling``. Where it expands both strips to the map's size, broadcasting gives the same sum.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from coordatt_deploy.models.activations import activation_layer
from coordatt_deploy.models.attention_options import MixedPoolingOptions, StripPoolingOptions


class StripPooling(nn.Module):
    """SPM: gate every element by what its row and its column say together."""

    def __init__(self, channels: int, options: StripPoolingOptions) -> None:
        """Build the block for a feature map of so many channels; it has 7 * channels**2 weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.pool1 = nn.AdaptiveAvgPool2d((None, 1))
        self.pool2 = nn.AdaptiveAvgPool2d((1, None))
        self.act = activation_layer(options.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W); the shape stays."""
        rows = self.bn1(self.conv1(self.pool1(x)))  # (N, C, H, 1)
        columns = self.bn2(self.conv2(self.pool2(x)))  # (N, C, 1, W)
        gated: Tensor = x * self.conv3(self.act(rows + columns)).sigmoid()
        return gated


class MixedPooling(nn.Module):
    """MPM: add what four pools of the map say, two grids and two strips."""

    def __init__(self, channels: int, options: MixedPoolingOptions) -> None:
        """Build the block for a feature map of so many channels, of which it works on a quarter."""
        super().__init__()
        inner = max(1, channels // 4)
        self.pool1 = nn.AdaptiveAvgPool2d(options.first_grid)
        self.pool2 = nn.AdaptiveAvgPool2d(options.second_grid)
        self.pool3 = nn.AdaptiveAvgPool2d((1, None))
        self.pool4 = nn.AdaptiveAvgPool2d((None, 1))
        self.conv1_1 = nn.Sequential(*_normalised(channels, inner, 1), activation_layer(options.activation))
        self.conv1_2 = nn.Sequential(*_normalised(channels, inner, 1), activation_layer(options.activation))
        self.conv2_0 = nn.Sequential(*_normalised(inner, inner, 3))
        self.conv2_1 = nn.Sequential(*_normalised(inner, inner, 3))
        self.conv2_2 = nn.Sequential(*_normalised(inner, inner, 3))
        self.conv2_3 = nn.Sequential(*_normalised(inner, inner, (1, 3)))
        self.conv2_4 = nn.Sequential(*_normalised(inner, inner, (3, 1)))
        self.conv2_5 = nn.Sequential(*_normalised(inner, inner, 3), activation_layer(options.activation))
        self.conv2_6 = nn.Sequential(*_normalised(inner, inner, 3), activation_layer(options.activation))
        self.conv3 = nn.Sequential(*_normalised(2 * inner, channels, 1))
        self.act = activation_layer(options.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W), like *x*."""
        height, width = x.shape[2:]

        def resized(pooled: Tensor) -> Tensor:
            return functional.interpolate(pooled, (height, width), mode="bilinear", align_corners=True)

        near, far = self.conv1_1(x), self.conv1_2(x)
        coarse = resized(self.conv2_1(self.pool1(near)))
        coarser = resized(self.conv2_2(self.pool2(near)))
        grids = self.conv2_5(self.act(self.conv2_0(near) + coarse + coarser))
        columns = resized(self.conv2_3(self.pool3(far)))
        rows = resized(self.conv2_4(self.pool4(far)))
        strips = self.conv2_6(self.act(rows + columns))
        mixed: Tensor = self.act(x + self.conv3(torch.cat([grids, strips], dim=1)))
        return mixed


def _normalised(inputs: int, outputs: int, kernel: int | tuple[int, int]) -> tuple[nn.Module, nn.Module]:
    """A convolution that keeps the size, and its BatchNorm."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sides[0] // 2, sides[1] // 2)
    return nn.Conv2d(inputs, outputs, sides, padding=padding, bias=False), nn.BatchNorm2d(outputs)
