"""Imported latencies, on the terminal."""

from typing import Final

from rich.text import Text

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.imported_result import HeldBy, ImportResult
from coordatt_deploy.report import imported_texts
from coordatt_deploy.report.terminal.console import label, new_console, say
from coordatt_deploy.report.terminal.tables import Column, show_table

RANKS: Final = {"median": 1, "min": 2, "max": 2, "std": 3, "p90": 4, "p95": 4, "p99": 4, "load": 5, "first call": 5}

COLUMNS: Final = (
    Column("artifact"), Column("threads", right=True), Column("tool", rank=6),
    Column("held to the file by", rank=6),
    *(Column(name, right=True, rank=RANKS.get(name, 0)) for name in imported_texts.FIGURES),
)  # fmt: skip


def show_imported(bundle: Bundle, taken: ImportResult) -> None:
    """What was taken over, and what that is worth."""
    console = new_console()
    labels = {artifact.path: label(artifact) for artifact in bundle.manifest.artifacts}
    runs = counted(len(taken.imported), "latency", "latencies")
    say(console, f"imported {runs} of {taken.place}, not measured by this tool: {taken.document}", style="bold")
    console.print()
    rows: list[tuple[str | Text, ...]] = [
        (labels[item.path], *imported_texts.names(item), *imported_texts.figures(item)) for item in taken.imported
    ]
    show_table(console, f"Imported latency of {bundle.manifest.model.name} on {taken.place}", COLUMNS, rows)
    say(console, imported_texts.CAUTION, style="dim")
    for item in taken.imported:
        if item.held_by is not HeldBy.HASH:
            text = f"{item.source}: held to {item.path} by {imported_texts.names(item)[-1]}"
            say(console, f"{text}; a line of sha256sum in it would hold it to them", style="yellow")
