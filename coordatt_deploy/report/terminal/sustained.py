"""Latency over time, on the terminal."""

from typing import Final

from rich.console import Console
from rich.text import Text

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.result import ProfileResult
from coordatt_deploy.profile.sustained_result import Course, SustainedLatency
from coordatt_deploy.report import sustained_texts as texts
from coordatt_deploy.report.terminal.console import host_line, label, new_console, say
from coordatt_deploy.report.terminal.tables import Column, show_below, show_table

STYLES: Final = {Course.STEADY: "green", Course.SLOWS_DOWN: "bold yellow", Course.UNDECIDED: "yellow"}
LONGEST: Final = 60  # bars of a curve

COLUMNS: Final = (
    Column("artifact"), Column("threads", right=True), Column("first ms", right=True), Column("steady ms", right=True),
    Column("change", right=True), Column("95 % interval", right=True, rank=1), Column("from", right=True, rank=2),
    Column("verdict"), Column("MHz", right=True, rank=3), Column("°C", right=True, rank=3),
    Column("cores", rank=4), Column("calls", right=True, rank=5), Column("runtime", rank=6),
)  # fmt: skip


def show_sustained(bundle: Bundle, document: ProfileResult) -> None:
    """The verdict on each file, with its curve; then the figures, and what has to be known of them."""
    console = new_console()
    labels = {artifact.path: label(artifact) for artifact in bundle.manifest.artifacts}
    for item in document.sustained:
        _show_course(console, labels[item.path], item)
    console.print()
    rows = [_cells(labels[item.path], item) for item in document.sustained]
    show_table(console, f"Sustained latency of {bundle.manifest.model.name}", COLUMNS, rows)
    for text in texts.remarks(document.sustained):
        say(console, text, style="yellow")
    for left_out in document.skipped:
        say(console, f"{left_out.path}: not measured: {left_out.reason}", style="yellow")
    if document.interrupted:
        say(console, "interrupted: these are the windows of time until then", style="yellow")
    say(console, host_line(document), style="dim")


def _show_course(console: Console, name: Text, item: SustainedLatency) -> None:
    head = f"{name}, {counted(item.threads, 'thread')}: {texts.verdict(item)}"
    say(console, head, style=STYLES[item.verdict.course])
    span = texts.span(item)
    room = console.width - len(span) - 4
    if room >= 8:
        show_below(console, f"{texts.curve(item, min(room, LONGEST))} {span}")


def _cells(name: Text, item: SustainedLatency) -> tuple[str | Text, ...]:
    return (
        name, str(item.threads), texts.milliseconds(item.first_ms), texts.milliseconds(item.steady_ms),
        texts.change(item), texts.interval(item), texts.since(item), item.verdict.course.value,
        texts.frequency(item), texts.temperature(item), texts.cores(item), f"{item.calls:,}", item.runtime,
    )  # fmt: skip
