"""Documents of runs that were made on another machine, taken into a bundle's ``reports/`` under that machine's name.

``parity``, ``profile`` and ``evaluate`` write the same documents everywhere, each run with the hash of the file that it
looked at. What is added is held to these: a document that tells of any other bytes is refused as a whole. What a
document says of the bytes that the bundle has is believed, as nobody can check it here, and shown with its place.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.documents import JsonObject, dump, parse_object
from coordatt_deploy.errors import UsageError
from coordatt_deploy.evaluation import reports as evaluation_reports
from coordatt_deploy.evaluation.reports import EvaluationReports
from coordatt_deploy.kept_results import EVALUATED, JUDGED, TIMED
from coordatt_deploy.parity import reports as parity_reports
from coordatt_deploy.parity.reports import ParityReports
from coordatt_deploy.profile import instructions
from coordatt_deploy.profile import reports as profile_reports
from coordatt_deploy.profile.instructions import InstructionReports
from coordatt_deploy.profile.reports import ProfileReports
from coordatt_deploy.profile.tool_outputs import LONGEST_MS
from coordatt_deploy.report_file import ReportFile, report_name
from coordatt_deploy.run_records import HERE, LONGEST_PLACE, PLACE, RunInputs, RunRecord, accumulated

MOST_BYTES: Final = 64 << 20  # a profile holds every sample; what is greater was not written by us

Reports = ParityReports | ProfileReports | EvaluationReports | InstructionReports


@dataclass(frozen=True, slots=True)
class Addition:
    """A document that fits a bundle.

    Attributes:
        source: The file that it came in, or the place.
        command: That writes such documents: ``parity``, ``profile`` or ``evaluate``.
        place: The name that its runs get.
        name: Of the file in ``reports/``.
        reports: Its runs, of that place.
    """

    source: Path | str
    command: str
    place: str
    name: str
    reports: Reports


def read_addition(bundle: Bundle, path: Path, place: str | None = None) -> Addition:
    """Read a document that another machine wrote, and hold it to the bundle.

    Args:
        bundle: That it is to tell of.
        path: A document of ``parity``, ``profile`` or ``evaluate``: what ``--output`` wrote, or one of ``reports/``.
        place: What to call the machine; made of its processor's name by default.

    Raises:
        UsageError: It is none of these, holds nothing, is of other bytes than the bundle has, or *place* is no name.
    """
    command, reports = _read(path)
    if not (reports.every if isinstance(reports, ProfileReports) else reports.runs):
        raise UsageError(f"{path} holds no run; write it again on that machine: coordatt-deploy {command} BUNDLE")
    _check(bundle, path, command, _every(reports))
    _check_figures(path, reports)
    name = _place_of(_every(reports)) if place is None else place
    check_place(name)
    return Addition(path, command, name, _file_name(reports, name), _moved(reports, name))


def check_place(name: str) -> None:
    """Refuse what cannot be the name of a machine.

    Raises:
        UsageError: It would be no name of a file, or is that of this machine.
    """
    if PLACE.fullmatch(name) is None or len(name) > LONGEST_PLACE or name == HERE:
        raise UsageError(
            f"{name!r} is no name for a machine; give small letters, digits, dots and dashes, as in --as macmini-m2"
        )


def answer_of(
    bundle: Bundle, text: str, command: str, place: str, origin: str = HERE, names: Mapping[str, str] | None = None
) -> Addition:
    """Read what *command* wrote at a place that this program ran it at, and hold it to the bundle.

    Args:
        bundle: That it is to tell of.
        text: The document.
        command: ``parity``, ``profile`` or ``evaluate``.
        place: The name that its runs get; ``here`` for this machine.
        origin: What its runs name as their place: ``here`` where a machine speaks of itself, or an emulated machine.
        names: What inputs are called here, by what they are called there.

    Raises:
        UsageError: It is no document of *command*, or tells of other bytes than the bundle has, or of another place.
    """
    try:
        found = _parsed(text)
    except ValueError as error:
        raise UsageError(f"{place} did not answer with a document of {command}: {error}") from None
    if found is None or found[0] != command:
        raise UsageError(f"{place} did not answer with a document of {command}")
    reports = found[1]
    _check(bundle, place, command, _every(reports), origin)
    _check_figures(place, reports)
    return Addition(place, command, place, _file_name(reports, place), _renamed(_moved(reports, place), names or {}))


def add(bundle: Bundle, additions: Sequence[Addition]) -> None:
    """Write documents into ``reports/``, each beside what its place had told before.

    Raises:
        UsageError: The bundle can only be read.
        BundleError: It changed since it was opened, or another process does not let go of it.
    """
    for item in additions:
        file = ReportFile(bundle, item.name)
        file.check()
        with file.replacing():
            file.write(dump(_merged(file, item)))


def _merged(file: ReportFile, item: Addition) -> Reports:
    if isinstance(item.reports, ParityReports):
        return file.earlier(parity_reports.read_reports, ParityReports()).joined(item.reports)
    if isinstance(item.reports, ProfileReports):
        return file.earlier(profile_reports.read_reports, ProfileReports()).joined(item.reports)
    if isinstance(item.reports, InstructionReports):
        earlier = file.earlier(instructions.read_reports, InstructionReports())
        return InstructionReports(accumulated(earlier.runs, item.reports.runs), item.reports.skipped)
    return file.earlier(evaluation_reports.read_reports, EvaluationReports()).joined(item.reports)


def _file_name(reports: Reports, place: str) -> str:
    """Of the file in ``reports/`` that keeps the runs of a place."""
    if isinstance(reports, ParityReports):
        stem = JUDGED
    elif isinstance(reports, EvaluationReports):
        stem = EVALUATED
    else:
        stem = TIMED if isinstance(reports, ProfileReports) and place != HERE else "profile"
    return report_name(stem, None if place == HERE else place)


def _read(path: Path) -> tuple[str, Reports]:
    """The command that wrote a document, and the document."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no file; name a document of parity, profile or evaluate")
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} has {path.stat().st_size >> 20} MiB; no document of runs is that large")
        found = _parsed(path.read_text(encoding="utf-8"))
        if found is not None and not isinstance(found[1], InstructionReports):
            return found
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is no document of runs: {error}") from None
    raise UsageError(
        f"{path} is no document of parity, profile or evaluate; write one on the other machine, such as with:"
        f" coordatt-deploy parity BUNDLE --output {path.name}"
    )


