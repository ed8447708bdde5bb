"""Two files against each other with a control: error rates by simulation, the floor, when measuring ends."""

import math
from itertools import count, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordatt_deploy.profile.paired import (
    FEWEST_BATCHES,
    FIRST_LOOK,
    ORDERS,
    Batch,
    Estimate,
    Paired,
    batch_of,
    collect,
    holm,
    paired,
    seconds_needed,
    settled,
    trimmed,
)
from coordatt_deploy.release.diff_result import Change
from coordatt_deploy.release.latency_change import decided

SHAPE = (6, 10)  # rounds and samples of a batch: a network of some milliseconds
BATCH_SECONDS, SECONDS = 0.8, 60.0  # roughly as measured, and the default
MIN_EFFECT = 0.03
TRIALS = 60
ORDERED = list(permutations(range(3)))


def quiet(rng):
    return rng.normal(1, 0.01, (3, *SHAPE))


def jitter(rng):
    return rng.normal(1, 0.08, (3, *SHAPE)).clip(0.5)


def skewed(rng):
    return rng.lognormal(0, 0.15, (3, *SHAPE))


def long_tail(rng):
    return rng.normal(1, 0.02, (3, *SHAPE)) * np.where(rng.random((3, *SHAPE)) < 0.3, rng.uniform(1, 6, (3, *SHAPE)), 1)


def bursts(rng):
    """Load that a whole round feels, and the three not quite alike."""
    load = np.exp(rng.normal(0, 0.2, (1, SHAPE[0], 1)) + rng.normal(0, 0.03, (3, SHAPE[0], 1)))
    return load * rng.normal(1, 0.02, (3, *SHAPE))


def wild(rng):
    """One batch in ten in which another process takes the core of one of the three alone."""
    values = rng.normal(1, 0.02, (3, *SHAPE))
    if rng.random() < 0.1:
        values[rng.integers(3)] *= rng.uniform(1.2, 3)
    return values


class Simulated:
    """Batches of equal files, made when they are looked at, and the same ones again for the next who looks.

    What is opened later is faster by a per cent, as is what an opening happens to make.
    """

    def __init__(self, noise, seed):
        self.noise, self.rng, self.made = noise, np.random.default_rng(seed), []

    def __getitem__(self, number):
        while len(self.made) <= number:
            later = np.array(ORDERED[len(self.made) % ORDERS])
            opening = np.exp(-0.01 * later + self.rng.normal(0, 0.005, 3))
            self.made.append(batch_of(*(5e6 * self.noise(self.rng) * opening[:, None, None])))
        return self.made[number]


def slowed(batch, factor):
    """The same with a slower b."""
    differences = {name: value + math.log(factor) for name, value in batch.differences.items()}
    return Batch(differences, batch.controls, batch.median_ms)


def measured(batches, factor=1.0):
    """How many batches a measurement of the default length takes, and what it finds."""
    timed = ((slowed(batches[number], factor), BATCH_SECONDS * (number + 1)) for number in count())
    taken, _ = collect(timed, MIN_EFFECT, SECONDS)
    known = paired(taken).difference
    return len(taken), decided(known.ratio, known.ci95, known.p, MIN_EFFECT)


@pytest.mark.parametrize("noise", [quiet, jitter, skewed, long_tail, bursts, wild], ids=lambda noise: noise.__name__)
def test_error_rates(noise):
    """
    Of equal files at most 5 % are called a regression or an improvement, of files 10 % slower 95 % are found.
    """
    trials = [Simulated(noise, seed) for seed in range(TRIALS)]
    equal, slower, faster = ([measured(item, factor)[1] for item in trials] for factor in (1.0, 1.1, 1 / 1.1))

    assert equal.count(Change.REGRESSION) + equal.count(Change.IMPROVEMENT) <= 0.05 * TRIALS
    assert slower.count(Change.REGRESSION) >= 0.95 * TRIALS
    assert faster.count(Change.IMPROVEMENT) >= 0.95 * TRIALS
    assert 0 == slower.count(Change.NO_DIFFERENCE) + faster.count(Change.NO_DIFFERENCE)


@pytest.mark.parametrize("noise", [quiet, wild], ids=lambda noise: noise.__name__)
def test_on_a_quiet_machine_three_per_cent_is_within_reach(noise):
    """
    Equal files are called equal, 5 % is a regression, and hardly one takes the whole time.
    """
    trials = [Simulated(noise, seed) for seed in range(40)]
    equal, slower = ([measured(item, factor) for item in trials] for factor in (1.0, 1.05))

    assert [verdict for _, verdict in equal].count(Change.NO_DIFFERENCE) >= 38
    assert [verdict for _, verdict in slower].count(Change.REGRESSION) >= 38
    assert sum(taken < SECONDS / BATCH_SECONDS for taken, _ in equal) >= 38


def steady(number, difference, control, spread=0.003):
    """Batches whose figures scatter by *spread* around what is given."""
    wobble = spread * np.resize((-1.0, 1.0, 0.5, -0.5, 0.2, -0.2), number)
    return [
        Batch({"median": difference + value}, {"median": control - value}, (1.0, 1.0, math.exp(difference)))
        for value in wobble
    ]


def test_what_copies_of_one_file_differ_by_is_no_regression():
    """
    Four per cent between a and b is a regression where a equals itself, and none where its copies differ by four, too.
    """
    sound, flawed = (paired(steady(12, 0.04, control)) for control in (0.0, 0.04))
    verdicts = [
        decided(known.difference.ratio, known.difference.ci95, known.difference.p, MIN_EFFECT)
        for known in (sound, flawed)
    ]

    assert [Change.REGRESSION, Change.INCONCLUSIVE] == verdicts
    assert 0 == sound.floor
    assert flawed.floor == pytest.approx(0.04, rel=0.05)


