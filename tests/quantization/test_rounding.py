import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.quantization.ranges import Range
from coordatt_deploy.quantization.rounding import fit, round_weights, samples
from coordatt_deploy.quantization.simulate import Grid, sqnr_db


def calibration(shape, cases=24, seed=0):
    """Smooth images: neighbouring pixels go together, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(cases, shape[0], 4, 4, generator=generator)
    array = nn.functional.interpolate(coarse, shape[1:], mode="bilinear").numpy()
    return CalibrationSet("made up", {"image": array}, tuple(map(str, range(cases))), seed)


def on_grid(tensor, levels=127):
    """Whether every channel's weights are whole steps of max |w| / levels."""
    flat = tensor.detach().double().flatten(1)
    steps = flat / (flat.abs().amax(1, keepdim=True).clamp_min(1e-30) / levels)
    return float((steps - steps.round()).abs().max()) < 1e-3


def nearest(tensor, levels=127):
    step = tensor.abs().flatten(1).amax(1).clamp_min(1e-30) / levels
    step = step.reshape(-1, *[1] * (tensor.ndim - 1))
    return (tensor / step).round() * step


def weights_of(graph):
    return {name: value for name, value in graph.module.state_dict().items() if value.ndim > 1}


@pytest.mark.parametrize("levels", [127, 64])
def test_every_weight_lies_on_its_channels_grid(tiny_folded, levels):
    """
    The greatest of a channel at the greatest level, so that any quantizer finds the same integers again.
    """
    rounded, report = round_weights(tiny_folded, calibration((3, 32, 48)), levels=levels)

    changed = [
        name for name, value in weights_of(rounded).items() if not torch.equal(value, weights_of(tiny_folded)[name])
    ]
    assert len(changed) >= 5
    assert all(on_grid(weights_of(rounded)[name], levels) for name in changed)
    assert len(report.layers) >= len(changed)


def test_outputs_come_closer_than_with_the_nearest_steps(tiny_folded):
    """
    On images that were not calibrated on: the error of the outputs is smaller, which is what it is for.
    """
    data, fresh = calibration((3, 32, 48), cases=64), calibration((3, 32, 48), seed=5)
    rounded, _ = round_weights(tiny_folded, data, activations=False)
    plain = _copy_with(tiny_folded, nearest)

    found = {}
    for name, graph in (("rounded", rounded), ("plain", plain)):
        pairs = [(run(graph, feeds)["logits"], run(tiny_folded, feeds)["logits"]) for feeds in fresh.feeds()]
        found[name] = sqnr_db([torch.from_numpy(a) for a, _ in pairs], [torch.from_numpy(b) for _, b in pairs])
    assert found["rounded"] > found["plain"] + 1.0


def _copy_with(graph, change):
    other, _ = round_weights(graph, calibration((3, 32, 48), cases=16), activations=False)
    with torch.no_grad():
        for name, value in other.module.state_dict().items():
            original = graph.module.state_dict()[name]
            value.copy_(change(original) if original.ndim > 1 else original)
    return other


def test_layers_that_stay_in_float_stay(tiny_folded):
    """
    Their weights are the very same numbers.
    """
    layer = next(item.layer_id for item in tiny_folded.layers.layers if item.layer_id == "head")

    rounded, _ = round_weights(tiny_folded, calibration((3, 32, 48)), float_layers=frozenset({layer}))

    assert torch.equal(weights_of(rounded)["head.weight"], weights_of(tiny_folded)["head.weight"])


def test_the_same_data_gives_the_same_bits(tiny_folded):
    """
    Nothing is drawn at random without a seed.
    """
    first, second = (round_weights(tiny_folded, calibration((3, 32, 48)))[0] for _ in range(2))

    assert all(torch.equal(value, weights_of(second)[name]) for name, value in weights_of(first).items())


