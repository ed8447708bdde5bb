"""What attention costs, as one picture: an SVG file without script, font or network.

A panel for each backbone and kind of file, in it two bars for each network: the official converter's file and ours. A
bar is what the file costs more than the plain network's cheapest one: its latency, with a line over the 95 % interval;
instructions where there is no latency; operators where there are neither. Texts become part of it through
``Markup.format`` alone, which escapes them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from coordatt_deploy.attention_cost.plan import OFFICIAL, OURS
from coordatt_deploy.attention_cost.result import AttentionCost, CostFile, CostRow
from coordatt_deploy.profile.compare import Outcome
from coordatt_deploy.report.attention_cost_tables import footnote, label
from coordatt_deploy.report.page.plots import ticks

WIDTH: Final = 960
LEFT, RIGHT, TOP = 150, 120, 84
BAR, GAP, PANEL_HEAD, PANEL_FOOT = 15, 10, 42, 38
LETTERS: Final = 130  # of a footnote's line at this width
STYLE: Final = (
    "text{font-family:system-ui,sans-serif;fill:#1b1f24;font-size:15px}.title{font-size:24px;font-weight:600}"
    ".panel{font-size:17px;font-weight:600}.soft{fill:#59636e;font-size:13px}.grid{stroke:#d8dde3}"
    ".default{fill:#d9862b}.ours{fill:#1f5fbf}.unknown{fill-opacity:0.25}.interval{stroke:#1b1f24;stroke-width:1.6}"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """What one file costs more than the plain network.

    Attributes:
        value: In per cent.
        interval: 95 %, the same; None for what repeats.
        text: Behind the bar, where the figure may not stand: the files cannot be told apart.
    """

    value: float
    interval: tuple[float, float] | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """The bars of one backbone and kind of file.

    Attributes:
        title: Above it.
        rows: By network: its label, the official converter's bar, and ours; None where there is no such file.
    """

    title: str
    rows: tuple[tuple[str, Bar | None, Bar | None], ...]

    @property
    def height(self) -> int:
        """In units of the picture."""
        return PANEL_HEAD + len(self.rows) * (2 * BAR + GAP) + PANEL_FOOT


def cost_plot(cost: AttentionCost) -> Markup:
    """Return the picture as the text of an SVG file."""
    body: list[Markup] = []
    top = TOP
    for panel in panels(cost):
        body += _drawn(panel, top)
        top += panel.height
    lines = _wrapped(footnote(cost))
    body += [_text(24, top + 16 + 17 * number, text, kind="soft") for number, text in enumerate(lines)]
    height = top + 17 + 17 * len(lines)
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"><title>{title}</title>'
        "<style>{style}</style>"
        '<rect width="{width}" height="{height}" fill="#ffffff"/>{head}{body}</svg>\n'
    ).format(
        width=WIDTH, height=height, title="What attention costs", style=Markup(STYLE),  # noqa: S704 - our own text
        head=_head(), body=Markup("").join(body),
    )  # fmt: skip


def panels(cost: AttentionCost) -> Iterator[Panel]:
    """Yield what is drawn."""
    for rows in cost.of_backbones():
        others = [row for row in rows if not row.is_plain]
        for kind in dict.fromkeys((file.format, file.precision) for file in rows[0].files):
            name, bar = _figure(rows, kind)
            shown = tuple((label(row), _of(row, kind, OFFICIAL, bar), _of(row, kind, OURS, bar)) for row in others)
            if any(default or ours for _, default, ours in shown):
                yield Panel(f"{name} over plain: {rows[0].backbone}, {' '.join(kind)}", shown)


Kind = tuple[str, str]
Figure = Callable[[CostFile], Bar | None]


def _figure(rows: Sequence[CostRow], kind: Kind) -> tuple[str, Figure]:
    """What the bars of a kind of file show, and how it is read off a file."""
    files = [file for row in rows if not row.is_plain for file in row.files if (file.format, file.precision) == kind]
    if any(file.latency_over_plain for file in files):
        return "Latency", _latency
    if any(file.instructions_over_plain for file in files):
        return "Instructions", _instructions
    plain = [file.operators for row in rows if row.is_plain for file in row.files
             if (file.format, file.precision) == kind and file.operators]  # fmt: skip
    least = min(plain, default=0)
    return "Operators", lambda file: Bar(100 * (file.operators / least - 1)) if file.operators and least else None


def _latency(file: CostFile) -> Bar | None:
    found = file.latency_over_plain
    if found is None or found.ratio is None or found.ci95 is None:
        return None
    low, high = (100 * (value - 1) for value in found.ci95)
    unknown = {Outcome.NO_DIFFERENCE: "none found", Outcome.INCONCLUSIVE: "not known"}
    return Bar(100 * (found.ratio - 1), (low, high), unknown.get(found.outcome))


def _instructions(file: CostFile) -> Bar | None:
    return None if file.instructions_over_plain is None else Bar(100 * (file.instructions_over_plain - 1))


def _of(row: CostRow, kind: Kind, export: str, bar: Figure) -> Bar | None:
    """The bar of the first file of a network that has the figure."""
    files = (file for file in row.files if (file.format, file.precision, file.export) == (*kind, export))
    return next((found for file in files if (found := bar(file)) is not None), None)


def _head() -> Markup:
    swatch = Markup('<rect class="{}" x="{}" y="54" width="16" height="12"/>')
    return Markup("").join([
        _text(24, 38, "What attention costs", kind="title"),
        swatch.format("default", 24), _text(46, 65, "official converter"),
        swatch.format("ours", 190), _text(212, 65, "coordatt-deploy"),
    ])  # fmt: skip


def _drawn(panel: Panel, top: int) -> list[Markup]:
    bars = [bar for _, default, ours in panel.rows for bar in (default, ours) if bar is not None]
    ends: list[float] = [end for bar in bars for end in (bar.value, *(bar.interval or ()))]
    low: float = min(0.0, *ends)
    high: float = max(1.0, *ends)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    body = [_text(24, top + 24, panel.title, kind="panel")]
    first, floor = top + PANEL_HEAD, top + panel.height - PANEL_FOOT
    for tick in ticks(low, high, 5):
        line = Markup('<line class="grid" x1="{0:.1f}" y1="{1}" x2="{0:.1f}" y2="{2}"/>')
        body += [line.format(x(tick), first - 4, floor), _text(x(tick), floor + 16, f"{tick:+g} %", "middle", "soft")]
    for number, (name, default, ours) in enumerate(panel.rows):
        y = first + number * (2 * BAR + GAP)
        body.append(_text(LEFT - 10, y + BAR + 5, name, "end"))
        for place, (kind, bar) in enumerate((("default", default), ("ours", ours))):
            body += _bar(kind, bar, x, y + place * BAR)
    return body


def _bar(kind: str, bar: Bar | None, x: Callable[[float], float], y: int) -> list[Markup]:
    if bar is None:
        return [_text(x(0) + 6, y + BAR - 3, "no file", kind="soft")]
    left, right = sorted((x(0), x(bar.value)))
    shape = Markup('<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>')
    body = [shape.format(kind if bar.text is None else f"{kind} unknown", left, y, right - left, BAR - 1)]
    end = right
    if bar.interval is not None:
        line = Markup('<line class="interval" x1="{:.1f}" y1="{y}" x2="{:.1f}" y2="{y}"/>')
        body.append(line.format(*map(x, bar.interval), y=y + BAR / 2))
        end = max(end, x(bar.interval[1]))
    return [*body, _text(end + 6, y + BAR - 3, bar.text or f"{bar.value:+.1f} %", kind="soft")]


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _wrapped(text: str) -> list[str]:
    """Lines of a footnote."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > LETTERS:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
