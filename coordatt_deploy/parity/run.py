"""Parity of a bundle: run every artifact, hand what it gives to the judges, write ``reports/parity.json``."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy import host
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.errors import BundleError, DeployError, InferenceError, MissingDependencyError, UsageError
from coordatt_deploy.format_modules import not_installed
from coordatt_deploy.formats import TORCH_EXTRA, Format, Precision
from coordatt_deploy.logs import logged, set_environment
from coordatt_deploy.parity.cases import ParityCases, calibrated_ranges, cases_of, cases_on, choose_cases, golden_cases
from coordatt_deploy.parity.executors import Executor, LocalExecutor
from coordatt_deploy.parity.layers import ArtifactLayers
from coordatt_deploy.parity.outputs import judge
from coordatt_deploy.parity.preprocessing_check import image_feeds
from coordatt_deploy.parity.result import ArtifactParity, ParityReport
from coordatt_deploy.parity.tolerances import (
    TOLERANCES,
    Tolerance,
    Tolerances,
    for_untrained,
    tolerance_of,
    tolerance_of_graphs,
)
from coordatt_deploy.progress import Stages
from coordatt_deploy.runtimes import Runner
from coordatt_deploy.runtimes.provenance import check_provenance
from coordatt_deploy.runtimes.reader import host_warning
from coordatt_deploy.tensors import decode, encode

if TYPE_CHECKING:
    from coordatt_deploy.parity.reference_layers import ReferenceLayers

Feeds = Sequence[Mapping[str, NDArray[Any]]]

LAYER_CASES: Final = 6


@dataclass(frozen=True, slots=True)
class RemoteTarget:
    """Another machine to run artifacts on.

    Attributes:
        name: With its CPU, e.g. ``qemu-arm64:neoverse-n1``.
        where: Opens artifacts there.
        why_not: Why an artifact cannot run there; None if it can.
        most_cases: It is slow: outputs are judged on so many cases, layers on half as many.
    """

    name: str
    where: Executor
    why_not: Callable[[Artifact], str | None]
    most_cases: int

    @property
    def report(self) -> str:
        """Name of the report."""
        return f"parity-{self.name.replace(':', '-')}.json"


def check_parity(
    bundle: Bundle,
    stages: Stages,
    *,
    formats: Sequence[Format] = tuple(Format),
    layers: bool = True,
    need_layers: bool = False,
    threads: int = 1,
    tolerances: Tolerances = TOLERANCES,
    inputs: Path | None = None,
    save_failing: Path | None = None,
    machine: host.Host | None = None,
    target: RemoteTarget | None = None,
) -> ParityReport:
    """Run every artifact, judge it, and write ``reports/parity.json``, or ``reports/parity-TARGET.json``.

    Args:
        bundle: Opened.
        stages: Shows the progress.
        formats: Only artifacts of these.
        layers: Judge every layer as well, where torch is installed.
        need_layers: Do not go on without the layers; judge the folded and the lowered graphs as well.
        threads: Of the runtimes.
        tolerances: By format and precision.
        inputs: Other inputs than the golden ones; see ``parity_inputs``. Needs torch.
        save_failing: Where the first failing layer of each artifact goes.
        machine: What this is run on, for the warning where int8 sums saturate; looked up by default.
        target: Another machine to run them on. What cannot run there is listed as skipped, never as passed.

    Raises:
        UsageError: The bundle has no such artifact, none can run on the target, or the inputs do not fit.
        BundleError: An artifact was made from other weights, or has no layer map.
        MissingDependencyError: Other inputs, or layers that are needed, without torch or the reference.
    """
    set_environment()
    chosen, skipped = _choose(bundle, formats, target)
    if bundle.manifest.model.untrained:
        tolerances = for_untrained(tolerances)
    missing = _missing(bundle)
    if missing and (inputs is not None or need_layers or save_failing is not None):
        raise MissingDependencyError(missing)
    for artifact in chosen:
        bundle.layers(artifact)  # a map that is missing or damaged ends this here
        _check_provenance(bundle, artifact)
    trial = golden_cases(bundle) if inputs is None else cases_on(bundle, inputs, stages)
    trials = {item.path: trial if inputs is not None else cases_of(bundle, item, trial) for item in chosen}
    where: Executor = LocalExecutor(threads)
    here: host.Host | None = None
    if target is not None:
        trials = {path: own.few(target.most_cases) for path, own in trials.items()}
        where = target.where
    else:
        here = machine or host.describe()
    verdicts = []
    graphs: tuple[ArtifactLayers, ...] = ()
    for artifact in chosen:
        own = trials[artifact.path]
        with stages.stage(f"parity {Path(artifact.path).name}", len(own.names)) as step:
            opener = partial(where.open_artifact, bundle.path(artifact.path), artifact)
            if inputs is None and own is trial:
                verdict = _check_golden(bundle, artifact, opener, trial, tolerances, step)
            else:
                verdict = check_artifact(artifact, opener, own, tolerances, step)
        if verdict.passed is not None and here is not None:
            verdict = replace(verdict, warning=host_warning(bundle.path(artifact.path), artifact.format, here))
        verdicts.append(verdict)
    if layers and missing:
        verdicts = [replace(v, layers=ArtifactLayers(v.artifact, v.artifact.path, problem=missing)) for v in verdicts]
    elif layers:
        most = LAYER_CASES if target is None else target.most_cases // 2
        judging = _Judging(bundle, trials, _by_layer(bundle, stages), where, most, stages, save_failing)
        if need_layers:
            graphs = _check_graphs(chosen, trial, judging, tolerances)
        verdicts = [judging.with_layers(verdict) for verdict in verdicts]
    names = trial.names if target is None else trial.few(target.most_cases).names
    report = ParityReport(tuple(verdicts), skipped, None if target is None else target.name, graphs, names)
    name = "parity.json" if target is None else target.report
    bundle.write_report(name, json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")
    return report


def _choose(
    bundle: Bundle, formats: Sequence[Format], target: RemoteTarget | None
) -> tuple[list[Artifact], tuple[tuple[str, str], ...]]:
    """Return the artifacts to run, and path and reason of those that the target cannot run."""
    asked = [artifact for artifact in bundle.manifest.artifacts if artifact.format in formats]
    if not asked:
        raise UsageError(f"{bundle.root} has no artifact in {', '.join(formats)}; export some first")
    reasons = [(artifact, None if target is None else target.why_not(artifact)) for artifact in asked]
    able = [artifact for artifact, reason in reasons if reason is None]
    if not able:
        texts = "; ".join(dict.fromkeys(str(reason) for _, reason in reasons))
        raise UsageError(f"nothing of {bundle.root} can run on the target: {texts}")
    return able, tuple((artifact.path, reason) for artifact, reason in reasons if reason is not None)


def _missing(bundle: Bundle) -> str | None:
    """Say what keeps the reference from being run here."""
    for package in ("torch", "safetensors"):
        if find_spec(package) is None:
            return str(not_installed("this", package, TORCH_EXTRA))
    if not bundle.path("reference/graph.json").exists():
        return "the bundle has no reference/; build it again to judge layers or other inputs"
    return None


def _check_provenance(bundle: Bundle, artifact: Artifact) -> None:
    try:
        with logged(f"provenance-{Path(artifact.path).stem}"):
            check_provenance(bundle.path(artifact.path), artifact, bundle.manifest)
    except MissingDependencyError:
        return  # what cannot be opened here is not run here either


def _check_golden(
    bundle: Bundle,
    artifact: Artifact,
    open_runner: Callable[[], Runner],
    trial: ParityCases,
    tolerances: Tolerances,
    step: Callable[[], None],
) -> ArtifactParity:
    """Judge an artifact on the golden inputs, fed from the images themselves where an app would."""
    name = bundle.manifest.inputs[0].name
    try:
        with logged(f"images-{Path(artifact.path).stem}"):
            feeds, images = image_feeds(bundle, artifact, trial.inputs[name])
    except MissingDependencyError:
        return check_artifact(artifact, open_runner, trial, tolerances, step)  # which says what is missing
    except BundleError as error:
        verdict = check_artifact(artifact, open_runner, trial, tolerances, step)
        problem = "; ".join(filter(None, [verdict.problem, str(error)]))
        return replace(verdict, passed=None if verdict.passed is None else False, problem=problem)
    fed = replace(trial, inputs={**trial.inputs, name: feeds})
    return replace(check_artifact(artifact, open_runner, fed, tolerances, step), images=images)


def check_artifact(
    artifact: Artifact,
    open_runner: Callable[[], Runner],
    trial: ParityCases,
    tolerances: Tolerances,
    step: Callable[[], None],
) -> ArtifactParity:
    """Run one artifact, wherever *open_runner* opens it, and judge its outputs."""
    tolerance = tolerance_of(artifact, tolerances)
    trial = trial.fit_for(tolerance)
    name, origin = "", None
    try:
        with logged(f"parity-{Path(artifact.path).stem}"):
            results: dict[str, list[NDArray[np.float64]]] = {}
            with open_runner() as runner:
                name, origin = runner.runtime, runner.origin
                for index in range(len(trial.names)):
                    feeds = {spec.name: encode(trial.inputs[spec.name][index], spec) for spec in runner.inputs}
                    given = runner.infer(feeds)
                    for spec in runner.outputs:
                        results.setdefault(spec.name, []).append(decode(given[spec.name], spec))
                    step()
        # an integer artifact's outputs are judged by SQNR: what float32 costs is only shown beside it
        basis = trial.rounding.get(tolerance.basis, trial.rounding[Precision.FP32])
        outputs = tuple(judge(o, results[o], trial.outputs[o], basis[o], tolerance) for o in trial.outputs)
    except MissingDependencyError as error:
        return ArtifactParity(artifact, name, origin, None, problem=f"not run: {error}")
    except InferenceError as error:  # its layers can still be judged, each on its own
        return ArtifactParity(artifact, name, origin, False, tolerance=tolerance, problem=str(error))
    except DeployError as error:
        return ArtifactParity(artifact, name, origin, False, problem=str(error))
    except (ValueError, KeyError) as error:
        return ArtifactParity(artifact, name, origin, False, problem=f"its outputs do not fit the model's: {error}")
    passed = all(output.passed for output in outputs)
    problem = None if passed else "; ".join(output.sentence() for output in outputs if not output.passed)
    return ArtifactParity(artifact, name, origin, passed, outputs, tolerance, problem)


def _by_layer(bundle: Bundle, stages: Stages) -> "ReferenceLayers":
    """Return the reference by layer."""
    import torch

    from coordatt_deploy.graph.saved_graph import load_graph
    from coordatt_deploy.parity.reference_layers import ReferenceLayers

    torch.set_num_threads(1)
    with stages.stage("reference by layer"):
        return ReferenceLayers(load_graph(bundle.path("reference")))


@dataclass(frozen=True, slots=True)
class _Judging:
    """What judging layers takes, whatever the artifact."""

    bundle: Bundle
    trials: Mapping[str, ParityCases]
    reference: "ReferenceLayers"
    where: Executor
    most_cases: int
    stages: Stages
    save_failing: Path | None

    def cases(self, trial: ParityCases, tolerance: Tolerance) -> Feeds:
        """Return the cases that layers are judged on."""
        if tolerance.calibrated:  # noise is told from a fault by more of it, and there is nothing else to look at
            return trial.feeds(choose_cases(trial.names, trial.images, 2 * self.most_cases))
        return trial.feeds(choose_cases(trial.names, most=self.most_cases))

    def with_layers(self, verdict: ArtifactParity) -> ArtifactParity:
        """Add every layer's verdict."""
        from coordatt_deploy.parity.failing_layer import save_failing

        if verdict.passed is None or verdict.tolerance is None:
            return verdict
        cases = self.cases(self.trials[verdict.artifact.path], verdict.tolerance)
        found = self._judged(verdict, cases, verdict.tolerance)
        if self.save_failing is not None and found.layers is not None and found.layers.passed is False:
            with logged(f"failing-{Path(verdict.artifact.path).stem}"):
                save_failing(self.bundle, found.layers, cases, self.reference, self.save_failing, self.where)
        return found

    def _judged(self, verdict: ArtifactParity, cases: Feeds, tolerance: Tolerance) -> ArtifactParity:
        from coordatt_deploy.parity.localise import localise

        artifact = verdict.artifact
        name = Path(artifact.path)
        with self.stages.stage(f"layers {name.name}", len(cases)) as step:
            try:
                with logged(f"layers-{name.stem}"):
                    layers = localise(
                        self.bundle,
                        artifact,
                        cases,
                        self.reference,
                        tolerance,
                        where=self.where,
                        calibrated=calibrated_ranges(self.bundle, artifact),
                        step=step,
                    )
            except MissingDependencyError as error:
                return replace(verdict, layers=ArtifactLayers(artifact, artifact.path, problem=str(error)))
            except DeployError as error:
                layers = ArtifactLayers(artifact, artifact.path, problem=str(error))
                problem = "; ".join(filter(None, [verdict.problem, str(error)]))
                return replace(verdict, layers=layers, passed=False, problem=problem)
        if layers.passed is not False:
            return replace(verdict, layers=layers)
        problem = "; ".join(filter(None, [verdict.problem, layers.sentence().partition(": ")[2]]))
        return replace(verdict, layers=layers, passed=False, problem=problem)


def _check_graphs(
    artifacts: Sequence[Artifact], trial: ParityCases, judging: _Judging, tolerances: Tolerances
) -> tuple[ArtifactLayers, ...]:
    """Judge the torch graphs between the captured one and the files: folded, and lowered for each kind of runtime."""
    from coordatt_deploy.graph.lowering.lower import lower
    from coordatt_deploy.graph.lowering.target import target_of
    from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
    from coordatt_deploy.parity.localise import localise_graph

    tolerance = tolerance_of_graphs(tolerances)
    cases, reference, stages = judging.cases(trial, tolerance), judging.reference, judging.stages
    with stages.stage("fold and lower again"):
        folded = fold_batchnorms(reference.graph)[0]
        targets = dict.fromkeys(
            target_of(item.format, item.target_cpu, integer=tolerance_of(item, tolerances).calibrated)
            for item in artifacts
        )
        graphs = {"torch, folded": folded} | {f"torch, lowered for {kind}": lower(folded, kind)[0] for kind in targets}
    found = []
    for name, graph in graphs.items():
        with stages.stage(f"layers {name}", len(cases)) as step:
            found.append(localise_graph(name, graph, cases, reference, tolerance, step=step))
    return tuple(found)
