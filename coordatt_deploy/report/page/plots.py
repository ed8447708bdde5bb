"""What plots are made of: inline SVG, written by hand: no script, no font, no network.

Texts become part of a plot through ``Markup.format`` alone, which escapes them.

Every plot has a ``<title>`` and a ``<desc>`` that say in words what the curve shows. Colours are CSS classes of the
page, so that dark, light and paper each have their own. The view box is as wide as a phone; plots sit in a grid.
"""

import math
from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

WIDTH: Final = 360
HEIGHT: Final = 200
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 14, 28


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


def words(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> Markup:
    """Return a text at a place."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a straight line."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def path(kind: str, shape: str) -> Markup:
    """Return a path; *shape* is made of numbers alone."""
    return Markup('<path class="{}" d="{}"/>').format(kind, shape)


def box(kind: str, x: float, y: float, width: float, height: float) -> Markup:
    """Return a rectangle."""
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        kind, x, y, max(width, 0.0), max(height, 0.0)
    )


def told(text: str, *shapes: Markup, kind: str = "hit") -> Markup:
    """Return shapes that say *text* to who points at them."""
    return Markup('<g class="{}"><title>{}</title>{}</g>').format(kind, text, Markup("").join(shapes))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of the others lies below."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def shortened(text: str, most: int = 34) -> str:
    """Return a text of *most* letters; what is cut off is its beginning."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def size_bar(share: float) -> Markup:
    """Draw a share of the greatest as a bar; the number stands beside it in text."""
    wide = 100 * min(max(share, 0.0), 1.0)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8"/><rect class="fill" width="{:.1f}" height="8"/></svg>'
    ).format(wide)
