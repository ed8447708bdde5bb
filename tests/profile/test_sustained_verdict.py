"""What is said of a slowdown: throttling takes evidence, and a neighbour is none."""

from dataclasses import replace

import numpy as np
import pytest

from coordatt_deploy.profile.sustained_result import Cause, Course, Window
from coordatt_deploy.profile.sustained_verdict import FEWEST_WINDOWS, Part, clock, judge

COUNT, AT = 120, 50


def windows(level, **told):
    """Windows of five seconds whose medians follow *level*; *told* has pairs of values before and after ``AT``."""
    noise = np.exp(0.01 * np.random.default_rng(5).standard_normal(len(level)))
    made = []
    for at, value in enumerate((2.0 * noise * level).tolist()):
        facts = {name: pair[at >= AT] for name, pair in told.items()}
        made.append(replace(Window(5.0 * at, 100, value, value * 0.98, value * 1.05, value * 2), **facts))
    return made


def step(size=1.12):
    return np.where(np.arange(COUNT) < AT, 1.0, size)


@pytest.mark.parametrize(
    ("told", "cause", "words"),
    [
        ({}, Cause.UNCLEAR, "cause not readable"),
        ({"frequency_mhz": (2400.0, 2140.0)}, Cause.THROTTLING, "frequency 2400 → 2140 MHz"),
        ({"frequency_mhz": (2400.0, 2400.0), "temperature_c": (45.0, 80.0)}, Cause.UNCLEAR, "cause unclear"),
        ({"temperature_c": (45.0, 80.0)}, Cause.THROTTLING, "temperature 45 → 80 °C"),
        ({"temperature_c": (45.0, 46.0)}, Cause.UNCLEAR, "cause unclear"),
        ({"stolen": (0.0, 0.1)}, Cause.OTHER_LOAD, "the hypervisor took 10% of the time"),
        ({"held_back": (0.0, 0.1)}, Cause.OTHER_LOAD, "CPU quota"),
        ({"preempted": (0.01, 0.3)}, Cause.OTHER_LOAD, "30% of the calls were preempted, 1% before"),
        ({"other_cores": (0.2, 1.9)}, Cause.OTHER_LOAD, "other processes kept 1.9 cores busy"),
        (
            {"frequency_mhz": (2400.0, 2140.0), "other_cores": (0.2, 1.9)}, Cause.UNCLEAR,
            "throttling or other load: frequency",
        ),
        ({"cores": ((4, 5), (0, 1))}, Cause.UNCLEAR, "it moved from core 4,5 to 0,1"),
    ],
)  # fmt: skip
def test_the_cause_is_what_the_machine_tells(told, cause, words):
    """
    Frequency decides where it is readable, temperature else; with more load beside it nothing does.
    """
    found = judge(windows(step(), **told), idle_cores=1).verdict

    assert (Course.SLOWS_DOWN, cause) == (found.course, found.cause)
    assert words in found.reason


def test_the_cpu_itself_may_tell():
    """
    Its count of throttle events is evidence.
    """
    found = judge(windows(step()), heat_events=3).verdict

    assert Cause.THROTTLING is found.cause
    assert "because of heat 3 times" in found.reason


def test_a_slowdown_has_its_size_its_interval_and_its_beginning():
    """
    12 % at window 50, which begins at 250 s; the last level is compared with the first.
    """
    judged = judge(windows(step()))

    assert (250.0, (250.0,)) == (judged.verdict.since_s, judged.verdict.changes_s)
    assert judged.verdict.ratio == pytest.approx(1.12, abs=0.01)
    low, high = judged.verdict.ci95
    assert 1.1 < low < judged.verdict.ratio < high < 1.14
    assert (Part(0, 50), Part(50, 120)) == (judged.first, judged.last)


@pytest.mark.parametrize(("start", "end"), [(10, 25), (50, 65), (60, 100), (20, 110)])
def test_a_neighbour_that_comes_and_goes_is_no_slowdown(start, end):
    """
    Whatever its size, and however long it stayed: the end is as fast as the beginning.
    """
    level = np.ones(COUNT)
    level[start:end] = 1.5

    assert Course.SLOWS_DOWN is not judge(windows(level)).verdict.course


def test_what_begins_at_the_very_end_is_undecided():
    """
    A burst would look the same: a longer run is what decides.
    """
    level = np.ones(COUNT)
    level[-8:] = 1.3
    found = judge(windows(level)).verdict

    assert Course.UNDECIDED is found.course
    assert "too late to say that it stays; run for 20:00 min" in found.reason


def test_a_slow_beginning_is_undecided():
    """
    The beginning is what all else is compared with, and was disturbed.
    """
    level = np.ones(COUNT)
    level[:20] = 1.3
    found = judge(windows(level)).verdict

    assert Course.UNDECIDED is found.course
    assert "slower at the beginning" in found.reason


@pytest.mark.parametrize(
    ("fast", "said"), [(3, "steady but for its first 25 s, which were 1"), (5, "the beginning is known too little")]
)
def test_what_throttles_after_seconds_is_not_called_steady(fast, said):
    """
    A few windows are too few for a level; a shorter run would have more of them.
    """
    level = np.ones(COUNT)
    level[:fast] = 1 / 1.15
    found = judge(windows(level)).verdict

    assert Course.UNDECIDED is found.course
    assert said in found.reason
    assert "run for 2:30 min to see more of the beginning" in found.reason


def test_steps_of_a_slope_are_compared_from_end_to_end():
    """
    An approach to 20 %: the verdict's figure is nearer to that than to any single step.
    """
    level = 1 + 0.2 * (1 - np.exp(-np.arange(COUNT) / 30))
    found = judge(windows(level)).verdict

    assert Course.SLOWS_DOWN is found.course
    assert found.ratio > 1.13


def test_noise_without_end_is_undecided_and_says_for_how_long_to_run():
    """
    Half of the windows slower than the others, at random: nothing changed, and it is not known well enough. Where a
    longer run would be of hours, other load is what has to go.
    """
    slow = np.random.default_rng(1).random(COUNT) < 0.5
    found = judge(windows(np.where(slow, 1.0, 1.1))).verdict
    wild = judge(windows(np.where(slow, 1.0, 3.0))).verdict

    assert (Course.UNDECIDED, Course.UNDECIDED) == (found.course, wild.course)
    assert "run for" in found.reason
    assert "take other load off" in wild.reason


@pytest.mark.parametrize("count", [0, 1, FEWEST_WINDOWS - 1])
def test_few_windows_are_too_short(count):
    """
    No figure is given of them.
    """
    judged = judge(windows(np.ones(count)))

    assert (Course.UNDECIDED, None, None) == (judged.verdict.course, judged.verdict.ratio, judged.first)
    assert f"{count} windows" in judged.verdict.reason


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (45, "45 s"), (130.4, "2:10 min"), (3599, "59:59 min"), (3900, "1:05 h")]
)
def test_times_are_short(seconds, expected):
    """
    In the unit that fits.
    """
    assert expected == clock(seconds)
