import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordatt_deploy import host
from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.profile.compare import Design, Outcome, compare_latencies, compare_profiles
from coordatt_deploy.profile.latency import Latency, ProfileSettings
from coordatt_deploy.profile.noise import Evidence
from coordatt_deploy.profile.result import ArtifactLatency, Profile

SETTINGS = ProfileSettings()
SHAPE = (SETTINGS.rounds, 10)
CALLED = {Outcome.FASTER, Outcome.SLOWER}
TRIALS = 300


def latency(rounds, **more):
    """Wrap made-up samples (rounds, 10) in milliseconds as the defaults would have measured them."""
    samples = tuple(int(value) for value in np.ravel(rounds) * 1e6)
    return Latency(samples, **{"openings": SETTINGS.openings, **more})


def quiet(rng):
    return 5 * rng.normal(1, 0.01, SHAPE)


def jitter(rng):
    return 5 * rng.normal(1, 0.08, SHAPE).clip(0.5)


def skewed(rng):
    return 5 * rng.lognormal(0, 0.15, SHAPE)


def long_tail(rng):
    return 5 * rng.normal(1, 0.02, SHAPE) * np.where(rng.random(SHAPE) < 0.3, rng.uniform(1, 6, SHAPE), 1)


def two_states(rng):
    return 5 * rng.normal(1, 0.02, SHAPE) * np.where(rng.random(SHAPE) < 0.4, 1.6, 1)


def bursts(rng):
    level = np.zeros(SHAPE[0])
    for index in range(1, SHAPE[0]):
        level[index] = 0.7 * level[index - 1] + rng.normal(0, 0.03)
    return 5 * np.exp(level[:, None] + rng.normal(0, 0.02, SHAPE))


NOISES = [quiet, jitter, skewed, long_tail, two_states, bursts]


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.__name__)
def test_error_rates_within_one_run(noise):
    """
    A difference where there is none: at most one trial in a hundred. A slowdown of ten per cent: at least 95 found.
    """
    false = found = 0
    for seed in range(TRIALS):
        rng = np.random.default_rng(seed)
        a, b = noise(rng), noise(rng)
        false += compare_latencies(latency(a), latency(b)).outcome in CALLED
        found += compare_latencies(latency(a), latency(1.1 * b)).outcome is Outcome.SLOWER

    assert false <= 0.01 * TRIALS
    assert found >= 0.95 * TRIALS


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.__name__)
def test_error_rates_between_two_runs(noise):
    """
    The same holds between runs whose machine was up to six per cent slower or faster, if a yardstick felt it as well.
    """
    false = found = 0
    for seed in range(TRIALS):
        rng = np.random.default_rng(seed)
        load = rng.uniform(0.97, 1.03, 2)
        a, b = (noise(rng) * factor for factor in load)
        own = [latency(1.5 * factor * rng.normal(1, 0.01, SHAPE)) for factor in load]
        options = {"design": Design.TWO_RUNS, "yardsticks": (own[0], own[1])}
        false += compare_latencies(latency(a), latency(b), **options).outcome in CALLED
        found += compare_latencies(latency(a), latency(1.1 * b), **options).outcome is Outcome.SLOWER

    assert false <= 0.01 * TRIALS
    assert found >= 0.95 * TRIALS


def test_without_a_yardstick_only_great_differences_are_called():
    """
    Between two runs without a yardstick ten per cent may be the load, twenty is not.
    """
    rng = np.random.default_rng(0)
    a, b = quiet(rng), quiet(rng)

    def outcome(factor):
        return compare_latencies(latency(a), latency(factor * b), design=Design.TWO_RUNS).outcome

    assert [Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE, Outcome.SLOWER, Outcome.FASTER] == [
        outcome(factor) for factor in (1.0, 1.1, 1.2, 0.8)
    ]


def test_between_runs_of_a_busy_machine_ten_per_cent_may_be_the_load():
    """
    Where others wanted the core, a yardstick does not tell it all: a slowdown that a quiet machine shows is left open.
    """
    rng = np.random.default_rng(0)
    a, b, own = quiet(rng), 1.1 * quiet(rng), 1.5 * rng.normal(1, 0.01, SHAPE)

    def outcome(other_cores):
        evidence = Evidence(other_cores=other_cores, idle_cores=1)
        runs = (latency(samples, evidence=evidence) for samples in (a, b))
        return compare_latencies(*runs, design=Design.TWO_RUNS, yardsticks=(latency(own), latency(own))).outcome

    assert [Outcome.SLOWER, Outcome.SLOWER, Outcome.INCONCLUSIVE] == [outcome(cores) for cores in (0.1, 1.0, 1.8)]


