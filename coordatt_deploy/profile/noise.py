"""How far a latency can be trusted: what its samples and the machine say of other load, throttling and drift.

A latency is noisy or unusable from certain limits on, and the verdict gives every reason in words.
"""

import enum
import os
from dataclasses import dataclass
from typing import Final

from numpy.typing import ArrayLike

from coordatt_deploy.host import HostState
from coordatt_deploy.profile.statistics import (
    FEWEST_SAMPLES,
    Samples,
    by_round,
    drift,
    interquartile_range,
    median,
    median_interval,
    modes,
    step,
)


class Level(enum.StrEnum):
    """How far a latency can be trusted."""

    STABLE = "stable"
    NOISY = "noisy"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a latency can be trusted, and why, in words."""

    level: Level
    reason: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the machine told beside the samples; None is "not known".

    Attributes:
        preempted: Share of the samples during which the kernel gave the core to somebody else.
        other_cores: How many cores the other processes kept busy on average.
        idle_cores: How many cores there were beyond the threads of the runtime.
        frequency: Frequency after / frequency before.
        throttled: Share of the time that the container's CPU quota held the process back.
        heat_events: Times that the CPU reported to have slowed down because of heat.
        stolen: Share of the time that the hypervisor gave the cores to other machines.
        steady: Whether the warm-up reached a steady state.
    """

    preempted: float | None = None
    other_cores: float | None = None
    idle_cores: float | None = None
    frequency: float | None = None
    throttled: float | None = None
    heat_events: int | None = None
    stolen: float | None = None
    steady: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on a latency is noisy, and from where on it is of no use; all relative to 1.

    Attributes:
        interval: Half the width of the median's interval over the median.
        spread: Interquartile range over median.
        drift: Change from the first third of the rounds to the last.
        preempted: Share of samples.
        stolen: Share of the time taken by other virtual machines, or by the container's quota.
    """

    interval: float
    spread: float
    drift: float
    preempted: float
    stolen: float


# Noisy: more than what two runs on a quiet machine differ by. Unusable: the error exceeds the ten per cent that a
# comparison shall find.
NOISY: Final = Limits(interval=0.02, spread=0.10, drift=0.05, preempted=0.10, stolen=0.02)
UNUSABLE: Final = Limits(interval=0.10, spread=0.50, drift=0.30, preempted=0.60, stolen=0.20)


def evidence_between(before: HostState, after: HostState, threads: int) -> Evidence:
    """Return what two states of the machine say of the time between them.

    Args:
        before: Of the machine, when the measurement began.
        after: When it ended.
        threads: Of the runtime; the cores beyond them may be busy with something else.
    """

    def gained(name: str) -> float | None:
        first, last = getattr(before, name), getattr(after, name)
        return None if first is None or last is None else last - first

    elapsed, busy, own = gained("uptime_ms"), gained("busy_ms"), gained("own_ms")
    stolen, throttled, events = gained("stolen_ms"), gained("throttled_ms"), gained("throttle_events")
    cores = os.cpu_count() or 1
    frequency = None
    if before.frequency_mhz and after.frequency_mhz:
        frequency = sum(after.frequency_mhz) / sum(before.frequency_mhz)
    return Evidence(
        other_cores=(busy - own) / elapsed if busy is not None and own is not None and elapsed else None,
        idle_cores=max(0, cores - threads),
        frequency=frequency,
        throttled=throttled / elapsed if throttled is not None and elapsed else None,
        heat_events=None if events is None else int(events),
        stolen=stolen / elapsed / cores if stolen is not None and elapsed else None,
    )


def judge(samples: ArrayLike, per_round: int | None = None, evidence: Evidence | None = None) -> Verdict:
    """Return whether a latency is stable, noisy or unusable, with every reason in words, the gravest level first."""
    rounds = by_round(samples, per_round)
    centre = median(rounds)
    half_width, spread = 0.0, interquartile_range(rounds) / centre
    if rounds.size >= FEWEST_SAMPLES:  # fewer are unusable for that alone
        low, high = median_interval(rounds)
        half_width = (high - low) / 2 / centre
    grounds = _grounds(rounds, half_width, spread, evidence or Evidence())
    for level in (Level.UNUSABLE, Level.NOISY):
        if any(ground is level for ground, _ in grounds):
            order = sorted(grounds, key=lambda item: item[0] is not level)
            return Verdict(level, "; ".join(text for _, text in order))
    return Verdict(Level.STABLE, f"median known to ±{half_width:.1%}, interquartile range {spread:.1%} of it")


def _grounds(rounds: Samples, half_width: float, spread: float, evidence: Evidence) -> list[tuple[Level, str]]:
    grounds = []

    def weigh(field: str, value: float | None, text: str) -> None:
        if value is not None and value > getattr(NOISY, field):
            level = Level.UNUSABLE if value > getattr(UNUSABLE, field) else Level.NOISY
            grounds.append((level, text))

    if rounds.size < FEWEST_SAMPLES:
        grounds.append((Level.UNUSABLE, f"only {rounds.size} samples, {FEWEST_SAMPLES} are the least"))
    weigh("interval", half_width, f"median known only to ±{half_width:.1%}")
    weigh("spread", spread, f"spread: the interquartile range is {spread:.0%} of the median")
    change = drift(rounds)
    weigh("drift", abs(change), _drift_text(change, step(rounds), evidence))
    found = modes(rounds)
    if len(found) > 1 and found[-1] / found[0] > 1 + NOISY.spread:
        text = " and ".join(f"{mode / 1e6:.3g} ms" for mode in found)
        grounds.append((Level.NOISY, f"{len(found)} modes: {text}"))
    if evidence.preempted is not None:
        weigh("preempted", evidence.preempted, f"other load: {evidence.preempted:.0%} of the samples were preempted")
    if evidence.other_cores is not None and evidence.idle_cores is not None:
        excess = evidence.other_cores - evidence.idle_cores
        if excess > NOISY.preempted:
            grounds.append((Level.NOISY, f"other load: other processes kept {evidence.other_cores:.1f} cores busy"))
    weigh("stolen", evidence.stolen, f"other load: the hypervisor took {evidence.stolen or 0:.0%} of the time")
    weigh(
        "stolen",
        evidence.throttled,
        f"throttling: the CPU quota held it back {evidence.throttled or 0:.0%} of the time",
    )
    if evidence.heat_events:
        grounds.append((Level.NOISY, f"throttling: the CPU slowed down {evidence.heat_events} times because of heat"))
    if not evidence.steady:
        grounds.append((Level.NOISY, "the warm-up did not become steady"))
    return grounds


def _drift_text(change: float, start: int | None, evidence: Evidence) -> str:
    fell = evidence.frequency is not None and evidence.frequency < 1 - NOISY.drift
    text = f"the last third is {abs(change):.0%} {'slower' if change > 0 else 'faster'} than the first"
    if change > 0 and fell:
        return f"throttling: {text} and the frequency fell by {1 - (evidence.frequency or 1):.0%}"
    if change > 0 and start is not None:
        return f"throttling or new load: {text}, in one step at round {start + 1}"
    return f"drift: {text}"
