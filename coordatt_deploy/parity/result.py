"""The verdicts on a bundle's artifacts, outputs and layers together, as one call of ``parity`` finds them."""

import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.formats import Format, Precision, TargetCpu, format_of
from coordatt_deploy.parity.layers import ArtifactLayers, LayerVerdict
from coordatt_deploy.parity.outputs import OutputParity
from coordatt_deploy.parity.tolerances import Tolerance
from coordatt_deploy.run_records import NotRun


@dataclass(frozen=True, slots=True)
class AsRunHere:
    """What this CPU makes of a file that is made for another one, which it was judged by: information, no verdict.

    Attributes:
        max_abs_error: Of the output with the most error over its allowance, as for the next ones.
        sqnr_db: Over all cases.
        top1_agreement: Share of the cases with the same greatest element; None for an output without classes.
    """

    max_abs_error: float
    sqnr_db: float
    top1_agreement: float | None

    def sentence(self) -> str:
        """``SQNR 9.5 dB, top-1 agreement 92.3%``."""
        agrees = "" if self.top1_agreement is None else f", top-1 agreement {self.top1_agreement:.1%}"
        return f"SQNR {self.sqnr_db:.1f} dB{agrees}"


@dataclass(frozen=True, slots=True)
class ArtifactVerdict:
    """The verdict on one artifact, as documents hold it.

    Attributes:
        path: In the bundle.
        sha256: Of the file when it was judged.
        format: Of the file.
        precision: That it computes in.
        recipe: How it was quantized; None for float.
        target_cpu: The CPU family of its form; None where the form is the same for all.
        runtime: Name and version of what ran it.
        origin: Measured, emulated or evaluated; None where it was not run.
        passed: None where the artifact could not be run here.
        provable: Whether torch's own rounding reproduces the reference. What it does not is not passed.
        problem: Why it failed, cannot be proven or was not run; None where it passed.
        warning: Why its outputs on this machine may not be those of another; None where they are.
        images_from_png: Golden images that were fed from their PNG files through the artifact's own description.
        max_abs_error: Of the output with the most error over its allowance, as for the next ones.
        allowed: What was allowed in the case with the most error over its allowance.
        sqnr_db: Over all cases.
        exact: Whether outputs equal the reference.
        nonfinite: Values that are NaN or infinite.
        cosine: Of candidate and reference.
        top1_agreement: Share of the cases with the same greatest element; None for an output without classes.
        tolerance: What was applied.
        outputs: One verdict per output.
        first_diverging_layer: The first layer beyond tolerance; None where there is none, or none was judged.
        layers_passed: None where layers were not judged.
        layers_problem: Why they were not.
        marked_difference: See ``ArtifactLayers``.
        smallest_weight_change: See ``ArtifactLayers``.
        summary: What was found of the layers, in one sentence.
        layers: In execution order; empty where they were not judged.
        as_run_here: What this CPU makes of it, where it was judged by what another one computes.
        judged_error: The error of the case that ``allowed`` is of; None in reports of older versions.
    """

    path: str
    sha256: str
    format: Format
    precision: Precision
    recipe: str | None
    target_cpu: TargetCpu | None
    runtime: str
    origin: Origin | None
    passed: bool | None
    provable: bool = True
    problem: str | None = None
    warning: str | None = None
    images_from_png: int = 0
    max_abs_error: float | None = None
    allowed: float | None = None
    sqnr_db: float | None = None
    exact: bool = False
    nonfinite: int = 0
    cosine: float | None = None
    top1_agreement: float | None = None
    tolerance: Tolerance | None = None
    outputs: tuple[OutputParity, ...] = ()
    first_diverging_layer: str | None = None
    layers_passed: bool | None = None
    layers_problem: str | None = None
    marked_difference: float | None = None
    smallest_weight_change: float | None = None
    summary: str | None = None
    layers: tuple[LayerVerdict, ...] = ()
    as_run_here: AsRunHere | None = None
    judged_error: float | None = None


@dataclass(frozen=True, slots=True)
class GraphVerdict:
    """The verdict on a torch graph between the captured one and the files: folded, or lowered for a kind of runtime."""

    name: str
    first_diverging_layer: str | None
    layers_passed: bool | None
    layers_problem: str | None
    marked_difference: float | None
    smallest_weight_change: float | None
    summary: str
    layers: tuple[LayerVerdict, ...]


@dataclass(frozen=True, slots=True)
class ParityResult:
    """What one call of ``parity`` found.

    Attributes:
        passed: Whether every artifact was run and passed.
        target: Where it was run; None for this machine.
        cases: Names of the inputs that outputs were judged on.
        artifacts: In the order of the manifest.
        graphs: The folded and the lowered torch graphs; empty where they were not asked for.
        skipped: What the target cannot run.
        believed: What of the bundle could not be verified here, a sentence each.
    """

    VERSION: ClassVar[int] = 1

    passed: bool
    target: str | None
    cases: tuple[str, ...]
    artifacts: tuple[ArtifactVerdict, ...]
    graphs: tuple[GraphVerdict, ...] = ()
    skipped: tuple[NotRun, ...] = ()
    believed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EarlierProof:
    """That a file was proven by an earlier run; see ``earlier_proofs``.

    Attributes:
        verdict: What that run wrote down.
        time: When it ended, ISO 8601 in UTC.
        version: Of coordatt-deploy.
        machine: That it ran on.
    """

    verdict: ArtifactVerdict
    time: str
    version: str
    machine: str


