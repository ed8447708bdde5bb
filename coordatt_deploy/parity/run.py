"""Parity of a bundle: run every artifact, hand what it gives to the judges, keep the verdicts in ``reports/``.

This module and ``bundle_cases`` alone open the bundle; the judges take what they need of it as a ``Candidate``.
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
from coordatt_deploy.artifact_specs import Artifact, OutputKind
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import BundleError, DeployError, InferenceError, MissingDependencyError, UsageError
from coordatt_deploy.format_modules import not_installed
from coordatt_deploy.formats import TORCH_EXTRA, Format, Precision
from coordatt_deploy.logs import logged, set_environment
from coordatt_deploy.parity.bundle_cases import candidate_of, golden_cases, golden_images
from coordatt_deploy.parity.candidate import Candidate
from coordatt_deploy.parity.cases import ParityCases, Values
from coordatt_deploy.parity.earlier_proofs import as_verdict, keep_proof, proof_stage, take_proof
from coordatt_deploy.parity.executors import Executor, LocalExecutor
from coordatt_deploy.parity.layers import ArtifactLayers
from coordatt_deploy.parity.outputs import OutputParity, judge, judge_elements, unjudged
from coordatt_deploy.parity.preprocessing_check import GoldenImage, image_feeds
from coordatt_deploy.parity.reports import ParityReports, ParityRun, ParitySettings, covered, read_reports
from coordatt_deploy.parity.result import ArtifactParity, ArtifactVerdict, AsRunHere, ParityReport
from coordatt_deploy.parity.tolerances import BUILT_IN, Tolerance, Tolerances, for_untrained, tolerance_of
from coordatt_deploy.progress import Stages
from coordatt_deploy.report_file import ReportFile, report_name
from coordatt_deploy.run_records import GOLDEN, HELD_OUT, NotRun, RunInputs, Session, begin_session
from coordatt_deploy.runtimes import Runner
from coordatt_deploy.runtimes.host_effects import host_effect
from coordatt_deploy.runtimes.provenance import check_provenance
from coordatt_deploy.stage_cache.store import CachedStage, StageCache
from coordatt_deploy.tensors import decode, encode

if TYPE_CHECKING:
    from coordatt_deploy.graph.graph import Graph
    from coordatt_deploy.parity.golden_check import Verified
    from coordatt_deploy.parity.layer_run import LayerRun

LAYER_CASES: Final = 6


@dataclass(frozen=True, slots=True)
class RemoteTarget:
    """Another machine to run artifacts on.

    Attributes:
        name: With its CPU, e.g. ``qemu-arm64:neoverse-n1``.
        where: Opens artifacts there.
        unsupported_reason: Why an artifact cannot run there; None if it can.
        most_cases: It is slow: outputs are judged on so many cases, layers on half as many.
    """

    name: str
    where: Executor
    unsupported_reason: Callable[[Artifact], str | None]
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
        output: A file for the verdicts in place of the bundle's; None for ``reports/``.
        machine: What this is run on, for the warning where int8 sums saturate; looked up by default.
        command: As the user typed it, for the report.
        require: Formats of which every file has to be judged; what else cannot be run here is skipped.
        cache: Where proofs of the same bytes are looked for and kept; None to prove everything anew.
    """

    formats: tuple[Format, ...] = tuple(Format)
    layers: bool = True
    need_layers: bool = False
    threads: int = 1
    tolerances: Tolerances = field(default_factory=lambda: BUILT_IN)
    inputs: Path | None = None
    save_failing: Path | None = None
    output: Path | None = None
    machine: host.Host | None = None
    command: str = ""
    require: tuple[Format, ...] = ()
    cache: StageCache | None = None

    def __post_init__(self) -> None:
        left_out = [name for name in self.require if name not in self.formats]
        if left_out:
            raise UsageError(f"--require {left_out[0]} is not among the formats of --format; leave one of them out")


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
        UsageError: The bundle has no such artifact, none can run on the target, the inputs do not fit, or the verdicts
            could not be kept.
        BundleError: An artifact was made from other weights, or has no layer map.
        MissingDependencyError: Other inputs, or layers that are needed, without torch or the reference.
    """
    set_environment()
    kept = ReportFile(bundle, report_name("parity", None if target is None else target.name), plan.output)
    kept.check()
    chosen, skipped = _choose(bundle, plan, target)
    tolerances = for_untrained(plan.tolerances) if bundle.manifest.model.untrained else plan.tolerances
    missing = _missing(bundle)
    if missing and (plan.inputs is not None or plan.need_layers or plan.save_failing is not None):
        raise MissingDependencyError(missing)
    for artifact in chosen:
        bundle.layers(artifact)  # a map that is missing or damaged ends this here
        _check_provenance(bundle, artifact)
    proofs = _proof_stages(bundle, chosen, plan, target, reference=not missing)
    earlier = {item.path: take_proof(proofs[item.path], item) for item in chosen if item.path in proofs}
    proven = {path: run for path, run in earlier.items() if run is not None}
    proving = [artifact for artifact in chosen if artifact.path not in proven]
    graph = None if missing or not proving else _reference(bundle)
    cases = golden_cases(bundle) if plan.inputs is None else _cases_on(bundle, plan.inputs, graph, stages)
    candidates = [_candidate(bundle, artifact, cases, plan, target) for artifact in proving]
    believed: tuple[str, ...] = (BELIEVED.format(missing=missing),) if missing and bundle.manifest.golden else ()
    if graph is not None:
        verified = _verified(bundle, graph, cases, candidates, plan, stages)
        believed = verified.believed
        candidates = [
            replace(candidate, regions=verified.regions, moved=_moved(graph, candidate.cases))
            for candidate in candidates
        ]
    where = _place(plan, candidates) if target is None else target.where
    images, image_input = golden_images(bundle), bundle.manifest.inputs[0].name
    verdicts = []
    for candidate in candidates:
        with stages.stage(f"parity {candidate.path.name}", len(candidate.cases.names)) as step:
            opener = partial(where.open_artifact, candidate.path, candidate.artifact)
            if plan.inputs is None and not candidate.own_cases and target is None:
                verdict = _check_golden(candidate, opener, images, image_input, tolerances, step)
            else:
                verdict = check_artifact(candidate, opener, tolerances, step)
        verdicts.append(_with_effect(candidate, verdict, bundle, plan, tolerances))
    graphs: tuple[ArtifactLayers, ...] = ()
    if plan.layers and graph is None:
        verdicts = [replace(v, layers=ArtifactLayers(v.artifact, v.artifact.path, problem=missing)) for v in verdicts]
    elif plan.layers and graph is not None:
        most = LAYER_CASES if target is None else target.most_cases // 2
        layer_run = _layer_run(bundle, graph, where, most, stages, plan)
        if plan.need_layers:
            graphs = layer_run.check_graphs(chosen, cases, tolerances)
        for at, candidate in enumerate(candidates):
            verdicts[at] = layer_run.with_layers(candidate, verdicts[at])
            if candidate.artifact.path in proofs:  # now, and not at the end: the next may be interrupted
                stage = proofs[candidate.artifact.path]
                now = _proof_stages(bundle, [candidate.artifact], plan, target, reference=True)
                if now.get(candidate.artifact.path) == stage:
                    run = _run_of(candidate, verdicts[at].record(), begin_session(None, plan.command), believed, plan)
                    keep_proof(stage, verdicts[at], run)
    names = cases.names if target is None else cases.few(target.most_cases).names
    place = None if target is None else target.name
    found = {verdict.artifact.path: verdict for verdict in verdicts}
    found |= {item.path: as_verdict(item, proven[item.path]) for item in chosen if item.path in proven}
    in_order = tuple(found[artifact.path] for artifact in chosen)
    report = ParityReport(in_order, skipped, place, graphs, names, believed, plan.require)
    with kept.replacing():
        _keep(kept, report, candidates, plan, tuple(proven.values()))
    return report


def _proof_stages(
    bundle: Bundle, chosen: Sequence[Artifact], plan: ParityPlan, target: RemoteTarget | None, *, reference: bool
) -> dict[str, CachedStage]:
    """Where the proof of each artifact is kept; nothing where the plan asks for another one than ``build`` does."""
    usual = plan.tolerances is BUILT_IN and plan.inputs is None and plan.save_failing is None
    if plan.cache is None or target is not None or not (usual and plan.layers and reference) or plan.need_layers:
        return {}
    found = {item.path: proof_stage(plan.cache, bundle, item, plan.threads, plan.machine) for item in chosen}
    return {path: stage for path, stage in found.items() if stage is not None}


def _choose(bundle: Bundle, plan: ParityPlan, target: RemoteTarget | None) -> tuple[list[Artifact], tuple[NotRun, ...]]:
    """Return the artifacts to run, and those that the target cannot run."""
    formats = plan.formats
    asked = [artifact for artifact in bundle.manifest.artifacts if artifact.format in formats]
    if not asked:
        raise UsageError(f"{bundle.root} has no artifact in {', '.join(formats)}; export some first")
    absent = [name for name in plan.require if all(artifact.format is not name for artifact in asked)]
    if absent:
        raise UsageError(f"{bundle.root} has no artifact in {absent[0]}, which --require asks for; export it first")
    reasons = [(artifact, None if target is None else target.unsupported_reason(artifact)) for artifact in asked]
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


BELIEVED: Final = "golden outputs are the bundle's own word, as nothing is here to compute them with: {missing}"


def _reference(bundle: Bundle) -> "Graph":
    from coordatt_deploy.graph.saved_graph import load_graph  # torch, which boards do not have

    return load_graph(bundle.path("reference"))


def _verified(
    bundle: Bundle,
    graph: "Graph",
    cases: ParityCases,
    candidates: Sequence[Candidate],
    plan: ParityPlan,
    stages: Stages,
) -> "Verified":
    from coordatt_deploy.parity.golden_check import verify  # torch, which boards do not have

    golden = {"golden": cases} if plan.inputs is None and cases.names else {}
    held_out = {
        f"golden/{candidate.record.held_out.folder}": candidate.cases
        for candidate in candidates
        if candidate.own_cases and candidate.record is not None and candidate.record.held_out is not None
    }
    return verify(bundle.path("reference"), graph, bundle.manifest, golden | held_out, stages)


def _moved(graph: "Graph", cases: ParityCases) -> Callable[[Tolerance], Values]:
    from coordatt_deploy.parity import moved_values  # torch, which boards do not have

    return partial(moved_values.moved_cases, graph, cases)


def _check_provenance(bundle: Bundle, artifact: Artifact) -> None:
    try:
        with logged(f"provenance-{Path(artifact.path).stem}"):
            check_provenance(bundle.path(artifact.path), artifact, bundle.manifest)
    except MissingDependencyError:
        return  # what cannot be opened here is not run here either


def _candidate(
    bundle: Bundle, artifact: Artifact, cases: ParityCases, plan: ParityPlan, target: RemoteTarget | None
) -> Candidate:
    users = plan.inputs is not None
    candidate = candidate_of(bundle, artifact, cases, layers=plan.layers, users=users)
    if target is not None:
        return replace(candidate, cases=candidate.cases.few(target.most_cases))
    here = plan.machine or host.describe()
    return replace(candidate, effect=host_effect(candidate.path, artifact, here))


def _cases_on(bundle: Bundle, source: Path, graph: "Graph | None", stages: Stages) -> ParityCases:
    assert graph is not None  # noqa: S101 - without the reference such a plan was refused
    from coordatt_deploy.parity import layer_run  # torch, which boards do not have

    return layer_run.cases_on(source, graph, bundle.manifest.model.preprocessing, stages)


def _layer_run(
    bundle: Bundle, graph: "Graph", where: Executor, most_cases: int, stages: Stages, plan: ParityPlan
) -> "LayerRun":
    from coordatt_deploy.parity import layer_run  # torch, which boards do not have

    with stages.stage("reference by layer"):
        reference = layer_run.by_layer(graph)
    return layer_run.LayerRun(bundle.manifest, plan.command, reference, where, most_cases, stages, plan.save_failing)


def _place(plan: ParityPlan, candidates: Sequence[Candidate]) -> LocalExecutor:
    """This machine, computing what the CPU would that each file is made for."""
    exact = (item.artifact.path for item in candidates if item.effect is not None and item.effect.foreign)
    return LocalExecutor(plan.threads, frozenset(exact))


def _with_effect(
    candidate: Candidate, verdict: ArtifactParity, bundle: Bundle, plan: ParityPlan, tolerances: Tolerances
) -> ArtifactParity:
    """Say how the file was judged where this CPU makes something else of it, with what that is as information."""
    effect = candidate.effect
    if effect is None or verdict.passed is None:
        return verdict
    if not effect.foreign:
        return replace(verdict, warning=effect.warning(str(bundle.root)))
    opener = partial(LocalExecutor(plan.threads).open_artifact, candidate.path, candidate.artifact)
    worst = check_artifact(candidate, opener, tolerances, lambda: None).worst()
    if worst is None:
        return replace(verdict, warning=effect.judged())
    as_run = AsRunHere(worst.max_abs_error, worst.sqnr_db, worst.top1_agreement)
    return replace(verdict, as_run_here=as_run, warning=f"{effect.judged()}; as it runs here: {as_run.sentence()}")


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
        outputs = _judged(candidate, cases, results, tolerance)
        if (
            not all(output.passed for output in outputs)
            and candidate.moved is not None
            and tolerance.weight_bits is None
        ):
            with logged(f"moved-{candidate.path.stem}"):
                moved = candidate.moved(tolerance)
            outputs = _judged(candidate, cases, results, tolerance, moved)
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


def _judged(
    candidate: Candidate, cases: ParityCases, results: Values, tolerance: Tolerance, moved: Values | None = None
) -> tuple[OutputParity, ...]:
    """Judge every output.

    Args:
        candidate: The artifact, with what its outputs are.
        cases: That it was run on.
        results: What it made of them.
        tolerance: What to apply.
        moved: What values moved by half a unit in the last place make of them; None where that was not asked.
    """
    # an integer artifact's outputs are judged by SQNR: what float32 costs is only shown beside it
    basis = cases.rounding.get(tolerance.basis, cases.rounding[Precision.FP32])
    further = moved or {}
    return tuple(
        judge_elements(o, results[o], cases.outputs[o], basis[o], tolerance, cases.images, further.get(o, ()))
        if o in candidate.integral
        else judge(
            o,
            results[o],
            cases.outputs[o],
            basis[o],
            tolerance,
            cases.images,
            candidate.regions.get(o, ()),
            candidate.kinds.get(o, OutputKind.OTHER),
            further.get(o, ()),
        )
        for o in cases.outputs
    )


# What is kept --------------------------------------------------------------------------------------------------------


def _keep(
    file: ReportFile,
    report: ParityReport,
    candidates: Sequence[Candidate],
    plan: ParityPlan,
    proven: Sequence[ParityRun] = (),
) -> None:
    """Add the runs of this call to the report; of what was proven before the runs that proved it."""
    earlier = file.earlier(read_reports, ParityReports())
    session, result = begin_session(report.target, plan.command), report.record()
    verdicts = {verdict.path: verdict for verdict in result.artifacts}
    runs = {run.artifact: run for run in proven}
    for candidate in candidates:
        path = candidate.artifact.path
        runs[path] = _run_of(candidate, verdicts[path], session, result.believed, plan)
    file.write(dump(earlier.with_runs(result, tuple(runs[path] for path in verdicts))))


def _run_of(
    candidate: Candidate, verdict: ArtifactVerdict, session: Session, believed: tuple[str, ...], plan: ParityPlan
) -> ParityRun:
    source = str(plan.inputs) if plan.inputs is not None else HELD_OUT if candidate.own_cases else GOLDEN
    names = candidate.cases.names
    return ParityRun(
        kind="parity",
        artifact=verdict.path,
        sha256=verdict.sha256,
        place=session.place,
        inputs=RunInputs(source, len(names), names),
        covered=covered(verdict),
        tool_versions=session.tool_versions,
        time=session.time,
        machine=session.machine,
        command=session.command,
        settings=ParitySettings(plan.threads, own_tolerances=plan.tolerances is not BUILT_IN),
        result=verdict,
        believed=believed,
    )
