"""Whether a latency holds under sustained load: ``steady``, ``slows down`` or ``undecided``, and why.

A file slows down where its level changed (``change_points``), every later level is slower than the first, and that
lasted for a tenth of the run at least. What comes and goes is a burst of other load, whatever its size. Latency alone
does not tell a throttled CPU from a neighbour that stays: only where frequency, temperature or the CPU's own reports
say so it is called throttling.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from coordatt_deploy.profile.change_points import SMALLEST, Change, Series, change, change_points
from coordatt_deploy.profile.sustained_result import Cause, Course, SustainedVerdict, Window

# Fewer windows than this give no verdict: five levels as short as a level can be.
FEWEST_WINDOWS: Final = 40

# A slower level counts if it lasts to the end for so great a share of the run.
LASTING: Final = 0.1

# "steady" says that the end is within this of the beginning, with 95 % confidence.
WITHIN: Final = 0.05

LONGER: Final = 2  # times as long a run as this one is the least that is advised
SHORTER: Final = 4  # times, where the beginning is what is known too little
MUCH_LONGER: Final = 20  # times is what nobody waits for

# From where on other load is more than before: shares of the time or of the calls, and cores.
MORE: Final = {"stolen": 0.01, "held_back": 0.01, "preempted": 0.05}
MORE_CORES: Final = 0.1

HEAD: Final = 5  # windows: a device that throttles after seconds does so in them

WARMER_C: Final = 5.0  # sensors have steps of one to three degrees
IN_STEP: Final = 0.5  # rank correlation of temperature and latency


@dataclass(frozen=True, slots=True)
class Part:
    """Some windows in a row: from the one at *start* to the last one before *end*."""

    start: int
    end: int

    def of(self, windows: Sequence[Window]) -> Sequence[Window]:
        """Return the windows."""
        return windows[self.start : self.end]


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, and which windows are the beginning and the steady state; None of too few windows."""

    verdict: SustainedVerdict
    first: Part | None = None
    last: Part | None = None


