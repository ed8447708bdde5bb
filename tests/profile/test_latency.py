import dataclasses
import gc
import os
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from coordatt_deploy.errors import UsageError
from coordatt_deploy.profile import rounds as profile
from coordatt_deploy.profile.latency import Latency, ProfileSettings
from coordatt_deploy.profile.noise import Evidence, Level
from coordatt_deploy.profile.rounds import Clocks, lost_time, measure, measure_openings

MS = 1_000_000
SHORT = ProfileSettings(warmups=6, samples=30, openings=1, min_seconds=0.0)


class Machine:
    """A machine whose time passes only when somebody works."""

    def __init__(self):
        self.now = 0
        self.stolen = 0
        self.log = []

    def work(self, name, *durations_ms):
        """Return a call that takes the given times, the last one for ever."""
        times = list(durations_ms)

        def call():
            self.log.append(name)
            self.now += round((times.pop(0) if len(times) > 1 else times[0]) * MS)

        return call

    def tick(self):
        self.now += 1
        return self.now

    @property
    def clocks(self):
        return Clocks(wall_ns=self.tick, cpu_ns=lambda: self.now - self.stolen)


@pytest.fixture
def machine():
    return Machine()


def test_every_artifact_gets_its_samples(machine):
    """
    Thirty samples are three rounds of ten, and the times are those that the calls took.
    """
    result = measure({"a": machine.work("a", 5), "b": machine.work("b", 8)}, SHORT, clocks=machine.clocks)

    assert ["a", "b"] == list(result.latencies)
    assert (3, 10) == result.latencies["a"].rounds.shape
    assert (3, 20) == result.yardstick.rounds.shape
    assert 5.0 == pytest.approx(result.latencies["a"].median_ms, abs=1e-5)
    assert 8.0 == pytest.approx(result.latencies["b"].median_ms, abs=1e-5)
    assert not result.interrupted


def test_turns_are_interleaved_and_shuffled(machine):
    """
    Each round holds each artifact once; the order changes from round to round, and is the seed's.
    """
    orders = []
    for seed in (3, 3, 4):
        machine.log.clear()
        calls = {name: machine.work(name, 1) for name in "abc"}
        settings = dataclasses.replace(SHORT, samples=60, seed=seed)
        measure(calls, settings, clocks=machine.clocks)
        orders.append(blocks_of_rounds(machine.log, 6, 11))

    assert all(sorted(order) == ["a", "b", "c"] for order in orders[0])
    assert len({tuple(order) for order in orders[0]}) > 2
    assert orders[0] == orders[1] != orders[2]


def blocks_of_rounds(log, rounds, length):
    """Return the order of the turns in each of the last *rounds* rounds."""
    turns = log[-rounds * 3 * length :][::length]
    return [turns[index : index + 3] for index in range(0, len(turns), 3)]


def test_the_first_call_of_a_turn_is_a_warm_up(machine):
    """
    Caches are cold after the others' turns: the call that brings them back is kept, but is no sample.
    """
    calls = {"a": machine.work("a", *[5] * 6, *([9] + [5] * 10) * 3), "b": machine.work("b", 5)}

    latency = measure(calls, SHORT, clocks=machine.clocks).latencies["a"]

    assert {5} == {round(value / MS) for value in latency.samples_ns}
    assert [5] * 6 + [9] * 3 == [round(value / MS) for value in latency.warmups_ns]


def test_warm_up_lasts_until_steady(machine):
    """
    As long as the best time still falls, the warm-up goes on.
    """
    falling = [20 - index for index in range(15)]
    calls = {"a": machine.work("a", *falling, 5)}

    latency = measure(calls, SHORT, clocks=machine.clocks).latencies["a"]

    # Fifteen falling times, the first good one, and five that are no better.
    assert 15 + 1 + 5 == len(latency.warmups_ns) - 3
    assert latency.evidence.steady
    assert {5} == {round(value / MS) for value in latency.samples_ns}


def test_a_warm_up_without_rest_ends_and_is_told(machine):
    """
    After ten times the warm-ups asked for it gives up; the latency then is not stable.
    """
    falling = [1000 * 0.98**index for index in range(200)]

    latency = measure({"a": machine.work("a", *falling)}, SHORT, clocks=machine.clocks).latencies["a"]

    assert 60 + 3 == len(latency.warmups_ns)
    assert not latency.evidence.steady
    assert latency.verdict.level is not Level.STABLE
    assert "warm-up" in latency.verdict.reason


@pytest.mark.parametrize(
    ("times", "steady"),
    [
        ([], False),
        ([5] * 5, False),
        ([5] * 6, True),
        ([9, 8, 7, 6, 5, 4, 3], False),
        ([5, 9, 9, 9, 9, 9], True),
        ([100, 100, 100, 97, 99, 99, 99], False),
        ([100, 99, 99, 99, 99, 98.5], True),
    ],
)
def test_steady_means_that_the_best_time_falls_no_more(times, steady):
    """
    Slow calls among fast ones are noise and do not prolong the warm-up; a new best time does.
    """
    assert steady is profile.is_steady(times, 5)


