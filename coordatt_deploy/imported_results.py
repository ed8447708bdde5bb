"""Latencies that other tools measured, held to a bundle's files and kept as those of a place: ``profile --import``.

A tool tells little of the file that it timed: a name, a size, never a hash. A line of ``sha256sum`` in the same text
is held to the bundle's; so is the size. Where neither is there the figures are believed to be of the artifact that is
named, and whoever shows them says so.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from coordatt_deploy.added_results import check_place
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import FORMATS
from coordatt_deploy.kept_results import TIMED
from coordatt_deploy.profile.imported_result import HeldBy, ImportedLatency, ImportResult
from coordatt_deploy.profile.reports import ImportedRun, ProfileReports, read_reports
from coordatt_deploy.profile.tool_outputs import ToolOutput, ToolOutputError, read
from coordatt_deploy.report_file import ReportFile, report_name
from coordatt_deploy.run_records import Covered, RunInputs, begin_session

MOST_BYTES: Final = 8 << 20  # a result file has a line a call; what is greater is no output of one run

UNKNOWN_INPUTS: Final = "the tool's own"  # random numbers, as a rule


def import_outputs(
    bundle: Bundle,
    paths: Sequence[Path],
    place: str,
    *,
    artifact: str | None = None,
    output: Path | None = None,
    command: str = "",
) -> ImportResult:
    """Take over what other tools printed and keep it in ``reports/latency-PLACE.json``, or in *output*.

    Args:
        bundle: Opened.
        paths: Texts, each of one run of one tool.
        place: What to call the machine.
        artifact: The path, or the file name, of the artifact that was timed; found by the name in the text by default.
        output: A file in place of the bundle's.
        command: As the user typed it.

    Raises:
        UsageError: A text is none of those, or does not fit the bundle, *place* is no name, or nothing can be written.
    """
    check_place(place)
    file = ReportFile(bundle, report_name(TIMED, place), output)
    file.check()
    found = tuple(_imported(bundle, path, artifact) for path in paths)
    session = begin_session(place, command)
    hashes = {item.path: item.sha256 for item in bundle.manifest.artifacts}
    runs = tuple(
        ImportedRun(
            kind="imported",
            artifact=item.path,
            sha256=hashes[item.path],
            place=place,
            inputs=RunInputs(UNKNOWN_INPUTS, 1),
            covered=Covered(),
            tool_versions=session.tool_versions,
            time=session.time,
            command=command,
            result=item,
        )
        for item in found
    )
    with file.replacing():
        reports = file.earlier(read_reports, ProfileReports())
        for run in runs:
            reports = reports.with_imported((run,))
        file.write(dump(reports))
    return ImportResult(place, found, str(output) if output is not None else f"reports/{file.name}")


def _imported(bundle: Bundle, path: Path, name: str | None) -> ImportedLatency:
    content = _content(path)
    try:
        told = read(content.decode("utf-8", errors="replace"))
    except ToolOutputError as error:
        raise UsageError(f"{path} cannot be imported: {error}") from None
    artifact = _artifact(bundle, path, told, name)
    return ImportedLatency(
        path=artifact.path,
        format=artifact.format,
        precision=artifact.precision,
        target_cpu=artifact.target_cpu,
        tool=told.tool,
        held_by=_held(path, artifact, told),
        source=path.name,
        source_sha256=hashlib.sha256(content).hexdigest(),
        threads=told.threads,
        calls=told.calls,
        mean_ms=told.mean_ms,
        median_ms=told.median_ms,
        min_ms=told.min_ms,
        max_ms=told.max_ms,
        std_ms=told.std_ms,
        p90_ms=told.p90_ms,
        p95_ms=told.p95_ms,
        p99_ms=told.p99_ms,
        load_ms=told.load_ms,
        first_inference_ms=told.first_inference_ms,
    )


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no file; name what a benchmark program printed")
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(
                f"{path} has {path.stat().st_size >> 20} MiB; what one run of such a program prints has less"
            )
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _artifact(bundle: Bundle, path: Path, told: ToolOutput, name: str | None) -> Artifact:
    """The artifact that was timed.

    Raises:
        UsageError: It is not in the bundle, no file of the tool, or cannot be told from another.
    """
    artifacts = bundle.manifest.artifacts
    wanted = name or told.file
    known = ", ".join(item.path for item in artifacts if _tool(item) == told.tool)
    give = f"give --artifact with one of: {known}" if known else f"{bundle.root} has no file for {told.tool}"
    if wanted is None:
        raise UsageError(f"{path}: {told.tool} does not say which file it timed; {give}")
    found = [item for item in artifacts if wanted in (item.path, PurePosixPath(item.path).name)]
    if not found:
        raise UsageError(f"{path} is of {wanted!r}, and {bundle.root} has no such file; {give}")
    if len(found) > 1:
        raise UsageError(f"{path} is of {wanted!r}, and {bundle.root} has {len(found)} files of that name; {give}")
    (artifact,) = found
    if _tool(artifact) != told.tool:
        raise UsageError(f"{path} is of {told.tool}, which does not run {artifact.path}; {give}")
    others = [PurePosixPath(item.path).name for item in artifacts if item is not artifact]
    if told.file in others:
        raise UsageError(f"{path} says that {told.file!r} was timed, which is another file of {bundle.root}; {give}")
    return artifact


def _tool(artifact: Artifact) -> str | None:
    return FORMATS[artifact.format].benchmark_tool


def _held(path: Path, artifact: Artifact, told: ToolOutput) -> HeldBy:
    """What says that the figures are of the artifact's bytes.

    Raises:
        UsageError: A hash or a size is of other bytes.
    """
    again = f"copy {artifact.path} to the device again, and time that"
    names = {told.file, PurePosixPath(artifact.path).name} - {None}
    hashes = {sha256 for name, sha256 in told.sha256 if name in names}
    if not hashes and len(told.sha256) == 1:  # a file that was renamed
        hashes = {told.sha256[0][1]}
    if hashes - {artifact.sha256}:
        (other, *_) = sorted(hashes - {artifact.sha256})
        raise UsageError(
            f"{path} is of other bytes: sha256 {other[:12]}, {artifact.path} has {artifact.sha256[:12]}; {again}"
        )
    size = float(f"{artifact.bytes / 1e6:.6g}")  # as the tool prints it
    if told.size_mb is not None and abs(told.size_mb - size) > 1e-6 * max(size, 1e-3):
        raise UsageError(f"{path} is of a file of {told.size_mb:g} MB, {artifact.path} has {size:g} MB; {again}")
    # A hash of a file that the tool says it did not time tells nothing of the one that it did.
    if told.file is not None and PurePosixPath(told.file).suffix:
        hashes = {sha256 for name, sha256 in told.sha256 if name == told.file}
    return HeldBy.HASH if hashes else HeldBy.NAME if told.size_mb is None else HeldBy.SIZE
