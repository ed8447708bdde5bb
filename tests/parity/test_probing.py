"""Layers on stirred values: what no input can give fails nothing, and a fault that inputs do not reach is found."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from files_against_torch import captured
from judged_layers import judged
from torch import nn

from coordatt_deploy.formats import Format, Precision, Storage
from coordatt_deploy.parity.reference_layers import ReferenceLayers

SHAPE = (1, 3, 8, 10)
SLOW = pytest.param(Format.TFLITE, marks=pytest.mark.slow)


class GeneralisedMean(nn.Module):
    """GeM pooling: the root of a mean that is never negative."""

    def __init__(self, exponent=3.0, root=3.0):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.exponent, self.root = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), exponent, root

    def forward(self, image):
        powers = self.conv(image).clamp(min=1e-2).pow(self.exponent)
        return self.head(F.adaptive_avg_pool2d(powers, 1).pow(1 / self.root).flatten(1))


class Logarithm(nn.Module):
    """A convolution whose weights are never negative, of squares, under a logarithm."""

    def __init__(self, epsilon=1e-2, scale=1.0):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.blur, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 3, 1)
        self.blur.weight.data.abs_().mul_(scale)
        self.epsilon = epsilon

    def forward(self, image):
        return self.last((self.blur(self.conv(image).square()) + self.epsilon).log())


class Dead(nn.Module):
    """A channel that a ReLU kills, the weights behind it, and a root beside them."""

    def __init__(self, behind=1.0):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)
        self.first.bias.data[1] = -100.0
        self.last.weight.data[:, 1] *= behind

    def forward(self, image):
        value = self.last(self.first(image).relu())
        return value / value.square().mean((2, 3), keepdim=True).pow(0.5)


class OneValue(nn.Module):
    """A gate from the mean over one place: TFLite holds the convolution and its mean in one tensor."""

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.gate, self.scale = nn.Conv2d(3, 4, SHAPE[2:]), nn.Conv1d(1, 1, 3, padding=1), scale

    def forward(self, image):
        value = self.conv(image)
        gate = self.gate(value.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1)
        return value * gate * self.scale


class Rim(nn.Module):
    """A padding that a convolution without bias leaves at 0, carried round: one step of that changes nothing."""

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(4)
        self.conv, self.last = nn.Conv2d(3, 4, (1, 5), padding=1, bias=False), nn.Conv2d(4, 4, 1)
        self.last.weight.data[1] *= scale

    def forward(self, image):
        return self.last(F.pad(self.conv(image), (1, 0, 1, 1), mode="circular"))


class Squeezed(nn.Module):
    """A gate from one value each of four channels, all of which a ReLU takes to 0 on images."""

    def __init__(self, channel=0, by=0.0):
        super().__init__()
        torch.manual_seed(5)
        self.down, self.up = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        self.down.bias.data -= 20.0
        self.up.weight.data[1, channel] += by

    def forward(self, image):
        return image * self.up(self.down(image.mean((2, 3), keepdim=True)).relu()).sigmoid()


@pytest.mark.parametrize("kind", [Format.ONNX, Format.COREML, SLOW])
@pytest.mark.parametrize("module", [GeneralisedMean, Logarithm, Dead, OneValue, Rim, Squeezed])
def test_a_right_file_passes(kind, module):
    """
    What it gives is what torch gives, and no layer is wrong where no input can take it.
    """
    close, found = judged(kind, module(), SHAPE)

    assert (True, True) == (close, found.passed), found.sentence()
    assert any(row.probed is not None for row in found.rows)


@pytest.mark.parametrize("kind", [Format.ONNX, pytest.param(Format.COREML, marks=pytest.mark.slow), SLOW])
@pytest.mark.parametrize(
    ("module", "fault", "layer"),
    [
        (GeneralisedMean, {"exponent": 3.05}, ":pow"),
        (GeneralisedMean, {"root": 3.02}, ":pow_1"),
        (Logarithm, {"epsilon": 1.01e-2}, ":add"),
        (Logarithm, {"epsilon": 1e-9}, ":add"),
        (Logarithm, {"scale": 1.001}, "blur"),
        (OneValue, {"scale": 1.001}, ":mul_1"),
        (Rim, {"scale": 1.001}, "last"),
    ],
)
def test_a_wrong_file_fails_at_the_layer_that_is_wrong(kind, module, fault, layer):
    """
    Another exponent, another epsilon, none at all, another weight: the layer, or what it is seen through, is named.
    """
    close, found = judged(kind, module(), SHAPE, made_of=module(**fault))

    at, named = (
        next(row for row in found.rows if row.layer_id == name) for name in (layer, found.first_diverging_layer)
    )
    assert (False, False) == (close, found.passed)
    assert (at.seen_through or layer) == (named.seen_through or named.layer_id), found.sentence()


@pytest.mark.parametrize("kind", [Format.ONNX, pytest.param(Format.COREML, marks=pytest.mark.slow), SLOW])
def test_a_wrong_weight_behind_a_dead_channel_is_found(kind):
    """
    No input shows it; noise does, although a root beside it leaves the noise of what it reads on one side of 0.
    """
    close, found = judged(kind, Dead(), SHAPE, made_of=Dead(behind=1.01))

    assert (True, False) == (close, found.passed)
    assert "last" == found.first_diverging_layer
    assert "on values that the inputs do not reach" in found.sentence()


@pytest.mark.parametrize("seed", range(6))
def test_no_channel_of_one_value_is_hidden(seed):
    """
    A map of one pixel has no other place where noise may be on the right side of a ReLU.
    """
    graph = captured(Squeezed().eval(), SHAPE)
    reference = ReferenceLayers(graph)
    feeds = {"image": np.random.default_rng(6).standard_normal(SHAPE).astype(np.float32)}
    layers = frozenset(reference.nodes)
    exact = reference.reference(feeds)
    rounding = reference.rounding(Storage(Precision.FP32), [feeds], layers)

    given = reference.probe(feeds, exact, layers, rounding, seed).given[":relu"]

    assert not exact.values[":relu"].any()
    assert 12 >= given.max() >= given.min() > 0


def test_a_wrong_weight_behind_one_value_is_found():
    """
    The last of four channels, behind a ReLU that no image opens.
    """
    close, found = judged(Format.ONNX, Squeezed(), SHAPE, made_of=Squeezed(channel=3, by=0.05))

    assert (True, False) == (close, found.passed)
    assert found.first_diverging_layer in ("up", ":sigmoid")


@pytest.mark.parametrize("module", [GeneralisedMean, Logarithm, Dead])
def test_noise_stays_where_torch_is_finite(module):
    """
    Every layer has a value and a rounding error on stirred values, and the layers are stirred all the same.
    """
    graph = captured(module().eval(), SHAPE)
    reference = ReferenceLayers(graph)
    feeds = {"image": np.random.default_rng(6).standard_normal(SHAPE).astype(np.float32)}
    layers = frozenset(reference.nodes)
    exact = reference.reference(feeds)
    rounding = reference.rounding(Storage(Precision.FP32), [feeds], layers)

    probe = reference.probe(feeds, exact, layers, rounding, seed=0)

    assert all(np.isfinite(value).all() for value in probe.made.values())
    assert all(np.isfinite(error.greatest) for error in probe.rounding.values())
    stirred = [name for name, value in probe.given.items() if not np.array_equal(value, probe.made[name])]
    assert 2 <= len(stirred)
    assert all(probe.given[name].std() > 0.1 * exact.values[name].std() for name in stirred)
