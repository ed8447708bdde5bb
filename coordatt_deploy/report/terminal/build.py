"""A build as a table: artifacts with their verdicts and latency."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.documents import JsonObject, object_of
from coordatt_deploy.formats import facts
from coordatt_deploy.manifest import RefusedFile
from coordatt_deploy.parity.result import ParityReport
from coordatt_deploy.plurals import counted, of_total, verb
from coordatt_deploy.profile.result import LatencyRecord, ProfileResult
from coordatt_deploy.report.terminal.console import bundle_command, host_line, label, new_console, say, size
from coordatt_deploy.report.terminal.parity import after_parity, evidence, show_remarks, show_verdict, verdict
from coordatt_deploy.report.terminal.tables import Column, show_below, show_table

WITHOUT_DATA: Final = "dynamic_wi8_afp32"  # a recipe that measures nothing


def summary(bundle: Bundle, parity: ParityReport, profile: ProfileResult) -> list[JsonObject]:
    """Return one entry per artifact: its manifest entry, its verdict, its median latency, and what was reused of it."""
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
            | {
                "reused": item.artifact.path in bundle.reused,
                "proven_before": None if item.earlier is None else item.earlier.time,
            }
        )
    return entries


def show_artifacts(bundle: Bundle) -> None:
    """What the bundle holds, or of it what the command that gave it wrote."""
    written = [item for item in bundle.manifest.artifacts if bundle.written is None or item.path in bundle.written]
    console = new_console()
    if bundle.written is not None:
        asked = len(written) + len(bundle.refused)
        if bundle.refused:
            say(console, f"{of_total(len(written), asked, 'file')} written to {bundle.root}", style="bold red")
        else:
            say(console, f"{counted(asked, 'file')} written to {bundle.root}", style="bold green")
    columns = (
        Column("artifact"), Column("size", right=True), Column("layers mapped", right=True, rank=1),
        Column("file", rank=2, name=True),
    )  # fmt: skip
    rows = [(label(item), size(item.bytes), f"{bundle.layers(item).coverage:.0%}", item.path) for item in written]
    show_table(console, "" if bundle.written is not None else str(bundle.root), columns, rows)
    others = len(bundle.manifest.artifacts) - len(written)
    if others:
        say(console, f"the bundle also holds {counted(others, 'earlier file')}", style="dim")
    show_refused(bundle.manifest.refused)


def show_refused(refused: Sequence[RefusedFile]) -> None:
    """Which files could not be written, and why: each operator that stands in the way, with what to do about it."""
    if not refused:
        return
    console = new_console()
    console.print()
    for file in refused:
        what = f": {counted(len(file.operators), 'operator')} in the way" if file.operators else f": {file.reason}"
        say(console, f"not written: {file}{what}", style="bold red")
        for item in file.operators:
            where = ", ".join(filter(None, (item.layer, item.line)))
            show_below(console, f"{item.operator} in {where}")
            show_below(console, item.reason, depth=2)
            show_below(console, f"remedy: {item.remedy}", depth=2)


BUILT: Final = (
    Column("artifact"), Column("parity"), Column("size", right=True), Column("SQNR", right=True),
    Column("median latency", right=True), Column("worst error", right=True, rank=2),
    Column("top-1 agreement", right=True, rank=1), Column("runtime", rank=4), Column("origin", rank=3),
)  # fmt: skip
FILE: Final = Column("file", rank=1)


def show_build(bundle: Bundle, report: ParityReport, profile: ProfileResult) -> None:
    """The verdict and the reasons of failures; then a line for each file: parity, size, evidence, latency."""
    latency = {item.path: item for item in profile.results}
    console = new_console()
    show_verdict(console, bundle, report)
    console.print()
    rows: list[tuple[Text | str, ...]] = []
    for item in report.artifacts:
        timed = latency.get(item.artifact.path)
        median = "–" if timed is None else f"{timed.median_ms:.2f} ms" + _remark(timed)
        error, sqnr, agreement = evidence(item)
        rows.append((
            label(item.artifact), *_made(bundle, item.artifact), verdict(item), size(item.artifact.bytes), sqnr, median,
            error, agreement, item.runtime or "–", item.origin or "–",
        ))  # fmt: skip
    columns = (*BUILT[:1], FILE, *BUILT[1:]) if bundle.reused else BUILT
    show_table(console, f"{bundle.manifest.model.name} → {bundle.root}", columns, rows)
    _show_proven_before(console, report)
    show_remarks(console, report)
    show_refused(bundle.manifest.refused)
    say(console, host_line(profile), style="dim")


def _made(bundle: Bundle, artifact: Artifact) -> tuple[str, ...]:
    """Say where the file comes from, where some were not made anew."""
    if not bundle.reused:
        return ()
    if artifact.path in bundle.reused:
        return ("reused",)
    return ("new" if bundle.written is None or artifact.path in bundle.written else "earlier",)


def _show_proven_before(console: Console, report: ParityReport) -> None:
    """Say which verdicts are of an earlier run, and of which."""
    earlier = [item.earlier for item in report.artifacts if item.earlier is not None]
    if not earlier:
        return
    runs = dict.fromkeys(
        f"{item.time[:16].replace('T', ' ')} UTC by coordatt-deploy {item.version}" for item in earlier
    )
    most = len(earlier) == len(report.artifacts) > 1
    whose = "all files were" if most else f"{counted(len(earlier), 'file')} {verb(len(earlier), 'was')}"
    text = f"{whose} proven before, byte for byte these, on this CPU: {'; '.join(runs)}; prove anew with --no-cache"
    say(console, text, style="dim")


def _remark(result: LatencyRecord) -> str:
    if result.origin is Origin.EVALUATED:
        return " (evaluator)"
    return "" if result.verdict == "stable" else f" ({result.verdict})"


def after_export(bundle: Bundle) -> tuple[tuple[str, str], ...]:
    """What to type after an export: the proof, then the figures."""
    return (
        (bundle_command("parity", bundle.root), "prove that all files compute the same function"),
        (bundle_command("profile", bundle.root), "time them"),
    )


def after_build(bundle: Bundle, report: ParityReport) -> tuple[tuple[str, str], ...]:
    """What to type after a build: what tells more of a failure, else int8, and the page."""
    if report.exit_code == 1:
        return after_parity(bundle, report)
    page = bundle_command("report", bundle.root), "one page of all results"
    return (page,) if bundle.manifest.quantization else (*_small_files(bundle), page)


def _small_files(bundle: Bundle) -> tuple[tuple[str, str], ...]:
    """The command for small files that needs nothing but the bundle: a user's model brings no calibration data."""
    # it knows the packaged data; what shows a bundle on a board has no need of it
    from coordatt_deploy.conversion.calibration import own_dataset

    manifest = bundle.manifest
    if own_dataset(manifest.model.source_sha256) is not None:
        return ((bundle_command("quantize", bundle.root), "int8 files beside these"),)
    able = next((item.format for item in manifest.artifacts if WITHOUT_DATA in facts(item.format).recipes), None)
    if able is not None:
        command = bundle_command("quantize", bundle.root, "--format", able, "--recipe", WITHOUT_DATA)
        return ((command, "int8 weights, without data"),)
    return ()


def after_quantize(bundle: Bundle) -> tuple[tuple[str, str], ...]:
    """What to type after quantizing: the proof, then the figures."""
    return (
        (bundle_command("parity", bundle.root), "prove the new files"),
        (bundle_command("profile", bundle.root), "time them"),
    )
