"""What int8 costs torch itself at each layer: the measure that quantized files are held to."""

import numpy as np
import pytest
import torch
from files_against_torch import captured
from torch import nn

from coordatt_deploy.formats import Precision, Storage
from coordatt_deploy.parity.reference_layers import ReferenceLayers

INT8 = Storage(Precision.INT8, 8)


def _cases(count, scale=1.0):
    random = np.random.default_rng(0)
    return [{"image": scale * random.standard_normal((1, 3, 32, 48)).astype(np.float32)} for _ in range(count)]


def _noise(reference, case, rounding):
    errors = reference.local(case, rounding, reference.reference(case))
    return {layer: float(np.mean(error.noise)) for layer, error in errors.items()}


def test_one_image_that_goes_far_makes_the_steps_of_all_coarse(shared_graph):
    """
    The grid covers what it was calibrated on; on tame images it then costs more, and a fault must stand out of that.
    """
    reference = ReferenceLayers(shared_graph)
    cases, far = _cases(2), _cases(1, scale=8.0)
    cuts = frozenset(reference.nodes)

    tame = reference.rounding(INT8, cases, cuts)
    covered = reference.rounding(INT8, cases, cuts, reference.ranges([*cases, *far]))
    fine, coarse = (_noise(reference, cases[0], rounding) for rounding in (tame, covered))

    assert all(covered.ranges[node][1] >= ends[1] for node, ends in tame.ranges.items())
    assert np.mean([coarse[layer] > fine[layer] for layer in fine if fine[layer] > 0]) > 0.6
    assert sum(coarse.values()) > 2 * sum(fine.values())


def test_ranges_of_the_cases_themselves_change_nothing(shared_graph):
    """
    The twin: calibrated on what it is judged on, a file is held to the same measure as before.
    """
    reference = ReferenceLayers(shared_graph)
    cases = _cases(2)
    cuts = frozenset(reference.nodes)

    plain = reference.rounding(INT8, cases, cuts)
    same = reference.rounding(INT8, cases, cuts, reference.ranges(cases))

    assert plain.ranges.keys() == same.ranges.keys()
    for node, ends in plain.ranges.items():
        assert np.allclose(ends, same.ranges[node], rtol=1e-4, atol=1e-5)


class Chosen(nn.Module):
    """A tenth of a value, or the value itself by its sign; *read* says whether the tenth is read elsewhere as well."""

    def __init__(self, read):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.read = nn.Conv2d(3, 4, 1), read

    def forward(self, image):
        value = self.stem(image)
        tenth = 0.1 * value
        chosen = torch.where(value > 0, value, tenth)
        return chosen + tenth.tanh() if self.read else chosen


def test_what_is_chosen_between_has_the_grid_of_the_choice():
    """
    The twin: read elsewhere it has a grid of its own, which is finer, and so much less is allowed.
    """
    steps, noise = {}, {}
    for read in (False, True):
        reference, cases = ReferenceLayers(captured(Chosen(read).eval(), (1, 3, 32, 48))), _cases(2)
        rounding = reference.rounding(INT8, cases, frozenset(reference.nodes))
        found = reference.local(cases[0], rounding, reference.reference(cases[0]))
        steps[read] = found[":mul"].step / found[":where"].step
        low, high = rounding.ranges[reference.nodes["stem"]]
        noise[read] = float(np.sqrt(np.mean(found[":mul"].noise))) / found[":where"].step

    assert 1.0 == steps[False]
    assert steps[True] == pytest.approx(0.1 * (high - low) / (high - 0.1 * low), rel=1e-3)
    assert noise[False] < 0.5  # half a step of the choice at most, which the choice itself costs
    assert noise[True] < noise[False] / 3


class Normalised(nn.Module):
    """Channels divided by their means and a small number; one is dead, and of a black image all means are 0."""

    def __init__(self, epsilon):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.epsilon = nn.Conv2d(3, 4, 3, bias=False), epsilon
        self.conv.weight.data[1] = 0.0

    def forward(self, image):
        value = self.conv(image).relu()
        return value / (value.mean((2, 3), keepdim=True) + self.epsilon)


@pytest.mark.parametrize(("epsilon", "spared"), [(1e-12, {"mean", "add"}), (0.3, set())])
def test_a_divisor_that_integers_round_to_zero_stays_in_float(epsilon, spared):
    """
    As quantizers leave it; nothing is spared where the grid's own divisor divides, which is the stricter measure.
    """
    reference = ReferenceLayers(captured(Normalised(epsilon).eval(), (1, 3, 32, 48)))
    cases = [*_cases(1), {"image": np.zeros((1, 3, 32, 48), np.float32)}]

    rounding = reference.rounding(INT8, cases, frozenset(reference.nodes))

    assert spared == rounding.spared
    for case in cases:
        errors = reference.accumulated(case, rounding, reference.reference(case))
        assert all(np.isfinite(error.greatest) for error in errors.values())


def test_the_least_number_of_a_mask_stays_finite_in_eleven_bits():
    """
    What is on no grid is rounded as float16 rounds; the least float32 rounded so would be minus infinity, and a softmax
    over a row of nothing else NaN.
    """

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 4, 3)
            mask = torch.zeros(4, 4)
            mask[3], mask[:, 2] = torch.finfo(torch.float32).min, torch.finfo(torch.float32).min
            self.register_buffer("mask", mask)

        def forward(self, image):
            value = self.conv(image).flatten(2)
            return ((value @ value.transpose(1, 2)) / 100 + self.mask).softmax(-1) @ value

    reference = ReferenceLayers(captured(Masked().eval(), (1, 3, 32, 48)))
    cases = _cases(1)
    rounding = reference.rounding(INT8, cases, frozenset(reference.nodes))

    errors = reference.accumulated(cases[0], rounding, reference.reference(cases[0]))

    assert "add" in rounding.spared
    assert all(np.isfinite(error.noise).all() for error in errors.values())


@pytest.mark.parametrize("seed", range(8))
def test_stirred_values_stay_where_float16_is(seed):
    """
    Means near 0 would take quotients beyond 65504, as no image does.
    """
    reference = ReferenceLayers(captured(Normalised(1e-12).eval(), (1, 3, 32, 48)))
    (case,) = _cases(1)
    layers = frozenset(reference.nodes)
    exact = reference.reference(case)

    probes = {
        precision: reference.probe(case, exact, layers, reference.rounding(Storage(precision), [case], layers), seed)
        for precision in (Precision.FP16, Precision.FP32)
    }

    assert np.abs(probes[Precision.FP16].made[":div"]).max() <= 65504
    assert np.abs(probes[Precision.FP32].made[":div"]).max() > 65504  # float32 holds them
