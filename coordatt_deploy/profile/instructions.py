"""Instructions per inference of a bundle's artifacts on a target that counts them."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from coordatt_deploy import targets
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.documents import SCHEMA_VERSION, to_json
from coordatt_deploy.formats import Format
from coordatt_deploy.progress import Stages
from coordatt_deploy.tensors import encode


def count_on(bundle: Bundle, target: str, stages: Stages, *, formats: Sequence[Format]) -> dict[str, Any]:
    """Count the target's instructions per inference of every artifact; write ``reports/profile-TARGET.json``.

    Raises:
        UsageError: No such target, or nothing that can run there.
        MissingDependencyError: The target is not set up, or cannot count.
    """
    name = targets.parse(target)
    module = targets.target(name.name)
    able, unable = targets.runnable(bundle.manifest.artifacts, module, formats, str(bundle.root))
    inputs = bundle.golden("inputs")
    results: list[dict[str, Any]] = []
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


def _file(name: targets.TargetName) -> str:
    return str(name).replace(":", "-")
