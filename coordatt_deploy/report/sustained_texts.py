"""How latency over time is put in words: on the terminal, in Markdown and on the page alike."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median
from typing import Final

from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.sustained_result import Course, SustainedLatency
from coordatt_deploy.profile.sustained_verdict import clock

BARS: Final = "▁▂▃▄▅▆▇█"

# A curve fills its height from so great a change on; less looks as small as it is.
FULL_HEIGHT: Final = 0.10


def verdict(item: SustainedLatency) -> str:
    """``slows down: by 12.1% (10.9% … 13.4%) from 2:10 min on; throttling: 2400 → 2100 MHz (-12%)``."""
    return f"{item.verdict.course}: {item.verdict.reason}"


def change(item: SustainedLatency) -> str:
    """``+12.1%``: the steady state against the beginning; a dash where neither is known."""
    return "–" if item.verdict.ratio is None else f"{item.verdict.ratio - 1:+.1%}"


def interval(item: SustainedLatency) -> str:
    """``+10.9% … +13.4%``."""
    ends = item.verdict.ci95
    return "–" if ends is None else f"{ends[0] - 1:+.1%} … {ends[1] - 1:+.1%}"


def since(item: SustainedLatency) -> str:
    """``2:10 min``: when it began to be slower for good; empty where it did not."""
    return "" if item.verdict.since_s is None else clock(item.verdict.since_s)


def milliseconds(value: float | None) -> str:
    """``0.412``."""
    return "–" if value is None else f"{value:.3f}"


def frequency(item: SustainedLatency) -> str:
    """``2400 → 2100``: the first and the last window that tells, in MHz; empty where none does."""
    return _ends([window.frequency_mhz for window in item.windows])


def temperature(item: SustainedLatency) -> str:
    """``45 → 82``: the same in degrees Celsius."""
    return _ends([window.temperature_c for window in item.windows])


def _ends(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{known[0]:.0f} → {known[-1]:.0f}" if known else ""


def cores(item: SustainedLatency) -> str:
    """``0,1``: the cores that its threads were seen on; empty where that is not known."""
    return ",".join(map(str, sorted({core for window in item.windows for core in window.cores})))


def curve(item: SustainedLatency, width: int) -> str:
    """Return the medians of the windows over time as at most *width* bars; they begin at the fastest."""
    values = [window.median_ms for window in item.windows]
    count = min(width, len(values))
    if count < 1:
        return ""
    edges = [len(values) * position // count for position in range(count + 1)]
    levels = [median(values[start:end]) for start, end in pairwise(edges)]
    low = min(levels)
    reach = max(max(levels) - low, FULL_HEIGHT * low)
    return "".join(BARS[min(int((level - low) / reach * len(BARS)), len(BARS) - 1)] for level in levels)


def span(item: SustainedLatency) -> str:
    """``0.402 … 0.455 ms in 10:00 min``: what the curve goes through."""
    values = [window.median_ms for window in item.windows]
    return f"{min(values):.3f} … {max(values):.3f} ms in {clock(item.lasted_s)}"


def remarks(items: Sequence[SustainedLatency]) -> Iterator[str]:
    """Yield what has to be known of the figures, each once."""
    unreadable = sorted({name for item in items for name in item.unreadable})
    if unreadable:
        tell = "are" if len(unreadable) > 1 else "is"
        yield f"{' and '.join(unreadable)} {tell} not readable on this machine, and so not among the causes looked for"
    warm = [item for item in items if item.warm]
    if warm:
        files = counted(len(warm), "file")
        yield f"{files} started warm, right after another; --cool-down 2m lets the CPU cool down before each"
    if any(item.verdict.course is Course.SLOWS_DOWN for item in items):
        yield "other load that comes and stays slows a file down as heat does: what the machine tells beside it decides"
    short = [item for item in items if item.lasted_s < 0.9 * item.asked_s]
    for item in short:
        yield f"{item.path}: ran for {clock(item.lasted_s)} of {clock(item.asked_s)}"
