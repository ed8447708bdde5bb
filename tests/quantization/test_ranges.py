import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordatt_deploy.artifact_specs import RangeMethod
from coordatt_deploy.quantization.ranges import (
    BINS,
    TAIL,
    Range,
    histogram,
    input_range,
    least_error,
    measure,
    of_values,
    percentile,
)

values = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-100, 100, width=32))
METHODS = pytest.mark.parametrize("method", RangeMethod)


def rounded(value, bounds, steps=255):
    """What an int8 grid over the bounds makes of the values."""
    scale = (bounds.high - bounds.low) / steps
    zero = np.round(-bounds.low / scale)
    return (np.clip(np.round(value / scale) + zero, 0, steps) - zero) * scale


@METHODS
@settings(deadline=None)
@given(value=values)
def test_bounds_hold_zero_and_stay_within_the_extremes(method, value):
    """
    Zero is padding and must be on the grid; nothing is gained by a range wider than the values.
    """
    found = of_values([value], method)
    width = float(np.ptp(np.append(value, 0)))

    assert found.low <= 0 <= found.high
    assert found.low >= min(float(value.min()), 0.0) - 1e-6 * width
    assert found.high <= max(float(value.max()), 0.0) + 1e-6 * width


@given(cases=st.lists(values, min_size=1, max_size=4))
def test_extremes_are_those_of_all_cases_together(cases):
    """
    The order of the cases changes nothing.
    """
    together = np.concatenate(cases)
    expected = Range(float(together.min()), float(together.max()))

    assert expected == of_values(cases, RangeMethod.MIN_MAX) == of_values(cases[::-1], RangeMethod.MIN_MAX)


@given(value=values, low=st.floats(-200, 0), high=st.floats(0, 200))
def test_a_histogram_counts_every_value_once(value, low, high):
    """
    Values beyond the ends are counted at the ends.
    """
    counts = histogram(value, low, high)

    assert (BINS,) == counts.shape
    assert value.size == counts.sum()


def test_percentile_cuts_a_lone_outlier_and_keeps_what_many_share():
    """
    One value in a million may go, a ReLU's zeros may not.
    """
    rng = np.random.default_rng(0)
    value = np.maximum(rng.standard_normal(1_000_000), 0).astype(np.float32)
    value[0] = 100.0

    found = of_values([value], RangeMethod.PERCENTILE)

    assert 0.0 == found.low
    assert 3.0 < found.high < 10.0
    assert (value > found.high).mean() <= 2 * TAIL


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), spread=st.floats(0.1, 50), tail=st.sampled_from([0.0, 5.0, 30.0]))
def test_least_error_is_no_worse_than_the_extremes(seed, spread, tail):
    """
    On the values themselves, whatever their distribution.
    """
    rng = np.random.default_rng(seed)
    value = (spread * rng.standard_normal(4000)).astype(np.float32)
    value[:3] *= 1 + tail
    assume(float(np.ptp(value)) > 0)

    chosen, extremes = (of_values([value], method) for method in (RangeMethod.MSE, RangeMethod.MIN_MAX))
    error, widest = (float(np.square(rounded(value, item) - value).mean()) for item in (chosen, extremes))

    # a bin's width is half of what a step of the grid is at most: the search knows values no better than that
    assert error <= 1.1 * widest


def test_least_error_finds_the_trade_between_clipping_and_steps():
    """
    With a few far outliers the best range is much narrower than the extremes.
    """
    rng = np.random.default_rng(1)
    value = np.append(rng.standard_normal(1_000_000), [40.0]).astype(np.float32)
    counts = histogram(value, float(value.min()), float(value.max()))

    found = least_error(counts, float(value.min()), float(value.max()))

    assert found.high < 25.0


def test_percentile_of_one_value():
    """
    A constant tensor has a range that holds it.
    """
    counts = histogram(np.full(10, 3.0, np.float32), 3.0, 3.0)

    assert percentile(counts, 3.0, 3.0).high >= 3.0


def test_every_tensor_is_measured_over_all_passes():
    """
    Tensors by name, whichever case holds their extreme.
    """
    cases = [{"a": np.array([0.0, 1.0]), "b": np.array([-4.0])}, {"a": np.array([-2.0]), "b": np.array([3.0])}]

    found = measure(lambda: cases, RangeMethod.MIN_MAX)

    assert {"a": Range(-2.0, 1.0), "b": Range(-4.0, 3.0)} == found


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.485, 0.229), (0.0, 1.0)])
def test_the_inputs_grid_is_the_pixels_own(mean, std):
    """
    256 grey levels fall on 256 steps: rounding the input costs less than a third of what a careless grid costs.
    """
    pixels = ((np.arange(256) / 255 - mean) / std).astype(np.float32)
    careless = Range(float(pixels.min()), float(pixels.max()))

    chosen = input_range(pixels)

    error, before = (float(np.square(rounded(pixels, item) - pixels).mean()) for item in (chosen, careless))
    assert error <= before
    if mean == 0.5:
        assert error < before / 3
