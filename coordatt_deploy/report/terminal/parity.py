"""Parity as a table: verdicts, evidence, layers."""

import math
import re
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.parity.layers import ArtifactLayers, LayerRow
from coordatt_deploy.parity.result import ArtifactParity, ParityReport
from coordatt_deploy.parity.tolerances import Tolerance
from coordatt_deploy.report.terminal.console import label, line, new_console, new_table

LONGEST_LAYER = 40  # longer ones are folded
FRAME = 3  # of a column: a line, and a space on either side


def _verdict(item: ArtifactParity) -> Text:
    if item.passed is None:
        return line("not run", style="yellow")
    if not item.provable:
        return line("UNPROVEN", style="bold red")
    return line("passed", style="green") if item.passed else line("FAILED", style="bold red")


def _evidence(item: ArtifactParity) -> tuple[str, str, str]:
    worst = item.worst()
    if worst is None:
        return "–", "–", "–"
    agreement = "–" if worst.top1_agreement is None else f"{worst.top1_agreement:.1%}"
    if item.tolerance is not None and item.tolerance.min_sqnr_db is not None:
        return f"{worst.max_abs_error:.2g}", f"{worst.sqnr_db:.1f} of {item.tolerance.min_sqnr_db:g} dB", agreement
    return f"{worst.error_of_worst_case:.2g} of {worst.allowed:.2g}", f"{worst.sqnr_db:.1f} dB", agreement


def show_parity(bundle: Bundle, report: ParityReport, *, layers: bool = False) -> None:
    """The verdicts, and under them the reason of each tolerance and of each failure."""
    table = new_table(
        f"Parity of {bundle.manifest.model.name} over {len(report.cases)} inputs",
        "artifact",
        "runtime",
        "origin",
        "worst error",
        "SQNR",
        "top-1 agreement",
        "parity",
        right=("worst error", "SQNR", "top-1 agreement"),
    )
    for item in report.artifacts:
        table.add_row(label(item.artifact), item.runtime or "–", item.origin or "–", *_evidence(item), _verdict(item))
    console = new_console()
    console.print(table)
    if bundle.manifest.golden_source and set(report.cases) & {case.name for case in bundle.manifest.golden}:
        console.print(line(f"golden images: {bundle.manifest.golden_source}", style="dim"))
    _explain(console, report)
    for file in bundle.manifest.refused:
        console.print(line(f"not written: {file}: {file.reason}", style="yellow"))
    if layers:
        _show_layers(console, report)


def _show_layers(console: Console, report: ParityReport) -> None:
    judged = [
        *report.graphs,
        *(item.layers for item in report.artifacts if item.layers is not None and item.layers.rows),
    ]
    if not judged:
        return
    for group in _beside_each_other(judged, console.width):
        console.print(_layer_table(group, console.width))
    reasons: dict[str, list[str]] = {}
    for item in judged:
        for row in item.rows:
            if row.note and not row.accumulated:
                reasons.setdefault(re.sub(r"\d+", "N", row.note), []).append(row.layer_id)
    for reason, layers in reasons.items():
        names = list(dict.fromkeys(layers))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        console.print(line(f"{', '.join(names[:3])}{more}: {reason}", style="dim"))
    for item in judged:
        if item.marked_difference:
            text = f"{item.name}: keeping inner tensors changed the outputs by up to {item.marked_difference:.2g}"
            console.print(line(f"{text}; the verdict on outputs comes from the unmarked file", style="dim"))


def _heads(item: ArtifactLayers) -> list[str]:
    """The lines above a column of figures: words are not broken."""
    return (label(item.artifact).plain if item.artifact else item.name).split()


def _width(item: ArtifactLayers) -> int:
    """What a column of figures needs, its frame included: rich would crop the table rather than the layer's name."""
    cells = (cell_len(_layer_cell(row).plain) for row in item.rows)
    return max(*map(cell_len, _heads(item)), *cells) + FRAME


def _layer_width(judged: Sequence[ArtifactLayers]) -> int:
    return min(max(cell_len(row.layer_id) for row in judged[0].rows), LONGEST_LAYER)


def _beside_each_other(judged: Sequence[ArtifactLayers], width: int) -> list[list[ArtifactLayers]]:
    """Part the columns into tables, each within *width*; one column at least, beside a folded name if need be."""
    room = width - 1 - _layer_width(judged) - FRAME
    groups: list[list[ArtifactLayers]] = []
    left = 0
    for item in judged:
        if not groups or _width(item) > left:
            groups.append([])
            left = room
        groups[-1].append(item)
        left -= _width(item)
    return groups


