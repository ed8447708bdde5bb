"""Parity of a bundle: run every artifact, hand what it gives to the judges, keep the verdicts in ``reports/``.

The only module of this room that opens the bundle; the judges take what they need of it as a ``Candidate``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy import host
from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import REPORTS, Bundle
from coordatt_deploy.documents import DocumentError, dump
from coordatt_deploy.errors import BundleError, DeployError, InferenceError, MissingDependencyError, UsageError
from coordatt_deploy.format_modules import not_installed
from coordatt_deploy.formats import TORCH_EXTRA, Format, Precision
from coordatt_deploy.logs import logged, set_environment
from coordatt_deploy.parity.candidate import Candidate
from coordatt_deploy.parity.cases import ParityCases
from coordatt_deploy.parity.executors import Executor, LocalExecutor
from coordatt_deploy.parity.layers import ArtifactLayers
from coordatt_deploy.parity.outputs import judge, unjudged
from coordatt_deploy.parity.preprocessing_check import GoldenImage, image_feeds
from coordatt_deploy.parity.reports import ParityReports, ParityRun, ParitySettings, covered, read_reports
from coordatt_deploy.parity.result import ArtifactParity, ParityReport
from coordatt_deploy.parity.tolerances import BUILT_IN, Tolerances, for_untrained, tolerance_of
from coordatt_deploy.progress import Stages
from coordatt_deploy.run_records import GOLDEN, HELD_OUT, HERE, NotRun, RunInputs, accumulated, begin_session
from coordatt_deploy.runtimes import Runner
from coordatt_deploy.runtimes.provenance import check_provenance
from coordatt_deploy.runtimes.reader import host_warning
from coordatt_deploy.tensors import decode, encode

if TYPE_CHECKING:
    from coordatt_deploy.parity.layer_run import LayerRun

LAYER_CASES: Final = 6
INPUTS: Final = "inputs"

NO_CASE: Final = "the manifest names no golden case, so nothing can be judged; build the bundle again"


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


@dataclass(frozen=True, slots=True)
class ParityPlan:
    """What to prove, and how.

    Attributes:
        formats: Only artifacts of these.
        layers: Judge every layer as well, where torch is installed.
        need_layers: Do not go on without the layers; judge the folded and the lowered graphs as well.
        threads: Of the runtimes.
        tolerances: By format and precision.
        inputs: Other inputs than the golden ones; see ``data.arrays.read_inputs``. Needs torch.
        save_failing: Where the first failing layer of each artifact goes.
        machine: What this is run on, for the warning where int8 sums saturate; looked up by default.
    """

    formats: tuple[Format, ...] = tuple(Format)
    layers: bool = True
    need_layers: bool = False
    threads: int = 1
    tolerances: Tolerances = field(default_factory=lambda: BUILT_IN)
    inputs: Path | None = None
    save_failing: Path | None = None
    machine: host.Host | None = None


def check_parity(
    bundle: Bundle, plan: ParityPlan, stages: Stages, *, target: RemoteTarget | None = None
) -> ParityReport:
    """Run every artifact, judge it, and keep the verdicts in ``reports/parity.json`` (``parity-TARGET.json``).

    Args:
        bundle: Opened.
        plan: What to prove.
        stages: Shows the progress.
        target: Another machine to run them on. What cannot run there is listed as skipped, never as passed.

    Raises:
        UsageError: The bundle has no such artifact, none can run on the target, or the inputs do not fit.
        BundleError: An artifact was made from other weights, or has no layer map.
        MissingDependencyError: Other inputs, or layers that are needed, without torch or the reference.
    """
    set_environment()
    chosen, skipped = _choose(bundle, plan.formats, target)
    tolerances = for_untrained(plan.tolerances) if bundle.manifest.model.untrained else plan.tolerances
    missing = _missing(bundle)
    if missing and (plan.inputs is not None or plan.need_layers or plan.save_failing is not None):
        raise MissingDependencyError(missing)
    for artifact in chosen:
        bundle.layers(artifact)  # a map that is missing or damaged ends this here
        _check_provenance(bundle, artifact)
    cases = _golden_cases(bundle) if plan.inputs is None else _cases_on(bundle, plan.inputs, stages)
    here = (plan.machine or host.describe()) if target is None else None
    candidates = [_candidate(bundle, artifact, cases, plan, target, here) for artifact in chosen]
    where = LocalExecutor(plan.threads) if target is None else target.where
    images, image_input = _images(bundle), bundle.manifest.inputs[0].name
    verdicts = []
    for candidate in candidates:
        with stages.stage(f"parity {candidate.path.name}", len(candidate.cases.names)) as step:
            opener = partial(where.open_artifact, candidate.path, candidate.artifact)
            if plan.inputs is None and not candidate.own_cases and target is None:
                verdict = _check_golden(candidate, opener, images, image_input, tolerances, step)
            else:
                verdict = check_artifact(candidate, opener, tolerances, step)
        verdicts.append(verdict if verdict.passed is None else replace(verdict, warning=candidate.warning))
    graphs: tuple[ArtifactLayers, ...] = ()
    if plan.layers and missing:
        verdicts = [replace(v, layers=ArtifactLayers(v.artifact, v.artifact.path, problem=missing)) for v in verdicts]
    elif plan.layers:
        most = LAYER_CASES if target is None else target.most_cases // 2
        layer_run = _layer_run(bundle, where, most, stages, plan.save_failing)
        if plan.need_layers:
            graphs = layer_run.check_graphs(chosen, cases, tolerances)
        pairs = zip(candidates, verdicts, strict=True)
        verdicts = [layer_run.with_layers(candidate, verdict) for candidate, verdict in pairs]
    names = cases.names if target is None else cases.few(target.most_cases).names
    report = ParityReport(tuple(verdicts), skipped, None if target is None else target.name, graphs, names)
    with bundle.reporting():
        _keep(bundle, report, candidates, plan)
    return report


def _choose(
    bundle: Bundle, formats: Sequence[Format], target: RemoteTarget | None
) -> tuple[list[Artifact], tuple[NotRun, ...]]:
    """Return the artifacts to run, and those that the target cannot run."""
    asked = [artifact for artifact in bundle.manifest.artifacts if artifact.format in formats]
    if not asked:
        raise UsageError(f"{bundle.root} has no artifact in {', '.join(formats)}; export some first")
    reasons = [(artifact, None if target is None else target.why_not(artifact)) for artifact in asked]
    able = [artifact for artifact, reason in reasons if reason is None]
    if not able:
        texts = "; ".join(dict.fromkeys(str(reason) for _, reason in reasons))
        raise UsageError(f"nothing of {bundle.root} can run on the target: {texts}")
    return able, tuple(NotRun(artifact.path, reason) for artifact, reason in reasons if reason is not None)


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


# What of the bundle the judges get -----------------------------------------------------------------------------------


def open_candidate(bundle: Bundle, artifact: Artifact) -> Candidate:
    """Return an artifact of the bundle with all that judging it takes."""
    return _candidate(bundle, artifact, _golden_cases(bundle), ParityPlan(), None, None)


def _candidate(
    bundle: Bundle,
    artifact: Artifact,
    cases: ParityCases,
    plan: ParityPlan,
    target: RemoteTarget | None,
    here: host.Host | None,
) -> Candidate:
    """Return an artifact with all that judging it takes.

    Beyond its ranges a static int8 artifact clips, as it must; so it is tried on images of the kind that they were
    measured on, which the golden images of a user's own model need not be.
    """
    record = bundle.manifest.quantization.get(artifact.path)
    held_out = None if record is None else record.held_out
    own_cases = plan.inputs is None and held_out is not None
    if plan.inputs is None and held_out is not None:
        inputs, outputs, rounding = (
            _archive(bundle, f"{held_out.folder}/{name}", len(held_out.names))
            for name in (INPUTS, "outputs", "rounding_fp32")
        )
        cases = ParityCases(held_out.names, inputs, outputs, {Precision.FP32: rounding}, (True,) * len(held_out.names))
    if not cases.names or (plan.layers and not bundle.manifest.golden):  # layers are compared on the golden cases
        raise BundleError(NO_CASE)
    ranges: dict[str, tuple[float, float]] = {}
    damage = None
    if held_out is not None and plan.layers:
        try:
            found = bundle.golden(f"{held_out.folder}/ranges")
            ranges = {layer: (float(low), float(high)) for layer, ((low, high),) in found.items()}
        except BundleError as error:  # outputs can be judged all the same
            damage = str(error)
    path = bundle.path(artifact.path)
    return Candidate(
        artifact=artifact,
        path=path,
        layers=bundle.layers(artifact),
        record=record,
        outputs=tuple(spec.name for spec in bundle.manifest.outputs),
        cases=cases if target is None else cases.few(target.most_cases),
        own_cases=own_cases,
        ranges=ranges,
        damage=damage,
        warning=None if here is None else host_warning(path, artifact.format, here),
    )


def _golden_cases(bundle: Bundle) -> ParityCases:
    cases = bundle.manifest.golden
    if not cases:
        return ParityCases((), {}, {}, {}, ())
    return ParityCases(
        tuple(case.name for case in cases),
        _archive(bundle, INPUTS, len(cases)),
        _archive(bundle, "outputs", len(cases)),
        {kind: _archive(bundle, f"rounding_{kind.value}", len(cases)) for kind in (Precision.FP32, Precision.FP16)},
        tuple(case.image is not None for case in cases),
    )


def _archive(bundle: Bundle, file: str, cases: int) -> dict[str, list[NumberArray]]:
    """Read a golden archive that must hold *cases* arrays of each of the model's inputs, or of its outputs.

    Raises:
        BundleError: It does not, or there is no case at all: nothing could be judged.
    """
    if not cases:
        raise BundleError(NO_CASE)
    values = bundle.golden(file)
    specs = bundle.manifest.inputs if file.endswith(INPUTS) else bundle.manifest.outputs
    for spec in specs:
        if len(values.get(spec.name, ())) != cases:
            found = len(values.get(spec.name, ()))
            raise BundleError(
                f"golden/{file}.npz holds {found} of {cases} cases of {spec.name}; build the bundle again"
            )
    return values


def _images(bundle: Bundle) -> tuple[GoldenImage, ...]:
    cases = enumerate(bundle.manifest.golden)
    return tuple(GoldenImage(at, case.image, bundle.path(case.image)) for at, case in cases if case.image is not None)


def _cases_on(bundle: Bundle, source: Path, stages: Stages) -> ParityCases:
    from coordatt_deploy.parity import layer_run  # torch, which boards do not have

    return layer_run.cases_on(
        source, bundle.manifest.inputs, bundle.manifest.model.preprocessing, bundle.path("reference"), stages
    )


def _layer_run(
    bundle: Bundle, where: Executor, most_cases: int, stages: Stages, save_failing: Path | None
) -> "LayerRun":
    from coordatt_deploy.parity import layer_run  # torch, which boards do not have

    return layer_run.open_layer_run(
        bundle.path("reference"), bundle.manifest, bundle.root.name, where, most_cases, stages, save_failing
    )


# Outputs -------------------------------------------------------------------------------------------------------------


def _check_golden(
    candidate: Candidate,
    open_runner: Callable[[], Runner],
    images: Sequence[GoldenImage],
    name: str,
    tolerances: Tolerances,
    step: Callable[[], None],
) -> ArtifactParity:
    """Judge an artifact on the golden inputs, fed from the images themselves where an app would."""
    cases = candidate.cases
    try:
        with logged(f"images-{candidate.path.stem}"):
            feeds, count = image_feeds(candidate, images, name)
    except MissingDependencyError:
        return check_artifact(candidate, open_runner, tolerances, step)  # which says what is missing
    except BundleError as error:
        verdict = check_artifact(candidate, open_runner, tolerances, step)
        problem = "; ".join(filter(None, [verdict.problem, str(error)]))
        return replace(verdict, passed=None if verdict.passed is None else False, problem=problem)
    fed = replace(candidate, cases=replace(cases, inputs={**cases.inputs, name: feeds}))
    return replace(check_artifact(fed, open_runner, tolerances, step), images=count)


def check_artifact(
    candidate: Candidate, open_runner: Callable[[], Runner], tolerances: Tolerances, step: Callable[[], None]
) -> ArtifactParity:
    """Run one artifact, wherever *open_runner* opens it, and judge its outputs."""
    artifact = candidate.artifact
    tolerance = tolerance_of(artifact, tolerances)
    cases = candidate.cases.fit_for(tolerance)
    name, origin = "", None
    try:
        with logged(f"parity-{candidate.path.stem}"):
            results: dict[str, list[NDArray[np.float64]]] = {}
            with open_runner() as runner:
                name, origin = runner.runtime, runner.origin
                for index in range(len(cases.names)):
                    feeds = {spec.name: encode(cases.inputs[spec.name][index], spec) for spec in runner.inputs}
                    given = runner.infer(feeds)
                    for spec in runner.outputs:
                        results.setdefault(spec.name, []).append(decode(given[spec.name], spec))
                    step()
        # an integer artifact's outputs are judged by SQNR: what float32 costs is only shown beside it
        basis = cases.rounding.get(tolerance.basis, cases.rounding[Precision.FP32])
        outputs = tuple(judge(o, results[o], cases.outputs[o], basis[o], tolerance) for o in cases.outputs)
    except MissingDependencyError as error:
        return ArtifactParity(artifact, name, origin, None, problem=f"not run: {error}")
    except InferenceError as error:  # its layers can still be judged, each on its own
        return ArtifactParity(artifact, name, origin, False, tolerance=tolerance, problem=str(error))
    except DeployError as error:
        return ArtifactParity(artifact, name, origin, False, problem=str(error))
    except (ValueError, KeyError) as error:
        return ArtifactParity(artifact, name, origin, False, problem=f"its outputs do not fit the model's: {error}")
    wrong = [output.sentence() for output in outputs if not output.passed]
    problem = "; ".join(filter(None, [unjudged(candidate.outputs, outputs), *wrong])) or None
    return ArtifactParity(artifact, name, origin, problem is None, outputs, tolerance, problem)


# What is kept --------------------------------------------------------------------------------------------------------


def _keep(bundle: Bundle, report: ParityReport, candidates: Sequence[Candidate], plan: ParityPlan) -> None:
    """Add the runs of this call to the bundle's report."""
    name = "parity.json" if report.target is None else f"parity-{report.target.replace(':', '-')}.json"
    try:
        earlier = read_reports((bundle.root / REPORTS / name).read_text(encoding="utf-8"))
    except (OSError, DocumentError):  # not there, or nothing that could be gone on with
        earlier = ParityReports()
    session, result = begin_session(report.target), report.record()
    settings = ParitySettings(plan.threads, own_tolerances=plan.tolerances is not BUILT_IN)
    runs = []
    for candidate, verdict in zip(candidates, result.artifacts, strict=True):
        source = str(plan.inputs) if plan.inputs is not None else HELD_OUT if candidate.own_cases else GOLDEN
        names = candidate.cases.names
        runs.append(
            ParityRun(
                kind="parity",
                artifact=verdict.path,
                sha256=verdict.sha256,
                place=report.target or HERE,
                inputs=RunInputs(source, len(names), names),
                covered=covered(verdict),
                tool_versions=session.tool_versions,
                time=session.time,
                settings=settings,
                result=verdict,
            )
        )
    kept = ParityReports(accumulated(earlier.runs, runs), result.graphs or earlier.graphs, result.skipped)
    bundle.write_report(name, dump(kept))
