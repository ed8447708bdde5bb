"""What int8 costs layer by layer, on the terminal."""

import math
from pathlib import Path

from coordatt_deploy.mixed_precision.result import SearchResult, Sensitivity
from coordatt_deploy.report.terminal.console import line, new_console, new_table

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
        figures = ("SQNR alone", "measured", "share of noise", "agreement")
        title = f"{name}, {document.recipe}: what each layer costs alone; all together about {predicted}"
        table = new_table(title, "layer", "operator", *figures, right=figures)
        for cost in costs[:SHOWN]:
            agreement = "–" if cost.agreement is None else f"{cost.agreement:.1%}"
            measured = "–" if cost.verified_db is None else _db(cost.verified_db)
            cells = (_db(cost.sqnr_db), measured, f"{cost.share:.1%}", agreement)
            table.add_row(line(cost.name), cost.operator, *cells)
        console.print(table)
        if result.warning:
            console.print(line(f"{name}: {result.warning}", style="yellow"))
        if every and len(costs) > SHOWN:
            rest = sum(cost.share for cost in costs[SHOWN:])
            text = f"{len(costs) - SHOWN} more layers bring {rest:.1%} of the noise; all are in"
            console.print(line(f"{text} {bundle}/reports/sensitivity.json", style="dim"))
    console.print(
        line(
            f"SQNR alone: simulated on {document.cases} calibration cases with this layer in int8 and the others in"
            " float; measured: the same with a real artifact",
            style="dim",
        )
    )


def show_search(document: SearchResult, bundle: Path) -> None:
    """What must stay in float, and the command that replays it."""
    console = new_console()
    data = document.dataset
    figures = ("in float", "difference", "95 % interval", "artifacts tried")
    title = (
        f"At most {document.max_drop_points:g}{_unit(document)} lost on {data.images:,} images of {data.source}:"
        " fewest layers in float"
    )
    table = new_table(title, "format", *figures, "drop", right=figures)
    for result in document.results:
        name = " ".join(filter(None, [result.format, result.target_cpu]))
        interval = result.interval_points
        cells = (
            f"{len(result.kept)} of {result.layers}",
            _figure(result.difference_points, document),
            "–" if interval is None else f"{_figure(interval[0], document)} … {_figure(interval[1], document)}",
            str(len(result.attempts)),
        )
        verdict = line("holds", style="green") if result.reached else line("NOT REACHED", style="bold red")
        table.add_row(name, *cells, verdict)
    console.print(table)
    for result in document.results:
        name = " ".join(filter(None, [result.format, result.target_cpu]))
        if not result.reached:
            text = f"{name}: the drop cannot be reached short of keeping every layer in float; nothing was written"
            console.print(line(text, style="bold red"))
            continue
        if result.kept:
            console.print(line(f"{name} keeps in float: {', '.join(result.kept)}"))
        replay = f"coordatt-deploy quantize {bundle} --format {result.format} --recipe {bundle}/{result.recipe_file}"
        console.print(line(f"{name}: {result.path}; again: {replay}", style="dim"))
        if result.warning:
            console.print(line(f"{name}: {result.warning}", style="yellow"))
    for note in data.notes:
        console.print(line(note, style="yellow"))
    text = "the layers were chosen on these images; what the artifact is worth on others, coordatt-deploy evaluate says"
    console.print(line(text, style="dim"))


def _db(value: float | None) -> str:
    return "no change" if value is None or not math.isfinite(value) else f"{value:.1f} dB"


def _unit(document: SearchResult) -> str:
    metric = document.metric
    return " points" if metric is None or metric.in_points else f" of {metric.name}"


def _figure(value: float, document: SearchResult) -> str:
    """Hundredths of a point, or four digits of what has a unit of its own."""
    metric = document.metric
    return f"{value:+.2f}" if metric is None or metric.in_points else f"{value:+.4g}"
