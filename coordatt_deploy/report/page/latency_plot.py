"""Latency as plots: all files on one scale, and every sample of one file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from markupsafe import Markup

from coordatt_deploy.report.page.plots import LEFT, RIGHT, TOP, WIDTH, box, frame, line, path, ticks, told, words

BINS: Final = 60  # of a histogram
ROW: Final = 30  # height of a file in the overview
EDGE: Final = 8  # of the overview on either side


@dataclass(frozen=True, slots=True)
class Timed:
    """The latency of one file.

    Attributes:
        label: Its name.
        median_ms: Half of the calls took less.
        ci95_ms: 95 % interval of the median; None where there are too few samples for one.
        spread_ms: p90: nine calls of ten took less.
        text: What stands at the right end.
    """

    label: str
    median_ms: float
    ci95_ms: tuple[float, float] | None
    spread_ms: float
    text: str


def reach(items: Sequence[Timed]) -> float:
    """Return the right end of the overview: the medians are what is compared, so a p90 far off is cut there."""
    most: float = max(max((item.median_ms, *(item.ci95_ms or ()))) for item in items)
    return min(max(most, *(item.spread_ms for item in items)), most * 1.3)


def overview_plot(number: int, title: str, description: str, items: Sequence[Timed]) -> Markup:
    """Draw the files below each other on one scale from zero: a bar to the median, its interval, and p90.

    Args:
        number: Of the plot on its page.
        title: What it is of.
        description: What it shows, in words.
        items: One for each file, from top to bottom.
    """
    most = reach(items)
    floor = TOP + ROW * len(items)

    def x(value: float) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * value / (most * 1.02)

    body = []
    for tick in ticks(0, most, 5):
        body += [line(x(tick), TOP - 2, x(tick), floor, "grid"), words(x(tick), floor + 12, f"{tick:g}")]
    for position, item in enumerate(items):
        top = TOP + ROW * position
        middle = top + 19
        shapes = [
            words(EDGE, top + 10, item.label, "start", "name"),
            words(WIDTH - EDGE, top + 10, item.text, "end", "value"),
            box("bar", EDGE, middle - 4, x(item.median_ms) - EDGE, 8),
            line(x(item.median_ms), middle, x(min(item.spread_ms, most)), middle, "whisker"),
        ]  # fmt: skip
        if item.ci95_ms is not None and all(map(math.isfinite, item.ci95_ms)):
            low, high = map(x, item.ci95_ms)
            shapes.append(box("band", low, middle - 6, max(high - low, 1.2), 12))
        interval = "" if item.ci95_ms is None else f", 95 % interval {item.ci95_ms[0]:.3g} to {item.ci95_ms[1]:.3g} ms"
        text = f"{item.label}: median {item.median_ms:.3g} ms{interval}, p90 {item.spread_ms:.3g} ms"
        body.append(told(text, *shapes))
    body.append(words(WIDTH / 2, floor + 26, "ms per call", kind="axis"))
    return frame(number, title, description, body, round(floor + 32))


@dataclass(frozen=True, slots=True)
class _TimeAxis:
    """Where a time lies between the left end of a plot and the right.

    Attributes:
        low: The fastest call, in ms.
        high: The slowest call, in ms.
        logarithmic: Whether equal ratios, not equal differences, are equally far apart.
        start: What ``scale`` gives for the left end.
        end: The same for the right end.
    """

    low: float
    high: float
    logarithmic: bool
    start: float
    end: float

    @classmethod
    def over(cls, samples_ms: Sequence[float]) -> Self:
        """Return an axis with a margin; logarithmic where the slowest call takes over ten times the fastest."""
        low, high = min(samples_ms), max(samples_ms)
        logarithmic = low > 0 and high / low > 10
        start, end = (math.log10(low), math.log10(high)) if logarithmic else (low, high)
        margin = (end - start) * 0.03 or abs(end) * 0.05 or 1.0
        return cls(low, high, logarithmic, start - margin, end + margin)

    def scale(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (self.scale(value) - self.start) / (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            return _log_ticks(self.low, self.high)
        return [tick for tick in ticks(self.low, self.high, 5) if self.start <= tick <= self.end]

    def histogram(self, samples_ms: Sequence[float]) -> list[int]:
        """Return how many calls fall into each of BINS equal parts of the axis."""
        counts = [0] * BINS
        for sample in samples_ms:
            share = (self.scale(sample) - self.start) / (self.end - self.start)
            counts[min(BINS - 1, int(share * BINS))] += 1
        return counts


def latency_plot(
    number: int,
    title: str,
    description: str,
    samples_ms: Sequence[float],
    median_ms: float,
    ci95_ms: tuple[float, float] | None,
) -> Markup:
    """Draw a histogram and, below it, every raw sample: time from left to right in ms, calls from top to bottom.

    The axis is logarithmic where the slowest call takes over ten times the fastest.
    """
    bars, rows, height = 56.0, 84.0, 200
    axis = _TimeAxis.over(samples_ms)
    x, floor = axis.x, TOP + bars
    body = []
    for tick in axis.ticks():
        body += [line(x(tick), TOP, x(tick), floor + 6 + rows, "grid"), words(x(tick), height - 22, f"{tick:g}")]
    if ci95_ms is not None and all(map(math.isfinite, ci95_ms)):
        left, right = x(max(ci95_ms[0], axis.low)), x(min(ci95_ms[1], axis.high))
        band = Markup('<rect class="band" x="{:.1f}" y="{}" width="{:.1f}" height="{:.1f}"/>')
        body.append(band.format(left, TOP, max(right - left, 0.8), bars + 6 + rows))
    counts, wide = axis.histogram(samples_ms), (WIDTH - LEFT - RIGHT) / BINS
    most = max(counts)
    shape = "".join(
        f"M{LEFT + wide * i:.1f} {floor:.1f}v{-bars * c / most:.1f}h{wide:.2f}v{bars * c / most:.1f}z"
        for i, c in enumerate(counts)
        if c
    )
    body.append(path("bars", shape))
    row = rows / len(samples_ms)
    dots = "".join(f"M{x(s):.1f} {floor + 6 + row * (i + 0.5):.1f}h0" for i, s in enumerate(samples_ms))
    body.append(path("dots fine" if len(samples_ms) > 200 else "dots few", dots))
    body.append(line(x(median_ms), TOP - 4, x(median_ms), floor + 6 + rows, "median"))
    body.append(words(min(max(x(median_ms), 90), WIDTH - 90), 8, f"median {median_ms:.3g} ms", kind="flag plain"))
    body.append(words(LEFT - 4, floor + 16, "first", "end"))
    body.append(words(LEFT - 4, floor + 4 + rows, "last", "end"))
    body.append(words(LEFT - 4, TOP + 8, "calls", "end"))
    unit = "ms per call, logarithmic" if axis.logarithmic else "ms per call"
    body.append(words((LEFT + WIDTH - RIGHT) / 2, height - 6, unit, kind="axis"))
    return frame(number, title, description, body, height)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    return [float(f"{value:.3g}") for value in found if low * 0.97 <= value <= high * 1.03]
