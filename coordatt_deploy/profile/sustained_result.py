"""What ``profile --sustained`` finds: latency over time, and whether it holds."""

import enum
from dataclasses import dataclass

from coordatt_deploy.formats import Format, Precision, TargetCpu


class Course(enum.StrEnum):
    """How the latency went on."""

    STEADY = "steady"
    SLOWS_DOWN = "slows down"
    UNDECIDED = "undecided"


class Cause(enum.StrEnum):
    """Why it slows down.

    THROTTLING takes a frequency that fell, a CPU that reports it, or a temperature that rose in step. OTHER_LOAD is of
    other processes, of other virtual machines, or of a container's quota. UNCLEAR: none of these can be read here, or
    what is read does not settle it.
    """

    THROTTLING = "throttling"
    OTHER_LOAD = "other load"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Window:
    """A few seconds of one file that runs without a pause. What the machine does not tell is None.

    Attributes:
        start_s: When it began, in seconds since the file's first window did.
        calls: How many inferences.
        median_ms: Of their wall times, as for the next three.
        p10_ms: 10th percentile.
        p90_ms: 90th percentile.
        slowest_ms: The slowest call.
        preempted: Share of the calls during which the kernel gave the core to somebody else.
        other_cores: How many cores other processes kept busy on average.
        stolen: Share of the time that the hypervisor gave to other machines.
        held_back: Share of the time that the container's CPU quota held the process back.
        frequency_mhz: Of the cores that it ran on, at the end of the window.
        temperature_c: Of the hottest CPU sensor, at the end of the window.
        cores: That its threads were seen on.
    """

    start_s: float
    calls: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    slowest_ms: float
    preempted: float | None = None
    other_cores: float | None = None
    stolen: float | None = None
    held_back: float | None = None
    frequency_mhz: float | None = None
    temperature_c: float | None = None
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SustainedVerdict:
    """How the latency went on, with its evidence.

    Attributes:
        course: ``steady``, ``slows down`` or ``undecided``.
        reason: In words.
        ratio: Steady state over the first minutes: medians of the windows of the last level over those of the first;
            where there is one level, of its last third over its first. None of fewer windows than a verdict takes.
        ci95: 95 % interval of the ratio.
        since_s: When it began to be slower for good; None where it did not.
        changes_s: When the level changed, be it for a while.
        cause: Of a slowdown.
    """

    course: Course
    reason: str
    ratio: float | None = None
    ci95: tuple[float, float] | None = None
    since_s: float | None = None
    changes_s: tuple[float, ...] = ()
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class SustainedLatency:
    """One file that ran without a pause.

    Attributes:
        path: In the bundle.
        format: Of the file.
        precision: That it computes in.
        target_cpu: The CPU family of its form; None where the form is the same for all.
        runtime: Name and version of what ran it.
        threads: Worker threads of the runtime.
        asked_s: How long it was to run.
        lasted_s: How long it ran.
        calls: How many inferences that were.
        first_ms: Latency in the first minutes: the median of the windows of the first level, or of the first third.
        steady_ms: The same of the last level, or of the last third. Both None of fewer windows than a verdict takes.
        verdict: Whether it holds.
        windows: In order, at most ``MOST_WINDOWS``; single calls are not kept.
        warm: Whether another file ran right before it, without a pause in which the CPU could cool down.
        cooled_s: The pause before it.
        heat_events: Times that the CPU reported to have slowed down because of heat; None where it tells nothing.
        unreadable: Which of ``frequency`` and ``temperature`` cannot be read here.
    """

    path: str
    format: Format
    precision: Precision
    target_cpu: TargetCpu | None
    runtime: str
    threads: int
    asked_s: float
    lasted_s: float
    calls: int
    first_ms: float | None
    steady_ms: float | None
    verdict: SustainedVerdict
    windows: tuple[Window, ...]
    warm: bool = False
    cooled_s: float = 0.0
    heat_events: int | None = None
    unreadable: tuple[str, ...] = ()
