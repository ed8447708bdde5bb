"""Latency over time, as a plot; below it, where the machine tells them, frequency and temperature."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from markupsafe import Markup

from coordatt_deploy.profile.sustained_result import SustainedLatency, Window
from coordatt_deploy.profile.sustained_verdict import clock
from coordatt_deploy.report.page.plots import LEFT, RIGHT, WIDTH, frame, line, path, ticks, told, words

TOP: Final = 28
PANEL: Final = 108  # height of the latencies
LOWER: Final = 44  # height of the frequency, and of the temperature
BETWEEN: Final = 20
FOOT: Final = 30
ROOM: Final = 0.10  # of the latency that the panel spans at least: less than that looks as flat as it is

Scale = Callable[[float], float]


def sustained_plot(number: int, title: str, description: str, item: SustainedLatency) -> Markup:
    """Draw median, p10 and p90 of each window over time; levels that changed are marked.

    Args:
        number: Of the plot on its page.
        title: Of the file.
        description: What it shows, in words.
        item: With at least one window.
    """
    windows = item.windows
    last = max(item.lasted_s, windows[-1].start_s, 1e-9)

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(seconds / last, 1.0)

    body, floor = _latencies(item, x), float(TOP + PANEL)
    series = (
        ("MHz of the cores it ran on", [window.frequency_mhz for window in windows]),
        ("°C of the hottest sensor", [window.temperature_c for window in windows]),
    )
    for name, values in series:
        known = [(window.start_s, value) for window, value in zip(windows, values, strict=True) if value is not None]
        if known:
            body += _told(name, known, x, floor + BETWEEN)
            floor += BETWEEN + LOWER
    marks = item.verdict.changes_s
    for at in marks:
        kind = "limit" if at == item.verdict.since_s else "mark"
        body.append(line(x(at), TOP - 6, x(at), floor, kind))
    if item.verdict.since_s is not None:
        place = x(item.verdict.since_s)
        anchor = "end" if place > WIDTH * 0.6 else "start"
        text = f"slower from {clock(item.verdict.since_s)} on"
        body.append(words(place + (-4 if anchor == "end" else 4), TOP - 1, text, anchor, "flag"))
    body += _times(last, x, floor)
    body += _tooltips(windows, x, floor)
    return frame(number, title, description, body, round(floor + FOOT))


def _latencies(item: SustainedLatency, x: Scale) -> list[Markup]:
    windows, floor = item.windows, TOP + PANEL
    low = min(window.p10_ms for window in windows)
    # one window of a burst would press all others together: medians are what is compared, p90 is cut
    most = max(window.median_ms for window in windows)
    high = max(min(max(window.p90_ms for window in windows), most * 1.2), most)
    middle, room = (low + high) / 2, max((high - low) * 1.1, ROOM * most)
    low, high = middle - room / 2, middle + room / 2

    def y(value: float) -> float:
        return floor - PANEL * (min(max(value, low), high) - low) / (high - low)

    body = [words(LEFT, 10, "ms per call: median, p10 to p90", "start", "axis")]
    for tick in ticks(low, high, 4):
        body += [line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"), words(LEFT - 4, y(tick) + 3, f"{tick:g}", "end")]
    up = "L".join(f"{x(window.start_s):.1f} {y(window.p90_ms):.1f}" for window in windows)
    down = "L".join(f"{x(window.start_s):.1f} {y(window.p10_ms):.1f}" for window in reversed(windows))
    body.append(path("band", f"M{up}L{down}z"))
    body.append(path("curve", "M" + "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value in _medians(windows))))
    return body


def _medians(windows: Sequence[Window]) -> list[tuple[float, float]]:
    return [(window.start_s, window.median_ms) for window in windows]


def _told(name: str, known: Sequence[tuple[float, float]], x: Scale, top: float) -> list[Markup]:
    """A panel of what the machine told."""
    values = [value for _, value in known]
    middle, room = (min(values) + max(values)) / 2, max((max(values) - min(values)) * 1.15, max(values) * 0.05, 1e-9)
    low, high = middle - room / 2, middle + room / 2

    def y(value: float) -> float:
        return top + LOWER - LOWER * (value - low) / (high - low)

    body = [words(LEFT, top - 4, name, "start", "axis")]
    for tick in ticks(low, high, 3):
        body += [line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"), words(LEFT - 4, y(tick) + 3, f"{tick:g}", "end")]
    return [*body, path("curve", "M" + "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value in known))]


def _times(last: float, x: Scale, floor: float) -> Iterator[Markup]:
    """The axis of time, in the unit that fits it."""
    unit, size = ("seconds", 1.0) if last < 180 else ("minutes", 60.0) if last < 10_800 else ("hours", 3600.0)
    for tick in ticks(0, last / size, 5):
        if tick * size <= last * 1.001:
            yield words(x(tick * size), floor + 13, f"{tick:g}")
    yield words((LEFT + WIDTH - RIGHT) / 2, floor + 26, unit, kind="axis")


def _tooltips(windows: Sequence[Window], x: Scale, floor: float) -> Iterator[Markup]:
    ends = [*(window.start_s for window in windows[1:]), None]
    for window, end in zip(windows, ends, strict=True):
        facts = [
            f"{clock(window.start_s)}: median {window.median_ms:.3g} ms, p90 {window.p90_ms:.3g} ms",
            f"{window.calls} calls",
            "" if window.frequency_mhz is None else f"{window.frequency_mhz:.0f} MHz",
            "" if window.temperature_c is None else f"{window.temperature_c:.0f} °C",
            f"core {','.join(map(str, window.cores))}" if window.cores else "",
        ]
        left = x(window.start_s)
        right = WIDTH - RIGHT if end is None else x(end)
        strip = Markup('<rect class="strip" x="{:.1f}" y="{}" width="{:.1f}" height="{:.1f}"/>')
        yield told(", ".join(filter(None, facts)), strip.format(left, TOP, max(right - left, 0.5), floor - TOP))
