"""Files that were weighed against limits of size and latency, on the page: a table and a plot for each format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from markupsafe import Markup

from coordatt_deploy.evaluation.result import MetricRecord
from coordatt_deploy.mixed_precision.result import CandidateRecord, FormatSearch, LimitVerdict, SearchResult
from coordatt_deploy.report.page.figures import Row, Table
from coordatt_deploy.report.page.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, frame, line, ticks, told, words

DISC: Final = 5.0
LETTER: Final = 5.2  # width of a letter of a name


@dataclass(frozen=True, slots=True)
class TradeoffView:
    """One format."""

    table: Table
    plot: Markup
    caption: str


def tradeoffs(found: SearchResult | None, first: int) -> tuple[TradeoffView, ...]:
    """Return a view for each format whose files were weighed; empty for another search or none.

    Args:
        found: ``search.json``.
        first: Number of the first plot on its page.
    """
    results = [result for result in found.results if result.candidates] if found is not None else []
    return tuple(_view(result, found, first + index) for index, result in enumerate(results) if found is not None)


def _view(result: FormatSearch, document: SearchResult, number: int) -> TradeoffView:
    name = " ".join(filter(None, (result.format.value, result.target_cpu)))
    asked = {"size": document.max_size, "latency": document.max_latency, "loss": document.max_drop_points}
    limits = ", ".join(f"{key} at most {value}" for key, value in asked.items() if value is not None)
    verdict = "reached" if result.reached else "not reached"
    ordered = sorted(result.candidates, key=lambda item: item.size_bytes)
    heads = ("file", "verdict"), ("bytes", "accuracy", "95 % interval", "× float latency", "95 % interval")
    rows = tuple(_row(item, document.metric) for item in ordered)
    table = Table(f"{name}: {limits}: {verdict}", *heads, rows, last="why")
    told_of = result.path or result.nearest
    caption = (
        f"Accuracy against size on {document.dataset.images:,} images. The line joins the files that no other beats in"
        f" everything. {'Chosen' if result.reached else 'Nearest'}: {told_of}."
    )
    return TradeoffView(table, _plot(number, name, ordered, document.metric), caption)


def _row(item: CandidateRecord, metric: MetricRecord | None) -> Row:
    word = "chosen" if item.chosen else item.verdict.value
    cells = (
        f"{item.size_bytes:,}",
        _figure(item.points, metric),
        _interval(item.interval_points, lambda value: _figure(value, metric)),
        "–" if item.latency_ratio is None else f"{item.latency_ratio:.3f}",
        _interval(item.ratio_interval, "{:.3f}".format),
    )
    names = (f"{item.name}{' *' if item.pareto else ''}", word)
    return Row(names, cells, bad=item.verdict is LimitVerdict.EXCEEDS, note="; ".join(item.reasons) or "–")


def _plot(number: int, name: str, items: Sequence[CandidateRecord], metric: MetricRecord | None) -> Markup:
    """Draw accuracy against size: small files on the left."""
    points = [item.points for item in items] + [0.0]
    margin = max((max(points) - min(points)) * 0.2, 0.1)
    low, high = min(points) - margin, max(points) + margin
    widest = max(item.size_bytes for item in items) * 1.1 / 1e6 or 1.0
    floor = HEIGHT - BOTTOM - 10

    def x(size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * size / 1e6 / widest

    def y(value: float) -> float:
        return floor - (floor - TOP) * (value - low) / (high - low)

    body = []
    for tick in ticks(low, high):
        body += [line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"), words(LEFT - 4, y(tick) + 3, f"{tick:g}", "end")]
    for tick in ticks(0, widest):
        body += [line(x(tick * 1e6), TOP, x(tick * 1e6), floor, "grid"), words(x(tick * 1e6), floor + 12, f"{tick:g}")]
    unit = "points" if metric is None or metric.in_points else metric.name
    body.append(words(LEFT, 10, f"{unit} more than the reference", "start", "axis"))
    body.append(words((LEFT + WIDTH - RIGHT) / 2, floor + 26, "size in MB, further left is smaller", kind="axis"))
    front = sorted((item for item in items if item.pareto), key=lambda item: item.size_bytes)
    for one, other in pairwise(front):
        body.append(line(x(one.size_bytes), y(one.points), x(other.size_bytes), y(other.points), "curve"))
    for index, item in enumerate(items):
        cx, cy = x(item.size_bytes), y(item.points)
        kind = " bad" if item.verdict is LimitVerdict.EXCEEDS else ""
        disc = Markup('<circle class="disc{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(kind, cx, cy, DISC)
        left = min(max(cx - len(item.name) * LETTER / 2, LEFT), WIDTH - len(item.name) * LETTER)
        text = f"{item.name}: {item.size_bytes:,} bytes, {_figure(item.points, metric)}"
        below = cy + 16 if index % 2 else cy - 9
        body.append(told(text, disc, words(left, below, item.name, "start", "name")))
    described = "; ".join(f"{item.name} {item.size_bytes:,} bytes, {_figure(item.points, metric)}" for item in items)
    return frame(number, f"Accuracy against size, {name}", described, body)


def _interval(ends: tuple[float, float] | None, text: Callable[[float], str]) -> str:
    return "–" if ends is None else f"{text(ends[0])} … {text(ends[1])}"


def _figure(value: float, metric: MetricRecord | None) -> str:
    return f"{value:+.2f}" if metric is None or metric.in_points else f"{value:+.4g}"