def test_biases_keep_the_mean_of_every_output():
    """
    What rounding shifts, the bias takes back: the mean of each channel is that of the float layer.
    """
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
    graph = fold_batchnorms(capture(module.eval(), (torch.randn(1, 3, 12, 12),)))[0]
    data = calibration((3, 12, 12), cases=40)
    rounded, _ = round_weights(graph, data, activations=False)

    means = [
        np.mean([run(g, feeds)["logits"].reshape(8, -1).mean(1) for feeds in data.feeds()], axis=0)
        for g in (graph, rounded, _nearest_conv(graph, data))
    ]
    assert np.abs(means[1] - means[0]).max() < np.abs(means[2] - means[0]).max() / 3


def _nearest_conv(graph, data):
    other, _ = round_weights(graph, data, activations=False)
    with torch.no_grad():
        for name, value in other.module.state_dict().items():
            original = graph.module.state_dict()[name]
            value.copy_(nearest(original) if original.ndim > 1 else original)
    return other


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**31 - 1),
    groups=st.sampled_from([1, 2, 8]),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    padding=st.sampled_from([0, 1]),
)
def test_samples_are_what_the_convolution_reads(seed, groups, kernel, stride, padding):
    """
    Rows times weights are the convolution's outputs, for any geometry.
    """
    torch.manual_seed(seed)
    layer = nn.Conv2d(8, 16, kernel, stride, padding, groups=groups, bias=False).eval()
    graph = capture(layer, (torch.randn(1, 8, 9, 11),))
    node = next(node for node in graph.module.graph.nodes if node.op == "call_function")
    image = torch.randn(2, 8, 9, 11)

    inputs, targets = samples(node, layer.weight, [image], [layer(image)])

    kernels = layer.weight.reshape(groups, 16 // groups, -1)
    assert torch.allclose(inputs @ kernels.transpose(1, 2), targets, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), zero=st.booleans())
def test_fitting_is_never_far_worse_than_rounding(seed, zero):
    """
    Whatever the inputs, constant ones and dead channels included, results are finite, on the grid and no worse.
    """
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(6, 6, generator=generator)
    inputs = (torch.randn(1, 300, 6, generator=generator) @ mix) * (0.0 if zero else 1.0)
    tensor = torch.randn(4, 6, generator=generator)
    targets = inputs @ tensor.T

    found, _ = fit(tensor, None, inputs, targets, 127)

    assert torch.isfinite(found).all()
    assert on_grid(found)
    error, plain = (float((inputs @ value.float().T - targets).square().sum()) for value in (found, nearest(tensor)))
    assert error <= 1.5 * plain + 1e-9


@given(low=st.floats(-1e3, 0), high=st.floats(0, 1e3), value=st.floats(-2e3, 2e3))
def test_a_grid_rounds_to_the_nearest_of_its_values(low, high, value):
    """
    Inside its range by half a step at most, and beyond it to the end; zero stays zero.
    """
    grid = Grid.of(Range(low, high))
    snapped = float(grid.snap(torch.tensor(value, dtype=torch.float64)))

    least, most = ((end - grid.zero_point) * grid.scale for end in (-128, 127))
    assert 0.0 == float(grid.snap(torch.tensor(0.0)))
    assert abs(snapped - min(max(value, least), most)) <= grid.scale / 2 * (1 + 1e-9)


class Divides(nn.Module):
    """A division by a variance plus next to nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, image):
        value = self.stem(image)
        square = (value - value.mean((2, 3), keepdim=True)).square()
        return self.head(value * (square / (square.mean((2, 3), keepdim=True) + 1e-4)).sigmoid())


def test_an_image_of_one_colour_does_not_spoil_the_weights():
    """
    Its variance is 0, and next to nothing is 0 on a grid; files keep divisors in float, and so does the simulation.
    """
    data = calibration((3, 16, 16))
    data.arrays["image"][:4] = np.array([0.0, 1.0, 2.0, 3.0])[:, None, None, None]
    graph = capture(Divides().eval(), (torch.zeros(1, 3, 16, 16),))

    rounded, report = round_weights(graph, data)

    assert all(bool(value.isfinite().all()) for value in weights_of(rounded).values())
    assert all(on_grid(value) for value in weights_of(rounded).values())
    assert ["stem", "head"] == [layer.layer for layer in report.layers]