def test_what_hits_single_rounds_is_no_difference():
    """
    Bursts that fall into a third of one artifact's rounds hide neither its equal nor a slowdown.
    """
    rng = np.random.default_rng(7)
    burst = np.where(rng.random((SHAPE[0], 1)) < 0.33, 1.5, 1.0)
    a, b = quiet(rng) * burst, quiet(rng)

    equal, slower = (compare_latencies(latency(a), latency(factor * b)) for factor in (1.0, 1.1))

    assert (Outcome.NO_DIFFERENCE, Outcome.SLOWER) == (equal.outcome, slower.outcome)
    assert slower.ratio == pytest.approx(1.1, rel=0.01)


def test_a_yardstick_takes_the_load_out():
    """
    A run that is 8 % slower because the machine was, is not called slower; without the yardstick's change it is.
    """
    rng = np.random.default_rng(0)
    a, b = latency(quiet(rng)), latency(1.08 * quiet(rng))
    still, slowed = latency(quiet(rng)), latency(1.08 * quiet(rng))

    with_load = compare_latencies(a, b, design=Design.TWO_RUNS, yardsticks=(still, slowed))
    without = compare_latencies(a, b, design=Design.TWO_RUNS, yardsticks=(still, still))

    assert with_load.outcome not in CALLED
    assert Outcome.SLOWER is without.outcome


def test_common_drift_is_no_difference():
    """
    When the machine slows down in the midst of a run, both artifacts do, and their ratio is known as before.
    """
    rng = np.random.default_rng(1)
    drift = np.linspace(1, 1.5, SHAPE[0])[:, None]

    same = compare_latencies(latency(drift * quiet(rng)), latency(drift * quiet(rng)))
    slower = compare_latencies(latency(drift * quiet(rng)), latency(1.1 * drift * quiet(rng)))

    assert Outcome.NO_DIFFERENCE is same.outcome
    assert Outcome.SLOWER is slower.outcome
    assert slower.ratio == pytest.approx(1.1, rel=0.01)
    assert slower.ci95[0] < 1.1 < slower.ci95[1]


def test_lost_time_is_taken_off():
    """
    Half of b's samples were robbed of their core for 4 ms: it is as fast as a. If nobody knows, it is not.
    """
    rng = np.random.default_rng(2)
    robbed = rng.random(SHAPE) < 0.97
    a, b = quiet(rng), quiet(rng) + 4.0 * robbed
    lost = tuple(int(value) for value in (4e6 * robbed).ravel())

    assert Outcome.NO_DIFFERENCE is compare_latencies(latency(a), latency(b, lost_ns=lost)).outcome
    assert Outcome.SLOWER is compare_latencies(latency(a), latency(b)).outcome


def test_too_many_unknown_samples_are_inconclusive():
    """
    Where nearly every sample was disturbed and nobody knows by how much, there is no ratio at all.
    """
    rng = np.random.default_rng(3)
    lost = tuple(0 if value < 0.02 else None for value in rng.random(SHAPE).ravel())

    comparison = compare_latencies(latency(quiet(rng)), latency(quiet(rng), lost_ns=lost))

    assert Outcome.INCONCLUSIVE is comparison.outcome
    assert (None, None, None) == (comparison.ratio, comparison.ci95, comparison.p)
    assert "quieter machine" in comparison.reason