def _parsed(text: str) -> tuple[str, Reports] | None:
    """The command that wrote a document, and the document; None for one that tells of no runs.

    Raises:
        DocumentError: It is damaged, or of another schema.
    """
    document = parse_object(text)
    command = _written_by(document)
    if command == "parity":
        return command, parity_reports.read_reports(text)
    if command == "profile":
        return command, profile_reports.read_reports(text)
    if command == "evaluate":
        return command, evaluation_reports.read_reports(text)
    return ("profile", instructions.read_reports(text)) if command == "instructions" else None


def _written_by(document: JsonObject) -> str | None:
    """Which command writes documents of these keys; None for none that tells of a machine's runs."""
    if "graphs" in document:
        return "parity"
    if "sessions" in document or "yardsticks" in document:
        return "profile"
    runs = document.get("runs")
    first = runs[0] if isinstance(runs, list) and runs else None
    if isinstance(first, dict) and first.get("kind") == "instructions":
        return "instructions"
    return "evaluate" if "subjects" in document or (isinstance(first, dict) and "dataset" in first) else None


def _every(reports: Reports) -> tuple[RunRecord, ...]:
    """All runs of a document, those of a profile that are no latencies among them.

    Raises:
        UsageError: One belongs to no call that the document tells of.
    """
    if not isinstance(reports, ProfileReports):
        return reports.runs
    if reports.imported:
        raise UsageError(
            "the document holds figures that were imported; import what the tool printed: profile --import FILE"
        )
    runs = reports.every
    if {run.time for run in runs} - {session.time for session in reports.sessions}:
        raise UsageError(
            "the document holds runs of a call that it does not tell of; write it again with profile --output"
        )
    return runs


