"""By simulation: noise is no change, and changes are found. The full run is ``benchmarks.sustained_trials``."""

import numpy as np
import pytest

from benchmarks.sustained_trials import NOISE, trial
from coordatt_deploy.profile.change_points import SHORTEST, change, change_points
from coordatt_deploy.profile.sustained_result import Course

TRIALS = 12


@pytest.mark.parametrize("noise", NOISE)
def test_noise_without_a_change_is_not_called_a_slowdown(noise):
    """
    None of a dozen of any kind; 5 % are allowed.
    """
    rng = np.random.default_rng(3)

    assert 0 == sum(trial(noise, "unchanged", rng) is Course.SLOWS_DOWN for _ in range(TRIALS))


@pytest.mark.parametrize("level", ["shifted", "heating"])
@pytest.mark.parametrize("noise", NOISE)
def test_a_change_is_found_in_any_noise(noise, level):
    """
    A shift of 10 %, or an approach to 15 %: in all of a dozen but one.
    """
    rng = np.random.default_rng(4)

    assert sum(trial(noise, level, rng) is Course.SLOWS_DOWN for _ in range(TRIALS)) >= TRIALS - 1


def test_a_clean_step_is_found_where_it_is():
    """
    The index is that of the first window of the new level.
    """
    series = np.exp(0.01 * np.random.default_rng(0).standard_normal(120))
    series[70:] *= 1.2

    assert (70,) == change_points(series)


def test_a_rise_that_goes_back_is_two_changes():
    """
    There and back again, and the same each time.
    """
    series = np.exp(0.01 * np.random.default_rng(0).standard_normal(120))
    series[80:105] *= 1.3

    begun, ended = change_points(series)
    assert (abs(begun - 80) <= 1, abs(ended - 105) <= 1) == (True, True)
    assert change_points(series) == change_points(series)


@pytest.mark.parametrize("count", [0, 1, 2 * SHORTEST - 1, 2 * SHORTEST])
def test_few_or_equal_windows_have_no_change(count):
    """
    Neither does a constant series divide by zero.
    """
    assert () == change_points(np.ones(count))


def test_levels_that_differ_by_little_are_one():
    """
    Two per cent, without any noise: no change that is worth telling, however certain it is.
    """
    assert () == change_points(np.where(np.arange(100) < 50, 1.0, 1.02))


def test_the_interval_of_a_change_holds_it():
    """
    About 95 % of the intervals do; 40 are tried.
    """
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(40):
        found = change(np.exp(0.02 * rng.standard_normal(60)), 1.1 * np.exp(0.02 * rng.standard_normal(60)))
        held += found.low <= 1.1 <= found.high

    assert held >= 35
