"""Tensors that have the shape of a value and another order of axes: the numbers tell which."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from files_against_torch import check
from judged_layers import judged
from torch import nn

from coordatt_deploy.exporters.coreml import export as exporting
from coordatt_deploy.exporters.coreml.axes import alike, may_be_permuted, orders
from coordatt_deploy.formats import Format

SIDE = 8
SHAPE = (1, 3, SIDE, SIDE)


class ChannelsLast(nn.Module):
    """As ConvNeXt has it: permuted, a perceptron, permuted back, and a sum; as many channels as rows and columns."""

    def __init__(self, channels=SIDE):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norms = nn.Conv2d(3, channels, 1), nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.first, self.second = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.last = nn.Conv2d(channels, 4, 1)

    def forward(self, image):
        x = self.norms[0](self.stem(image).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + self.second(F.gelu(self.first(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return self.last(self.norms[1](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).tanh())


@pytest.mark.parametrize("channels", [SIDE, 12])
def test_every_layer_is_found_in_its_order_of_axes(channels):
    """
    Where the shape tells the order nothing of it may be missing, where it does not nothing may be taken for it.
    """
    check(ChannelsLast(channels).eval(), SHAPE, formats=(Format.COREML,), mapped=0.9)


def test_by_shapes_alone_a_right_file_would_be_wrong(monkeypatch):
    """
    The twin: the judge would be fed with rows for channels.
    """
    close, found = judged(Format.COREML, ChannelsLast(), SHAPE)
    assert (True, True) == (close, found.passed), found.sentence()

    monkeypatch.setattr(exporting, "find_orders", lambda *_: {})
    close, found = judged(Format.COREML, ChannelsLast(), SHAPE)
    assert (True, False) == (close, found.passed)


@pytest.mark.parametrize(
    ("value", "shape", "expected"),
    [
        ((1, 8, 8, 8), (1, 8, 8, 8), True),
        ((1, 8, 4, 4), (1, 8, 4, 4), True),
        ((1, 8, 4, 6), (1, 8, 4, 6), False),
        ((1, 8, 4, 6), (1, 4, 6, 8), True),
        ((1, 8, 1, 1), (1, 8, 1, 1), False),
        ((1, 8, 4, 6), (1, 8, 24), False),
        ((1, 8, 4, 6), (1, 8, 4, 5), False),
        ((1, 8, 4, 6), (1, 8, None, None), True),
    ],
)
def test_what_the_shape_leaves_open(value, shape, expected):
    """
    Equal sizes, other orders of the same sizes, dynamic ones; never other sizes or another rank.
    """
    assert expected == may_be_permuted(value, shape)


def test_likeness_tells_orders_apart():
    """
    1 for the same values, even rounded to float16; little for another order of a random map.
    """
    value = np.random.default_rng(0).standard_normal((1, 8, 8, 8))
    same, *others = orders((1, 8, 8, 8), value.shape)

    assert (0, 1, 2, 3) == same
    assert 0.999 < alike(value.astype(np.float16).astype(float), value)
    for axes in others:
        assert abs(alike(np.transpose(value, axes), value)) < 0.3
    assert 0.0 == alike(np.zeros(4), np.arange(4.0))
    assert 0.0 == alike(np.array([np.nan, 1.0]), np.arange(2.0))
