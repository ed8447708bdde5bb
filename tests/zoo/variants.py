"""Coordinate attention in every way that people write it, under names that say nothing.

A ``Way`` says how; ``attention(way)`` builds it. Names of classes and layers are drawn from a seed, so whatever finds
the block has only its structure to go by.
"""

import random
import string
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


def sixth_of_relu6(x):
    return x * F.relu6(x + 3) / 6


def product_with_gate(x):
    return x * (F.relu6(x + 3) / 6)


def clamped(x):
    return torch.clamp(x / 6 + 0.5, 0, 1) * x


def scaled_first(x):
    return (x * 0.16666666666666666) * (3 + x).clamp(min=0).clamp(max=6)


ACTIVATIONS = {
    "hardswish": F.hardswish, "x * relu6(x + 3) / 6": sixth_of_relu6, "x * (relu6(x + 3) / 6)": product_with_gate,
    "clamp(x / 6 + 0.5) * x": clamped, "(x / 6) * clamps": scaled_first, "silu": F.silu, "relu": F.relu,
    "relu6": F.relu6, "none": lambda x: x,
}  # fmt: skip
GATES = {
    "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid, "relu6(x + 3) / 6": lambda x: F.relu6(x + 3) / 6,
    "clamp((x + 3) / 6)": lambda x: torch.clamp(x * (1 / 6) + 0.5, 0.0, 1.0),
}  # fmt: skip
POOLS = {
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, (None, 1)), lambda x: F.adaptive_avg_pool2d(x, (1, None))),
    "mean": (lambda x: x.mean(3, keepdim=True), lambda x: x.mean(-2, keepdim=True)),
    "flat mean": (lambda x: x.mean(3).unsqueeze(-1), lambda x: torch.mean(x, dim=2)[:, :, None, :]),
    "avg_pool": (lambda x: F.avg_pool2d(x, (1, x.shape[3])), lambda x: F.avg_pool2d(x, (x.shape[2], 1))),
}
PRODUCTS = {
    "x * w * h": lambda x, h, w: x * w * h, "x * h * w": lambda x, h, w: x * h * w,
    "h * x * w": lambda x, h, w: h * x * w, "h * w * x": lambda x, h, w: h * w * x,
    "x * (w * h)": lambda x, h, w: x * (w * h), "h * (w * x)": lambda x, h, w: h * (w * x),
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How the block is written.

    Attributes:
        pool: Key of POOLS.
        join: Axis of the concatenation; None where the shared convolution is called once per strip.
        first: The strip that comes first in it: ``rows`` or ``columns``.
        part: ``split``, ``slice`` or ``narrow``.
        activation: Key of ACTIVATIONS.
        gate: Key of GATES.
        product: Key of PRODUCTS.
        expand: Gates are expanded to the size of the feature map.
        bias: Of the convolutions.
        norm: A BatchNorm after the squeeze.
        skip: The feature map is added to the result.
    """

    pool: str = "adaptive"
    join: int | None = 2
    first: str = "rows"
    part: str = "split"
    activation: str = "x * (relu6(x + 3) / 6)"
    gate: str = "sigmoid"
    product: str = "x * w * h"
    expand: bool = False
    bias: bool = True
    norm: bool = True
    skip: bool = False


class _Attention(nn.Module):
    def __init__(self, way, channels, squeezed, names):
        super().__init__()
        self.way, self.names = way, names
        setattr(self, names[0], nn.Conv2d(channels, squeezed, 1, bias=way.bias))
        setattr(self, names[1], nn.BatchNorm2d(squeezed) if way.norm else nn.Identity())
        setattr(self, names[2], nn.Conv2d(squeezed, channels, 1, bias=way.bias))
        setattr(self, names[3], nn.Conv2d(squeezed, channels, 1, bias=way.bias))

    def forward(self, x):
        way = self.way
        conv, norm, rows, columns = (getattr(self, name) for name in self.names)
        gate = GATES[way.gate]
        pooled_rows, pooled_columns = (pool(x) for pool in POOLS[way.pool])
        height, width = x.shape[2:]

        def squeeze(value):
            return ACTIVATIONS[way.activation](norm(conv(value)))

        if way.join is None:
            along_rows, along_columns = squeeze(pooled_rows), squeeze(pooled_columns)
        else:
            if way.join == 2:
                pooled_columns = pooled_columns.permute(0, 1, 3, 2)
            else:
                pooled_rows = pooled_rows.transpose(2, 3)
            strips = [(pooled_rows, height), (pooled_columns, width)]
            strips = strips if way.first == "rows" else strips[::-1]
            mixed = squeeze(torch.cat([strip for strip, _ in strips], way.join))
            parts = self._part(mixed, strips[0][1], strips[1][1])
            along_rows, along_columns = parts if way.first == "rows" else parts[::-1]
            if way.join == 2:
                along_columns = along_columns.permute(0, 1, 3, 2)
            else:
                along_rows = along_rows.transpose(-1, -2)
        a_h, a_w = gate(rows(along_rows)), gate(columns(along_columns))
        if way.expand:
            a_h, a_w = a_h.expand(-1, -1, height, width), a_w.expand(x.shape)
        gated = PRODUCTS[way.product](x, a_h, a_w)
        return x + gated if way.skip else gated

    def _part(self, mixed, first, second):
        axis = self.way.join
        if self.way.part == "split":
            return torch.split(mixed, [first, second], dim=axis)
        if self.way.part == "narrow":
            return mixed.narrow(axis, 0, first), mixed.narrow(axis, first, second)
        if axis == 2:
            return mixed[:, :, :first], mixed[:, :, first:]
        return mixed[..., :first], mixed[..., first:]


class _Network(nn.Module):
    def __init__(self, block, channels, names):
        super().__init__()
        self.names = names
        setattr(self, names[0], nn.Conv2d(3, channels, 3, 2, 1))
        setattr(self, names[1], block)
        setattr(self, names[2], nn.Conv2d(channels, 4, 1))

    def forward(self, image):
        stem, block, head = (getattr(self, name) for name in self.names)
        return head(block(F.relu6(stem(image)))).mean((2, 3))


def meaningless(rng, count):
    """Names that say nothing."""
    return ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(count)]


def renamed(cls, rng):
    """The class under a name that says nothing."""
    return type(meaningless(rng, 1)[0].title(), (cls,), {})


def attention(way, channels=16, squeezed=8, seed=0):
    """One block with random statistics and weights."""
    rng = random.Random(seed)  # noqa: S311 - names, not secrets
    torch.manual_seed(seed)
    return _settled(renamed(_Attention, rng)(way, channels, squeezed, meaningless(rng, 4)))


def around(block, channels=16, seed=0):
    """A network of a convolution, *block* and a convolution; also the name of the block in it."""
    rng = random.Random(seed + 1)  # noqa: S311 - names, not secrets
    torch.manual_seed(seed + 1)
    names = meaningless(rng, 3)
    return _settled(renamed(_Network, rng)(block, channels, names)), names[1]


def _settled(module):
    generator = torch.Generator().manual_seed(2)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2.0, generator=generator)
    return module.eval()


class Home(nn.Module):
    """Near misses: a block like the real one, with one thing changed by *what*."""

    def __init__(self, what, channels=16, squeezed=8):
        super().__init__()
        self.what = what
        self.squeeze = nn.Conv2d(channels, squeezed, 1, groups=4 if what == "grouped" else 1)
        if what == "wide":
            self.squeeze = nn.Conv2d(channels, squeezed, (3, 1), padding=(1, 0))
        self.norm = nn.BatchNorm2d(squeezed)
        self.rows, self.columns = nn.Conv2d(squeezed, channels, 1), nn.Conv2d(squeezed, channels, 1)
        self.third = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        height, width = x.shape[2:]
        pool = torch.amax if self.what == "greatest" else torch.mean
        columns_of = x + 1 if self.what == "other map" else x
        columns = pool(columns_of, 2, keepdim=True).transpose(2, 3)
        joined = torch.cat([pool(x, 3, keepdim=True), columns], 2)
        mixed = F.hardswish(self.norm(self.squeeze(joined)))
        lengths = [height - 1, width + 1] if self.what == "shifted" else [height, width]
        a_h, a_w = torch.split(mixed, lengths, 2)
        if self.what == "shifted":
            a_h, a_w = F.pad(a_h, (0, 0, 0, 1)), a_w[:, :, 1:]
        a_h, a_w = self.rows(a_h), self.columns(a_w.transpose(2, 3))
        gate = torch.tanh if self.what == "tanh" else torch.sigmoid
        if self.what == "three convolutions":
            a_h = self.third(a_h)
        a_h, a_w = gate(a_h), gate(a_w)
        if self.what == "rows only":
            return x * a_h
        if self.what == "sum":
            return x * (a_h + a_w)
        result = x * a_h * a_w
        return result + a_h if self.what == "used again" else result


class SqueezeExcite(nn.Module):
    """A gate per channel, by a global pool and two convolutions or linear layers."""

    def __init__(self, channels=16, squeezed=8, linear=False, hard=False, flat=False):
        super().__init__()
        self.flat = flat
        layer = nn.Linear if linear else (lambda a, b: nn.Conv2d(a, b, 1))
        self.linear, self.hard = linear, hard
        self.down, self.up = layer(channels, squeezed), layer(squeezed, channels)

    def forward(self, x):
        gate = F.hardsigmoid if self.hard else torch.sigmoid
        if self.linear:
            pooled = F.adaptive_avg_pool2d(x, 1).flatten(1) if self.flat else x.mean((2, 3))
            return x * gate(self.up(F.relu(self.down(pooled))))[:, :, None, None]
        return gate(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))) * x
