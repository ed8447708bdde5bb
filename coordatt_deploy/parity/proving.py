"""Parity of a bundle: run every artifact, hand what it gives to the judges, write ``reports/parity.json``."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy import host
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.errors import BundleError, DeployError, MissingDependencyError, UsageError
from coordatt_deploy.parity.from_images import image_feeds
from coordatt_deploy.parity.inputs import choose_cases, read_inputs
from coordatt_deploy.parity.layer_parity import ArtifactLayers
from coordatt_deploy.parity.outputs import TOLERANCES, Tolerance, judge, tolerance_of
from coordatt_deploy.parity.tolerances import Tolerances
from coordatt_deploy.parity.verdicts import ArtifactParity, ParityReport
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.saturation import saturation_warning
from coordatt_deploy.quiet import logged, set_environment
from coordatt_deploy.runtimes import Runner, runtime
from coordatt_deploy.runtimes.provenance import check_provenance
from coordatt_deploy.specs import Artifact, Format, Precision
from coordatt_deploy.tensors import decode, encode

if TYPE_CHECKING:
    from coordatt_deploy.graph.layer_reference import ReferenceLayers

Values = Mapping[str, Sequence[NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Trial:
    """What artifacts are run on, and what they should give. One array per case, by tensor.

    Attributes:
        images: Which of the cases are real images; the others are tensors that no photograph gives.
    """

    names: tuple[str, ...]
    inputs: Values
    outputs: Values
    rounding: Mapping[Precision, Values]
    images: tuple[bool, ...]

    def chosen(self, cases: Sequence[int]) -> "Trial":
        """Return the cases at these places."""
        rounding = {kind: _at(values, cases) for kind, values in self.rounding.items()}
        names = tuple(self.names[index] for index in cases)
        images = tuple(self.images[index] for index in cases)
        return Trial(names, _at(self.inputs, cases), _at(self.outputs, cases), rounding, images)

    def fit_for(self, tolerance: Tolerance) -> "Trial":
        """Return the cases that an artifact with *tolerance* can be judged on."""
        real = [index for index, image in enumerate(self.images) if image]
        return self.chosen(real) if tolerance.on_images and real else self

    def feeds(self, cases: Sequence[int]) -> list[Mapping[str, NDArray[Any]]]:
        """Return the inputs of the cases at these places, one mapping each."""
        return [{name: values[index] for name, values in self.inputs.items()} for index in cases]


def _at(values: Values, cases: Sequence[int]) -> dict[str, list[NDArray[Any]]]:
    return {name: [arrays[index] for index in cases] for name, arrays in values.items()}


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
) -> ParityReport:
    """Run every artifact, judge it, and write ``reports/parity.json``.

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

    Raises:
        UsageError: The bundle has no such artifact, or the inputs do not fit.
        BundleError: An artifact was made from other weights, or has no layer map.
        MissingDependencyError: Other inputs, or layers that are needed, without torch or the reference.
    """
    set_environment()
    chosen = [artifact for artifact in bundle.manifest.artifacts if artifact.format in formats]
    if not chosen:
        raise UsageError(f"{bundle.root} has no artifact in {', '.join(formats)}; export some first")
    missing = _missing(bundle)
    if missing and (inputs is not None or need_layers or save_failing is not None):
        raise MissingDependencyError(missing)
    for artifact in chosen:
        bundle.layers(artifact)  # a map that is missing or damaged ends this here
        _check_provenance(bundle, artifact)
    trial = golden_trial(bundle) if inputs is None else _trial(bundle, inputs, stages)
    trials = {item.path: trial if inputs is not None else trial_of(bundle, item, trial) for item in chosen}
    here = machine or host.describe()
    verdicts = []
    graphs: tuple[ArtifactLayers, ...] = ()
    for artifact in chosen:
        own = trials[artifact.path]
        with stages.stage(f"parity {Path(artifact.path).name}", len(own.names)) as step:
            opener = partial(_open, bundle, artifact, threads)
            if inputs is None and own is trial:
                verdict = _check_golden(bundle, artifact, opener, trial, tolerances, step)
            else:
                verdict = check_artifact(artifact, opener, own, tolerances, step)
        warning = None if verdict.passed is None else saturation_warning(bundle.path(artifact.path), artifact, here)
        verdicts.append(replace(verdict, warning=warning))
    if layers and missing:
        verdicts = [replace(v, layers=ArtifactLayers(v.artifact, v.artifact.path, problem=missing)) for v in verdicts]
    elif layers:
        reference = _by_layer(bundle, stages)
        if need_layers:
            graphs = _check_graphs(chosen, trial, reference, tolerances, stages)
        verdicts = _check_layers(bundle, verdicts, trials, reference, stages, save_failing)
    report = ParityReport(tuple(verdicts), graphs=graphs, cases=trial.names)
    bundle.write_report("parity.json", json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")
    return report


def _missing(bundle: Bundle) -> str | None:
    """Say what keeps the reference from being run here."""
    for package in ("torch", "safetensors"):
        if find_spec(package) is None:
            return f"this needs {package}, which is not installed; run: pip install 'coordatt-deploy[onnx]'"
    if not bundle.path("reference/graph.json").exists():
        return "the bundle has no reference/; build it again to judge layers or other inputs"
    return None


def _check_provenance(bundle: Bundle, artifact: Artifact) -> None:
    try:
        with logged(f"provenance-{Path(artifact.path).stem}"):
            check_provenance(bundle.path(artifact.path), artifact, bundle.manifest)
    except ModuleNotFoundError:
        return  # what cannot be opened here is not run here either


def _check_golden(
    bundle: Bundle,
    artifact: Artifact,
    open_runner: Callable[[], Runner],
    trial: Trial,
    tolerances: Tolerances,
    step: Callable[[], None],
) -> ArtifactParity:
    """Judge an artifact on the golden inputs, fed from the images themselves where an app would."""
    name = bundle.manifest.inputs[0].name
    try:
        with logged(f"images-{Path(artifact.path).stem}"):
            feeds, images = image_feeds(bundle, artifact, trial.inputs[name])
    except ModuleNotFoundError:
        return check_artifact(artifact, open_runner, trial, tolerances, step)  # which says what is missing
    except BundleError as error:
        verdict = check_artifact(artifact, open_runner, trial, tolerances, step)
        problem = "; ".join(filter(None, [verdict.problem, str(error)]))
        return replace(verdict, passed=None if verdict.passed is None else False, problem=problem)
    fed = replace(trial, inputs={**trial.inputs, name: feeds})
    return replace(check_artifact(artifact, open_runner, fed, tolerances, step), images=images)


def _open(bundle: Bundle, artifact: Artifact, threads: int) -> Runner:
    return runtime(artifact.format).open_artifact(bundle.path(artifact.path), artifact, threads=threads)


def golden_trial(bundle: Bundle) -> Trial:
    """Return the bundle's golden cases."""
    return Trial(
        tuple(case.name for case in bundle.manifest.golden),
        bundle.golden("inputs"),
        bundle.golden("outputs"),
        {kind: bundle.golden(f"rounding_{kind.value}") for kind in (Precision.FP32, Precision.FP16)},
        tuple(case.image is not None for case in bundle.manifest.golden),
    )


