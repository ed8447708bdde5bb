"""Tables and progress bars on the terminal."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.parity.layer_parity import ArtifactLayers, LayerRow
from coordatt_deploy.parity.outputs import Tolerance
from coordatt_deploy.parity.verdicts import ArtifactParity, ParityReport
from coordatt_deploy.progress import Stages
from coordatt_deploy.specs import Artifact

WIDTH_WHEN_PIPED = 160
COLUMN_WIDTH = 17  # figures of a layer below the longest name that cannot be broken: static_wi8_ai8
LONGEST_LAYER = 40  # longer ones are folded
FAMILIES = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}  # platform.machine() to ours


class _Bars:
    """``progress.Progress`` drawn with rich."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars

    def start(self, stage: str, total: int | None) -> int:
        return int(self.bars.add_task(stage, total=total))

    def advance(self, handle: int) -> None:
        self.bars.advance(handle)  # type: ignore[arg-type]

    def finish(self, handle: int) -> None:
        task = self.bars.tasks[handle]
        self.bars.update(handle, total=task.total or 1, completed=task.total or 1)  # type: ignore[arg-type]


@contextmanager
def bars() -> Iterator[Stages]:
    """Show the stages on stderr while the block runs.

    The bars have a descriptor of their own: stages redirect stderr itself to keep converters off the screen.
    """
    with os.fdopen(os.dup(2), "w") as stream:
        console = Console(file=stream, stderr=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            yield Stages(_Bars(progress))


def new_console() -> Console:
    """Return stdout; wide where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_WHEN_PIPED)


def new_table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table; columns named in *right* are aligned there."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def exit_code(report: ParityReport) -> int:
    """0 all passed, 1 one failed, 3 one could not be run here."""
    graphs = any(item.passed is False for item in report.graphs)
    if graphs or any(item.passed is False for item in report.artifacts):
        return 1
    return 3 if any(item.passed is None for item in report.artifacts) else 0


def size(count: int) -> str:
    """``1.9 MB``."""
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def count(value: int) -> str:
    """``3,950,648``."""
    return f"{value:,}"


def label(artifact: Artifact) -> Text:
    """``onnx fp32 arm64``: what tells an artifact from the others of its bundle."""
    parts = (artifact.format.value, artifact.recipe or artifact.precision.value, artifact.target_cpu)
    return Text(" ".join(part for part in parts if part))


def _verdict(item: ArtifactParity) -> Text:
    if item.passed is None:
        return Text("not run", style="yellow")
    return Text("passed", style="green") if item.passed else Text("FAILED", style="bold red")


def _evidence(item: ArtifactParity) -> tuple[str, str, str]:
    worst = item.worst()
    if worst is None:
        return "–", "–", "–"
    agreement = "–" if worst.top1_agreement is None else f"{worst.top1_agreement:.1%}"
    if item.tolerance is not None and item.tolerance.min_sqnr_db is not None:
        return f"{worst.max_abs_error:.2g}", f"{worst.sqnr_db:.1f} of {item.tolerance.min_sqnr_db:g} dB", agreement
    return f"{worst.max_abs_error:.2g} of {worst.allowed:.2g}", f"{worst.sqnr_db:.1f} dB", agreement


def show_artifacts(bundle: Bundle) -> None:
    """What ``export`` wrote."""
    table = new_table(
        str(bundle.root), "artifact", "format", "precision", "size", "layers mapped", right=("size", "layers mapped")
    )
    for artifact in bundle.manifest.artifacts:
        coverage = bundle.layers(artifact).coverage
        table.add_row(Text(artifact.path), artifact.format, artifact.precision, size(artifact.bytes), f"{coverage:.0%}")
    new_console().print(table)


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
    _explain(console, report)
    if layers:
        _show_layers(console, report)


def _show_layers(console: Console, report: ParityReport) -> None:
    judged = [
        *report.graphs,
        *(item.layers for item in report.artifacts if item.layers is not None and item.layers.rows),
    ]
    if not judged:
        return
    widest = min(max(len(row.layer_id) for row in judged[0].rows), LONGEST_LAYER)
    most = max(1, (console.width - widest - 4) // COLUMN_WIDTH)
    for start in range(0, len(judged), most):
        console.print(_layer_table(judged[start : start + most]))
    reasons: dict[str, list[str]] = {}
    for item in judged:
        for row in item.rows:
            if row.note and not row.accumulated:
                reasons.setdefault(re.sub(r"\d+", "N", row.note), []).append(row.layer_id)
    for reason, layers in reasons.items():
        names = list(dict.fromkeys(layers))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        console.print(Text(f"{', '.join(names[:3])}{more}: {reason}", style="dim"))
    for item in judged:
        if item.marked_difference:
            text = f"{item.name}: keeping inner tensors changed the outputs by up to {item.marked_difference:.2g}"
            console.print(Text(f"{text}; the verdict on outputs comes from the unmarked file", style="dim"))


def _layer_table(judged: Sequence[ArtifactLayers]) -> Table:
    names = [label(item.artifact).plain if item.artifact else item.name for item in judged]
    table = new_table(
        "SQNR in dB by layer: accumulated / local; = seen through a later layer, ∞ equal", "layer", *names
    )
    table.columns[0].min_width = min(max(len(row.layer_id) for row in judged[0].rows), LONGEST_LAYER)
    for rows in zip(*(item.rows for item in judged), strict=True):
        table.add_row(Text(rows[0].layer_id), *(_layer_cell(row) for row in rows))
    return table


def _layer_cell(row: LayerRow) -> Text:
    if row.accumulated is None:
        return Text("absent", style="dim")
    figures = " / ".join("–" if tally is None else _decibel(tally.sqnr_db) for tally in (row.accumulated, row.local))
    style = "bold red" if row.passed is False else ("yellow" if row.inherits else "")
    return Text(("= " if row.seen_through else "") + figures, style=style)


def _decibel(value: float) -> str:
    return "∞" if math.isinf(value) and value > 0 else ("NaN" if math.isnan(value) else f"{value:.0f}")


def _explain(console: Console, report: ParityReport) -> None:
    for path, reason in report.skipped:
        console.print(Text(f"{path}: not run: {reason}", style="yellow"))
    unjudged = dict.fromkeys(item.layers.problem for item in report.artifacts if item.layers and item.layers.problem)
    for problem in unjudged:
        console.print(Text(f"layers not judged: {problem}", style="yellow"))
    for graph in report.graphs:
        console.print(Text(graph.sentence(), style="green" if graph.passed else "bold red"))
    for item in report.artifacts:
        if item.layers is not None and not item.layers.problem:
            console.print(Text(item.layers.sentence(), style="green" if item.layers.passed else "bold red"))
    for item in report.artifacts:
        said = item.layers.sentence().partition(": ")[2] if item.layers is not None and item.layers.rows else None
        if item.problem and item.problem != said:
            console.print(
                Text(f"{item.artifact.path}: {item.problem}", style="red" if item.passed is False else "yellow")
            )
    for item in report.artifacts:
        if item.warning:
            console.print(Text(f"{item.artifact.path}: {item.warning}", style="yellow"))
    for tolerance in dict.fromkeys(item.tolerance for item in report.artifacts if item.tolerance):
        console.print(Text(f"{allowed(tolerance)}; {tolerance.reason}", style="dim"))


def allowed(tolerance: Tolerance) -> str:
    """``allowed: 16 × torch-float32's own rounding error``: what a tolerance asks for, without its reason."""
    asked = []
    if tolerance.weight_bits is not None:
        asked.append(f"{tolerance.multiple:g} × the noise of torch rounding to integers, in every channel of a layer")
    elif tolerance.min_sqnr_db is None:
        basis = {"fp32": "torch-float32's", "fp16": "float16 storage's"}[tolerance.basis.value]
        asked.append(f"{tolerance.multiple:g} × {basis} own rounding error")
    if tolerance.min_sqnr_db is not None:
        asked.append(f"at least {tolerance.min_sqnr_db:g} dB")
    if tolerance.min_top1_agreement is not None:
        asked.append(f"the same class in {tolerance.min_top1_agreement:.0%} of the images")
    return f"allowed: {', '.join(asked)}"


def show_build(bundle: Bundle, report: ParityReport, profile: Mapping[str, Any]) -> None:
    """One line per file: size, runtime, origin, parity, latency."""
    latency = {item["path"]: item for item in profile["results"]}
    table = new_table(
        f"{bundle.manifest.model.name} → {bundle.root}",
        "artifact",
        "size",
        "runtime",
        "origin",
        "worst error",
        "SQNR",
        "top-1 agreement",
        "parity",
        "median latency",
        right=("size", "worst error", "SQNR", "top-1 agreement", "median latency"),
    )
    for item in report.artifacts:
        timed = latency.get(item.artifact.path)
        median = "–" if timed is None else f"{timed['median_ms']:.2f} ms" + _remark(timed)
        table.add_row(
            label(item.artifact),
            size(item.artifact.bytes),
            item.runtime or "–",
            item.origin or "–",
            *_evidence(item),
            _verdict(item),
            median,
        )
    console = new_console()
    console.print(table)
    _explain(console, report)
    console.print(Text(host_line(profile), style="dim"))


def _remark(result: Mapping[str, Any]) -> str:
    if result["origin"] == "evaluated":
        return " (evaluator)"
    verdict = result.get("verdict")
    return "" if verdict in (None, "stable") else f" ({verdict})"


def host_line(profile: Mapping[str, Any]) -> str:
    """Say what a profile was taken on, and what its figures do not say."""
    host = profile["host"]
    text = f"latency: one image on {host['cpu']}, {host['os']}; the evaluator's time says nothing about a phone"
    cpus = {item["target_cpu"] for item in profile["results"]} - {None, FAMILIES.get(host["architecture"])}
    if cpus:
        text += f"; the {' and '.join(sorted(cpus))} form is made for another CPU than this one and is slower here"
    return text


def show_models(cards: Sequence[Any]) -> None:
    """The backbones."""
    table = new_table(
        "Backbones", "name", "parameters", "MACs", "attention", "trained", "input size", right=("parameters", "MACs")
    )
    for card in cards:
        height, width = card.input_size
        table.add_row(
            card.name,
            count(card.parameters),
            f"{card.macs / 1e6:.1f} M",
            card.attention or "–",
            "yes" if card.trained else "no",
            f"{height}x{width}",
        )
    new_console().print(table)


def show_doctor(findings: Any, targets: Sequence[Any] = ()) -> None:
    """What is here and what is missing."""
    console = new_console()
    host = findings.host
    console.print(Text(f"{host.cpu}, {host.cores_available} of {host.cores} cores, {host.os}, Python {host.python}"))
    console.print(Text(f"CPU features: {', '.join(host.features) or 'none known'}"))
    table = new_table("Packages", "package", "version", "for", "to install")
    for part in findings.parts:
        table.add_row(part.name, part.version or Text("missing", style="yellow"), part.purpose, Text(part.remedy or ""))
    console.print(table)
    for target in targets:
        counts = "counts instructions" if target.counts else target.no_counts_because or ""
        remark = counts if target.state == "ready" else f"{target.reason or ''}; run: {target.command}"
        console.print(Text(f"target {target.name}: {target.state}; {remark}".rstrip("; ")))
    for note in findings.notes:
        console.print(Text(note, style="dim"))
