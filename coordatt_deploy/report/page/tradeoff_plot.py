"""Size, latency and error of all files in one plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from coordatt_deploy.report.page.plots import LEFT, RIGHT, WIDTH, frame, line, ticks, told, words

HEIGHT: Final = 290
TOP: Final = 26
FOOT: Final = 34
GREATEST: Final = 17.0  # radius of the greatest file
LEAST: Final = 3.0
LETTER: Final = 5.9  # width of a letter of a name


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
    discs = [(x(item.ms), y(item.db), max(LEAST, GREATEST * math.sqrt(item.size / greatest))) for item in items]
    taken = [(cx - r, cy - r, cx + r, cy + r) for cx, cy, r in discs]
    for item, (cx, cy, r) in zip(items, discs, strict=True):
        place = _place(len(item.label) * LETTER, cx, cy, r, taken)
        taken.append(place)
        disc = Markup('<circle class="disc{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(
            " bad" if item.bad else "", cx, cy, r
        )
        body.append(told(item.text, disc, words(place[0], place[3] - 3, item.label, "start", "name")))
    return frame(number, title, description, body, HEIGHT)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _place(wide: float, x: float, y: float, r: float, taken: Sequence[Box]) -> Box:
    """Return where the name of a disc covers least of what is there: right of it, left, above or below."""
    half = wide / 2
    left = min(max(x - half, LEFT), WIDTH - wide)
    places = [
        (x + r + 4, y - 7, x + r + 4 + wide, y + 6), (x - r - 4 - wide, y - 7, x - r - 4, y + 6),
        (left, y - r - 15, left + wide, y - r - 2), (left, y + r + 2, left + wide, y + r + 15),
    ]  # fmt: skip
    inside = [place for place in places if place[0] >= LEFT and place[2] <= WIDTH]
    return min(inside or places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)
