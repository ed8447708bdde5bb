import math

import numpy as np
import pytest
from latencies import quiet, sliding, slowed_down, two_states

from coordatt_deploy.host import HostState
from coordatt_deploy.profile.noise import Evidence, Level, evidence_between, judge


def test_identical_samples_are_stable():
    """
    A clock that always says the same is trusted.
    """
    assert Level.STABLE is judge([5_000_000] * 100).level


def test_a_quiet_machine_is_stable():
    """
    One per cent of jitter is stable, for every seed.
    """
    verdicts = [judge(quiet(seed=seed), 10) for seed in range(50)]

    assert {Level.STABLE} == {verdict.level for verdict in verdicts}
    assert "±" in verdicts[0].reason


def test_few_samples_are_unusable():
    """
    Nineteen samples are too few, twenty are not.
    """
    assert Level.UNUSABLE is judge(quiet(19)).level
    assert "19 samples" in judge(quiet(19)).reason
    assert Level.STABLE is judge(quiet(20)).level


@pytest.mark.parametrize("wrong", [[math.nan], [1.0, math.inf], [0], [-5], [], np.ones((2, 2, 2))])
def test_what_is_no_latency_is_not_judged(wrong):
    """
    Nothing, nothing positive, nothing finite, or a third axis: no verdict.
    """
    with pytest.raises(ValueError):
        judge(wrong)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_two_states_are_named(share):
    """
    A latency that jumps between 5 and 8 ms is not stable, whatever state it prefers, and the reason says why.
    """
    verdict = judge(two_states(share), 10)

    assert verdict.level is not Level.STABLE
    assert "2 modes" in verdict.reason


def test_drift_is_named():
    """
    A latency that slides up by 30 % is noisy because of drift, not because of throttling.
    """
    verdict = judge(sliding(), 10)

    assert verdict.level is not Level.STABLE
    assert "drift: the last third" in verdict.reason


def test_throttling_is_a_step_up_that_stays():
    """
    A CPU that slows down by 40 % in the midst is called throttling, at the round where it happened.
    """
    verdict = judge(slowed_down(), 10)

    assert Level.UNUSABLE is verdict.level
    assert "throttling or new load" in verdict.reason
    assert "round 26" in verdict.reason


def test_throttling_is_certain_when_the_frequency_fell():
    """
    With a frequency that fell as well, the reason says so; one that rose explains nothing.
    """
    samples = sliding()

    assert "throttling: " in judge(samples, 10, Evidence(frequency=0.7)).reason
    assert "frequency fell by 30%" in judge(samples, 10, Evidence(frequency=0.7)).reason
    assert "throttling" not in judge(samples, 10, Evidence(frequency=1.2)).reason


def test_getting_faster_is_drift():
    """
    A machine that becomes quieter does not throttle.
    """
    verdict = judge(quiet() * np.where(np.arange(400) < 250, 1.4, 1.0), 10)

    assert "drift: the last third is" in verdict.reason
    assert "faster" in verdict.reason


@pytest.mark.parametrize(
    ("evidence", "level", "words"),
    [
        (Evidence(), Level.STABLE, "median known"),
        (Evidence(preempted=0.05, stolen=0.001, throttled=0.0, heat_events=0), Level.STABLE, "median known"),
        (Evidence(preempted=0.3), Level.NOISY, "other load: 30% of the samples were preempted"),
        (Evidence(preempted=0.9), Level.UNUSABLE, "90%"),
        (Evidence(other_cores=1.9, idle_cores=1), Level.NOISY, "other processes kept 1.9 cores busy"),
        (Evidence(other_cores=1.9, idle_cores=7), Level.STABLE, "median known"),
        (Evidence(stolen=0.1), Level.NOISY, "hypervisor took 10%"),
        (Evidence(throttled=0.4), Level.UNUSABLE, "quota held it back 40%"),
        (Evidence(heat_events=2), Level.NOISY, "slowed down 2 times because of heat"),
        (Evidence(steady=False), Level.NOISY, "warm-up"),
    ],
)
def test_what_the_machine_tells_is_weighed(evidence, level, words):
    """
    Quiet samples are not believed when the machine tells of other load or throttling; a spare core is no load.
    """
    verdict = judge(quiet(), 10, evidence)

    assert level is verdict.level
    assert words in verdict.reason


def test_the_gravest_reason_comes_first():
    """
    A reader who reads the first words only reads the worst.
    """
    verdict = judge(quiet(), 10, Evidence(preempted=0.3, throttled=0.4))

    assert Level.UNUSABLE is verdict.level
    assert verdict.reason.startswith("throttling")
    assert "preempted" in verdict.reason


def test_two_states_of_the_machine_are_evidence(monkeypatch):
    """
    Between two readings a second apart: load of others in cores, stolen time as a share of all cores, and so on.
    """
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    before = HostState(
        frequency_mhz=(2000.0, 2000.0), busy_ms=5000.0, stolen_ms=100.0, own_ms=1000.0, throttled_ms=20.0,
        throttle_events=3, uptime_ms=60_000.0,
    )  # fmt: skip
    after = HostState(
        frequency_mhz=(1500.0, 1500.0), busy_ms=7500.0, stolen_ms=500.0, own_ms=2000.0, throttled_ms=270.0,
        throttle_events=5, uptime_ms=61_000.0,
    )  # fmt: skip

    expected = Evidence(other_cores=1.5, idle_cores=3, frequency=0.75, throttled=0.25, heat_events=2, stolen=0.1)
    assert expected == evidence_between(before, after, 1)


def test_what_the_machine_does_not_tell_is_no_evidence(monkeypatch):
    """
    None in either state stays None; a clock that stood still divides nothing.
    """
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    told = HostState(busy_ms=1.0, stolen_ms=1.0, own_ms=1.0, throttled_ms=1.0, throttle_events=0, uptime_ms=1.0)

    assert Evidence(idle_cores=2) == evidence_between(HostState(), HostState(), 2)
    assert Evidence(idle_cores=0) == evidence_between(HostState(), told, 8)
    assert Evidence(idle_cores=2, heat_events=0) == evidence_between(told, told, 2)
