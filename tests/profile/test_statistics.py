import math
import statistics as stdlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from latencies import MS, quiet, sliding, slowed_down, two_states
from scipy import stats

from coordatt_deploy.profile import statistics

RNG = np.random.default_rng(7)

nanoseconds = st.lists(st.integers(1, 10**9), min_size=1, max_size=60)


def bursts(rounds=40, per_round=10, seed=0, strength=0.05, memory=0.8):
    """Samples whose level wanders from round to round: neighbours resemble each other."""
    rng = np.random.default_rng(seed)
    level = np.zeros(rounds)
    for index in range(1, rounds):
        level[index] = memory * level[index - 1] + rng.normal(0, strength * math.sqrt(1 - memory**2))
    return 5 * MS * np.exp(level[:, None] + rng.normal(0, 0.01, (rounds, per_round)))


@given(nanoseconds, st.randoms())
def test_order_does_not_matter_to_what_ignores_it(samples, random):
    """
    Median, quantiles, interquartile range and modes are the same for every permutation.
    """
    shuffled = random.sample(samples, len(samples))

    for figure in (statistics.median, statistics.interquartile_range, lambda x: statistics.quantile(x, 0.9)):
        assert figure(samples) == figure(shuffled)
    assert statistics.modes(samples) == pytest.approx(statistics.modes(shuffled))


@given(nanoseconds)
def test_median_is_the_standard_librarys(samples):
    """
    The median agrees with an implementation of somebody else.
    """
    assert float(stdlib.median(samples)) == statistics.median(samples)


@given(nanoseconds, st.floats(0.1, 10))
def test_figures_scale_with_the_unit(samples, factor):
    """
    Twice as slow is twice the median, the quantile and the interval.
    """
    scaled = [value * factor for value in samples]

    assert statistics.median(scaled) == pytest.approx(statistics.median(samples) * factor)
    assert statistics.median_interval(scaled) == pytest.approx(
        [end * factor for end in statistics.median_interval(samples)]
    )


@pytest.mark.parametrize("wrong", [[math.nan], [1.0, math.inf], [0], [-5], [], np.ones((2, 2, 2))])
def test_what_is_no_latency_is_refused(wrong):
    """
    NaN, infinity, zero, negative times and nothing at all are refused, everywhere.
    """
    for figure in (statistics.median, statistics.median_interval, statistics.drift, statistics.modes):
        with pytest.raises(ValueError, match=r"latency|samples"):
            figure(wrong)


def test_an_incomplete_round_is_left_out():
    """
    What an interruption left behind has no partner in the other artifacts.
    """
    assert [[1, 2], [3, 4]] == statistics.by_round([1, 2, 3, 4, 5], 2).tolist()


def test_resampled_quantiles_are_those_of_the_resamples():
    """
    Counting below a grid gives the very order statistic that sorting each resample gives.
    """
    rounds = RNG.lognormal(size=(7, 4))
    rounds[2, 1] = math.nan
    weights = statistics.resampled_weights(7)[:50]

    for q in (0.1, 0.5, 0.9):
        expected = []
        for weight in weights.astype(int):
            drawn = np.repeat(rounds, weight, axis=0).ravel()
            drawn = np.sort(drawn[np.isfinite(drawn)])
            expected.append(drawn[math.ceil(q * len(drawn) - 1e-9) - 1])
        assert expected == statistics.resampled_quantiles(rounds, weights, q).tolist()


def test_resamples_are_as_long_as_the_original_and_made_of_neighbours():
    """
    Each resample has as many rounds as there are, each round is as likely as the next.
    """
    weights = statistics.resampled_weights(25)

    assert {25.0} == set(weights.sum(axis=1))
    assert 1.0 == pytest.approx(weights.mean(axis=0), abs=0.1)
    # Blocks of five: a round that is drawn brings neighbours along, hence weights of neighbours go together.
    assert np.corrcoef(weights[:, 10], weights[:, 11])[0, 1] > 0.5
    assert np.corrcoef(weights[:, 10], weights[:, 20])[0, 1] < 0


def test_many_samples_are_thinned_without_harm():
    """
    A hundred thousand samples cost no gigabytes, and the interval stays where it is.
    """
    many = quiet(100_000)

    low, high = statistics.median_interval(many, 1000)

    assert low < 5 * MS * 1.001
    assert high > 5 * MS * 0.999
    assert high - low < 0.001 * 5 * MS


def test_the_interval_covers_the_truth_under_bursts():
    """
    With noise that comes in bursts nine of ten 95 % intervals hold the truth; independent resampling holds far fewer.
    """
    covered = independent = 0
    for seed in range(200):
        rounds = bursts(seed=seed, memory=0.6)
        low, high = statistics.median_interval(rounds)
        covered += low <= 5 * MS <= high
        drawn = np.random.default_rng(seed).choice(rounds.ravel(), (200, rounds.size))
        low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
        independent += low <= 5 * MS <= high

    assert covered >= 170
    assert independent <= 130


def test_a_paired_ratio_outlives_common_drift():
    """
    Noise that hits both artifacts of a round leaves their ratio alone; unpaired rounds would not know it.
    """
    common = bursts(strength=0.2)
    a, b = common * 1.25, common * np.random.default_rng(1).normal(1, 0.005, common.shape)

    paired = statistics.median_ratio(a, b)
    unpaired = statistics.median_ratio(a, np.random.default_rng(2).permutation(b))

    assert paired.low <= 1.25 <= paired.high
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)
    assert paired.value == pytest.approx(1.25, rel=0.02)


