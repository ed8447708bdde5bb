"""Parity as a table: verdicts, evidence, layers."""

import math
import re
from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.parity.layers import ArtifactLayers, LayerRow
from coordatt_deploy.parity.result import ArtifactParity, ParityReport
from coordatt_deploy.parity.tolerances import Tolerance
from coordatt_deploy.plurals import counted, of_total, verb
from coordatt_deploy.progress import VERBOSITY, Verbosity
from coordatt_deploy.report.terminal.console import bundle_command, label, line, new_console, say
from coordatt_deploy.report.terminal.tables import GAP, Column, show_below, show_table

LAYER_TITLE: Final = "SQNR in dB by layer: accumulated / local; = seen through a later layer, ∞ equal"
LONGEST_LAYER: Final = 40  # longer ones are folded


def verdict(item: ArtifactParity) -> Text:
    """Return the verdict on a file in a word."""
    if item.passed is None:
        return line("not run", style="yellow")
    if not item.provable:
        return line("UNPROVEN", style="bold red")
    return line("passed", style="green") if item.passed else line("FAILED", style="bold red")


def evidence(item: ArtifactParity) -> tuple[str, str, str]:
    """Return worst error, SQNR and agreement of classes, the one that decides with what was allowed."""
    worst = item.worst()
    if worst is None:
        return "–", "–", "–"
    agreement = "–" if worst.top1_agreement is None else f"{worst.top1_agreement:.1%}"
    if item.tolerance is not None and item.tolerance.min_sqnr_db is not None:
        return f"{worst.max_abs_error:.2g}", f"{worst.sqnr_db:.1f} of {item.tolerance.min_sqnr_db:g} dB", agreement
    return f"{worst.error_of_worst_case:.2g} of {worst.allowed:.2g}", f"{worst.sqnr_db:.1f} dB", agreement


COLUMNS: Final = (
    Column("artifact"), Column("parity"), Column("SQNR", right=True), Column("worst error", right=True, rank=1),
    Column("top-1 agreement", right=True), Column("runtime", rank=3), Column("origin", rank=2),
)  # fmt: skip


def show_parity(bundle: Bundle, report: ParityReport, *, layers: bool = False) -> None:
    """The verdict over all files, a reason for each that failed, then the figures; what was allowed if verbose."""
    console = new_console()
    show_verdict(console, bundle, report)
    console.print()
    rows = [
        (label(item.artifact), verdict(item), *_reordered(evidence(item)), item.runtime or "–", item.origin or "–")
        for item in report.artifacts
    ]
    where = f" on {report.target}" if report.target else ""
    title = f"Parity of {bundle.manifest.model.name} over {counted(len(report.cases), 'input')}{where}"
    show_table(console, title, COLUMNS, rows)
    if bundle.manifest.golden_source and set(report.cases) & {case.name for case in bundle.manifest.golden}:
        say(console, f"golden images: {bundle.manifest.golden_source}", style="dim")
    show_remarks(console, report)
    for file in bundle.manifest.refused:
        places = [f"{item.operator} in {', '.join(filter(None, (item.layer, item.line)))}" for item in file.operators]
        say(console, f"not written: {file}: {'; '.join(places) or file.reason}", style="yellow")
    if layers:
        _show_layers(console, report)


def _reordered(found: tuple[str, str, str]) -> tuple[str, str, str]:
    error, sqnr, agreement = found
    return sqnr, error, agreement


def show_verdict(console: Console, bundle: Bundle, report: ParityReport) -> None:
    """The verdict over all files in a line, then one line with the reason for each that is not passed."""
    text, style = overall(bundle, report)
    say(console, text, style=style)
    for item in report.artifacts:
        if item.passed is False:
            show_below(console, f"{label(item.artifact)}: {reason(item)}", style="red")
    for graph in report.graphs:
        if graph.passed is False:
            show_below(console, graph.sentence(), style="red")
    for text in report.missing:
        show_below(console, f"required, and not judged: {text}", style="red")
    required = {text.partition(": ")[0] for text in report.missing}
    for item in report.artifacts:
        if item.passed is None and item.artifact.path not in required:
            show_below(console, f"{label(item.artifact)}: {item.problem or 'not run'}", style="yellow")
    for left_out in report.skipped:
        if left_out.path not in required:
            show_below(console, f"{left_out.path}: not run: {left_out.reason}", style="yellow")


