"""Parity and cost of a bundle on another machine's kernels: a target of ``coordatt_deploy.targets``."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from coordatt_deploy import targets
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.errors import DeployError, UsageError
from coordatt_deploy.parity.places import Elsewhere
from coordatt_deploy.parity.proving import Target, check_parity
from coordatt_deploy.parity.verdicts import ParityReport
from coordatt_deploy.progress import Stages
from coordatt_deploy.specs import SCHEMA_VERSION, Artifact, Format, to_json
from coordatt_deploy.targets.qemu_arm64 import guest
from coordatt_deploy.tensors import encode

CASES = 6  # a network of 224 pixels takes 5 to 8 s per inference under QEMU


def _split(
    bundle: Bundle, module: targets.Target, formats: Sequence[Format]
) -> tuple[list[Artifact], list[tuple[Artifact, str]]]:
    chosen = [artifact for artifact in bundle.manifest.artifacts if artifact.format in formats]
    able = [artifact for artifact in chosen if module.why_not(artifact) is None]
    unable = [(artifact, module.why_not(artifact) or "") for artifact in chosen if artifact not in able]
    if not able:
        reasons = "; ".join(dict.fromkeys(reason for _, reason in unable)) or "it has none in these formats"
        raise UsageError(f"nothing of {bundle.root} can run on the target: {reasons}")
    return able, unable


def check_parity_on(bundle: Bundle, target: str, stages: Stages, **options: Any) -> ParityReport:
    """Run the artifacts on *target* and judge them on a few inputs; see ``parity.proving.check_parity``.

    Args:
        bundle: Opened.
        target: ``name`` or ``name:cpu``.
        stages: Shows the progress.
        options: Of ``check_parity``.

    Raises:
        UsageError: No such target, or nothing that can run there.
        MissingDependencyError: The target is not set up; the text holds the command.
    """
    name = targets.parse(target)
    module = targets.target(name.name)
    _split(bundle, module, options.get("formats", tuple(Format)))  # before a guest is started
    with stages.stage(f"start {name}"):
        machine = guest(name.cpu)
    with machine:
        there = Target(str(name), Elsewhere(machine.open_artifact), module.why_not, CASES)
        return check_parity(bundle, stages, target=there, **options)


def count_on(bundle: Bundle, target: str, stages: Stages, *, formats: Sequence[Format]) -> dict[str, Any]:
    """Count the target's instructions per inference of every artifact; write ``reports/profile-TARGET.json``.

    Raises:
        UsageError: No such target, or nothing that can run there.
        MissingDependencyError: The target is not set up, or cannot count.
    """
    name = targets.parse(target)
    module = targets.target(name.name)
    able, unable = _split(bundle, module, formats)
    inputs = bundle.golden("inputs")
    results = []
    for artifact in able:
        with stages.stage(f"{name} {Path(artifact.path).name}"):
            feeds = {spec.name: encode(inputs[spec.name][0], spec) for spec in artifact.inputs}
            counted = module.count_instructions(bundle.path(artifact.path), artifact, feeds, cpu=name.cpu)
        results.append({
            "path": artifact.path,
            "format": artifact.format.value,
            "precision": artifact.precision.value,
            "recipe": artifact.recipe,
            "target_cpu": to_json(artifact.target_cpu),
            "runtime": counted.runtime,
            "origin": counted.origin.value,
            "instructions": counted.total,
            "classes": dict(counted.classes),
            "instructions_per_inference": list(counted.per_inference),
            "spread": counted.spread,
        })  # fmt: skip
    document = {
        "schema_version": SCHEMA_VERSION,
        "target": str(name),
        "results": results,
        "ratios": [
            {"a": a["path"], "b": b["path"], "ratio": a["instructions"] / b["instructions"]}
            for a, b in combinations(results, 2)
        ],
        "skipped": [{"path": artifact.path, "reason": reason} for artifact, reason in unable],
    }
    bundle.write_report(f"profile-{_file(name)}.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
    return document


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


def _file(name: targets.TargetName) -> str:
    return str(name).replace(":", "-")
