"""Which file keeps limits of size and latency, on the terminal: a table of all that were weighed."""

from pathlib import Path

from rich.console import Console

from coordatt_deploy.evaluation.result import MetricRecord
from coordatt_deploy.mixed_precision.result import CandidateRecord, FormatSearch, LimitVerdict, SearchResult
from coordatt_deploy.plurals import counted
from coordatt_deploy.report.terminal.console import bundle_command, line, new_console, say
from coordatt_deploy.report.terminal.tables import Cell, Column, show_table

STYLES = {LimitVerdict.KEEPS: "green", LimitVerdict.UNDECIDED: "yellow", LimitVerdict.EXCEEDS: "bold red"}


def show_tradeoff(document: SearchResult, bundle: Path) -> None:
    """The verdict of each format, its files from the smallest to the largest, and the command that replays the choice.

    Args:
        document: ``search.json``.
        bundle: Where it lies.
    """
    console = new_console()
    for item in document.skipped:
        say(console, f"{item.path}: skipped: {item.reason}", style="yellow")
    for result in document.results:
        say(console, _verdict(result, document), style="bold green" if result.reached else "bold red")
    console.print()
    for result in document.results:
        _show(console, result, document, bundle)
    images = counted(document.dataset.images, "image")
    for note in document.dataset.notes:
        say(console, note, style="yellow")
    text = f"chosen on {images} of {document.dataset.source}; of files that they cannot tell apart, the"
    cheapest = "fastest" if document.max_size is None else "smallest"
    text += (
        f" {cheapest}; what it is worth on others, coordatt-deploy evaluate says; * no other is better in everything"
    )
    say(console, text, style="dim")


def limits_text(document: SearchResult) -> str:
    """``at most 1MB, at most 0.9x of the latency``: what was asked for."""
    metric = document.metric
    unit = " points" if metric is None or metric.in_points else f" of {metric.name}"
    parts = (
        document.max_size and f"{document.max_size} of size",
        document.max_latency and f"{document.max_latency} of latency",
        None if document.max_drop_points is None else f"{document.max_drop_points:g}{unit} lost",
    )
    return f"at most {', '.join(filter(None, parts))}"


def _name(result: FormatSearch) -> str:
    return " ".join(filter(None, (result.format.value, result.target_cpu)))


def _verdict(result: FormatSearch, document: SearchResult) -> str:
    told = next(item for item in result.candidates if item.path == (result.path or result.nearest))
    figures = f"{told.size_bytes:,} bytes, accuracy {_figure(told.points, document.metric)}"
    if told.latency_ratio is not None:
        figures += f", {told.latency_ratio:.2f} × the float file's latency"
    if result.reached:
        already = "" if told.recipe else "; the bundle has it already"
        return f"{_name(result)}: {told.name} keeps {limits_text(document)}: {figures}{already}"
    why = "; ".join(told.reasons)
    return (
        f"{_name(result)}: NOT REACHED: {limits_text(document)}; nothing was written; nearest is {told.name}:"
        f" {figures} ({why})"
    )


def _show(console: Console, result: FormatSearch, document: SearchResult, bundle: Path) -> None:
    timed = any(item.latency_ms is not None for item in result.candidates)
    columns = [
        Column("file", name=True), Column("verdict"), Column("bytes", right=True), Column("accuracy", right=True),
        Column("95 % interval", right=True, rank=1),
    ]  # fmt: skip
    if timed:
        columns += [
            Column("× float", right=True), Column("95 % interval", right=True, rank=1),
            Column("ms", right=True, rank=2),
        ]  # fmt: skip
    ordered = sorted(result.candidates, key=lambda item: item.size_bytes)
    rows = [_row(item, document.metric, timed=timed) for item in ordered]
    show_table(console, f"{_name(result)}, {limits_text(document)}", columns, rows)
    for item in result.refused:
        say(console, f"{item.path} was not made: {item.reason}", style="yellow")
    if result.warning:
        say(console, f"{_name(result)}: {result.warning}", style="yellow")
    if result.kept:
        say(console, f"{_name(result)} keeps in float: {', '.join(result.kept)}")
    if result.reached and result.recipe_file:
        say(console, f"{_name(result)}: {result.path}; again:", style="dim")
        options = ("--format", str(result.format), "--recipe", f"{bundle}/{result.recipe_file}")
        console.print(line(f"  {bundle_command('quantize', bundle, *options)}"), soft_wrap=True)


def _row(item: CandidateRecord, metric: MetricRecord | None, *, timed: bool) -> tuple[Cell, ...]:
    name = f"{item.name}{' *' if item.pareto else ''}"
    word = "chosen" if item.chosen else item.verdict.value
    style = "bold green" if item.chosen else STYLES[item.verdict]
    interval = item.interval_points
    ends = "–" if interval is None else f"{_figure(interval[0], metric)} … {_figure(interval[1], metric)}"
    cells: tuple[Cell, ...] = (
        name,
        line(word, style=style),
        f"{item.size_bytes:,}",
        _figure(item.points, metric),
        ends,
    )
    if not timed:
        return cells
    ratio, reach = item.latency_ratio, item.ratio_interval
    return (
        *cells,
        "–" if ratio is None else f"{ratio:.3f}",
        "–" if reach is None else f"{reach[0]:.3f} … {reach[1]:.3f}",
        "–" if item.latency_ms is None else f"{item.latency_ms:.3f}",
    )


def _figure(value: float, metric: MetricRecord | None) -> str:
    """Hundredths of a point, or four digits of what has a unit of its own."""
    return f"{value:+.2f}" if metric is None or metric.in_points else f"{value:+.4g}"