def overall(bundle: Bundle, report: ParityReport) -> tuple[str, str]:
    """Return the verdict over all files, and its style."""
    items = report.artifacts
    total = len(items) + len(report.skipped)
    failed = sum(item.passed is False for item in items)
    passed = sum(item.passed is True for item in items)
    name = bundle.manifest.model.name
    if failed:
        unproven = sum(item.passed is False and not item.provable for item in items)
        wrong = failed - unproven
        said = [f"{_some(wrong, total)} {verb(wrong, 'does')} not compute the function of {name}"] if wrong else []
        said += [f"{_some(unproven, total)} cannot be proven"] if unproven else []
        return f"FAILED: {'; '.join(said)}.", "bold red"
    if any(graph.passed is False for graph in report.graphs):
        return f"FAILED: the graph that the files of {name} are made from is not the captured one.", "bold red"
    if not passed:
        return f"NOT JUDGED: none of {counted(total, 'file')} of {name} can be run here.", "bold yellow"
    whole = [item.by_layer for item in items if item.passed]
    by_layer = ", at every layer" if all(whole) else ""
    if passed < total:
        text = f"{of_total(passed, total, 'file')} {verb(passed, 'computes')} the function of {name}{by_layer}"
        rest = total - passed
        return f"PASSED in part: {text}; {rest} {verb(rest, 'was')} not judged.", "bold yellow"
    all_files = {1: "the file computes", 2: "both files compute"}.get(total, f"all {total} files compute")
    return f"PASSED: {all_files} the function of {name}{by_layer}.", "bold green"


def _some(count: int, total: int) -> str:
    return "the file" if total == 1 else of_total(count, total, "file")


def reason(item: ArtifactParity) -> str:
    """Return why an artifact failed: the first layer that is wrong, else its outputs; both if verbose."""
    found = item.layers.sentence().partition(": ")[2] if item.layers is not None and item.layers.passed is False else ""
    problem = (item.problem or "").removeprefix(f"{item.artifact.path}: ")
    if found and problem and found not in problem and VERBOSITY.get() is Verbosity.VERBOSE:
        return f"{found}; {problem}"
    return found or problem or "beyond tolerance"


def _show_layers(console: Console, report: ParityReport) -> None:
    judged = [
        *report.graphs,
        *(item.layers for item in report.artifacts if item.layers is not None and item.layers.rows),
    ]
    if not judged:
        return
    for group in _beside_each_other(judged, console.width):
        console.print()
        _show_layer_table(console, group)
    reasons: dict[str, list[str]] = {}
    for item in judged:
        for row in item.rows:
            if row.note and not row.accumulated:
                reasons.setdefault(re.sub(r"\d+", "N", row.note), []).append(row.layer_id)
    for reason, layers in reasons.items():
        names = list(dict.fromkeys(layers))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        say(console, f"{', '.join(names[:3])}{more}: {reason}", style="dim")
    for item in judged:
        if item.marked_difference:
            text = f"{item.name}: keeping inner tensors changed the outputs by up to {item.marked_difference:.2g}"
            say(console, f"{text}; the verdict on outputs comes from the unmarked file", style="dim")


def _heads(item: ArtifactLayers) -> list[str]:
    """The lines above a column of figures: words are not broken."""
    return (label(item.artifact).plain if item.artifact else item.name).split()


