"""Size, latency and error of all files in one plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from coordatt_deploy.report.page.plots import LEFT, RIGHT, WIDTH, apart, frame, line, ticks, told, words

HEIGHT: Final = 290
TOP: Final = 26
FOOT: Final = 34
GREATEST: Final = 17.0  # radius of the greatest file
LEAST: Final = 3.0
LETTER: Final = 5.4  # width of a letter of a name


@dataclass(frozen=True, slots=True)
class Weighed:
    """One file.

    Attributes:
        label: Its name.
        ms: Median latency.
        db: SQNR of its outputs; infinite where they equal the reference.
        size: In bytes.
        text: What is said of it to who points at it.
        bad: Whether its verdict is bad.
    """

    label: str
    ms: float
    db: float
    size: int
    text: str
    bad: bool = False


def tradeoff_plot(number: int, title: str, description: str, items: Sequence[Weighed]) -> Markup:
    """Draw each file as a disc as large as it is: fast ones on the left, exact ones at the top.

    Args:
        number: Of the plot on its page.
        title: What it is of.
        description: What it shows, in words.
        items: Files that were timed and judged, two at least.
    """
    finite = [item.db for item in items if math.isfinite(item.db)] or [0.0]
    margin = max((max(finite) - min(finite)) * 0.18, 4.0)
    low, high = min(0.0, *finite) if min(finite) < 2 * margin else min(finite) - margin, max(finite) + margin
    slowest, greatest = max(item.ms for item in items) * 1.12, max(item.size for item in items) or 1
    floor = HEIGHT - FOOT

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / slowest

    def y(value: float) -> float:
        level = high if value == math.inf else low if not math.isfinite(value) else value
        return floor - (floor - TOP) * (level - low) / (high - low)

    body = []
    for tick in ticks(low, high, 5):
        body += [line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"), words(LEFT - 4, y(tick) + 3, f"{tick:g}", "end")]
    for tick in ticks(0, slowest, 5):
        body += [line(x(tick), TOP, x(tick), floor, "grid"), words(x(tick), floor + 12, f"{tick:g}")]
    body.append(words(LEFT, 11, "SQNR in dB, higher is nearer", "start", "axis"))
    faster = "median latency in ms, further left is faster"
    body.append(words((LEFT + WIDTH - RIGHT) / 2, floor + 27, faster, kind="axis"))
    levels = apart([y(item.db) for item in items], 13, TOP + 4, floor - 6)
    for item, level in zip(items, levels, strict=True):
        radius = max(LEAST, GREATEST * math.sqrt(item.size / greatest))
        wide = len(item.label) * LETTER
        fits_right = x(item.ms) + radius + 6 + wide <= WIDTH
        end = x(item.ms) + (radius + 5 if fits_right else -radius - 5)
        disc = Markup('<circle class="disc{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(
            " bad" if item.bad else "", x(item.ms), y(item.db), radius
        )
        name = words(end, level + 3.5, item.label, "start" if fits_right else "end", "name")
        edge = x(item.ms) + (radius if fits_right else -radius)
        moved = abs(level - y(item.db)) > 3
        leader = [line(edge, y(item.db), end + (-1 if fits_right else 1), level, "leader")] if moved else []
        body.append(told(item.text, disc, *leader, name))
    return frame(number, title, description, body, HEIGHT)