def _layer_table(judged: Sequence[ArtifactLayers], width: int) -> Table:
    widths = [_width(item) for item in judged]
    title = "SQNR in dB by layer: accumulated / local; = seen through a later layer, ∞ equal"
    table = new_table(title, "layer", *(item.name for item in judged))
    first, *figures = table.columns
    first.min_width = max(1, min(_layer_width(judged), width - 1 - sum(widths) - FRAME))
    for column, item, needed in zip(figures, judged, widths, strict=True):
        column.header = Text("\n").join(map(line, _heads(item)))
        column.min_width = needed - FRAME
    for rows in zip(*(item.rows for item in judged), strict=True):
        table.add_row(line(rows[0].layer_id), *(_layer_cell(row) for row in rows))
    return table


def _layer_cell(row: LayerRow) -> Text:
    if row.accumulated is None:
        return line("absent", style="dim")
    figures = " / ".join("–" if tally is None else _decibel(tally.sqnr_db) for tally in (row.accumulated, row.local))
    style = "bold red" if row.passed is False else ("yellow" if row.inherits else "")
    return line(("= " if row.seen_through else "") + figures, style=style)


def _decibel(value: float) -> str:
    return "∞" if math.isinf(value) and value > 0 else ("NaN" if math.isnan(value) else f"{value:.0f}")


def _explain(console: Console, report: ParityReport) -> None:
    for left_out in report.skipped:
        console.print(line(f"{left_out.path}: not run: {left_out.reason}", style="yellow"))
    for text in report.missing:
        console.print(line(f"required, and not judged: {text}", style="bold red"))
    for sentence in report.believed:
        console.print(line(f"not verified: {sentence}", style="yellow"))
    unjudged = dict.fromkeys(item.layers.problem for item in report.artifacts if item.layers and item.layers.problem)
    for problem in unjudged:
        console.print(line(f"layers not judged: {problem}", style="yellow"))
    for graph in report.graphs:
        console.print(line(graph.sentence(), style="green" if graph.passed else "bold red"))
    for item in report.artifacts:
        if item.layers is not None and not item.layers.problem:
            console.print(line(item.layers.sentence(), style="green" if item.layers.passed else "bold red"))
    for item in report.artifacts:
        said = item.layers.sentence().partition(": ")[2] if item.layers is not None and item.layers.rows else None
        if item.problem and item.problem != said:
            console.print(
                line(f"{item.artifact.path}: {item.problem}", style="red" if item.passed is False else "yellow")
            )
    for item in report.artifacts:
        for output in item.outputs:
            if output.set_aside and output.unproven is None:
                names = ", ".join(report.cases[index] for index in output.set_aside if index < len(report.cases))
                text = f"torch itself does not reproduce {output.name} of {names}: set aside"
                console.print(line(f"{item.artifact.path}: {text}", style="yellow"))
    for item in report.artifacts:
        if item.warning:
            console.print(line(f"{item.artifact.path}: {item.warning}", style="yellow"))
    tolerances = [item.tolerance for item in report.artifacts if item.tolerance]
    for text in dict.fromkeys(f"{allowed(tolerance)}; {tolerance.reason}" for tolerance in tolerances):
        console.print(line(text, style="dim"))


def allowed(tolerance: Tolerance) -> str:
    """``allowed: 16 × torch-float32's own rounding error``: what a tolerance asks for, without its reason."""
    asked = []
    if tolerance.weight_bits is not None:
        asked.append(f"{tolerance.multiple:g} × the noise of torch rounding to integers, in every channel of a layer")
    elif tolerance.min_sqnr_db is None:
        basis = {"fp32": "torch-float32's", "fp16": "float16 storage's"}[tolerance.basis.value]
        asked.append(f"{tolerance.multiple:g} × {basis} own rounding error")
        if tolerance.least_db is not None:
            asked.append(f"at least {tolerance.least_db:.0f} dB, {tolerance.floor_db:g} dB of torch itself")
    if tolerance.min_sqnr_db is not None:
        asked.append(f"at least {tolerance.min_sqnr_db:g} dB")
    if tolerance.min_top1_agreement is not None:
        asked.append(f"the same class in {tolerance.min_top1_agreement:.0%} of the images")
    return f"allowed: {', '.join(asked)}"
