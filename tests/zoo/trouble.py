"""Factories with which something is wrong, one kind each."""

import dataclasses
import sys

import torch
from torch import nn

CONSTANT = 7
READY = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def plain(width=4, num_classes=3):
    print("built with a message on stdout")  # noqa: T201 - users print
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def needs(width, *, depth):
    return plain(width * depth)


def raises():
    raise RuntimeError("no such file: weights.pth\nsecond line")


def leaves():
    sys.exit("usage: train.py --data DIR")


def returns_none():
    plain()


def returns_class():
    return nn.Conv2d


def returns_pair():
    return plain(), "transform"


def scripted():
    return torch.jit.script(plain())


def half():
    return plain().half()


def elsewhere():
    return plain().to("meta")


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 1))


def damaged():
    model = plain()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    return model


class StaysInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def train(self, mode=True):
        super().train(mode)
        self.norm.train()
        return self

    def forward(self, x):
        return self.norm(self.conv(x))


class LooksAtValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        y = self.conv(x)
        if y.mean() > 0:
            y = y * 2
        return y


class LooksAtSizes(nn.Module):
    """Control flow on sizes is known when the model is captured, so it is no trouble."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) if x.shape[2] > 16 else self.conv(x) * 2


class Picks(nn.Module):
    def forward(self, x):
        return x[x > 0.5]


@dataclasses.dataclass
class Result:
    boxes: torch.Tensor


class ReturnsDataclass(nn.Module):
    def forward(self, x):
        return Result(x * 2)


class ReturnsNothing(nn.Module):
    def forward(self, x):
        return {"count": x.ndim}


class ByKeyword(nn.Module):
    def forward(self, *, x):
        return x * 2


class NoInput(nn.Module):
    def forward(self):
        return torch.zeros(1)


class OnlyOneSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 4)

    def forward(self, x):
        return self.head(x.flatten(1))


class NeedsMultiples(nn.Module):
    def forward(self, x):
        small = nn.functional.avg_pool2d(x, 8)
        return x + nn.functional.interpolate(small, scale_factor=8)


class GreyImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.conv(x)


class OwnFloat32(nn.Module):
    """Makes a float32 matrix while it runs, which cannot be multiplied with float64 features."""

    def forward(self, x):
        return x.mean((2, 3)) @ torch.eye(3)


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.rfft2(x)


class Pairs(nn.Module):
    """Compares two images that come in one batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        one, other = self.conv(x).mean((2, 3))
        return (one - other)[None]


class DefinedLast(nn.Module):
    """The convolution that takes the image is not the first in the class."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(8, 8, 3)
        self.stem = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return self.body(self.stem(x))


class SpaceToDepth(nn.Module):
    """No convolution takes the image itself: its pixels become channels first."""

    def __init__(self, how="slices"):
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(192 if how == "blocks" else 12, 8, 3)

    def forward(self, x):
        if self.how == "slices":  # YOLOX, YOLOv5
            corners = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
            return self.stem(torch.cat(corners, 1))
        if self.how == "unshuffle":
            return self.stem(nn.functional.pixel_unshuffle(x, 2))
        if self.how == "views":  # TResNet
            n, c, h, w = x.shape
            x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
            return self.stem(x.view(n, c * 4, h // 2, w // 2))
        if self.how == "blocks":
            return self.stem(nn.functional.pixel_unshuffle(x, 8))
        return self.stem(x.repeat(1, 4, 1, 1))


async def awaited():
    return plain()


class _Classifier(nn.Module):
    """A convolution and a head for images of 8 x 8."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 5)


class OneRow(_Classifier):
    """Takes all images of a batch for one."""

    def forward(self, x):
        return self.head(torch.relu(self.stem(x)).view(1, -1))


class FourImages(_Classifier):
    def forward(self, x):
        return self.head(self.stem(x).reshape(4, -1))


class TwoBiases(_Classifier):
    """Adds a constant to each of two images."""

    def forward(self, x):
        return self.head(self.stem(x).flatten(1)) + torch.zeros(2, 1)


class AloneDoubled(_Classifier):
    """Does something else with one image."""

    def forward(self, x):
        y = self.head(self.stem(x).flatten(1))
        return y * 2 if x.shape[0] == 1 else y


class FirstTwo(_Classifier):
    """Gives two rows, of one image one."""

    def forward(self, x):
        return self.head(self.stem(x[:2]).flatten(1))


class WithAnchors(_Classifier):
    """Takes anchors, which are the same for all images, and four numbers beside each image."""

    def forward(self, image, anchors, prior):
        return self.head(self.stem(image).flatten(1)) + prior @ anchors.t()
