"""Agreement along the depth of the network, as a plot: how near each layer is, and how much is left of what is allowed.

The upper panel is scaled to the file's own layers. The lower one has the share of the allowance that each layer takes
up, on a logarithmic scale; above its line a layer is beyond tolerance.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final

from markupsafe import Markup

from coordatt_deploy.report.page.plots import (
    LEFT,
    RIGHT,
    WIDTH,
    box,
    frame,
    line,
    path,
    quantile,
    shortened,
    ticks,
    told,
    words,
)

TOP: Final = 24
PANEL: Final = 132  # height of the upper panel
MARGIN_PANEL: Final = 62  # height of the lower one
BETWEEN: Final = 22
FOOT: Final = 30
MOST_STAGES: Final = 40
MOST_POWERS: Final = 4.0  # of ten, beyond what is allowed; a layer that is more wrong lies at the edge
SPARSE: Final = 80  # layers of a plot whose dots are larger
LETTER: Final = 5.2  # width of a digit of a tick
SEPARATOR: Final = re.compile(r"[.:]")


@dataclass(frozen=True, slots=True)
class DepthPoint:
    """One layer of one artifact.

    Attributes:
        layer: Its id.
        whole_db: Accumulated SQNR; infinite where equal, NaN where a value is not finite, None where it is not there.
        alone_db: The same of the layer on its own.
        passed: None where it is not judged.
        whole_share: Error over allowance in the whole artifact; above 1 is beyond tolerance. None where not known.
        alone_share: The same of the layer on its own.
        through: The layer that it is seen through, whose values it then has; None where it is seen itself.
    """

    layer: str
    whole_db: float | None
    alone_db: float | None
    passed: bool | None
    whole_share: float | None = None
    alone_share: float | None = None
    through: str | None = None


def stages(layers: Sequence[str]) -> list[tuple[str, int]]:
    """Return the stages of a network, each with the index of its first layer: ``features.3`` of ``features.3.conv.0``.

    A stage is what begins alike, by as few parts of the name as leave no stage with more than a third of the layers.
    """
    parts: list[list[str]] = []
    for layer in layers:
        # what the network itself computes between its modules belongs to the stage before it
        own = layer.startswith(":") and parts
        parts.append(parts[-1] if own else SEPARATOR.split(layer))
    found: list[tuple[str, int]] = []
    for depth in range(1, 5):
        found, at = [], 0
        for name, group in groupby(parts, key=lambda names: ".".join(names[:depth])):
            found.append((name, at))
            at += len(list(group))
        starts = [start for _, start in found] + [len(layers)]
        if max(end - start for start, end in pairwise(starts)) <= len(layers) / 3:
            break
    return found if len(found) <= MOST_STAGES else []


def depth_plot(number: int, title: str, description: str, points: Sequence[DepthPoint], first: str | None) -> Markup:
    """Draw SQNR in dB, and the share of the allowance that is taken up, along the depth of the network.

    Args:
        number: Of the plot on its page.
        title: Of the artifact.
        description: What it shows, in words.
        points: One per layer, in execution order.
        first: The first layer beyond tolerance; marked.
    """

    def x(index: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (index + 0.5) / max(len(points), 1)

    shares = [v for p in points for v in (p.whole_share, p.alone_share) if v is not None and math.isfinite(v)]
    bottom = TOP + PANEL
    floor = bottom + BETWEEN + MARGIN_PANEL if shares else bottom
    body = _stage_bands(points, x, floor)
    body += _decibels(points, x, bottom)
    if shares:
        body += _shares(points, x, bottom + BETWEEN, floor, shares)
    body += _stage_ticks(points, x, floor)
    ids = [point.layer for point in points]
    if first in ids:
        at = x(ids.index(first))
        body.append(line(at, TOP - 8, at, floor, "mark"))
        anchor = "end" if at > WIDTH * 0.55 else "start"
        body.append(words(at + (-4 if anchor == "end" else 4), bottom - 5, shortened(first), anchor, "flag"))
    body += _tooltips(points, x, floor)
    return frame(number, title, description, body, round(floor + FOOT))


Scale = Callable[[float], float]


def _decibels(points: Sequence[DepthPoint], x: Scale, bottom: float) -> list[Markup]:
    """The upper panel: SQNR of the file from its own input as a curve, of each layer alone as dots."""
    finite = [v for p in points for v in (p.whole_db, p.alone_db) if v is not None and math.isfinite(v)]
    # layers that rounding hardly touches would squeeze all others together: they lie at the upper edge
    whole = [v for v in (point.whole_db for point in points) if v is not None and math.isfinite(v)]
    low = min(finite, default=0.0)
    high = max(quantile(finite, 0.97), quantile(whole, 0.99) if whole else low) if finite else 1.0
    margin = max((high - low) * 0.08, 1.0)
    low, high = low - margin, high + margin

    def y(value: float) -> float:
        if math.isnan(value) or value == -math.inf:
            return bottom
        if value == math.inf:
            return TOP - 4
        return bottom - (bottom - TOP - 4) * (min(value, high) - low) / (high - low)

    body = []
    for tick in ticks(low, high, 5):
        body += [line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"), words(LEFT - 4, y(tick) + 3, f"{tick:g}", "end")]
    body.append(words(LEFT, 10, "SQNR in dB, higher is nearer", "start", "axis"))
    if any(math.inf in (point.whole_db, point.alone_db) for point in points):
        body.append(words(LEFT - 4, y(math.inf) + 3, "=", "end"))
    alone = [
        (index, point.alone_db, point.passed) for index, point in enumerate(points)
        if point.alone_db is not None and point.through is None
    ]  # fmt: skip
    curve = [(x(index), None if point.whole_db is None else y(point.whole_db)) for index, point in enumerate(points)]
    return [*body, path("curve", _polyline(curve)), *_dots(alone, x, y)]


def _dots(alone: Sequence[tuple[int, float, bool | None]], x: Scale, y: Scale) -> list[Markup]:
    right = "".join(f"M{x(i):.1f} {y(v):.1f}h0" for i, v, passed in alone if passed is not False)
    wrong = "".join(f"M{x(i):.1f} {y(v):.1f}h0" for i, v, passed in alone if passed is False)
    usual = "dots sparse" if len(alone) <= SPARSE else "dots"
    return [path(kind, shape) for kind, shape in ((usual, right), ("dots bad", wrong)) if shape]


def _shares(points: Sequence[DepthPoint], x: Scale, top: float, floor: float, shares: Sequence[float]) -> list[Markup]:
    """The lower panel: error over allowance, logarithmic; the limit is drawn, and what lies beyond it tinted."""
    positive = [value for value in shares if value > 0]
    least = quantile(positive, 0.05) if positive else 0.01
    low = min(math.log10(max(least, 1e-4)), -1.0) - 0.1
    high = min(max(math.log10(max([*positive, 1.0])), 0.0), MOST_POWERS) + 0.25

    def y(value: float) -> float:
        level = low if value <= 0 else min(max(math.log10(value), low), high)
        return floor - (floor - top) * (level - low) / (high - low)

    body = [box("beyond", LEFT, top, WIDTH - LEFT - RIGHT, y(1.0) - top)]
    for power in range(math.ceil(low), math.floor(high) + 1):
        level = y(10.0**power)
        body.append(line(LEFT, level, WIDTH - RIGHT, level, "limit" if power == 0 else "grid"))
        if power % (1 if high - low < 3 else 2) == 0:
            body.append(words(LEFT - 4, level + 3, f"{10.0**power:g}", "end"))
    body.append(words(LEFT, top - 5, "error over what is allowed", "start", "axis"))
    alone = [
        (index, point.alone_share, point.passed) for index, point in enumerate(points)
        if point.alone_share is not None and point.through is None
    ]  # fmt: skip
    curve = [(x(i), None if p.whole_share is None else y(p.whole_share)) for i, p in enumerate(points)]
    return [*body, path("curve", _polyline(curve)), *_dots(alone, x, y)]


def _stage_bands(points: Sequence[DepthPoint], x: Scale, floor: float) -> list[Markup]:
    """Every second stage on a tinted ground."""
    found = stages([point.layer for point in points])
    ends = [start for _, start in found[1:]] + [len(points)]
    return [
        box("stage", x(start - 0.5), TOP, x(end - 0.5) - x(start - 0.5), floor - TOP)
        for number, ((_, start), end) in enumerate(zip(found, ends, strict=True)) if number % 2
    ]  # fmt: skip


def _stage_ticks(points: Sequence[DepthPoint], x: Scale, floor: float) -> list[Markup]:
    """The names of the stages below them, those that there is room for; what they have in common below all."""
    layers = [point.layer for point in points]
    found = stages(layers)
    if not found:
        body = [words(x(0), floor + 11, "1", "start"), words(x(len(points) - 1), floor + 11, str(len(points)), "end")]
        return [*body, words((LEFT + WIDTH - RIGHT) / 2, floor + 25, "layers in execution order", kind="axis")]
    ends = [start for _, start in found[1:]] + [len(points)]
    usual = Counter(name.rpartition(".")[0] for name, _ in found).most_common(1)[0][0]
    body, free = [], float(LEFT) - 4
    for (name, start), end in zip(found, ends, strict=True):
        # a number alone says enough only where most stages are numbered alike
        tick = shortened(name.rpartition(".")[2] if name.rpartition(".")[0] == usual else name, 12)
        middle, half = (x(start - 0.5) + x(end - 0.5)) / 2, len(tick) * LETTER / 2
        if middle - half >= free and middle + half <= WIDTH:
            body.append(words(middle, floor + 11, tick))
            free = middle + half + 5
    ends_of = shortened(found[0][0], 24), shortened(found[-1][0], 24)
    span = f"stages in execution order, {ends_of[0]} to {ends_of[1]}"
    return [*body, words((LEFT + WIDTH - RIGHT) / 2, floor + 25, span, kind="axis")]


def _tooltips(points: Sequence[DepthPoint], x: Scale, floor: float) -> list[Markup]:
    """One strip for each run of layers that are seen at once; whoever points at it reads what was found there."""
    body, start = [], 0
    for index, point in enumerate(points):
        if point.through is not None and index + 1 < len(points):
            continue
        left, right = x(start - 0.5), x(index + 0.5)
        start = index + 1
        if point.whole_db is None and point.alone_db is None:
            continue
        shape = box("strip", left, TOP, right - left, floor - TOP)
        body.append(told(_said(point), shape))
    return body


def _said(point: DepthPoint) -> str:
    parts = [f"whole {_level(point.whole_db)}", f"alone {_level(point.alone_db)}"]
    if point.alone_share is not None and math.isfinite(point.alone_share):
        parts.append(f"{point.alone_share:.2g} of what is allowed")
    return f"{point.layer}: {', '.join(parts)}" + ("; beyond tolerance" if point.passed is False else "")


def _level(value: float | None) -> str:
    if value is None:
        return "not seen"
    return "equal" if value == math.inf else ("NaN" if math.isnan(value) else f"{value:.1f} dB")


def _polyline(points: Sequence[tuple[float, float | None]]) -> str:
    shape, pen_down = [], False
    for x, y in points:
        if y is not None:
            shape.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = y is not None
    return "".join(shape)
