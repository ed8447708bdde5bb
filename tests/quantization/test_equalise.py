import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.lowering.lower import lowering_error
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.quantization.equalise import GREATEST, channel_maxima, equalise
from coordatt_deploy.quantization.scaling_chains import find_chains


def calibration(shape, cases=8, seed=0, name="image"):
    generator = np.random.default_rng(seed)
    array = generator.uniform(-2, 2, (cases, *shape)).astype(np.float32)
    return CalibrationSet("made up", {name: array}, tuple(map(str, range(cases))), seed)


class Uneven(nn.Module):
    """Two convolutions whose shared channels differ by a factor of a thousand."""

    def __init__(self, between: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between, self.second = nn.Conv2d(3, 6, 3), between, nn.Conv2d(6, 4, 1)
        with torch.no_grad():
            scale = torch.logspace(-3, 0, 6)
            self.first.weight *= scale[:, None, None, None]
            self.first.bias *= scale

    def forward(self, image):
        return self.second(self.between(self.first(image))).mean((2, 3))


def graph_of(module, shape=(3, 9, 11)):
    example = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    return fold_batchnorms(capture(module.eval(), (example,)))[0]


@pytest.mark.parametrize("between", [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.AvgPool2d(2), nn.MaxPool2d(2)])
def test_the_function_stays_and_the_channels_come_closer(between):
    """
    Within float32's rounding the outputs are the same, and the greatest values of the channels differ less.
    """
    graph, data = graph_of(Uneven(between)), calibration((3, 9, 11))

    evened, report = equalise(graph, data)

    for feeds in data.feeds():
        before, after = run(graph, feeds)["logits"], run(evened, feeds)["logits"]
        assert np.abs(before - after).max() <= 1e-6 * np.abs(before).max()
    spread = [max(m.max() / m.min() for m in channel_maxima(g, data, ["conv2d"]).values()) for g in (graph, evened)]
    assert spread[1] < spread[0] / 3
    assert report.chains == 1
    assert 1 < report.greatest_factor <= GREATEST


def test_every_layer_is_found_through_the_factors(tiny_folded):
    """
    The layer map divides them out: all layers agree with the graph before, on data that was measured.
    """
    data = calibration((3, 32, 48))

    evened, report = equalise(tiny_folded, data)

    assert report.chains > 0
    errors = lowering_error(tiny_folded, evened, next(iter(data.feeds())))
    assert max(error.relative_error for error in errors) < 1e-5


@pytest.mark.parametrize("between", [nn.Sigmoid(), nn.Hardswish(), nn.Hardtanh(-1, 1)])
def test_what_does_not_commute_with_a_factor_is_left_alone(between):
    """
    A factor before such an operator is another function behind it.
    """
    graph = graph_of(Uneven(between))

    evened, report = equalise(graph, calibration((3, 9, 11)))

    assert 0 == report.channels
    assert lowering_error(graph, evened)[0].max_abs_error == 0


def test_a_clamp_that_bites_keeps_its_channel():
    """
    Channels at the bound of a ReLU6 stay as they are, the others grow up to it.
    """
    module = Uneven(nn.ReLU6())
    with torch.no_grad():
        module.first.bias[5] += 100.0
    graph, data = graph_of(module), calibration((3, 9, 11))

    evened, _ = equalise(graph, data)

    before, after = (channel_maxima(g, data, ["conv2d"])["conv2d"] for g in (graph, evened))
    assert before[5] == pytest.approx(after[5])
    assert (after[:5] > before[:5]).all()
    assert (after[:5] < 6.0).all()


def test_inputs_and_outputs_are_pinned():
    """
    What a caller sees is never scaled.
    """
    chains = find_chains(graph_of(Uneven(nn.ReLU())))
    pinned = {name for chain in chains if chain.pinned for name in chain.nodes}

    assert "image" in pinned
    assert "mean" in pinned


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**31 - 1),
    groups=st.sampled_from([1, 2, 6]),
    bias=st.booleans(),
    spread=st.floats(1e-4, 1.0),
)
def test_any_two_convolutions_keep_their_function(seed, groups, bias, spread):
    """
    Grouped or not, with and without bias, however uneven.
    """
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=bias), nn.ReLU6(), nn.Conv2d(6, 12, 1, groups=groups, bias=bias), nn.Flatten()
    )
    with torch.no_grad():
        module[0].weight *= torch.linspace(spread, 1, 6)[:, None, None, None]
    graph, data = graph_of(module, (3, 5, 5)), calibration((3, 5, 5), seed=seed % 1000)

    evened, _ = equalise(graph, data)

    for feeds in data.feeds():
        before, after = run(graph, feeds)["logits"], run(evened, feeds)["logits"]
        assert np.abs(before - after).max() <= 1e-5 * max(np.abs(before).max(), 1e-3)