def test_identical_samples_have_no_spread():
    """
    A clock that always says the same has no interval, one mode and no drift.
    """
    samples = [5_000_000] * 100

    assert (5 * MS, 5 * MS) == statistics.median_interval(samples)
    assert (pytest.approx(5 * MS),) == statistics.modes(samples)
    assert 0.0 == statistics.drift(samples)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_two_states_are_found(share):
    """
    A latency that jumps between 5 and 8 ms has two modes, whatever state it prefers.
    """
    fast, other = statistics.modes(two_states(share))

    assert fast == pytest.approx(5 * MS, rel=0.05)
    assert other == pytest.approx(8 * MS, rel=0.05)


def test_two_points_are_two_modes():
    """
    Two values and nothing between them.
    """
    assert statistics.modes([5e6] * 50 + [9e6] * 50) == pytest.approx((5e6, 9e6), rel=0.01)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(5, 0.25, 400),
        lambda rng: 5 * rng.lognormal(0, 0.2, 400),
        lambda rng: 5 + rng.exponential(1.0, 400),
        lambda rng: rng.uniform(4, 6, 400),
        lambda rng: np.where(rng.random(400) < 0.04, 15.0, 5.0) * rng.normal(1, 0.02, 400),
    ],
    ids=["normal", "lognormal", "long tail", "uniform", "rare outliers"],
)
def test_one_mode_is_not_taken_for_two(draw):
    """
    Wide, skewed and long-tailed latencies have one mode in 97 of 100 cases at least.
    """
    counts = [len(statistics.modes(draw(np.random.default_rng(seed)) * MS)) for seed in range(100)]

    assert counts.count(1) >= 97


def test_drift_is_measured():
    """
    A latency that slides up by 30 % drifts by a fifth from the first third to the last, without a step.
    """
    rounds = statistics.by_round(sliding(), 10)

    assert statistics.drift(rounds) == pytest.approx(0.2 / 1.05, abs=0.03)
    assert statistics.step(rounds) is None


def test_no_drift_is_seen_where_there_is_none():
    """
    Quiet latencies have a trend in one of a hundred cases, and bursts are not taken for drift beyond their size.
    """
    seen = [statistics.drift(statistics.by_round(quiet(seed=seed), 10)) != 0 for seed in range(300)]

    assert sum(seen) <= 9


def test_a_level_that_changes_and_stays_is_a_step():
    """
    A CPU that slows down by 40 % in the midst gives a step, at the round where it happened.
    """
    assert 25 == statistics.step(statistics.by_round(slowed_down(), 10))


def test_a_trend_needs_more_than_ties():
    """
    Constant values have no trend, a staircase has one.
    """
    assert 1.0 == statistics.trend_p(np.ones(20))
    assert statistics.trend_p(np.repeat(np.arange(4.0), 5)) < 1e-6
    assert statistics.trend_p(np.array([1.0, 3.0, 2.0, 4.0, 1.0, 3.0])) > 0.1


@pytest.mark.parametrize("freedom", [2, 3, 5, 10, 30, 200])
def test_students_distribution_is_scipys(freedom):
    """
    The approximations keep what their docstrings say: 3.1 % for the quantile, and the p-value close enough to judge by.
    """
    assert statistics.student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.031)
    for t in (0.5, 1.0, 2.0, 3.0):
        assert statistics.student_p(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=0.01)


@given(st.lists(st.integers(0, 20), min_size=8, max_size=60).filter(lambda values: len(set(values)) > 1))
def test_the_trend_is_kendalls(values):
    """
    SciPy's tau against the order gives the same test, ties included, but for the correction for continuity.
    """
    order = np.arange(len(values))
    score = sum(np.sign(values[j] - values[i]) for i in order for j in range(i + 1, len(values)))
    p = stats.kendalltau(order, values, method="asymptotic").pvalue
    corrected = stats.norm.isf(p / 2) * max(0, abs(score) - 1) / max(1, abs(score))

    assert statistics.trend_p(np.array(values, float)) == pytest.approx(2 * stats.norm.sf(corrected), rel=1e-6)


@pytest.mark.parametrize("samples", [(3.0, 6.4, 15.0), (1.0, 1.0, 40.0), tuple(np.geomspace(1, 200, 25))])
def test_no_end_of_an_interval_is_negative(samples):
    """
    Not of three samples that lie far apart, and not of many; the interval holds the median.
    """
    low, high = statistics.median_interval([sample * MS for sample in samples])

    assert 0 < low <= np.median(samples) * MS <= high


def test_a_ratio_and_its_inverse_have_one_interval():
    """
    Which of the two is called first says nothing.
    """
    rng = np.random.default_rng(0)
    a, b = (MS * rng.lognormal(centre, 0.3, (30, 10)) for centre in (0.0, 0.4))

    one, other = statistics.median_ratio(a, b), statistics.median_ratio(b, a)

    assert [one.value, one.low, one.high] == pytest.approx([1 / other.value, 1 / other.high, 1 / other.low], rel=1e-6)


def test_a_handful_of_samples_has_one_mode():
    """
    Three that lie apart are no states; twenty in two groups are two.
    """
    assert (6 * MS,) == statistics.modes([1 * MS, 6 * MS, 30 * MS])
    assert 1 == len(statistics.modes([1 * MS, 9 * MS] * 9))
    assert 2 == len(statistics.modes([1 * MS, 9 * MS] * 10))
