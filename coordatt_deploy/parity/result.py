"""The verdicts on a bundle's artifacts, outputs and layers together, and the document ``parity.json``."""

import math
from dataclasses import dataclass
from typing import Any

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.documents import SCHEMA_VERSION, to_json
from coordatt_deploy.parity.layers import ArtifactLayers
from coordatt_deploy.parity.outputs import OutputParity
from coordatt_deploy.parity.tolerances import Tolerance


@dataclass(frozen=True, slots=True)
class ArtifactParity:
    """The verdict on one artifact.

    Attributes:
        passed: None where the artifact could not be run here.
        outputs: One verdict per output.
        tolerance: What was applied.
        problem: Why it failed or was not run; None where it passed.
        layers: Every layer's verdict; None where layers were not asked for.
        images: Golden images that were fed from their PNG files through the artifact's own description.
        warning: Why its outputs on this machine may not be those of another; None where they are.
    """

    artifact: Artifact
    runtime: str
    origin: Origin | None
    passed: bool | None
    outputs: tuple[OutputParity, ...] = ()
    tolerance: Tolerance | None = None
    problem: str | None = None
    layers: ArtifactLayers | None = None
    warning: str | None = None
    images: int = 0

    def worst(self) -> OutputParity | None:
        """Return the output with the most error over its allowance."""
        if not self.outputs:
            return None

        def excess(output: OutputParity) -> float:
            if output.nonfinite:
                return math.inf
            return (
                output.max_abs_error
                if math.isnan(output.allowed)
                else output.max_abs_error / (output.allowed or 1e-300)
            )

        return max(self.outputs, key=excess)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of ``parity.json``."""
        worst = self.worst()
        return {
            "path": self.artifact.path,
            "sha256": self.artifact.sha256,
            "format": self.artifact.format.value,
            "precision": self.artifact.precision.value,
            "recipe": self.artifact.recipe,
            "target_cpu": to_json(self.artifact.target_cpu),
            "runtime": self.runtime,
            "origin": to_json(self.origin),
            "passed": self.passed,
            "problem": self.problem,
            "warning": self.warning,
            "images_from_png": self.images,
            "max_abs_error": to_json(worst.max_abs_error) if worst else None,
            "allowed": to_json(worst.allowed) if worst else None,
            "sqnr_db": to_json(worst.sqnr_db) if worst else None,
            "exact": bool(worst and worst.max_abs_error == 0.0),
            "nonfinite": worst.nonfinite if worst else 0,
            "cosine": to_json(worst.cosine) if worst else None,
            "top1_agreement": worst.top1_agreement if worst else None,
            "tolerance": to_json(self.tolerance),
            "outputs": to_json(self.outputs),
        } | (self.layers.to_json() if self.layers is not None else {"first_diverging_layer": None})


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The verdicts on a bundle's artifacts.

    Attributes:
        skipped: Path and reason of each artifact that the target cannot run.
        target: Where it was run; None for this machine.
        graphs: The folded and the lowered torch graphs, layer by layer; empty where they were not asked for.
        cases: Names of the inputs that outputs were judged on.
    """

    artifacts: tuple[ArtifactParity, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    target: str | None = None
    graphs: tuple[ArtifactLayers, ...] = ()
    cases: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every artifact was run and passed."""
        ran = bool(self.artifacts) and all(item.passed is True for item in self.artifacts)
        return ran and all(item.passed is not False for item in self.graphs)

    def to_json(self) -> dict[str, Any]:
        """Return the document ``parity.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            "target": self.target,
            "cases": list(self.cases),
            "artifacts": [item.to_json() for item in self.artifacts],
            "graphs": [{"name": item.name} | item.to_json() for item in self.graphs],
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped],
        }
