"""Files that read past a layer: the constant of a sum went into the bias of what reads it."""

import pytest
import torch
from judged_layers import judged
from torch import nn

from coordatt_deploy.formats import Format
from coordatt_deploy.parity import localise

pytestmark = pytest.mark.slow

SHAPE = (1, 3, 8, 8)
DEAD = 5  # channel that no image wakes up


class Normalised(nn.Module):
    """A linear layer and a normalisation of rows, as LeViT has them."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear, self.bn = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)
        for statistic in (self.bn.running_mean, self.bn.bias.data):
            statistic.normal_()

    def forward(self, x):
        y = self.linear(x)
        return self.bn(y.flatten(0, 1)).reshape_as(y)


class Perceptron(nn.Module):
    """As LeViT ends a stage: what the perceptron reads is added to what it makes; one channel is always 0."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.proj = nn.Conv2d(3, 24, 1), Normalised(24, 16)
        self.widen, self.narrow = Normalised(16, 32), Normalised(32, 16)
        with torch.no_grad():
            self.stem.weight[DEAD], self.stem.bias[DEAD] = 0.0, -3.0  # of which hard-swish makes 0

    def forward(self, image):
        tokens = nn.functional.hardswish(self.stem(image)).flatten(2).transpose(1, 2)
        y = self.proj(tokens)
        return (y + self.narrow(nn.functional.hardswish(self.widen(y)))).transpose(1, 2)


def _one_weight(module):
    module.widen.linear.weight[3, 4] *= 1.01


def _behind_a_dead_channel(module):
    module.proj.linear.weight[3, DEAD] += 0.1


def _one_shift(module):
    module.widen.bn.bias[3] += 1e-3


def _of_the_sum(module):
    module.proj.bn.bias[3] += 1e-3


def with_fault(change):
    module = Perceptron()
    with torch.no_grad():
        change(module)
    return module


def test_a_right_file_is_right():
    """
    Its output is torch's, and every layer passes.
    """
    close, found = judged(Format.TFLITE, Perceptron(), SHAPE)

    assert (True, True) == (close, found.passed), found.sentence()


def test_on_values_stirred_in_between_alone_it_would_be_wrong(monkeypatch):
    """
    The twin: noise on the sum never arrives at the matrix product that reads past it.
    """
    monkeypatch.setattr(localise._Run, "stir_before_unread", lambda *_: None)

    close, found = judged(Format.TFLITE, Perceptron(), SHAPE)

    assert (True, False) == (close, found.passed)
    assert "on values that the inputs do not reach" in found.sentence()


@pytest.mark.parametrize(
    ("change", "layer"),
    [(_one_weight, "widen"), (_behind_a_dead_channel, "proj"), (_one_shift, "widen"), (_of_the_sum, "proj")],
)
def test_a_fault_is_still_one(change, layer):
    """
    One weight by a hundredth, one that only stirred values reach, and shifts: each is named.
    """
    _, found = judged(Format.TFLITE, Perceptron(), SHAPE, made_of=with_fault(change))

    assert found.first_diverging_layer.startswith(layer), found.sentence()
