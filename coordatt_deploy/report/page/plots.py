"""Plots as inline SVG, written by hand: no script, no font, no network.

Texts become part of a plot through ``Markup.format`` alone, which escapes them.

Every plot has a ``<title>`` and a ``<desc>`` that say in words what the curve shows. Colours are CSS classes of the
page, so that dark, light and paper each have their own. The view box is as wide as a phone; plots sit in a grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from markupsafe import Markup

WIDTH: Final = 360
HEIGHT: Final = 200
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 14, 28
BINS: Final = 60  # of a histogram


@dataclass(frozen=True, slots=True)
class DepthPoint:
    """One layer of one artifact.

    Attributes:
        layer: Its id.
        whole_db: Accumulated SQNR; infinite where equal, NaN where a value is not finite, None where it is not there.
        alone_db: The same of the layer on its own.
        passed: None where it is not judged.
    """

    layer: str
    whole_db: float | None
    alone_db: float | None
    passed: bool | None


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers that cover low…high."""
    span = (high - low) or abs(high) or 1.0
    raw = span / max(count, 1)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def frame(number: int, title: str, description: str, body: Sequence[Markup], height: int = HEIGHT) -> Markup:
    """Wrap *body* into a figure that a screen reader can tell of."""
    return Markup(
        '<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}t {name}d">'
        '<title id="{name}t">{title}</title><desc id="{name}d">{description}</desc>{body}</svg>'
    ).format(
        width=WIDTH,
        height=height,
        name=f"plot{number}",
        title=title,
        description=description,
        body=Markup("").join(body),
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _path(kind: str, shape: str) -> Markup:
    return Markup('<path class="{}" d="{}"/>').format(kind, shape)


def depth_plot(
    number: int, title: str, description: str, points: Sequence[DepthPoint], first: str | None, top_db: float
) -> Markup:
    """Draw SQNR in dB along the depth of the network.

    Args:
        number: Of the plot on its page.
        title: Of the artifact.
        description: What it shows, in words.
        points: One per layer, in execution order.
        first: The first layer beyond tolerance; marked.
        top_db: Upper end of the scale, shared by the plots of a page. Layers that are equal lie above it.
    """
    bottom = HEIGHT - BOTTOM
    finite = [v for p in points for v in (p.whole_db, p.alone_db) if v is not None and math.isfinite(v)]
    low = min(0.0, *finite, 0.0) if finite else 0.0

    def x(index: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (index + 0.5) / max(len(points), 1)

    def y(value: float) -> float:
        if math.isnan(value) or value == -math.inf:
            return bottom
        if value == math.inf:
            return TOP - 4
        return bottom - (bottom - TOP - 4) * (min(value, top_db) - low) / ((top_db - low) or 1.0)

    body = []
    for tick in ticks(low, top_db, 5):
        body += [_line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"), _text(LEFT - 4, y(tick) + 3, f"{tick:g}", "end")]
    body.append(_text(LEFT - 4, y(math.inf) + 3, "=", "end"))
    body += [_text(x(0), HEIGHT - 15, "1", "start"), _text(x(len(points) - 1), HEIGHT - 15, str(len(points)), "end")]
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "SQNR in dB by layer, in execution order", kind="axis"))
    alone = [(index, p.alone_db, p.passed) for index, p in enumerate(points) if p.alone_db is not None]
    dots = "".join(f"M{x(i):.1f} {y(v):.1f}h0" for i, v, ok in alone if ok is not False)
    wrong = "".join(f"M{x(i):.1f} {y(v):.1f}h0" for i, v, ok in alone if ok is False)
    path = [(x(i), None if p.whole_db is None else y(p.whole_db)) for i, p in enumerate(points)]
    body += [_path("dots", dots)] if dots else []
    body.append(_path("curve", _polyline(path)))
    body += [_path("dots bad", wrong)] if wrong else []
    ids = [point.layer for point in points]
    if first in ids:
        at = x(ids.index(first))
        body.append(_line(at, TOP - 8, at, bottom, "mark"))
        anchor = "end" if at > WIDTH * 0.55 else "start"
        body.append(_text(at + (-4 if anchor == "end" else 4), bottom - 5, _shortened(first), anchor, "flag"))
    return frame(number, title, description, body)


def _polyline(points: Sequence[tuple[float, float | None]]) -> str:
    path, pen_down = [], False
    for x, y in points:
        if y is not None:
            path.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = y is not None
    return "".join(path)


def _shortened(text: str, most: int = 34) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"


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
        body += [_line(x(tick), TOP, x(tick), floor + 6 + rows, "grid"), _text(x(tick), height - 22, f"{tick:g}")]
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
    body.append(_path("bars", shape))
    row = rows / len(samples_ms)
    dots = "".join(f"M{x(s):.1f} {floor + 6 + row * (i + 0.5):.1f}h0" for i, s in enumerate(samples_ms))
    body.append(_path("dots fine" if len(samples_ms) > 200 else "dots few", dots))
    body.append(_line(x(median_ms), TOP - 4, x(median_ms), floor + 6 + rows, "median"))
    body.append(_text(min(max(x(median_ms), 90), WIDTH - 90), 8, f"median {median_ms:.3g} ms", kind="flag plain"))
    body.append(_text(LEFT - 4, floor + 16, "first", "end"))
    body.append(_text(LEFT - 4, floor + 4 + rows, "last", "end"))
    body.append(_text(LEFT - 4, TOP + 8, "calls", "end"))
    unit = "ms per call, logarithmic" if axis.logarithmic else "ms per call"
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 6, unit, kind="axis"))
    return frame(number, title, description, body, height)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    return [float(f"{value:.3g}") for value in found if low * 0.97 <= value <= high * 1.03]


def size_bar(share: float) -> Markup:
    """Draw a share of the greatest as a bar; the number stands beside it in text."""
    wide = 100 * min(max(share, 0.0), 1.0)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8"/><rect class="fill" width="{:.1f}" height="8"/></svg>'
    ).format(wide)