def _width(item: ArtifactLayers) -> int:
    """What a column of figures needs, its frame included: rich would crop the table rather than the layer's name."""
    cells = (cell_len(_layer_cell(row).plain) for row in item.rows)
    return max(*map(cell_len, _heads(item)), *cells) + GAP


def _layer_width(judged: Sequence[ArtifactLayers]) -> int:
    return min(max(cell_len(row.layer_id) for row in judged[0].rows), LONGEST_LAYER)


def _beside_each_other(judged: Sequence[ArtifactLayers], width: int) -> list[list[ArtifactLayers]]:
    """Part the columns into tables, each within *width*; one column at least, beside a folded name if need be."""
    room = width - _layer_width(judged) - GAP
    groups: list[list[ArtifactLayers]] = []
    left = 0
    for item in judged:
        if not groups or _width(item) > left:
            groups.append([])
            left = room
        groups[-1].append(item)
        left -= _width(item)
    return groups


def _show_layer_table(console: Console, judged: Sequence[ArtifactLayers]) -> None:
    heads = (Column(" ".join(_heads(item)), right=True) for item in judged)
    rows = [
        (parts[0].layer_id, *map(_layer_cell, parts)) for parts in zip(*(item.rows for item in judged), strict=True)
    ]
    show_table(console, LAYER_TITLE, (Column("layer", name=True), *heads), rows)


def _layer_cell(row: LayerRow) -> Text:
    if row.accumulated is None:
        return line("absent", style="dim")
    figures = " / ".join("–" if tally is None else _decibel(tally.sqnr_db) for tally in (row.accumulated, row.local))
    style = "bold red" if row.passed is False else ("yellow" if row.inherits else "")
    return line(("= " if row.seen_through else "") + figures, style=style)


def _decibel(value: float) -> str:
    return "∞" if math.isinf(value) and value > 0 else ("NaN" if math.isnan(value) else f"{value:.0f}")


def show_remarks(console: Console, report: ParityReport) -> None:
    """What to know beside the verdicts; what was allowed, and why, if verbose."""
    for sentence in report.believed:
        say(console, f"not verified: {sentence}", style="yellow")
    unjudged = dict.fromkeys(item.layers.problem for item in report.artifacts if item.layers and item.layers.problem)
    for problem in unjudged:
        say(console, f"layers not judged: {problem}", style="yellow")
    for item in report.artifacts:
        if item.passed and item.layers is not None and not item.layers.problem and not item.layers.passed:
            say(console, item.layers.sentence(), style="yellow")
    for item in report.artifacts:
        for output in item.outputs:
            if output.set_aside and output.unproven is None:
                names = ", ".join(report.cases[index] for index in output.set_aside if index < len(report.cases))
                text = f"torch itself does not reproduce {output.name} of {names}: set aside"
                say(console, f"{label(item.artifact)}: {text}", style="yellow")
    for item in report.artifacts:
        if item.warning:
            say(console, f"{label(item.artifact)}: {item.warning}", style="yellow")
    tolerances = [item.tolerance for item in report.artifacts if item.tolerance]
    if VERBOSITY.get() is Verbosity.VERBOSE:
        for text in dict.fromkeys(f"{allowed(tolerance)}; {tolerance.reason}" for tolerance in tolerances):
            say(console, text, style="dim")


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


def after_parity(bundle: Bundle, report: ParityReport) -> tuple[tuple[str, str], ...]:
    """What to type after the proof: what to attach to a report of a failure, else the figures and the page."""
    failed = next((item for item in report.artifacts if item.passed is False), None)
    if failed is None:
        return (
            (bundle_command("profile", bundle.root), "time them"),
            (bundle_command("report", bundle.root), "one page of all results"),
        )
    only = ("--format", str(failed.artifact.format))
    return (
        (bundle_command("parity", bundle.root, *only, "--layers"), "every layer of these files"),
        (bundle_command("parity", bundle.root, *only, "--save-failing", "failing"), "tensors to attach to a report"),
    )
