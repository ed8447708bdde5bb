"""What one command found at many places: a row for each file, a column for each place."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.evaluation.result import SubjectAccuracy
from coordatt_deploy.fleet.result import FleetResult, Found, PlaceResult
from coordatt_deploy.inspection.result import InspectionResult
from coordatt_deploy.parity.result import ArtifactVerdict
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.result import LatencyRecord
from coordatt_deploy.report.terminal.console import label, line, new_console, say
from coordatt_deploy.report.terminal.tables import Column, show_table
from coordatt_deploy.run_records import NotRun

HEADS = {
    "parity": "Parity of {}",
    "profile": "Latency of {}: median in ms, and its 95 % interval",
    "evaluate": "Accuracy of {}",
    "inspect": "Files",
    "doctor": "Packages",
}
NOTHING = "–"


def show_fleet(result: FleetResult, bundle: Bundle | None = None) -> None:
    """A table of what was found; below it each place that has no result, with the reason."""
    console = new_console()
    told = [place for place in result.places if place.found is not None]
    labels = {} if bundle is None else {item.path: label(item) for item in bundle.manifest.artifacts}
    cells = {place.place: _cells(place.found) for place in told if place.found is not None}
    rows = list(dict.fromkeys(name for found in cells.values() for name in found))
    ordered = [name for name in labels if name in rows] + [name for name in rows if name not in labels]
    if ordered:
        columns = (
            Column("package" if result.command == "doctor" else "file"),
            *(Column(item.place, prose=True) for item in told),
        )
        table = [
            (labels.get(name, line(name)), *(cells[place.place].get(name, line(NOTHING)) for place in told))
            for name in ordered
        ]
        name = "" if bundle is None else bundle.manifest.model.name
        show_table(console, HEADS[result.command].format(name), columns, table)
    for place in told:
        _show_machine(console, place)
        for note in _notes(place.found):
            say(console, f"{place.place}: {note}", style="dim")
    for place in result.places:
        if place.problem is not None:
            say(console, f"{place.place}: {place.problem}", style="red")
    done = sum(place.problem is None for place in result.places)
    say(console, f"{done} of {counted(len(result.places), 'place')} answered", style="bold")


def _cells(found: Found) -> dict[str, Text]:
    """What a place says of each file."""
    if found.parity is not None:
        return _not_run(found.parity.skipped) | {run.artifact: _verdict(run.result) for run in found.parity.runs}
    if found.profile is not None:
        skipped = [item for session in found.profile.sessions for item in session.skipped]
        return _not_run(skipped) | _latencies([run.result for run in found.profile.runs])
    if found.instructions is not None:
        counts = {run.artifact: run.result.instructions for run in found.instructions.runs}
        told = {path: line(f"{count / 1e6:.1f} M instructions") for path, count in counts.items()}
        return _not_run(found.instructions.skipped) | told
    if found.evaluation is not None:
        return _not_run(found.evaluation.skipped) | {
            run.artifact: _accuracy(run.result) for run in found.evaluation.runs
        }
    if found.installation is not None:
        return {part.name: line(part.version or "missing") for part in found.installation.parts}
    return _inspected(found)


def _not_run(skipped: Sequence[NotRun]) -> dict[str, Text]:
    return {item.path: line(f"not run: {item.reason}", style="dim") for item in skipped}


def _notes(found: Found | None) -> tuple[str, ...]:
    """What a place adds to its figures."""
    if found is None:
        return ()
    runs = () if found.evaluation is None else found.evaluation.runs
    whole = () if found.bundle_inspection is None else found.bundle_inspection.notes
    return tuple(dict.fromkeys((*whole, *(note for run in runs for note in run.notes))))


def _inspected(found: Found) -> dict[str, Text]:
    if found.inspection is not None:
        return {found.inspection.subject: _size(found.inspection)}
    whole = found.bundle_inspection
    return {} if whole is None else {path: _size(item) for path, item in whole.artifacts.items()}


def _size(item: InspectionResult) -> Text:
    parameters = NOTHING if item.parameters is None else f"{item.parameters:,} parameters"
    macs = NOTHING if item.macs is None else f"{item.macs / 1e6:.1f} M multiply-accumulates"
    return line(f"{parameters}, {macs}")


def _verdict(found: ArtifactVerdict) -> Text:
    if found.passed is None:
        return line("not run" if found.problem is None else f"not run: {found.problem}", style="dim")
    how = "exact" if found.exact else "" if found.sqnr_db is None else f"{found.sqnr_db:.1f} dB"
    return line(f"{'passed' if found.passed else 'FAILED'} {how}".strip(), style="green" if found.passed else "red")


def _latencies(records: Sequence[LatencyRecord]) -> dict[str, Text]:
    cells: dict[str, list[str]] = {}
    several = len({item.threads for item in records}) > 1
    for item in records:
        interval = "" if item.ci95_ms is None else f" ({item.ci95_ms[0]:.3g} … {item.ci95_ms[1]:.3g})"
        doubt = "" if item.verdict == "stable" else f" {item.verdict}"
        threads = f"{counted(item.threads, 'thread')}: " if several else ""
        figure = "evaluated" if item.origin is Origin.EVALUATED else f"{item.median_ms:.3g}{interval}{doubt}"
        cells.setdefault(item.path, []).append(f"{threads}{figure}")
    return {path: line("; ".join(texts)) for path, texts in cells.items()}


def _accuracy(item: SubjectAccuracy) -> Text:
    if item.score is None and item.top1 is None:
        return line(item.problem or "not run", style="dim")
    score = f"{item.top1:.2%}" if item.top1 is not None else f"{item.score:.4g}"
    verdict = "" if item.passed is None else " passed" if item.passed else " FAILED"
    return line(f"{score}{verdict}", style="red" if item.passed is False else "")


def _show_machine(console: Console, place: PlaceResult) -> None:
    """Say which machine it is, in its own words and the user's."""
    found = place.found
    runs: Mapping[str, str] = {} if found is None else _machines(found)
    words = [
        place.cpu or "",
        next(iter(runs.values()), ""),
        f"{place.sent_bytes / 1e6:.1f} MB sent" * bool(place.sent_bytes),
    ]
    if any(words):
        say(console, f"{place.place}: {', '.join(filter(None, words))}", style="dim")


def _machines(found: Found) -> dict[str, str]:
    for reports in (found.parity, found.profile, found.instructions, found.evaluation):
        if reports is not None:
            return {run.artifact: run.machine for run in reports.runs if run.machine is not None}
    if found.installation is not None:
        host = found.installation.host
        return {"": f"{host.cpu} ({host.architecture}), {host.os}, Python {host.python}"}
    return {}
