"""The clock: artifacts take turns in rounds, every sample is kept, and each statistic is derived from the samples.

A round gives each artifact one turn, in an order that is shuffled anew, so that drift and bursts of other load hit all
of them alike. A turn is one call that brings the caches back, which counts as warm-up, and then ``SAMPLES_PER_ROUND``
samples without anything between them: that is how an application calls a model, and how LiteRT's own benchmark does.
A small NumPy workload, the yardstick, takes turns with them: it tells how fast the machine itself was, and makes
latencies of two separate runs comparable (see ``compare.py``). The artifacts are opened several times over, best in
another order each time: of two copies of one TFLite file the one that was opened later ran 1.2 % faster, always.
"""

import dataclasses
import gc
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Self

import numpy as np

from coordatt_deploy import host
from coordatt_deploy.profile.latency import SAMPLES_PER_ROUND, Latency, Measurement, ProfileSettings
from coordatt_deploy.profile.noise import Evidence, evidence_between

if sys.platform != "win32":
    import resource

MOST_SAMPLES_PER_ROUND: Final = 1000
YARDSTICK_PER_ROUND: Final = 20

# The warm-up is steady when its last STEADY_CALLS calls bring the best time down by no more than STEADY_GAIN: other
# load only ever adds time, so the best time is the one figure that noise does not hide.
STEADY_CALLS: Final = 5
STEADY_GAIN: Final = 0.02
WARMUP_CAP: Final = 10  # times the number of warm-ups asked for

Call = Callable[[], object]
Progress = Callable[[float], None]
OpenCalls = Callable[[], AbstractContextManager[Mapping[str, Call]]]


@dataclass(frozen=True, slots=True)
class Clocks:
    """What tells the time.

    Attributes:
        wall_ns: A clock that never goes back.
        cpu_ns: CPU time of the calling thread.
        switches: How often threads left their cores so far: of their own will, to wait for something, and because the
            kernel gave the core to another process. None where that cannot be known.
    """

    wall_ns: Callable[[], int] = time.perf_counter_ns
    cpu_ns: Callable[[], int] = time.thread_time_ns
    switches: Callable[[], tuple[int, int]] | None = None

    @classmethod
    def of_machine(cls, threads: int) -> Self:
        """Return the clocks of this machine; with one thread only the switches of the calling thread count."""
        if sys.platform != "linux":  # macOS counts every switch as against the will, Windows none
            return cls()
        return cls(switches=partial(_switches, resource.RUSAGE_THREAD if threads == 1 else resource.RUSAGE_SELF))


def _switches(who: int) -> tuple[int, int]:
    usage = resource.getrusage(who)
    return usage.ru_nvcsw, usage.ru_nivcsw


def measure(
    calls: Mapping[str, Call],
    settings: ProfileSettings,
    *,
    threads: int = 1,
    clocks: Clocks | None = None,
    on_progress: Progress | None = None,
) -> Measurement:
    """Time *calls* that are open already, and so stay open all the time; see ``measure_openings``."""
    once = dataclasses.replace(settings, openings=1)
    return measure_openings(lambda: nullcontext(calls), once, threads=threads, clocks=clocks, on_progress=on_progress)


def measure_openings(
    open_calls: OpenCalls,
    settings: ProfileSettings,
    *,
    threads: int = 1,
    clocks: Clocks | None = None,
    on_progress: Progress | None = None,
    with_yardstick: bool = True,
) -> Measurement:
    """Time calls in interleaved rounds.

    Ctrl-C ends the measurement and keeps the samples of the turns that were complete; with none at all it goes on as
    KeyboardInterrupt.

    Args:
        open_calls: Opens all artifacts and gives, by name, what runs one inference of each.
        settings: How long, and in which order.
        threads: What the artifacts are opened with; kept beside the samples.
        clocks: What tells the time; the machine's own by default.
        on_progress: Told the share that is done, from 0 to 1, between two turns. Its time is in no sample; a progress
            bar with a thread of its own would disturb them.
        with_yardstick: Whether the yardstick takes turns, too; what is compared in one run does without.
    """
    report = on_progress or (lambda _share: None)
    order = random.Random(settings.seed)  # noqa: S311  (an order, not a secret)
    records: dict[str, _Record] = {}
    own = _Record(per_round=YARDSTICK_PER_ROUND)
    total = min(settings.openings, settings.rounds)
    before, interrupted = host.state(), False
    try:
        with pinned(settings.cpu_affinity), no_garbage_collection():
            for done in range(total):
                rounds = len(range(done, settings.rounds, total))
                with open_calls() as calls:
                    turns = []
                    if with_yardstick:
                        turns.append(_Turn(yardstick(), own, clocks or Clocks.of_machine(1), threads=1))
                    for name, call in calls.items():
                        record = records.setdefault(name, _Record())
                        turns.append(_Turn(call, record, clocks or Clocks.of_machine(threads), threads))
                    _run_opening(turns, rounds, settings, order, partial(_scaled, report, done, total))
                    del turns, calls, call  # or they stay in memory while the next ones are opened
    except KeyboardInterrupt:
        interrupted = True
        if not any(record.samples for record in records.values()):
            raise
    told = evidence_between(before, host.state(), threads)
    return Measurement(
        latencies={name: record.latency(threads, told) for name, record in records.items() if record.samples},
        yardstick=own.latency(1, told) if own.samples else None,
        interrupted=interrupted,
    )