def judge(windows: Sequence[Window], *, idle_cores: int = 0, heat_events: int | None = None) -> Judged:
    """Return whether the latency holds.

    Args:
        windows: In order.
        idle_cores: How many cores there are beyond the threads of the runtime.
        heat_events: Times that the CPU reported to have slowed down because of heat, in the run.
    """
    count = len(windows)
    if count < FEWEST_WINDOWS:
        return Judged(SustainedVerdict(Course.UNDECIDED, _too_short(windows)))
    series = np.array([item.median_ms for item in windows])
    points = change_points(series)
    first = Part(0, points[0] if points else count // 3)
    since = _slower_since(series, points)
    last = _steady_state(points, since, count)
    found = change(series[first.start : first.end], series[last.start : last.end])
    if since is not None and found.low > 1 and found.ratio >= 1 + SMALLEST:
        cause, words = _cause(windows, Part(0, since), last, found.ratio, idle_cores, heat_events)
        begun = windows[since].start_s
        text = (
            f"{found.ratio - 1:.1%} slower ({found.low - 1:.1%} … {found.high - 1:.1%}) from {clock(begun)} on; {words}"
        )
        course, reason = Course.SLOWS_DOWN, text
    else:
        cause, begun = None, None
        course, reason = _not_slower(series, points, found, windows, lasts=since is not None)
        if course is Course.STEADY and (text := _faster_at_first(series, windows)):
            course, reason = Course.UNDECIDED, text
    changes = tuple(windows[at].start_s for at in points)
    verdict = SustainedVerdict(course, reason, found.ratio, (found.low, found.high), begun, changes, cause)
    return Judged(verdict, first, last)


def _too_short(windows: Sequence[Window]) -> str:
    text = f"too short: {len(windows)} windows of time, {FEWEST_WINDOWS} are the least"
    if not windows:
        return text
    return f"{text}; run for {clock(_lasted(windows) * FEWEST_WINDOWS / len(windows) * 1.2)}"


def _slower_since(series: Series, points: Sequence[int]) -> int | None:
    """From which window on every level is slower than the first; None where that is none, or did not last."""
    since = None
    for start, end in reversed(list(pairwise((*points, len(series))))):
        if np.median(series[start:end]) < np.median(series[: points[0]]) * (1 + SMALLEST):
            break
        since = start
    return None if since is None or len(series) - since < LASTING * len(series) else since


def _steady_state(points: Sequence[int], since: int | None, count: int) -> Part:
    """The last level that lasts; without any change the last third."""
    if not points:
        return Part(count - count // 3, count)
    lasting = [at for at in points if count - at >= LASTING * count and (since is None or at >= since)]
    return Part(lasting[-1] if lasting else points[-1], count)


def _not_slower(
    series: Series, points: Sequence[int], found: Change, windows: Sequence[Window], *, lasts: bool
) -> tuple[Course, str]:
    """What there is to say where a slowdown is not certain; *lasts* where there seems to be one."""
    ends = f"{found.low - 1:+.1%} … {found.high - 1:+.1%}"
    longer = f"run for {clock(_lasted(windows) * LONGER)}"
    known = found.low >= 1 - WITHIN and found.high <= 1 + WITHIN
    if not points:
        if known:
            return Course.STEADY, f"no change of level that lasts; the last third against the first: {ends}"
        wide = max(found.high - 1, 1 - found.low) / WITHIN
        longer = f"run for {clock(_lasted(windows) * max(LONGER, wide**2))}"
        if wide**2 > MUCH_LONGER:
            longer = "time alone decides nothing here: take other load off the machine"
        return Course.UNDECIDED, f"noisy: the last third against the first is known only as {ends}; {longer}"
    level = float(np.median(series[points[-1] :]) / np.median(series[: points[0]]))
    begun = clock(windows[points[-1]].start_s)
    if lasts:
        text = f"slower from {clock(windows[points[0]].start_s)} on, but the beginning is known too little: {ends}"
        early = points[0] < LASTING * len(series)
        return Course.UNDECIDED, f"{text}; {_shorter(windows) if early else longer}"
    if level >= 1 + SMALLEST:
        return (
            Course.UNDECIDED,
            f"{level - 1:.1%} slower from {begun} on, which is too late to say that it stays; {longer}",
        )
    if level <= 1 / (1 + SMALLEST):
        text = f"{1 / level - 1:.1%} slower at the beginning than from {begun} on: other load, or no cool beginning"
        return Course.UNDECIDED, f"{text}; wait with --cool-down, and {longer}"
    if known:
        return Course.STEADY, f"another level for a while, and in the end what it was at the beginning: {ends}"
    return Course.UNDECIDED, f"noisy: its level changes to and fro, the end against the beginning is {ends}; {longer}"


def _faster_at_first(series: Series, windows: Sequence[Window]) -> str:
    """What to say where the first few windows, too few for a level, were faster than all that came after."""
    ratio = float(np.median(series[HEAD:]) / np.median(series[:HEAD]))
    if ratio <= 1 + WITHIN:
        return ""
    text = f"steady but for its first {clock(windows[HEAD].start_s)}, which were {1 - 1 / ratio:.1%} faster"
    return f"{text}: too few windows to tell; {_shorter(windows)}"


def _shorter(windows: Sequence[Window]) -> str:
    """The advice to look at the beginning more closely: windows are as many in a shorter run."""
    return f"run for {clock(_lasted(windows) / SHORTER)} to see more of the beginning"


def _cause(
    windows: Sequence[Window], before: Part, after: Part, ratio: float, idle_cores: int, heat_events: int | None
) -> tuple[Cause, str]:
    """What the machine told of a slowdown by *ratio*."""
    cool, hot = before.of(windows), after.of(windows)
    load = "; ".join(_more_load(cool, hot, idle_cores))
    told = "; ".join(filter(None, (_frequency(cool, hot), _temperature(cool, hot))))
    heat = _is_heat(windows, before, after, ratio, heat_events)
    events = f"the CPU reported to have slowed down because of heat {heat_events} times" if heat_events else ""
    facts = "; ".join(filter(None, (events, told, load, _moved(cool, hot))))
    if heat and load:
        return Cause.UNCLEAR, f"throttling or other load: {facts}"
    if heat:
        return Cause.THROTTLING, f"throttling: {facts}"
    if load:
        return Cause.OTHER_LOAD, f"other load: {facts}"
    if not facts:
        return Cause.UNCLEAR, "cause not readable: this machine tells neither frequency nor temperature"
    return Cause.UNCLEAR, f"cause unclear: {facts}"


def _is_heat(windows: Sequence[Window], before: Part, after: Part, ratio: float, heat_events: int | None) -> bool:
    """Whether frequency or temperature accounts for a slowdown by *ratio*."""
    if heat_events:
        return True
    first, last = _mean(before.of(windows), "frequency_mhz"), _mean(after.of(windows), "frequency_mhz")
    if first and last:
        # half of the slowdown: latency does not follow the core's frequency where it waits for memory
        return first / last - 1 >= (ratio - 1) / 2
    cool, hot = _mean(before.of(windows), "temperature_c"), _mean(after.of(windows), "temperature_c")
    if cool is None or hot is None or hot - cool < WARMER_C:
        return False
    known = [(item.median_ms, item.temperature_c) for item in windows if item.temperature_c is not None]
    ranks = np.argsort(np.argsort(np.array(known), axis=0, kind="stable"), axis=0)
    return float(np.corrcoef(ranks.T)[0, 1]) >= IN_STEP


def _more_load(before: Sequence[Window], after: Sequence[Window], idle_cores: int) -> Iterator[str]:
    """Yield what took more time than before."""
    texts = {
        "stolen": "the hypervisor took {:.0%} of the time, {:.0%} before",
        "held_back": "the container's CPU quota held it back {:.0%} of the time, {:.0%} before",
        "preempted": "{:.0%} of the calls were preempted, {:.0%} before",
    }
    first, last = _mean(before, "other_cores"), _mean(after, "other_cores")
    if first is not None and last is not None and max(last - idle_cores, 0) - max(first - idle_cores, 0) > MORE_CORES:
        yield f"other processes kept {last:.1f} cores busy, {first:.1f} before"
    for name, limit in MORE.items():
        first, last = _mean(before, name), _mean(after, name)
        if first is not None and last is not None and last - first > limit:
            yield texts[name].format(last, first)


def _frequency(before: Sequence[Window], after: Sequence[Window]) -> str:
    first, last = _mean(before, "frequency_mhz"), _mean(after, "frequency_mhz")
    if not first or not last:
        return ""
    return f"frequency {first:.0f} → {last:.0f} MHz ({last / first - 1:+.0%})"


def _temperature(before: Sequence[Window], after: Sequence[Window]) -> str:
    first, last = _mean(before, "temperature_c"), _mean(after, "temperature_c")
    return "" if first is None or last is None else f"temperature {first:.0f} → {last:.0f} °C"


def _moved(before: Sequence[Window], after: Sequence[Window]) -> str:
    """Whether it ran on other cores than before."""
    first = {core for item in before for core in item.cores}
    last = {core for item in after for core in item.cores}
    if not first or not last or first & last:
        return ""
    return f"it moved from core {_listed(first)} to {_listed(last)}"


def _listed(cores: set[int]) -> str:
    return ",".join(map(str, sorted(cores)))


def _mean(windows: Sequence[Window], name: str) -> float | None:
    known = [value for item in windows if (value := getattr(item, name)) is not None]
    return float(np.mean(known)) if known else None


def _lasted(windows: Sequence[Window]) -> float:
    """About how long the run lasted, in seconds."""
    return windows[-1].start_s * len(windows) / max(len(windows) - 1, 1)


def clock(seconds: float) -> str:
    """``45 s``, ``2:10 min``, ``1:05 h``: so much time, or so long after the beginning."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"