def test_noise_without_end_is_inconclusive():
    """
    When batches differ by half, a change of ten per cent can be neither seen nor excluded.
    """
    rng = np.random.default_rng(4)
    level = np.repeat(rng.lognormal(0, 0.5, (2, SETTINGS.openings)), SHAPE[0] // SETTINGS.openings, axis=1)

    comparison = compare_latencies(*(latency(part[:, None] * quiet(rng)) for part in level))

    assert Outcome.INCONCLUSIVE is comparison.outcome
    assert "too noisy" in comparison.reason


def test_a_second_state_is_not_hidden_by_the_fast_tenth():
    """
    b is as fast as a in its best moments, but mostly in a slower state: not called equal.
    """
    rng = np.random.default_rng(5)
    b = quiet(rng) * np.where(rng.random(SHAPE) < 0.7, 1.5, 1.0)

    comparison = compare_latencies(latency(quiet(rng)), latency(b))

    assert Outcome.INCONCLUSIVE is comparison.outcome
    assert "jumps between states" in comparison.reason


def test_faster_is_told_from_slower():
    """
    The verdict is on the second against the first, and turns round with them.
    """
    rng = np.random.default_rng(6)
    a, b = latency(quiet(rng)), latency(0.8 * quiet(rng))

    there, back = compare_latencies(a, b), compare_latencies(b, a)

    assert (Outcome.FASTER, Outcome.SLOWER) == (there.outcome, back.outcome)
    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.p == pytest.approx(back.p)
    assert there.ratio == pytest.approx(0.8, rel=0.01)
    assert f"faster by {1 - there.ratio:.1%}" in there.reason


@given(st.integers(0, 1000), st.floats(0.5, 2.0))
def test_the_interval_holds_the_ratio_and_agrees_with_the_verdict(seed, factor):
    """
    Whatever the noise: the interval surrounds the ratio, and a called difference excludes one at 95 % as well.
    """
    rng = np.random.default_rng(seed)
    noise = NOISES[seed % len(NOISES)]

    comparison = compare_latencies(latency(noise(rng)), latency(factor * noise(rng)))

    low, high = comparison.ci95
    assert low < comparison.ratio < high
    if comparison.outcome in CALLED:
        assert not low <= 1 <= high
    else:
        assert comparison.p >= 0.01
    assert math.isfinite(comparison.p)


def test_a_latency_does_not_differ_from_itself():
    """
    Twice the same samples give the ratio 1, certainly.
    """
    same = latency(bursts(np.random.default_rng(7)))

    comparison = compare_latencies(same, same)

    assert (Outcome.NO_DIFFERENCE, 1.0, 1.0) == (comparison.outcome, comparison.ratio, comparison.p)


def test_few_samples_can_be_compared():
    """
    The least that settings allow is two rounds, too few batches: inconclusive, not an error.
    """
    rng = np.random.default_rng(8)
    few = [Latency(tuple(int(value) for value in 5e6 * rng.normal(1, 0.01, 20))) for _ in range(2)]

    assert Outcome.INCONCLUSIVE is compare_latencies(*few).outcome


def test_designs_are_not_mixed_up():
    """
    One run needs no yardstick, and two runs with other threads cannot be compared.
    """
    rng = np.random.default_rng(9)
    one, two = latency(quiet(rng)), latency(quiet(rng), threads=2)

    with pytest.raises(ValueError, match="own yardstick"):
        compare_latencies(one, one, yardsticks=(one, one))
    with pytest.raises(ValueError, match="1 threads, the other 2"):
        compare_latencies(one, two, design=Design.TWO_RUNS)


def profile(seed, factor=1.0, machine=None, origin=Origin.MEASURED):
    """One artifact with one and two threads, and another one that only this seed has."""
    rng = np.random.default_rng(seed)

    def result(path, scale, threads=1):
        own = latency(scale * quiet(rng), threads=threads)
        return ArtifactLatency(path, Format.TFLITE, Precision.FP32, None, "LiteRT", origin, own)

    results = (result("net", 1), result("net", factor, threads=2), result(f"only_{seed}", 1))
    return Profile(machine or host.describe(), results, {1: latency(quiet(rng)), 2: latency(quiet(rng))})


def test_profiles_are_compared_artifact_by_artifact():
    """
    What both profiles hold is compared with the yardsticks of its threads, the rest is left out.
    """
    found = compare_profiles(profile(0), profile(1, 1.15))

    assert [("net", 1), ("net", 2)] == [(item.path, item.threads) for item in found]
    assert [Outcome.NO_DIFFERENCE, Outcome.SLOWER] == [item.comparison.outcome for item in found]


def test_profiles_of_unlike_machines_are_not_compared():
    """
    Another CPU gives no verdict but a reason.
    """
    other = dataclasses.replace(host.describe(), cpu="1 x Cortex-A72")

    found = compare_profiles(profile(0), profile(1, 1.5, machine=other))

    assert {Outcome.INCONCLUSIVE} == {item.comparison.outcome for item in found}
    assert "Cortex-A72" in found[0].comparison.reason


def test_a_yardstick_of_another_numpy_does_not_count():
    """
    The yardstick's code is NumPy's: with another version fifteen per cent may be nothing.
    """
    here = host.describe()
    other = dataclasses.replace(here, versions={**here.versions, "numpy": "1.26.4"})

    found = compare_profiles(profile(0), profile(1, 1.1, machine=other))

    assert {Outcome.INCONCLUSIVE} == {item.comparison.outcome for item in found}


def test_what_was_not_measured_is_not_compared():
    """
    The time that an evaluator takes is no latency.
    """
    assert () == compare_profiles(profile(0, origin=Origin.EVALUATED), profile(1, origin=Origin.EVALUATED))