@dataclass(slots=True)
class _Record:
    """What was measured of one artifact so far, over all openings."""

    samples: list[int] = field(default_factory=list)
    lost: list[int | None] = field(default_factory=list)
    warmups: list[int] = field(default_factory=list)
    per_round: int = 0
    openings: int = 0
    steady: bool = True

    def latency(self, threads: int, told: Evidence) -> Latency:
        return Latency(
            samples_ns=tuple(self.samples),
            warmups_ns=tuple(self.warmups),
            threads=threads,
            per_round=self.per_round,
            openings=self.openings,
            lost_ns=tuple(self.lost),
            evidence=dataclasses.replace(told, steady=self.steady),
        )


def lost_time(wall: int, cpu: int, *, waited: bool, preempted: bool) -> int | None:
    """Return what other processes took of a sample, in nanoseconds; None if they took something that nobody measured.

    A thread that does not wait is either at work or robbed of its core. One that waits (for worker threads, for an
    accelerator) cannot be told from a robbed one.

    Args:
        wall: Wall time of the sample.
        cpu: CPU time of the calling thread.
        waited: Whether the thread left its core of its own will, or there are others whose time nobody measured.
        preempted: Whether a thread had to leave its core.
    """
    if not preempted:
        return 0
    return None if waited else max(0, wall - cpu)


@dataclass(slots=True)
class _Turn:
    """One opened artifact and the record that its turns go to."""

    call: Call
    record: _Record
    clocks: Clocks
    threads: int

    def warm_up(self, settings: ProfileSettings) -> None:
        """Call until steady; the first opening also settles how many samples make a round."""
        times: list[int] = []
        cap = settings.warmups * WARMUP_CAP
        while not (steady := is_steady(times, settings.warmups)) and len(times) < cap:
            times.append(self._time())
        self.record.warmups += times
        self.record.steady &= steady
        if not self.record.per_round:
            needed = settings.min_seconds * 1e9 / settings.rounds / max(min(times), 1)
            self.record.per_round = min(max(SAMPLES_PER_ROUND, math.ceil(needed)), MOST_SAMPLES_PER_ROUND)

    def take(self) -> None:
        """Take the samples of one round; an interruption in the midst of it leaves no trace."""
        call, wall, cpu, count = self.call, self.clocks.wall_ns, self.clocks.cpu_ns, self.record.per_round
        switches = self.clocks.switches or _no_switches
        samples, used = [0] * count, [0] * count
        before, after = [(0, 0)] * count, [(0, 0)] * count
        first = self._time()
        for index in range(count):
            before[index] = switches()
            cpu_start = cpu()
            start = wall()
            call()
            samples[index] = wall() - start
            used[index] = cpu() - cpu_start
            after[index] = switches()
        self.record.warmups.append(first)
        self.record.samples += samples
        if self.clocks.switches:
            for sample, cpu_time, old, new in zip(samples, used, before, after, strict=True):
                waited = self.threads > 1 or new[0] > old[0]
                self.record.lost.append(lost_time(sample, cpu_time, waited=waited, preempted=new[1] > old[1]))

    def _time(self) -> int:
        start = self.clocks.wall_ns()
        self.call()
        return self.clocks.wall_ns() - start


def _run_opening(
    turns: list[_Turn], rounds: int, settings: ProfileSettings, order: random.Random, report: Progress
) -> None:
    for turn in turns:
        turn.warm_up(settings)
    for number in range(rounds):
        order.shuffle(turns)
        for index, turn in enumerate(turns):
            turn.take()
            turn.record.openings += number == 0
            report((number + (index + 1) / len(turns)) / rounds)


def _no_switches() -> tuple[int, int]:
    return 0, 0


def _scaled(report: Progress, done: int, total: int, share: float) -> None:
    report((done + share) / total)


def is_steady(times: list[int], fewest: int) -> bool:
    """Whether a warm-up has come to rest: at least *fewest* calls, and the last five made the best hardly better."""
    if len(times) < max(fewest, STEADY_CALLS + 1):
        return False
    return min(times[:-STEADY_CALLS]) <= min(times[-STEADY_CALLS:]) * (1 + STEADY_GAIN)


def yardstick() -> Call:
    """Return a workload of one to two milliseconds that never changes: it streams weights, and it calculates.

    Of thirty mixtures of seven small workloads this one felt other load most as a network does. It calls no BLAS, whose
    number of threads nobody here controls. Its place in memory is new each time.
    """
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((12, 1 << 18), np.float32)
    tile = rng.standard_normal((64, 64), np.float32)
    product = np.empty_like(tile)

    def run() -> None:
        weights.sum(axis=1)
        for _ in range(10):
            np.einsum("ij,jk->ik", tile, tile, out=product, optimize=False)

    return run


@contextmanager
def pinned(cpus: tuple[int, ...]) -> Iterator[None]:
    """Keep every thread of this process on the cores *cpus* for a while; empty for no change."""
    if not cpus:
        yield
        return
    # Runtimes start their threads when a model is opened, and Linux pins threads one by one.
    tasks = [int(path.name) for path in Path("/proc/self/task").iterdir()]
    before = {task: os.sched_getaffinity(task) for task in tasks}
    try:
        for task in tasks:
            os.sched_setaffinity(task, cpus)
        yield
    finally:
        for task, allowed in before.items():
            with suppress(ProcessLookupError):  # a thread that has ended meanwhile
                os.sched_setaffinity(task, allowed)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect now, and not in the block, where it would be in a sample."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