@dataclass(frozen=True, slots=True)
class ArtifactParity:
    """The verdict on one artifact, with what it was judged by.

    Attributes:
        passed: None where the artifact could not be run here.
        outputs: One verdict per output.
        tolerance: What was applied.
        problem: Why it failed, cannot be proven or was not run; None where it passed.
        layers: Every layer's verdict; None where layers were not asked for.
        images: Golden images that were fed from their PNG files through the artifact's own description.
        warning: Why its outputs on this machine may not be those of another; None where they are.
        as_run_here: What this CPU makes of it, where it was judged by what another one computes.
        earlier: The run that proved it, where that was not this one; ``layers`` is None then.
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
    as_run_here: AsRunHere | None = None
    earlier: EarlierProof | None = None

    @property
    def by_layer(self) -> bool:
        """Whether its layers were judged."""
        if self.earlier is not None:
            return bool(self.earlier.verdict.layers)
        return self.layers is not None and bool(self.layers.rows)

    @property
    def provable(self) -> bool:
        """Whether torch's own rounding reproduces the reference, so that a verdict means something."""
        return all(output.unproven is None for output in self.outputs)

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
                else output.error_of_worst_case / (output.allowed or 1e-300)
            )

        return max(self.outputs, key=excess)

    def record(self) -> ArtifactVerdict:
        """Return the verdict as documents hold it."""
        if self.earlier is not None:
            return self.earlier.verdict
        worst, artifact, layers = self.worst(), self.artifact, self.layers
        return ArtifactVerdict(
            path=artifact.path,
            sha256=artifact.sha256,
            format=artifact.format,
            precision=artifact.precision,
            recipe=artifact.recipe,
            target_cpu=artifact.target_cpu,
            runtime=self.runtime,
            origin=self.origin,
            passed=self.passed,
            provable=self.provable,
            problem=self.problem,
            warning=self.warning,
            images_from_png=self.images,
            max_abs_error=worst.max_abs_error if worst else None,
            allowed=worst.allowed if worst else None,
            sqnr_db=worst.sqnr_db if worst else None,
            exact=bool(worst and worst.max_abs_error == 0.0),
            nonfinite=worst.nonfinite if worst else 0,
            cosine=worst.cosine if worst else None,
            top1_agreement=worst.top1_agreement if worst else None,
            tolerance=self.tolerance,
            outputs=self.outputs,
            first_diverging_layer=layers.first_diverging_layer if layers else None,
            layers_passed=layers.passed if layers else None,
            layers_problem=layers.problem if layers else None,
            marked_difference=layers.marked_difference if layers else None,
            smallest_weight_change=layers.smallest_weight_change if layers else None,
            summary=layers.sentence() if layers else None,
            layers=tuple(row.record() for row in layers.rows) if layers else (),
            as_run_here=self.as_run_here,
            judged_error=worst.judged_error if worst else None,
        )


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The verdicts on a bundle's artifacts.

    Attributes:
        skipped: What the target cannot run.
        target: Where it was run; None for this machine.
        graphs: The folded and the lowered torch graphs, layer by layer; empty where they were not asked for.
        cases: Names of the inputs that outputs were judged on.
        believed: What of the bundle could not be verified here, a sentence each.
        required: Formats of which every file has to be judged.
    """

    artifacts: tuple[ArtifactParity, ...]
    skipped: tuple[NotRun, ...] = ()
    target: str | None = None
    graphs: tuple[ArtifactLayers, ...] = ()
    cases: tuple[str, ...] = ()
    believed: tuple[str, ...] = ()
    required: tuple[Format, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every artifact was run and passed."""
        ran = bool(self.artifacts) and all(item.passed is True for item in self.artifacts)
        return ran and all(item.passed is not False for item in self.graphs)

    @property
    def exit_code(self) -> int:
        """0 where all that can be run here passed, 1 where one failed, 3 where none could be run, or a required one."""
        failed = [item.passed for item in self.artifacts] + [item.passed for item in self.graphs]
        if False in failed:
            return 1
        judged = any(item.passed is not None for item in self.artifacts)
        return 3 if not judged or self.missing else 0

    @property
    def missing(self) -> tuple[str, ...]:
        """Files of required formats that could not be run, with the reason."""
        unrun = {item.artifact.path: item.problem or "not run" for item in self.artifacts if item.passed is None}
        unrun |= {item.path: item.reason for item in self.skipped}
        kinds = {path: format_of(PurePosixPath(path)) for path in unrun}
        return tuple(f"{path}: {reason}" for path, reason in unrun.items() if kinds[path] in self.required)

    def record(self) -> ParityResult:
        """Return what documents hold."""
        return ParityResult(
            passed=self.passed,
            target=self.target,
            cases=self.cases,
            artifacts=tuple(item.record() for item in self.artifacts),
            graphs=tuple(_graph(item) for item in self.graphs),
            skipped=self.skipped,
            believed=self.believed,
        )


def _graph(layers: ArtifactLayers) -> GraphVerdict:
    return GraphVerdict(
        name=layers.name,
        first_diverging_layer=layers.first_diverging_layer,
        layers_passed=layers.passed,
        layers_problem=layers.problem,
        marked_difference=layers.marked_difference,
        smallest_weight_change=layers.smallest_weight_change,
        summary=layers.sentence(),
        layers=tuple(row.record() for row in layers.rows),
    )
