"""Instructions per inference of a bundle's artifacts on a target that counts them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import ClassVar

from coordatt_deploy import targets
from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.documents import check_version, dump, from_json, parse_object
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.progress import Stages
from coordatt_deploy.report_file import ReportFile, report_name
from coordatt_deploy.run_records import GOLDEN, Covered, NotRun, RunInputs, RunRecord, accumulated, begin_session
from coordatt_deploy.targets import InstructionCount
from coordatt_deploy.tensors import encode


@dataclass(frozen=True, slots=True)
class CountedArtifact:
    """Instructions of one artifact.

    Attributes:
        path: Of the artifact in the bundle; its other traits in the manifest follow.
        runtime: What ran it, with its version and CPU.
        origin: Whether it ran on a CPU or on an emulated one.
        instructions: Median over the inferences counted.
        classes: The inference with that median, by class; they add up to it.
        instructions_per_inference: In the order of counting; the warm-ups before them are left out.
        spread: (greatest - least) / median of them.
    """

    path: str
    format: Format
    precision: Precision
    recipe: str | None
    target_cpu: TargetCpu | None
    runtime: str
    origin: Origin
    instructions: int
    classes: Mapping[str, int]
    instructions_per_inference: tuple[int, ...]
    spread: float


@dataclass(frozen=True, slots=True)
class InstructionRatio:
    """The instructions of artifact *a* over those of artifact *b*; both are paths."""

    a: str
    b: str
    ratio: float


@dataclass(frozen=True, slots=True)
class InstructionProfile:
    """What one call counted.

    Attributes:
        target: With its CPU, e.g. ``qemu-arm64:neoverse-n1``.
        results: One for each artifact that ran, in the order of the manifest.
        ratios: Of every two of them.
        skipped: The artifacts that did not run.
    """

    VERSION: ClassVar[int] = 1

    target: str
    results: tuple[CountedArtifact, ...]
    ratios: tuple[InstructionRatio, ...]
    skipped: tuple[NotRun, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionRun(RunRecord):
    """One artifact, counted once."""

    result: CountedArtifact


@dataclass(frozen=True, slots=True)
class InstructionReports:
    """The document ``reports/profile-TARGET.json``: the runs of many calls.

    Attributes:
        runs: A later run takes the place of an earlier one of the same artifact.
        skipped: What the target could not run, in the last call.
    """

    VERSION: ClassVar[int] = 2

    runs: tuple[InstructionRun, ...] = ()
    skipped: tuple[NotRun, ...] = ()


def read_reports(text: str) -> InstructionReports:
    """Read ``reports/profile-TARGET.json``, of this schema or of the first.

    Raises:
        DocumentError: It is damaged, or of another schema.
    """
    document = parse_object(text)
    check_version(document, 1, InstructionReports.VERSION)
    if document["schema_version"] == InstructionReports.VERSION:
        return from_json(InstructionReports, document)
    profile = from_json(InstructionProfile, document)
    return InstructionReports(_runs(profile, {}, {}, None), profile.skipped)


def count_on(
    bundle: Bundle,
    target: str,
    stages: Stages,
    *,
    formats: Sequence[Format],
    output: Path | None = None,
    command: str = "",
) -> InstructionProfile:
    """Count the target's instructions per inference of every artifact, and keep them.

    They go into ``reports/profile-TARGET.json``, or *output*.

    Raises:
        UsageError: No such target, nothing that can run there, or the figures could not be kept.
        MissingDependencyError: The target is not set up, or cannot count.
    """
    name = targets.parse(target)
    module = targets.target(name.name)
    kept = ReportFile(bundle, report_name("profile", str(name)), output)
    kept.check()
    able, unable = targets.runnable(bundle.manifest.artifacts, module, formats, str(bundle.root))
    inputs = bundle.golden("inputs")
    results: list[CountedArtifact] = []
    for artifact in able:
        with stages.stage(f"{name} {Path(artifact.path).name}"):
            feeds = {spec.name: encode(inputs[spec.name][0], spec) for spec in artifact.inputs}
            counted = module.count_instructions(bundle.path(artifact.path), artifact, feeds, cpu=name.cpu)
        results.append(_result(artifact, counted))
    profile = InstructionProfile(
        target=str(name),
        results=tuple(results),
        ratios=tuple(
            InstructionRatio(a.path, b.path, a.instructions / b.instructions) for a, b in combinations(results, 2)
        ),
        skipped=tuple(NotRun(artifact.path, reason) for artifact, reason in unable),
    )
    with kept.replacing():
        _keep(kept, bundle, profile, command)
    return profile


def _keep(file: ReportFile, bundle: Bundle, profile: InstructionProfile, command: str) -> None:
    """Add the runs of this call to the report."""
    earlier = file.earlier(read_reports, InstructionReports())
    session = begin_session(profile.target, command)
    hashes = {artifact.path: artifact.sha256 for artifact in bundle.manifest.artifacts}
    runs = tuple(
        replace(run, machine=session.machine, command=session.command)
        for run in _runs(profile, hashes, session.tool_versions, session.time)
    )
    file.write(dump(InstructionReports(accumulated(earlier.runs, runs), profile.skipped)))


def _runs(
    profile: InstructionProfile, hashes: Mapping[str, str], tool_versions: dict[str, str], time: str | None
) -> tuple[InstructionRun, ...]:
    return tuple(
        InstructionRun(
            kind="instructions",
            artifact=item.path,
            sha256=hashes.get(item.path),
            place=profile.target,
            inputs=RunInputs(GOLDEN, 1),
            covered=Covered(),
            tool_versions=tool_versions,
            time=time,
            result=item,
        )
        for item in profile.results
    )


def _result(artifact: Artifact, counted: InstructionCount) -> CountedArtifact:
    return CountedArtifact(
        path=artifact.path,
        format=artifact.format,
        precision=artifact.precision,
        recipe=artifact.recipe,
        target_cpu=artifact.target_cpu,
        runtime=counted.runtime,
        origin=counted.origin,
        instructions=counted.total,
        classes=dict(counted.classes),
        instructions_per_inference=counted.per_inference,
        spread=counted.spread,
    )