def test_short_calls_get_more_samples(machine):
    """
    A model of a tenth of a millisecond is called so often that its samples take the time asked for.
    """
    settings = ProfileSettings(warmups=6, samples=20, openings=1, min_seconds=0.1)

    result = measure({"a": machine.work("a", 0.1), "b": machine.work("b", 50)}, settings, clocks=machine.clocks)

    assert 0.1 == pytest.approx(sum(result.latencies["a"].samples_ns) / 1e9, rel=0.01)
    assert (2, 10) == result.latencies["b"].rounds.shape
    assert (2, 20) == result.yardstick.rounds.shape


def test_openings_share_the_rounds(machine):
    """
    The artifacts are closed before they are opened anew, and the samples of all openings belong together.
    """
    events = []

    @contextmanager
    def open_calls():
        events.append("open")
        yield {"a": machine.work("a", 4 + len(events))}
        events.append("close")

    settings = ProfileSettings(warmups=6, samples=50, openings=2, min_seconds=0.0)
    latency = measure_openings(open_calls, settings, clocks=machine.clocks).latencies["a"]

    assert ["open", "close"] * 2 == events
    assert (5, 10) == latency.rounds.shape
    assert [5, 5, 5, 7, 7] == [round(value / MS) for value in latency.rounds[:, 0]]
    assert 2 == latency.openings


def test_there_are_no_more_openings_than_rounds(machine):
    """
    Twenty samples are two rounds, which allow two openings whatever the settings say.
    """
    settings = dataclasses.replace(SHORT, samples=20, openings=10)

    assert (
        2
        == measure_openings(lambda: opened({"a": machine.work("a", 1)}), settings, clocks=machine.clocks)
        .latencies["a"]
        .openings
    )


def test_interruption_keeps_what_was_measured(machine):
    """
    Ctrl-C in the midst of a turn keeps all turns before it, and says so.
    """
    calls = {"a": interrupted_after(machine, "a", 6 + 2 * 11 + 5), "b": machine.work("b", 5)}

    result = measure(calls, SHORT, clocks=machine.clocks)

    assert result.interrupted
    assert 20 == len(result.latencies["a"].samples_ns)
    assert len(result.latencies["b"].samples_ns) in (20, 30)


def test_interruption_before_the_first_sample_is_an_interruption(machine):
    """
    With nothing to keep Ctrl-C stays what it is.
    """
    with pytest.raises(KeyboardInterrupt):
        measure({"a": interrupted_after(machine, "a", 3)}, SHORT, clocks=machine.clocks)


def interrupted_after(machine, name, count):
    work, left = machine.work(name, 5), [count]

    def call():
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        work()

    return call


@pytest.mark.parametrize("fails", [False, True])
def test_garbage_collection_is_off_and_comes_back(machine, fails):
    """
    No collection falls into a sample, and afterwards all is as before, whatever happened.
    """
    seen = []

    def call():
        seen.append(gc.isenabled())
        machine.now += MS
        if fails and len(seen) > 20:
            raise RuntimeError("broken")

    try:
        measure({"a": call}, SHORT, clocks=machine.clocks)
    except RuntimeError:
        assert fails

    assert {False} == set(seen)
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this operating system pins no process")
def test_affinity_holds_for_the_measurement_only(machine):
    """
    During the calls the process runs on the core asked for; afterwards on those from before.
    """
    before = os.sched_getaffinity(0)
    core = min(before)
    seen = []

    def call():
        seen.append(os.sched_getaffinity(0))
        machine.now += MS

    settings = ProfileSettings(warmups=6, samples=20, openings=1, min_seconds=0.0, cpu_affinity=(core,))
    measure({"a": call}, settings, clocks=machine.clocks)

    assert all({core} == cores for cores in seen)
    assert before == os.sched_getaffinity(0)


def test_progress_grows_from_nothing_to_all(machine):
    """
    The share that is done grows after each turn and ends at one.
    """
    shares = []
    settings = ProfileSettings(warmups=6, samples=60, openings=2, min_seconds=0.0)

    measure_openings(
        lambda: opened({"a": machine.work("a", 1)}), settings, clocks=machine.clocks, on_progress=shares.append
    )

    assert sorted(shares) == shares
    assert 6 * 2 == len(shares)
    assert 1.0 == pytest.approx(shares[-1])


@contextmanager
def opened(calls):
    yield calls


def test_a_failing_artifact_is_not_hidden(machine):
    """
    What a call raises comes out.
    """
    with pytest.raises(RuntimeError, match="broken"):
        measure({"a": lambda: (_ for _ in ()).throw(RuntimeError("broken"))}, SHORT, clocks=machine.clocks)


