"""A build as a table: artifacts with their verdicts and latency."""

from collections.abc import Sequence

from rich.text import Text

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.documents import JsonObject, object_of
from coordatt_deploy.manifest import RefusedFile
from coordatt_deploy.parity.result import ParityReport
from coordatt_deploy.profile.result import LatencyRecord, ProfileResult
from coordatt_deploy.report.terminal.console import host_line, label, line, new_console, new_table, size
from coordatt_deploy.report.terminal.parity import _evidence, _explain, _verdict


def summary(parity: ParityReport, profile: ProfileResult) -> list[JsonObject]:
    """Return one entry per artifact: its manifest entry, its verdict, its median latency."""
    timed = {item.path: item for item in profile.results}
    entries = []
    for item in parity.artifacts:
        verdict = object_of(item.record())
        verdict.pop("layers", None)
        latency = timed.get(item.artifact.path)
        figures = object_of(latency) if latency else {}
        entries.append(
            object_of(item.artifact)
            | verdict
            | {"layer_map": item.artifact.layers}
            | {key: figures.get(key) for key in ("median_ms", "p90_ms", "ci95_ms", "verdict", "threads")}
        )
    return entries


def show_artifacts(bundle: Bundle) -> None:
    """What ``export`` wrote."""
    table = new_table(
        str(bundle.root), "artifact", "format", "precision", "size", "layers mapped", right=("size", "layers mapped")
    )
    for artifact in bundle.manifest.artifacts:
        coverage = bundle.layers(artifact).coverage
        table.add_row(line(artifact.path), artifact.format, artifact.precision, size(artifact.bytes), f"{coverage:.0%}")
    new_console().print(table)
    show_refused(bundle.manifest.refused)


def show_refused(refused: Sequence[RefusedFile]) -> None:
    """Which files could not be written, and why: a row for each operator that stands in the way."""
    if not refused:
        return
    table = new_table("not written", "artifact", "layer and line", "operator", "reason and remedy")
    for file in refused:
        for item in file.operators:
            where = Text("\n").join(map(line, filter(None, (item.layer, item.line))))
            table.add_row(str(file), where, item.operator, f"{item.reason}; {item.remedy}")
        if not file.operators:
            table.add_row(str(file), "–", "–", file.reason)
    new_console().print(table)


def show_build(bundle: Bundle, report: ParityReport, profile: ProfileResult) -> None:
    """One line per file: size, runtime, origin, parity, latency."""
    latency = {item.path: item for item in profile.results}
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
        median = "–" if timed is None else f"{timed.median_ms:.2f} ms" + _remark(timed)
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
    show_refused(bundle.manifest.refused)
    console.print(line(host_line(profile), style="dim"))


def _remark(result: LatencyRecord) -> str:
    if result.origin is Origin.EVALUATED:
        return " (evaluator)"
    return "" if result.verdict == "stable" else f" ({result.verdict})"
