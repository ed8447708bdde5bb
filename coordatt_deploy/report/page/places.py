"""What the page says of many places: a table of all, which stand out, and a plot for each file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from coordatt_deploy.fleet.comparison import PlaceFigures
from coordatt_deploy.plurals import counted
from coordatt_deploy.report.page.figures import Figure, Row, Table, decibel, file_name, number
from coordatt_deploy.report.page.latency_plot import Timed, overview_plot
from coordatt_deploy.report.page.verdicts import BADGES

MOST_DRAWN: Final = 40  # places of a plot: the fastest and the slowest
FEWEST_DRAWN: Final = 2


@dataclass(frozen=True, slots=True)
class PlacesView:
    """The section of places.

    Attributes:
        table: A row for each file at each place.
        outliers: A sentence for each latency that stands out, and for each file that fails at some places only.
        figures: A plot for each file that several places timed.
    """

    table: Table
    outliers: tuple[str, ...]
    figures: tuple[Figure, ...]


def places_view(rows: Sequence[PlaceFigures], labels: Mapping[str, str], start: int) -> PlacesView | None:
    """Return the section; None where only this machine was asked.

    Args:
        rows: By file, then by place.
        labels: What tells each file from the others, by path.
        start: Number of the first plot on the page.
    """
    if not rows:
        return None
    names = {path: labels.get(path, file_name(path)) for path in {row.path for row in rows}}
    heads = (
        ("file", "place", "parity"), ("SQNR", "threads", "median ms", "95 % interval", "accuracy", "M instructions"),
    )  # fmt: skip
    table = Table("Files at places", *heads, tuple(_row(row, names) for row in rows), last="stands out")
    told = [f"{names[row.path]} on {row.place}: {row.stands_out}." for row in rows if row.stands_out]
    paths = list(dict.fromkeys(row.path for row in rows))
    figures = (
        _figure(names[path], [row for row in rows if row.path == path], start + at) for at, path in enumerate(paths)
    )
    return PlacesView(table, (*told, *_torn(rows, names)), tuple(item for item in figures if item is not None))


def _row(row: PlaceFigures, names: Mapping[str, str]) -> Row:
    badge = BADGES[row.passed]
    known = row.passed is not None or row.sqnr_db is not None
    interval = "–" if row.ci95_ms is None else f"{row.ci95_ms[0]:.3g} … {row.ci95_ms[1]:.3g}"
    share = row.metric in ("top-1", "miou")
    doubt = f" {row.verdict}" if row.verdict not in (None, "stable") else ""
    cells = (
        decibel(row.sqnr_db, exact=False), number(row.threads, "d"), number(row.median_ms) + doubt, interval,
        number(row.score, ".2%" if share else ".4g"),
        number(None if row.instructions is None else row.instructions / 1e6, ".1f"),
    )  # fmt: skip
    verdict = f"{badge.mark} {badge.word}" if known else "–"
    return Row((names[row.path], row.place, verdict), cells, bad=row.passed is False, note=row.stands_out or "")


def _torn(rows: Sequence[PlaceFigures], names: Mapping[str, str]) -> list[str]:
    """A sentence for each file that passes at some places and fails at others."""
    told = []
    for path in dict.fromkeys(row.path for row in rows):
        failed = [row.place for row in rows if row.path == path and row.passed is False]
        passed = sum(row.path == path and row.passed is True for row in rows)
        if failed and passed:
            told.append(f"{names[path]} fails on {', '.join(failed)}, and passes on {counted(passed, 'place')}.")
    return told


def _figure(label: str, rows: Sequence[PlaceFigures], position: int) -> Figure | None:
    timed = sorted((row for row in rows if row.median_ms is not None), key=lambda row: row.median_ms or 0.0)
    if len(timed) < FEWEST_DRAWN:
        return None
    drawn, left = timed, 0
    if len(timed) > MOST_DRAWN:
        half = MOST_DRAWN // 2
        drawn, left = [*timed[:half], *timed[-half:]], len(timed) - MOST_DRAWN
    items = [_timed(row) for row in drawn]
    words = "Each place's median, with its 95 % interval; the fastest first."
    words += f" {counted(left, 'place')} between them are left out." if left else ""
    return Figure(label, overview_plot(position, f"Latency of {label} at places", words, items), words)


def _timed(row: PlaceFigures) -> Timed:
    median = row.median_ms or 0.0
    doubt = "" if row.verdict == "stable" else f", {row.verdict}"
    mark = " ◆" if row.stands_out else ""
    return Timed(f"{row.place}{mark}", median, row.ci95_ms, median, f"{median:.3g} ms{doubt}")