@pytest.mark.parametrize(
    ("waited", "preempted", "lost"), [(False, False, 0), (True, False, 0), (False, True, 3 * MS), (True, True, None)]
)
def test_lost_time_is_known_only_of_a_thread_that_never_waits(waited, preempted, lost):
    """
    A thread that waits for workers leaves its core, too; nobody can tell that from a robbed one.
    """
    assert lost == lost_time(8 * MS, 5 * MS, waited=waited, preempted=preempted)


def test_lost_time_is_never_negative():
    """
    The CPU clock is read around the wall clock, hence may show a little more.
    """
    assert 0 == lost_time(100, 130, waited=False, preempted=True)


def test_preempted_samples_are_recognised(machine):
    """
    Whoever loses 3 of 8 ms in every other call keeps 5 ms undisturbed, and is told of the other load.
    """
    switches = [0]

    def call():
        machine.now += 5 * MS
        if switches[0] % 2:
            machine.now += 3 * MS
            machine.stolen += 3 * MS
        switches[0] += 1

    clocks = Clocks(machine.tick, lambda: machine.now - machine.stolen, lambda: (0, switches[0] // 2))
    latency = measure({"a": call}, SHORT, clocks=clocks).latencies["a"]

    assert {5, 8} == {round(value / MS) for value in latency.samples_ns}
    assert 5 * MS == pytest.approx(latency.undisturbed, abs=10)
    assert "50% of the samples were preempted" in latency.verdict.reason


def test_worker_threads_hide_what_was_lost(machine):
    """
    With two threads a preempted sample is unknown and does not count as undisturbed.
    """
    clocks = Clocks(machine.tick, lambda: machine.now, lambda: (0, len(machine.log)))

    latency = measure({"a": machine.work("a", 5)}, SHORT, threads=2, clocks=clocks).latencies["a"]

    assert (None,) * 30 == latency.lost_ns
    assert np.isnan(latency.undisturbed).all()
    assert 2 == latency.threads


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the switches of a thread")
def test_this_machine_tells_waiting_from_working():
    """
    The real clocks know a thread that sleeps from one that works.
    """
    clocks = Clocks.of_machine(1)
    import time

    before = clocks.switches()
    time.sleep(0.01)
    after = clocks.switches()

    assert after[0] > before[0]
    assert clocks.cpu_ns() > 0


def test_the_real_clocks_measure_real_work():
    """
    On the machine itself, without a made-up clock, all of a latency's parts are there.
    """
    values = np.random.default_rng(0).random((200, 200))

    result = measure({"sort": lambda: np.sort(values, axis=1)}, SHORT)
    latency = result.latencies["sort"]

    assert 30 == len(latency.samples_ns) == len(latency.lost_ns or latency.samples_ns)
    assert all(isinstance(value, int) and value > 0 for value in latency.samples_ns)
    assert latency.evidence.idle_cores is not None
    low, high = latency.ci95_ms
    assert low <= latency.median_ms <= high
    assert latency.quantile_ms(0.9) <= latency.quantile_ms(0.99)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"threads": ()}, "threads is empty"),
        ({"threads": (0,)}, "numbers from 1 up"),
        ({"threads": (1, 1)}, "once"),
        ({"threads": (4096,)}, "4096, but this process has"),
        ({"warmups": 0}, "warmups is 0"),
        ({"samples": 19}, "samples is 19; at least 20"),
        ({"openings": 0}, "openings is 0"),
        ({"min_seconds": -1.0}, "min_seconds is -1.0"),
        ({"min_seconds": float("nan")}, "min_seconds is nan"),
        ({"cpu_affinity": (4096,)}, "core 4096 is not among"),
    ],
)
def test_settings_are_valid_from_birth(wrong, words):
    """
    Each wrong setting is refused with what was received and what is expected.
    """
    with pytest.raises(UsageError, match=words) as refused:
        ProfileSettings(**wrong)

    assert 2 == refused.value.exit_code


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this operating system pins no process")
def test_threads_must_fit_the_affinity():
    """
    Two threads on one core are a mistake.
    """
    core = min(os.sched_getaffinity(0))

    with pytest.raises(UsageError, match="has 1 core "):
        ProfileSettings(threads=(2,), cpu_affinity=(core,))


def test_defaults_are_valid():
    """
    The defaults that the command line shows are settings.
    """
    assert (1,) == ProfileSettings().threads


def test_a_latency_refuses_what_does_not_fit():
    """
    No samples, impossible samples, and lost times of other samples are refused.
    """
    for wrong in ({"samples_ns": ()}, {"samples_ns": (0,)}, {"samples_ns": (5, 6), "lost_ns": (0,)}):
        with pytest.raises(ValueError, match=r"samples|latency"):
            Latency(**wrong)


def test_evidence_reaches_the_verdict():
    """
    What the machine told is part of the verdict on quiet samples.
    """
    samples = tuple(int(value) for value in 5 * MS * np.random.default_rng(0).normal(1, 0.005, 400))

    assert Level.STABLE is Latency(samples).verdict.level
    assert Level.NOISY is Latency(samples, evidence=Evidence(stolen=0.1)).verdict.level
