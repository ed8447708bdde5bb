"""Where the time of files goes, on the terminal."""

from typing import Final

from rich.console import Console
from rich.text import Text

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.operator_result import LayerTime, OperatorProfile
from coordatt_deploy.profile.result import ProfileResult
from coordatt_deploy.progress import VERBOSITY, Verbosity
from coordatt_deploy.report.operator_texts import error, is_wrong, layer, operators, remarks, summary
from coordatt_deploy.report.terminal.console import label, new_console, say
from coordatt_deploy.report.terminal.tables import Column, show_table

SHOWN: Final = 15  # rows; --verbose shows all
COLUMNS: Final = (
    Column("layer", name=True), Column("ms", right=True), Column("95 % interval", right=True, rank=3),
    Column("share", right=True), Column("attention", rank=2), Column("operators", rank=4), Column("SQNR", right=True),
    Column("layer alone", rank=1),
)  # fmt: skip


def show_operators(bundle: Bundle, document: ProfileResult) -> None:
    """The dearest layers of each file, each with its error; those that are wrong are always among them."""
    console = new_console()
    labels = {artifact.path: label(artifact) for artifact in bundle.manifest.artifacts}
    for item in document.operators:
        console.print()
        _show(console, labels[item.path], item)
    for left_out in document.operators_skipped:
        say(console, f"{left_out.path}: its operators were not timed: {left_out.reason}", style="yellow")


def _show(console: Console, name: Text, item: OperatorProfile) -> None:
    shown = len(item.rows) if VERBOSITY.get() is Verbosity.VERBOSE else SHOWN
    chosen = [row for place, row in enumerate(item.rows) if place < shown or is_wrong(row)]
    rest = [row for place, row in enumerate(item.rows) if place >= shown and not is_wrong(row)]
    rows = [_cells(row) for row in chosen]
    if rest:
        rows.append(_rest(rest))
    missing = 1.0 - sum(row.share for row in item.rows)
    if missing > 0.0005:
        cells = ("in no row", f"{item.whole_ms - item.rows_ms:.4f}", "", f"{missing:.1%}", "", "", "", "")
        rows.append(tuple(map(Text, cells)))
    show_table(console, f"Where the time of {name} goes: {summary(item)}", COLUMNS, rows)
    for text in remarks(item):
        say(console, text, style="dim")


def _cells(row: LayerTime) -> tuple[Text, ...]:
    decibel, verdict = error(row.error)
    interval = "–" if row.ci95_ms is None else f"{row.ci95_ms[0]:.4f} … {row.ci95_ms[1]:.4f}"
    cells = (
        layer(row), f"{row.ms:.4f}", interval, f"{row.share:.1%}", row.block or "", operators(row), decibel, verdict,
    )  # fmt: skip
    style = "red" if is_wrong(row) else ""
    return tuple(Text(cell, style=style) for cell in cells)


def _rest(rows: list[LayerTime]) -> tuple[Text, ...]:
    text = counted(len(rows), "other layer")
    cells = (text, f"{sum(row.ms for row in rows):.4f}", "", f"{sum(row.share for row in rows):.1%}", "", "", "", "")
    return tuple(Text(cell, style="dim") for cell in cells)
