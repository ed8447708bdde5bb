"""A user's network in the manner of timm: means instead of pools, no biases, an activation that the builder chooses."""

import torch
from torch import nn


def divisible(value, divisor=8):
    return max(divisor, int(value + divisor / 2) // divisor * divisor)


class CoordAttn(nn.Module):
    def __init__(self, channels, rd_ratio=1 / 16, act_layer=nn.Hardswish, gate_layer=nn.Sigmoid, bias=False):
        super().__init__()
        rd_channels = divisible(channels * rd_ratio * 2 / 3)
        self.conv1 = nn.Conv2d(channels, rd_channels, 1, bias=bias)
        self.bn1 = nn.BatchNorm2d(rd_channels)
        self.act = act_layer(inplace=True)
        self.conv_h = nn.Conv2d(rd_channels, channels, 1, bias=bias)
        self.conv_w = nn.Conv2d(rd_channels, channels, 1, bias=bias)
        self.gate = gate_layer()

    def forward(self, x):
        x_h = x.mean(3, keepdim=True)
        x_w = x.mean(2, keepdim=True).transpose(-1, -2)
        y = self.act(self.bn1(self.conv1(torch.cat([x_h, x_w], dim=2))))
        x_h, x_w = y.split([x.shape[2], x.shape[3]], dim=2)
        a_h = self.gate(self.conv_h(x_h))
        a_w = self.gate(self.conv_w(x_w.transpose(-1, -2)))
        return x * a_h * a_w


class InvertedResidual(nn.Module):
    def __init__(self, inputs, outputs, stride, act_layer, gate_layer):
        super().__init__()
        middle = inputs * 4
        self.conv_pw = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.act1 = act_layer(inplace=True)
        self.conv_dw = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.act2 = act_layer(inplace=True)
        self.se = CoordAttn(middle, act_layer=act_layer, gate_layer=gate_layer)
        self.conv_pwl = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x):
        shortcut = x
        x = self.act1(self.bn1(self.conv_pw(x)))
        x = self.se(self.act2(self.bn2(self.conv_dw(x))))
        x = self.bn3(self.conv_pwl(x))
        return x + shortcut if self.has_skip else x


class Net(nn.Module):
    def __init__(self, act_layer, gate_layer, num_classes=7):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act = act_layer(inplace=True)
        self.blocks = nn.Sequential(
            InvertedResidual(16, 16, 1, act_layer, gate_layer), InvertedResidual(16, 24, 2, act_layer, gate_layer)
        )
        self.classifier = nn.Linear(24, num_classes)

    def forward(self, x):
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        return self.classifier(x.mean((2, 3)))


def hard_swish():
    return Net(nn.Hardswish, nn.Sigmoid)


def silu():
    return Net(nn.SiLU, nn.Sigmoid)


def hard_gates():
    return Net(nn.ReLU6, nn.Hardsigmoid)
