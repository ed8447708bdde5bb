"""A detector's backbone with coordinate attention and a feature pyramid: three outputs, nested as users nest them."""

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import nn

Level = namedtuple("Level", "boxes scores")


class CoordAtt(nn.Module):
    def __init__(self, channels):
        super().__init__()
        squeezed = 8
        self.conv1 = nn.Conv2d(channels, squeezed, 1)
        self.bn1 = nn.BatchNorm2d(squeezed)
        self.conv_h = nn.Conv2d(squeezed, channels, 1)
        self.conv_w = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        h, w = x.shape[-2:]
        pooled = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], 2)
        rows, columns = F.hardswish(self.bn1(self.conv1(pooled))).split([h, w], 2)
        return x * self.conv_w(columns.permute(0, 1, 3, 2)).sigmoid() * self.conv_h(rows).sigmoid()


def stage(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        CoordAtt(outputs),
    )


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = stage(3, 16)
        self.stages = nn.ModuleList([stage(16, 24), stage(24, 32), stage(32, 40)])
        self.lateral = nn.ModuleList([nn.Conv2d(channels, 16, 1) for channels in (24, 32, 40)])

    def forward(self, images):
        x, found = self.stem(images), []
        for layer in self.stages:
            x = layer(x)
            found.append(x)
        small, middle, large = (lateral(level) for lateral, level in zip(self.lateral, found, strict=True))
        middle = middle + F.interpolate(large, scale_factor=2)
        small = small + F.interpolate(middle, scale_factor=2)
        return {"p3": small, "p4": middle, "p5": large}


class Tuple(Pyramid):
    def forward(self, images):
        levels = super().forward(images)
        return levels["p3"], [levels["p4"], levels["p5"]]


class Named(Pyramid):
    def __init__(self):
        super().__init__()
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 3, 1)

    def forward(self, images):
        return {
            level: Level(self.boxes(x), self.scores(x).sigmoid()) for level, x in super().forward(images).items()
        } | {"strides": (8, 16, 32)}


class ImageAndPrior(nn.Module):
    """Two inputs: an image and a map of the same size that weights it."""

    def __init__(self):
        super().__init__()
        self.pyramid = Pyramid()

    def forward(self, photo, prior, gain=1.0):
        return self.pyramid(photo * prior * gain)["p3"]


def pyramid():
    return Pyramid()


def nested_tuple():
    return Tuple()


def named_levels():
    return Named()


def image_and_prior():
    return ImageAndPrior()