def trial_of(bundle: Bundle, artifact: Artifact, golden: Trial) -> Trial:
    """Return what *artifact* is tried on: the golden cases, or what was set aside when it was calibrated.

    Beyond its ranges a static int8 artifact clips, as it must; so it is tried on images of the kind that they were
    measured on, which the golden images of a user's own model need not be.
    """
    aside = bundle.manifest.quantization.get(artifact.path, {}).get("set_aside")
    if not aside:
        return golden
    inputs, outputs, rounding = (
        bundle.golden(f"{aside['folder']}/{name}") for name in ("inputs", "outputs", "rounding_fp32")
    )
    names = tuple(aside["names"])
    return Trial(names, inputs, outputs, {Precision.FP32: rounding}, (True,) * len(names))


def _trial(bundle: Bundle, source: Path, stages: Stages) -> Trial:
    """Run the reference on the user's own inputs."""
    cases = read_inputs(source, bundle.manifest)
    import torch

    from coordatt_deploy.graph.capture import prepare
    from coordatt_deploy.graph.reference import load_graph

    torch.set_num_threads(1)
    graph = load_graph(bundle.path("reference"))
    runs = {
        None: prepare(graph),
        Precision.FP32: prepare(graph, dtype=torch.float32),
        Precision.FP16: prepare(graph, dtype=torch.float32, after=lambda value: value.half().float()),
    }
    found: dict[Precision | None, dict[str, list[NDArray[Any]]]] = {kind: {} for kind in runs}
    with stages.stage("reference in float64", len(cases.names)) as step:
        for index in range(len(cases.names)):
            feeds = {name: values[index] for name, values in cases.feeds.items()}
            for kind, run in runs.items():
                for name, value in run(feeds).items():
                    found[kind].setdefault(name, []).append(value)
            step()
    rounding = {kind: values for kind, values in found.items() if kind is not None}
    return Trial(cases.names, cases.feeds, found[None], rounding, (True,) * len(cases.names))


