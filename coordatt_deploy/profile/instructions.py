"""Instructions per inference of a bundle's artifacts on a target that counts them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from coordatt_deploy import targets
from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.documents import SCHEMA_VERSION, to_json
from coordatt_deploy.errors import DeployError
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.progress import Stages
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
class SkippedArtifact:
    """An artifact that the target cannot run, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class InstructionProfile:
    """What ``reports/profile-TARGET.json`` holds.

    Attributes:
        target: With its CPU, e.g. ``qemu-arm64:neoverse-n1``.
        results: One for each artifact that ran, in the order of the manifest.
        ratios: Of every two of them.
        skipped: The artifacts that did not run.
    """

    target: str
    results: tuple[CountedArtifact, ...]
    ratios: tuple[InstructionRatio, ...]
    skipped: tuple[SkippedArtifact, ...]

    def to_json(self) -> dict[str, object]:
        """Return the document."""
        return {"schema_version": SCHEMA_VERSION, **to_json(self)}


def count_on(bundle: Bundle, target: str, stages: Stages, *, formats: Sequence[Format]) -> InstructionProfile:
    """Count the target's instructions per inference of every artifact; write ``reports/profile-TARGET.json``.

    Raises:
        UsageError: No such target, or nothing that can run there.
        MissingDependencyError: The target is not set up, or cannot count.
    """
    name = targets.parse(target)
    module = targets.target(name.name)
    able, unable = targets.runnable(bundle.manifest.artifacts, module, formats, str(bundle.root))
    inputs = bundle.golden("inputs")
    results = []
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
        skipped=tuple(SkippedArtifact(artifact.path, reason) for artifact, reason in unable),
    )
    text = json.dumps(profile.to_json(), indent=1, allow_nan=False) + "\n"
    bundle.write_report(f"profile-{str(name).replace(':', '-')}.json", text)
    return profile


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


def setup(target: str, stages: Stages) -> targets.TargetStatus:
    """Build what *target* needs.

    Raises:
        UsageError: No such target.
        MissingDependencyError: A step failed; which, why, and where the log is.
    """
    return targets.target(targets.parse(target).name).setup(progress=stages.progress)


def statuses() -> tuple[targets.TargetStatus, ...]:
    """Return what is known of every target here; a target that cannot even be looked at is left out."""
    found = []
    for name in targets.TARGETS:
        try:
            found.append(targets.target(name).status())
        except DeployError:
            continue
    return tuple(found)