def _check(bundle: Bundle, path: Path | str, command: str, runs: Iterable[RunRecord], origin: str = HERE) -> None:
    """Refuse runs of other bytes than the bundle's files have, and those of another place than *origin*."""
    name = path.name if isinstance(path, Path) else "FILE"
    hashes = {artifact.path: artifact.sha256 for artifact in bundle.manifest.artifacts}
    for run in runs:
        if run.place != origin:
            raise UsageError(
                f"{path} tells of runs on {run.place}, not of the machine that wrote it; make them here:"
                f" coordatt-deploy {command} {bundle.root} --target {run.place}"
            )
        if run.artifact not in hashes:
            if run.sha256 is None and command == "evaluate":
                continue  # the float64 network itself
            raise UsageError(f"{path} tells of {run.artifact!r}, and {bundle.root} has no such file")
        if run.sha256 is None:
            raise UsageError(
                f"{path} does not say which bytes of {run.artifact} it looked at; write it again with:"
                f" coordatt-deploy {command} BUNDLE --output {name}"
            )
        if run.sha256 != hashes[run.artifact]:
            raise UsageError(
                f"{path} is of other bytes of {run.artifact}: {run.sha256[:12]}, here {hashes[run.artifact][:12]};"
                f" run coordatt-deploy {command} there again, on a copy of {bundle.root}"
            )
        told = getattr(getattr(run, "result", None), "path", None)
        if told is not None and told != run.artifact:
            raise UsageError(
                f"{path} calls one file {run.artifact!r} and {told!r}; it is damaged, or was changed by hand"
            )


def _check_figures(path: Path | str, reports: Reports) -> None:
    """Refuse latencies that no clock gives: whatever is kept is drawn and compared with those of other places."""
    if not isinstance(reports, ProfileReports):
        return
    timed = [(run.artifact, [run.result.median_ms, *(run.result.ci95_ms or ())]) for run in reports.runs]
    for lasting in reports.sustained:
        windows = [value for item in lasting.result.windows for value in (item.median_ms, item.p10_ms, item.p90_ms)]
        timed.append((lasting.artifact, windows or [0.0]))
    for artifact, values in timed:
        wrong = [value for value in values if not 0 < value <= LONGEST_MS]
        if wrong:
            raise UsageError(
                f"{path} tells that a call of {artifact} takes {wrong[0]:g} ms, which no clock gives; measure there"
                " again: coordatt-deploy profile"
            )


def _place_of(runs: Sequence[RunRecord]) -> str:
    """A name for the machine that the runs were made on, of its processor: ``apple-m2-arm64``."""
    machines = {run.machine for run in runs if run.machine}
    text = re.sub(r"[^a-z0-9]+", "-", next(iter(machines), "").lower()).strip("-")
    if len(machines) != 1 or not text:
        raise UsageError(
            "the document does not say on which machine it was written; name that with --as, as in --as macmini"
        )
    return text[:LONGEST_PLACE].rstrip("-")


def _moved(reports: Reports, place: str) -> Reports:
    """The same runs, of *place*; without their commands, as the page offers those of its runs to be typed."""
    if isinstance(reports, ParityReports):
        return replace(reports, runs=tuple(replace(run, place=place, command="") for run in reports.runs))
    if isinstance(reports, ProfileReports):
        return reports.moved(place)
    if isinstance(reports, InstructionReports):
        return replace(reports, runs=tuple(replace(run, place=place, command="") for run in reports.runs))
    return replace(reports, runs=tuple(replace(run, place=place, command="") for run in reports.runs))


def _renamed(reports: Reports, names: Mapping[str, str]) -> Reports:
    """The same runs, with their inputs called as they are called here."""

    def inputs(run: RunRecord) -> RunInputs:
        return replace(run.inputs, source=names.get(run.inputs.source, run.inputs.source))

    if isinstance(reports, ParityReports):
        return replace(reports, runs=tuple(replace(run, inputs=inputs(run)) for run in reports.runs))
    if isinstance(reports, EvaluationReports):
        return replace(
            reports,
            runs=tuple(
                replace(run, inputs=inputs(run), dataset=replace(run.dataset, source=inputs(run).source))
                for run in reports.runs
            ),
        )
    return reports
