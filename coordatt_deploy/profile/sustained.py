"""One file that runs without a pause for minutes, and what the machine told meanwhile.

The calls of a few seconds are a *window*: count, quantiles, and one look at the machine. Single calls are not kept, so
an hour takes no more memory than a minute. Between two windows lies the look alone, a few milliseconds.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordatt_deploy.errors import UsageError
from coordatt_deploy.host import HostState
from coordatt_deploy.profile.machine_watch import Look, look
from coordatt_deploy.profile.noise import evidence_between
from coordatt_deploy.profile.rounds import Call, Clocks, Progress, is_steady, no_garbage_collection
from coordatt_deploy.profile.sustained_result import Window

MOST_WINDOWS: Final = 240  # enough for a level of a thirtieth of the run, and small in a document

SHORTEST_S: Final = 0.25  # of a window: a look takes milliseconds
FEWEST_CALLS: Final = 3  # in a window; fewer have no median that one slow call leaves alone

SHORTEST_RUN_S: Final = 1.0
LONGEST_RUN_S: Final = 86_400.0

# A cool-down ends early once the temperature was back for so long: a die cools in seconds, what it heats does not.
BACK_C: Final = 2.0
BACK_S: Final = 15.0
POLL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class SustainedSettings:
    """How long files run without a pause.

    Attributes:
        seconds: Each file.
        cool_down_s: The longest pause before each; 0 for none.
    """

    seconds: float
    cool_down_s: float = 0.0

    def __post_init__(self) -> None:
        if not SHORTEST_RUN_S <= self.seconds <= LONGEST_RUN_S:
            raise UsageError(f"sustained is {self.seconds:g} s; it lies between 1 s and a day, such as 10m")
        if not 0 <= self.cool_down_s <= LONGEST_RUN_S:
            raise UsageError(f"cool-down is {self.cool_down_s:g} s; it lies between 0 and a day, such as 2m")


@dataclass(frozen=True, slots=True)
class Seen:
    """What ``run_for`` saw.

    Attributes:
        windows: In order.
        before: The machine before the first one.
        after: The machine after the last one.
        lasted_s: From the beginning of the first window to the end of the last one.
        interrupted: Whether Ctrl-C ended it early.
    """

    windows: tuple[Window, ...]
    before: Look
    after: Look
    lasted_s: float
    interrupted: bool = False


def run_for(
    call: Call,
    seconds: float,
    *,
    threads: int,
    warmups: int = 5,
    clocks: Clocks | None = None,
    watch: Callable[[], Look] = look,
    on_progress: Progress | None = None,
) -> Seen:
    """Call without a pause for some time.

    Ctrl-C ends it and keeps the windows that were complete; with none at all it goes on as KeyboardInterrupt.

    Args:
        call: Runs one inference.
        seconds: How long.
        threads: Of the runtime.
        warmups: Least number of calls before the first window; ten times as many until steady.
        clocks: What tells the time; the machine's own by default.
        watch: Looks at the machine.
        on_progress: Told the share that is done, from 0 to 1, between two windows.
    """
    clock = clocks or Clocks.of_machine(threads)
    report = on_progress or (lambda _share: None)
    length_ns = max(seconds / MOST_WINDOWS, SHORTEST_S) * 1e9
    windows: list[Window] = []
    interrupted = False
    with no_garbage_collection():
        _warm_up(call, warmups, clock)
        first = last = watch()
        begun, lasted_s = clock.wall_ns(), 0.0
        try:
            # the last window is a whole one as well
            while (passed := clock.wall_ns() - begun) + length_ns / 2 < seconds * 1e9 or not windows:
                calls, preempted = _calls(call, length_ns, clock)
                now = watch()
                windows.append(_window(passed, calls, preempted, last, now, threads))
                last = now
                lasted_s = (clock.wall_ns() - begun) / 1e9
                report(min(lasted_s / seconds, 1.0))
                gc.collect(0)  # what few cycles a window leaves; some milliseconds would be too much
        except KeyboardInterrupt:
            if not windows:
                raise
            interrupted = True
    return Seen(tuple(windows), first, last, lasted_s, interrupted)


def _warm_up(call: Call, fewest: int, clock: Clocks) -> None:
    times: list[int] = []
    while not is_steady(times, fewest) and len(times) < 10 * fewest:
        start = clock.wall_ns()
        call()
        times.append(clock.wall_ns() - start)


def _calls(call: Call, length_ns: float, clock: Clocks) -> tuple[list[int], int | None]:
    """Wall times of the calls of one window, and how many of them were preempted."""
    wall, switches = clock.wall_ns, clock.switches
    times: list[int] = []
    preempted = 0
    begun = wall()
    while True:
        before = switches() if switches else (0, 0)
        start = wall()
        call()
        end = wall()
        times.append(end - start)
        if switches:
            preempted += switches()[1] > before[1]
        if end - begun >= length_ns and len(times) >= FEWEST_CALLS:
            return times, preempted if switches else None


def _window(
    start_ns: float, calls: list[int], preempted: int | None, before: Look, after: Look, threads: int
) -> Window:
    p10, median, p90, slowest = (float(value) / 1e6 for value in np.quantile(calls, (0.1, 0.5, 0.9, 1.0)))
    told = evidence_between(before.state, after.state, threads)
    cores = after.cores_since(before)
    return Window(
        start_s=start_ns / 1e9,
        calls=len(calls),
        median_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        slowest_ms=slowest,
        preempted=None if preempted is None else preempted / len(calls),
        other_cores=told.other_cores,
        stolen=told.stolen,
        held_back=told.throttled,
        frequency_mhz=after.frequency_of(cores),
        temperature_c=after.state.temperature_c,
        cores=cores,
    )


def heat_events(before: HostState, after: HostState) -> int | None:
    """Return how often the CPU reported to have slowed down because of heat between two states; None if it does not."""
    if before.throttle_events is None or after.throttle_events is None:
        return None
    return after.throttle_events - before.throttle_events


def cool_down(
    longest_s: float,
    cool_c: float | None,
    *,
    temperature: Callable[[], float | None],
    sleep: Callable[[float], None] = time.sleep,
    on_progress: Progress | None = None,
) -> float:
    """Wait, and return for how many seconds.

    Args:
        longest_s: No longer than this.
        cool_c: The temperature to come back to, where one is known: it is waited no longer than until that was reached
            for ``BACK_S``.
        temperature: Reads the sensor.
        sleep: Waits so many seconds.
        on_progress: Told the share that is done, from 0 to 1.
    """
    report = on_progress or (lambda _share: None)
    waited = back = 0.0
    while waited < longest_s and back < BACK_S:
        step = min(POLL_S, longest_s - waited)
        sleep(step)
        waited += step
        now = temperature() if cool_c is not None else None
        is_back = cool_c is not None and now is not None and now <= cool_c + BACK_C
        back = back + step if is_back else 0.0
        report(min(waited / longest_s, 1.0))
    return waited