def check_artifact(
    artifact: Artifact,
    open_runner: Callable[[], Runner],
    trial: Trial,
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
    except DeployError as error:
        return ArtifactParity(artifact, name, origin, False, problem=str(error))
    except (ValueError, KeyError) as error:
        return ArtifactParity(artifact, name, origin, False, problem=f"its outputs do not fit the model's: {error}")
    passed = all(output.passed for output in outputs)
    problem = None if passed else "; ".join(output.sentence() for output in outputs if not output.passed)
    return ArtifactParity(artifact, name, origin, passed, outputs, tolerance, problem)


Feeds = Sequence[Mapping[str, NDArray[Any]]]


def _by_layer(bundle: Bundle, stages: Stages) -> "ReferenceLayers":
    """Return the reference by layer."""
    import torch

    from coordatt_deploy.graph.layer_reference import ReferenceLayers
    from coordatt_deploy.graph.reference import load_graph

    torch.set_num_threads(1)
    with stages.stage("reference by layer"):
        return ReferenceLayers(load_graph(bundle.path("reference")))


def _cases(trial: Trial, tolerance: Tolerance) -> Feeds:
    """Return the cases that layers are judged on."""
    return trial.feeds(choose_cases(trial.names, trial.images if tolerance.on_images else ()))


def _check_graphs(
    artifacts: Sequence[Artifact], trial: Trial, reference: "ReferenceLayers", tolerances: Tolerances, stages: Stages
) -> tuple[ArtifactLayers, ...]:
    """Judge the torch graphs between the captured one and the files: folded, and lowered for each kind of runtime."""
    from coordatt_deploy.graph.fold import fold_batchnorms
    from coordatt_deploy.graph.lower import lower, target_of
    from coordatt_deploy.parity.localise import localise_graph

    tolerance = tolerances[Format.ONNX, Precision.FP32]
    cases = _cases(trial, tolerance)
    with stages.stage("fold and lower again"):
        folded = fold_batchnorms(reference.graph)[0]
        targets = dict.fromkeys(target_of(item.format, item.target_cpu) for item in artifacts)
        graphs = {"torch, folded": folded} | {f"torch, lowered for {kind}": lower(folded, kind)[0] for kind in targets}
    found = []
    for name, graph in graphs.items():
        with stages.stage(f"layers {name}", len(cases)) as step:
            found.append(localise_graph(name, graph, cases, reference, tolerance, step=step))
    return tuple(found)


def _check_layers(
    bundle: Bundle,
    verdicts: Sequence[ArtifactParity],
    trials: Mapping[str, Trial],
    reference: "ReferenceLayers",
    stages: Stages,
    save_failing: Path | None,
) -> list[ArtifactParity]:
    """Add every layer's verdict."""
    from coordatt_deploy.parity.failing import save_failing as save

    judged = []
    for verdict in verdicts:
        if verdict.passed is None or verdict.tolerance is None:
            judged.append(verdict)
            continue
        cases = _cases(trials[verdict.artifact.path], verdict.tolerance)
        found = _judge_layers(bundle, verdict, cases, reference, stages)
        judged.append(found)
        if save_failing is not None and found.layers is not None and found.layers.passed is False:
            with logged(f"failing-{Path(verdict.artifact.path).stem}"):
                save(bundle, found.layers, cases, reference, save_failing)
    return judged


def _judge_layers(
    bundle: Bundle,
    verdict: ArtifactParity,
    cases: Sequence[Mapping[str, NDArray[Any]]],
    reference: "ReferenceLayers",
    stages: Stages,
) -> ArtifactParity:
    from coordatt_deploy.parity.localise import localise

    artifact, tolerance = verdict.artifact, verdict.tolerance
    assert tolerance is not None  # noqa: S101 - only artifacts that ran are judged by layer
    with stages.stage(f"layers {Path(artifact.path).name}", len(cases)) as step:
        try:
            with logged(f"layers-{Path(artifact.path).stem}"):
                layers = localise(bundle, artifact, cases, reference, tolerance, step=step)
        except MissingDependencyError as error:
            return replace(verdict, layers=ArtifactLayers(artifact, artifact.path, problem=str(error)))
        except DeployError as error:
            layers = ArtifactLayers(artifact, artifact.path, problem=str(error))
            problem = "; ".join(filter(None, [verdict.problem, str(error)]))
            return replace(verdict, layers=layers, passed=False, problem=problem)
    return _with_layers(verdict, layers)


def _with_layers(verdict: ArtifactParity, layers: ArtifactLayers) -> ArtifactParity:
    if layers.passed is not False:
        return replace(verdict, layers=layers)
    problem = "; ".join(filter(None, [verdict.problem, layers.sentence().partition(": ")[2]]))
    return replace(verdict, layers=layers, passed=False, problem=problem)
