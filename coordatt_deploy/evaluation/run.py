"""Evaluate a bundle: open the labelled images, run what is in it, judge, write ``reports/evaluate.json``.

What every artifact is compared with is the captured graph in float64. Without torch, which boards do not have, it is
the bundle's best float artifact, and the document says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from coordatt_deploy import targets
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.data.dataset import Dataset, LabelsBy
from coordatt_deploy.data.labelled import open_dataset
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import UsageError
from coordatt_deploy.evaluation.cluster_address import check_address
from coordatt_deploy.evaluation.executors import Executor, opened_executor
from coordatt_deploy.evaluation.judge import judge
from coordatt_deploy.evaluation.metric_choice import (
    check_drop,
    check_metric,
    classes_of,
    image_input,
    own_metric,
    scoring_of,
)
from coordatt_deploy.evaluation.predict import run
from coordatt_deploy.evaluation.predictions import Predictions, Trial
from coordatt_deploy.evaluation.reports import EvaluationReports, read_reports, runs_of
from coordatt_deploy.evaluation.result import Accuracy, Evaluation, EvaluationResult
from coordatt_deploy.evaluation.scoring import MeanIou
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.source_weights import check_source_weights
from coordatt_deploy.host import Host, available_cores
from coordatt_deploy.logs import logged
from coordatt_deploy.plurals import counted
from coordatt_deploy.progress import Stages
from coordatt_deploy.report_file import ReportFile, report_name
from coordatt_deploy.run_records import NotRun, accumulated, begin_session
from coordatt_deploy.runtimes.host_effects import HostEffect, host_effect

CHANCE: Final = 2.0  # times the accuracy of a guess: below it, labels or preprocessing are likely not the model's
EXAMPLES: Final = 100  # images from which on such a low accuracy is no accident


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What to evaluate.

    Attributes:
        dataset: A folder, an ``.npz``, or the name of a packaged set; see ``data.labelled``.
        formats: Only artifacts of these.
        limit: How many images at most; None for all.
        seed: Of the choice among them.
        workers: Processes; None for one per core.
        cluster: Address of a Dask scheduler whose workers run it all; None for this machine.
        max_drop: By how much an artifact may be worse, in the metric's unit (percentage points of what is built in);
            None for no verdict.
        labels_by: How folders become classes; None for the first way that fits.
        target: Where artifacts run; None for this machine.
        output: A file for the figures in place of the bundle's; None for ``reports/``.
        metric: ``top-1``, ``miou``, or ``FILE.py:FUNCTION``; None for what the dataset's labels are made for.
        command: As the user typed it, for the report.
    """

    dataset: str
    formats: tuple[Format, ...] = tuple(Format)
    limit: int | None = None
    seed: int = 0
    workers: int | None = None
    max_drop: float | None = None
    labels_by: LabelsBy | None = None
    target: str | None = None
    output: Path | None = None
    metric: str | None = None
    command: str = ""
    cluster: str | None = None

    def __post_init__(self) -> None:
        for option, value in (("limit", self.limit), ("workers", self.workers)):
            if value is not None and value < 1:
                raise UsageError(f"--{option} is {value}; it must be a whole number of at least 1")
        if self.cluster is not None:
            check_address(self.cluster)
            other = "target" if self.target is not None else "workers" if self.workers is not None else None
            if other is not None:
                raise UsageError(f"--cluster runs everything on its workers; leave --{other} out")
        check_metric(self.metric)
        if self.max_drop is not None:
            check_drop(self.max_drop, self.metric)


def evaluate_bundle(bundle: Bundle, plan: EvaluationPlan, stages: Stages) -> Evaluation:
    """Evaluate the artifacts and write ``reports/evaluate.json``, ``evaluate-TARGET.json``, or the user's file.

    Raises:
        UsageError: The bundle has no such artifact or gives nothing that the metric scores, the dataset does not fit,
            or the figures could not be kept.
        MetricError: A metric of the user's own raises, or gives no number.
        MissingDependencyError: The digits need scikit-learn, or a cluster Dask, which is not installed.
        TargetError: A cluster cannot be reached, or its workers have other versions.
    """
    target = None if plan.target is None else targets.parse(plan.target)
    kept = ReportFile(bundle, report_name("evaluate", None if target is None else str(target)), plan.output)
    kept.check()
    own = own_metric(plan.metric)
    classes = classes_of(bundle)
    tensor = image_input(bundle)
    dataset = open_dataset(plan.dataset, bundle.manifest.model.labels, classes, plan.labels_by, tensor)
    scoring = scoring_of(bundle, plan.metric, dataset, own)
    if isinstance(scoring, MeanIou):
        classes = scoring.classes
    if plan.limit is not None:
        dataset = dataset.limited(plan.limit, plan.seed)
    artifacts, skipped = _chosen(bundle, plan, target)
    missing = _no_reference(bundle)
    if missing is not None:
        artifacts = sorted(artifacts, key=_distance)
    else:
        check_source_weights(bundle.path("reference"), bundle.manifest)
    place = None if target is None else str(target)
    subjects: list[Artifact | None] = [*artifacts] if missing else [None, *artifacts]
    with opened_executor(plan.workers or available_cores(), plan.cluster) as executor:
        effects = {} if place is not None else _host_effects(bundle, artifacts, executor.machines)
        exact = frozenset(path for path, effect in effects.items() if effect.foreign)
        trial = Trial(bundle, tuple(artifacts), missing is None, tensor.name, scoring, place, exact)
        predictions, unreadable = _predictions(trial, dataset, executor, stages)
        with stages.stage(scoring.record.name), logged("metric"):
            judged = judge(subjects, predictions, dataset, scoring, classes, plan.max_drop, _warnings(effects, bundle))
        images = len(predictions.rows)
        if exact and len(executor.machines) == 1:
            foreign = replace(
                trial, artifacts=tuple(item for item in artifacts if item.path in exact), reference=False,
                exact_sums=frozenset(),
            )  # fmt: skip
            judged = _with_scores_here(judged, foreign, dataset, executor, stages)
    notes = [*dataset.notes]
    if missing is not None:
        notes.append(f"compared with {judged[0].name} instead of the float64 reference: {missing}")
    notes += [*_doubts(judged[0], images, classes), *executor.notes]
    evaluation = Evaluation(
        dataset, scoring.record, classes, images, unreadable, judged, skipped, plan.max_drop, place, tuple(notes)
    )
    with kept.replacing():
        _keep(kept, evaluation.record(), executor, plan.command)
    return evaluation