def test_the_figure_is_chosen_by_the_control_alone():
    """
    A figure by which b looks better does not win; the one that the control knows best does.
    """
    rng = np.random.default_rng(0)
    batches = [
        Batch(
            {"steady": 0.05 + rng.normal(0, 0.02), "flattering": -0.05},
            {"steady": rng.normal(0, 0.001), "flattering": rng.normal(0, 0.02)},
            (1.0, 1.0, 1.0),
        )
        for _ in range(12)
    ]

    assert "steady" == paired(batches).figure


def test_a_batch_compares_as_many_samples_of_each():
    """
    Who is sampled more often has the better best by luck; that must not count.
    """
    rng = np.random.default_rng(1)
    few, many = 1e6 * rng.lognormal(0, 0.3, (400, 10)), 1e6 * rng.lognormal(0, 0.3, (400, 60))
    batch = batch_of(few, few, many)

    assert abs(batch.differences["fastest of a round"]) < 0.05
    assert np.log(many.min(axis=1) / few.min(axis=1)).mean() < -0.2


def test_batches_of_which_too_little_is_left_say_nothing():
    """
    Where other processes took most samples nothing is made up.
    """
    lost = np.full(SHAPE, np.nan)
    batch = batch_of(lost, lost, lost)

    assert all(map(math.isnan, batch.differences.values()))
    assert paired([batch] * 12) is None
    assert paired([]) is None
    assert not settled([batch] * 12, MIN_EFFECT)


def test_a_wild_batch_does_not_move_the_estimate():
    """
    One of twelve at three times its value: the trimmed mean stays, the mean would not.
    """
    values = np.array([0.0, 0.01] * 6)
    wild_values = np.concatenate([values[:-1], [1.1]])

    assert trimmed(values).value == pytest.approx(trimmed(wild_values).value, abs=0.003)
    assert wild_values.mean() > 0.09


def test_measuring_ends_when_it_is_decided_or_time_is_up():
    """
    Clear cases end at the first look, noisy ones with the time; a machine too slow for both still gives six batches.
    """

    def taken(batches, seconds_each, least):
        timed = ((batch, seconds_each * (number + 1)) for number, batch in enumerate(batches))
        return len(collect(timed, MIN_EFFECT, least)[0])

    assert FIRST_LOOK == taken(steady(60, 0.0, 0.0), 1, 60)
    assert FIRST_LOOK == taken(steady(60, 0.5, 0.0, spread=0.1), 1, 60)
    assert 60 == taken(steady(90, 0.03, 0.0, spread=0.2), 1, 60)
    assert FEWEST_BATCHES == taken(steady(60, 0.0, 0.0), 100, 60)
    assert 4 == taken(steady(4, 0.0, 0.0), 1, 60)


def known(value, error, floor=0.0):
    return Paired(
        Estimate(value, math.hypot(error, floor), 1e9), Estimate(0, error, 1e9), floor, "median", None, (), ()
    )


def test_how_long_it_would_take():
    """
    Half the width needs four times the seconds; at the very edge, and below the floor, no time decides.
    """
    margin = math.log1p(MIN_EFFECT)
    width = 2 * margin / 1.959964

    assert seconds_needed(known(0.0, width), 60, MIN_EFFECT) == pytest.approx(240, rel=0.01)
    assert seconds_needed(known(2 * margin, 2 * width), 60, MIN_EFFECT) == pytest.approx(240, rel=0.01)
    assert math.inf == seconds_needed(known(margin, 0.001), 60, MIN_EFFECT)
    assert math.inf == seconds_needed(known(0.0, 0.001, floor=0.02), 60, MIN_EFFECT)


def test_holm_multiplies_the_least_by_the_number_of_pairs():
    """
    The next by one fewer, and none comes out below one before it.
    """
    assert (0.03, 0.06, 0.06, 0.02) == pytest.approx(holm([0.01, 0.03, 0.04, 0.005]))
    assert () == holm([])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_corrected_values_are_no_smaller_and_keep_their_order(values):
    """
    And one value alone stays as it is.
    """
    found = holm(values)

    assert all(new >= old for new, old in zip(found, values, strict=True))
    assert sorted(range(len(values)), key=lambda at: (values[at], found[at])) == sorted(
        range(len(values)), key=lambda at: (found[at], values[at])
    )
    assert (values[0],) == holm(values[:1])


@pytest.mark.parametrize(
    ("ratio", "ci95", "p", "expected"),
    [
        (1.05, (1.02, 1.08), 0.001, Change.REGRESSION),
        (0.95, (0.92, 0.98), 0.001, Change.IMPROVEMENT),
        (1.05, (0.99, 1.11), 0.09, Change.INCONCLUSIVE),
        (1.05, (1.01, 1.09), 0.06, Change.INCONCLUSIVE),
        (1.02, (1.01, 1.03), 0.001, Change.NO_DIFFERENCE),
        (1.02, (1.01, 1.04), 0.001, Change.INCONCLUSIVE),
        (1.00, (0.98, 1.02), 0.9, Change.NO_DIFFERENCE),
        (0.98, (0.969, 1.01), 0.2, Change.INCONCLUSIVE),
    ],
)
def test_a_regression_is_significant_and_great_enough(ratio, ci95, p, expected):
    """
    Neither alone is one; what is certain and small is no difference.
    """
    assert expected is decided(ratio, ci95, p, MIN_EFFECT)
