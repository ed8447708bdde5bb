"""A user's network around the attention block in the form of its authors' stand-alone file.

Gates are called conv_h and conv_w and broadcast; h_swish is spelled out with in-place activations.
"""

import torch
from torch import nn


class HSigmoid(nn.Module):
    def __init__(self, inplace=True):
        super().__init__()
        self.relu = nn.ReLU6(inplace=inplace)

    def forward(self, x):
        return self.relu(x + 3) / 6


class HSwish(nn.Module):
    def __init__(self, inplace=True):
        super().__init__()
        self.sigmoid = HSigmoid(inplace=inplace)

    def forward(self, x):
        return x * self.sigmoid(x)


class CoordAttention(nn.Module):
    def __init__(self, inputs, outputs, reduction=32):
        super().__init__()
        squeezed = max(8, inputs // reduction)
        self.pool_h = nn.AdaptiveAvgPool2d((None, 1))
        self.pool_w = nn.AdaptiveAvgPool2d((1, None))
        self.conv1 = nn.Conv2d(inputs, squeezed, kernel_size=1, stride=1, padding=0)
        self.bn1 = nn.BatchNorm2d(squeezed)
        self.act = HSwish()
        self.conv_h = nn.Conv2d(squeezed, outputs, kernel_size=1, stride=1, padding=0)
        self.conv_w = nn.Conv2d(squeezed, outputs, kernel_size=1, stride=1, padding=0)

    def forward(self, x):
        identity = x
        _, _, height, width = x.size()
        along_h = self.pool_h(x)
        along_w = self.pool_w(x).permute(0, 1, 3, 2)
        mixed = self.act(self.bn1(self.conv1(torch.cat([along_h, along_w], dim=2))))
        along_h, along_w = torch.split(mixed, [height, width], dim=2)
        gate_h = self.conv_h(along_h).sigmoid()
        gate_w = self.conv_w(along_w.permute(0, 1, 3, 2)).sigmoid()
        return identity * gate_w * gate_h


class SmallClassifier(nn.Module):
    def __init__(self, num_classes=6):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True)
        )
        self.attention = CoordAttention(16, 16)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, num_classes))

    def forward(self, x):
        return self.head(self.attention(self.stem(x)))


def build(num_classes=6):
    return SmallClassifier(num_classes)