def _predictions(
    trial: Trial, dataset: Dataset, executor: Executor, stages: Stages, how: str = ""
) -> tuple[Predictions, tuple[tuple[str, str], ...]]:
    """Return what the subjects of *trial* predict, and each image that cannot be read with the reason."""
    where = f" {how}" * bool(how) + ("" if trial.target is None else f" on {trial.target}")
    with stages.stage(f"{trial.subjects} × {len(dataset):,} images{where}", len(dataset)) as step:
        predictions = run(trial, dataset.images, executor, step)
    unreadable = tuple((dataset.images[row].name, reason) for row, reason in predictions.unreadable)
    if not len(predictions.rows):
        name, reason = unreadable[0]
        raise UsageError(
            f"none of the {counted(len(unreadable), 'image')} of {dataset.source} can be read; {name}: {reason}"
        )
    return predictions, unreadable


def _with_scores_here(
    judged: tuple[Accuracy, ...], trial: Trial, dataset: Dataset, executor: Executor, stages: Stages
) -> tuple[Accuracy, ...]:
    """Add what this CPU makes of the files that are judged by what another one computes."""
    predictions, _ = _predictions(trial, dataset, executor, stages, "as run here")
    with stages.stage(f"{trial.scoring.record.name} as run here"), logged("metric"):
        here = judge(list(trial.artifacts), predictions, dataset, trial.scoring)
    scores = {item.name: item.share(len(predictions.rows)) for item in here if item.problem is None}
    return tuple(replace(item, score_as_run_here=scores.get(item.name)) for item in judged)


def _host_effects(bundle: Bundle, artifacts: Sequence[Artifact], machines: Sequence[Host]) -> dict[str, HostEffect]:
    """Return what the CPU of one of *machines* makes otherwise of artifacts, by path."""
    found = {
        item.path: effect
        for machine in machines
        for item in artifacts
        if (effect := host_effect(bundle.path(item.path), item, machine)) is not None
    }
    return {item.path: found[item.path] for item in artifacts if item.path in found}


def _warnings(effects: Mapping[str, HostEffect], bundle: Bundle) -> dict[str, str | None]:
    """Return what is to be known of each artifact's figures on this machine's CPU."""
    return {
        path: effect.judged() if effect.foreign else effect.warning(str(bundle.root))
        for path, effect in effects.items()
    }


def _keep(file: ReportFile, result: EvaluationResult, executor: Executor, command: str) -> None:
    """Add the runs of this call to the report."""
    earlier = file.earlier(read_reports, EvaluationReports())
    session = begin_session(result.target, command)
    runs = runs_of(result, session.tool_versions | dict(executor.tool_versions), session.time)
    machine = executor.machine or session.machine
    runs = tuple(replace(run, machine=machine, command=session.command) for run in runs)
    file.write(dump(EvaluationReports(accumulated(earlier.runs, runs), result.skipped)))


def _chosen(
    bundle: Bundle, plan: EvaluationPlan, name: targets.TargetName | None
) -> tuple[list[Artifact], tuple[NotRun, ...]]:
    has = bundle.manifest.artifacts
    chosen = [artifact for artifact in has if artifact.format in plan.formats]
    if not chosen:
        found = ", ".join(dict.fromkeys(artifact.format.value for artifact in has)) or "none"
        raise UsageError(
            f"{bundle.root} has no artifact in {', '.join(plan.formats)} (it has: {found}); export some first"
        )
    if name is None:
        return chosen, ()
    module = targets.target(name.name)
    reasons = [(artifact, module.unsupported_reason(artifact)) for artifact in chosen]
    able = [artifact for artifact, reason in reasons if reason is None]
    skipped = tuple(NotRun(artifact.path, reason) for artifact, reason in reasons if reason is not None)
    if not able:
        raise UsageError(f"nothing of {bundle.root} can run on {name}: {skipped[0].reason}")
    return able, skipped


def _no_reference(bundle: Bundle) -> str | None:
    for package in ("torch", "safetensors"):
        if find_spec(package) is None:
            return f"{package} is not installed here"
    return None if bundle.path("reference/graph.json").exists() else "the bundle has no reference/"


def _distance(artifact: Artifact) -> int:
    """How far an artifact is from the reference: float32 before float16 before what is quantized."""
    return list(Precision).index(artifact.precision) + (len(Precision) if artifact.recipe else 0)


def _doubts(baseline: Accuracy, images: int, classes: int | None) -> list[str]:
    if (
        classes is None
        or baseline.correct is None
        or images < EXAMPLES
        or baseline.correct / images >= CHANCE / classes
    ):
        return []
    return [
        f"{baseline.name} itself is right on only {baseline.correct / images:.1%}, a guess on {1 / classes:.1%}:"
        " do the folders' classes and the bundle's preprocessing fit this model?"
    ]
