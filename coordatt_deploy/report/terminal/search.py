"""What int8 costs layer by layer, on the terminal."""

import math
from pathlib import Path

from coordatt_deploy.mixed_precision.result import SearchResult, Sensitivity
from coordatt_deploy.plurals import counted, of_total, verb
from coordatt_deploy.report.terminal.console import bundle_command, line, new_console, say
from coordatt_deploy.report.terminal.tables import Column, show_table

SHOWN = 15  # layers in the table; the document has all


def show(document: Sensitivity, bundle: Path, *, every: bool) -> None:
    """One table per format, the costliest layer first.

    Args:
        document: ``sensitivity.json``.
        bundle: Where it lies.
        every: Say where the rest of the layers is.
    """
    console = new_console()
    for result in document.results:
        costs = result.layers
        name = " ".join(filter(None, [result.format, result.target_cpu]))
        predicted = _db(result.predicted_sqnr_db)
        columns = (
            Column("layer", name=True), Column("share of noise", right=True), Column("SQNR alone", right=True),
            Column("measured", right=True, rank=1), Column("agreement", right=True, rank=2),
            Column("operator", rank=3),
        )  # fmt: skip
        title = f"{name}, {document.recipe}: what each layer costs alone; all together about {predicted}"
        rows = []
        for cost in costs[:SHOWN]:
            agreement = "–" if cost.agreement is None else f"{cost.agreement:.1%}"
            measured = "–" if cost.verified_db is None else _db(cost.verified_db)
            rows.append((cost.name, f"{cost.share:.1%}", _db(cost.sqnr_db), measured, agreement, cost.operator))
        show_table(console, title, columns, rows)
        if result.warning:
            say(console, f"{name}: {result.warning}", style="yellow")
        if every and len(costs) > SHOWN:
            rest = sum(cost.share for cost in costs[SHOWN:])
            more = len(costs) - SHOWN
            text = f"{counted(more, 'more layer')} {verb(more, 'brings')} {rest:.1%} of the noise; all are in"
            say(console, f"{text} {bundle}/reports/sensitivity.json", style="dim")
    cases = counted(document.cases, "calibration case")
    text = f"SQNR alone: simulated on {cases} with this layer in int8 and the others in float"
    say(console, f"{text}; measured: the same with a real artifact", style="dim")


def show_search(document: SearchResult, bundle: Path) -> None:
    """What must stay in float, and the command that replays it."""
    console = new_console()
    data = document.dataset
    for result in document.results:
        name = " ".join(filter(None, [result.format, result.target_cpu]))
        if result.reached:
            text = f"{name}: the limit holds with {of_total(len(result.kept), result.layers, 'layer')} in float"
            say(console, text, style="bold green")
        else:
            why = "the drop cannot be reached short of keeping every layer in float"
            text = f"{name}: NOT REACHED: {why}; nothing was written"
            say(console, text, style="bold red")
    console.print()
    columns = (
        Column("format"), Column("drop"), Column("in float", right=True), Column("difference", right=True),
        Column("95 % interval", right=True), Column("artifacts tried", right=True, rank=1),
    )  # fmt: skip
    title = (
        f"At most {document.max_drop_points:g}{_unit(document)} lost on {counted(data.images, 'image')} of"
        f" {data.source}: fewest layers in float"
    )
    rows = []
    for result in document.results:
        name = " ".join(filter(None, [result.format, result.target_cpu]))
        interval = result.interval_points
        holds = line("holds", style="green") if result.reached else line("NOT REACHED", style="bold red")
        rows.append((
            name, holds, f"{len(result.kept)} of {result.layers}", _figure(result.difference_points, document),
            "–" if interval is None else f"{_figure(interval[0], document)} … {_figure(interval[1], document)}",
            str(len(result.attempts)),
        ))  # fmt: skip
    show_table(console, title, columns, rows)
    for result in document.results:
        if not result.reached:
            continue
        name = " ".join(filter(None, [result.format, result.target_cpu]))
        if result.kept:
            say(console, f"{name} keeps in float: {', '.join(result.kept)}")
        say(console, f"{name}: {result.path}; again:", style="dim")
        options = ("--format", str(result.format), "--recipe", f"{bundle}/{result.recipe_file}")
        console.print(line(f"  {bundle_command('quantize', bundle, *options)}"), soft_wrap=True)
        if result.warning:
            say(console, f"{name}: {result.warning}", style="yellow")
    for note in data.notes:
        say(console, note, style="yellow")
    text = "the layers were chosen on these images; what the artifact is worth on others, coordatt-deploy evaluate says"
    say(console, text, style="dim")


def _db(value: float | None) -> str:
    return "no change" if value is None or not math.isfinite(value) else f"{value:.1f} dB"


def _unit(document: SearchResult) -> str:
    metric = document.metric
    return " points" if metric is None or metric.in_points else f" of {metric.name}"


def _figure(value: float, document: SearchResult) -> str:
    """Hundredths of a point, or four digits of what has a unit of its own."""
    metric = document.metric
    return f"{value:+.2f}" if metric is None or metric.in_points else f"{value:+.4g}"
