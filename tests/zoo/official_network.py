"""A user's network in the form of the authors' ImageNet file: conv2 and conv3, expanded gates, one long Sequential."""

import torch
from torch import nn


class h_sigmoid(nn.Module):  # noqa: N801 - the name that many repositories use
    def __init__(self, inplace=True):
        super().__init__()
        self.relu = nn.ReLU6(inplace=inplace)

    def forward(self, x):
        return self.relu(x + 3) / 6


class h_swish(nn.Module):  # noqa: N801
    def __init__(self, inplace=True):
        super().__init__()
        self.sigmoid = h_sigmoid(inplace=inplace)

    def forward(self, x):
        return x * self.sigmoid(x)


class CoordAtt(nn.Module):
    def __init__(self, inp, oup, groups=32):
        super().__init__()
        mip = max(8, inp // groups)
        self.pool_h = nn.AdaptiveAvgPool2d((None, 1))
        self.pool_w = nn.AdaptiveAvgPool2d((1, None))
        self.conv1 = nn.Conv2d(inp, mip, 1)
        self.bn1 = nn.BatchNorm2d(mip)
        self.conv2 = nn.Conv2d(mip, oup, 1)
        self.conv3 = nn.Conv2d(mip, oup, 1)
        self.relu = h_swish()

    def forward(self, x):
        _, _, h, w = x.size()
        rows = self.pool_h(x)
        columns = self.pool_w(x).permute(0, 1, 3, 2)
        y = self.relu(self.bn1(self.conv1(torch.cat([rows, columns], dim=2))))
        rows, columns = torch.split(y, [h, w], dim=2)
        columns = columns.permute(0, 1, 3, 2)
        rows = self.conv2(rows).sigmoid().expand(-1, -1, h, w)
        columns = self.conv3(columns).sigmoid().expand(-1, -1, h, w)
        return x * columns * rows


class Block(nn.Module):
    def __init__(self, inp, oup, stride, t):
        super().__init__()
        hidden = inp * t
        layers = []
        if t != 1:
            layers += [nn.Conv2d(inp, hidden, 1, 1, 0, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
        ]
        if t != 1:
            layers.append(CoordAtt(hidden, hidden))
        layers += [nn.Conv2d(hidden, oup, 1, 1, 0, bias=False), nn.BatchNorm2d(oup)]
        self.conv = nn.Sequential(*layers)
        self.identity = stride == 1 and inp == oup

    def forward(self, x):
        out = self.conv(x)
        return x + out if self.identity else out


class MBV2_CA(nn.Module):  # noqa: N801
    def __init__(self, num_classes=10, width_mult=1.0):
        super().__init__()
        channels = max(8, int(16 * width_mult))
        layers = [nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6(True))]
        for t, oup, stride in ((1, channels, 1), (6, channels, 1), (6, 2 * channels, 2)):
            layers.append(Block(channels, oup, stride, t))
            channels = oup
        self.features = nn.Sequential(*layers)
        self.conv = nn.Sequential(nn.Conv2d(channels, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6(True))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(64, num_classes))

    def forward(self, x):
        x = self.avgpool(self.conv(self.features(x)))
        x = x.view(x.size(0), -1)
        return self.classifier(x)


def mbv2_ca(**kwargs):
    return MBV2_CA(**kwargs)
