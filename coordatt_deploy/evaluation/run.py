"""Evaluate a bundle: open the labelled images, run what is in it, judge, write ``reports/evaluate.json``.

What every artifact is compared with is the captured graph in float64. Without torch, which boards do not have, it is
the bundle's best float artifact, and the document says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from coordatt_deploy import targets
from coordatt_deploy.artifact_specs import Artifact, OutputKind, TensorSpec
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.data.dataset import Dataset, LabelKind, LabelsBy
from coordatt_deploy.data.labelled import open_dataset
from coordatt_deploy.data.masks import IGNORED
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import UsageError
from coordatt_deploy.evaluation.judge import judge
from coordatt_deploy.evaluation.predict import Predictions, Trial, run
from coordatt_deploy.evaluation.reports import EvaluationReports, read_reports, runs_of
from coordatt_deploy.evaluation.result import MIOU, TOP1, Accuracy, Evaluation, EvaluationResult, MetricRecord
from coordatt_deploy.evaluation.scoring import MeanIou, Own, Scoring, Top1
from coordatt_deploy.evaluation.user_metric import load_metric
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.source_weights import check_source_weights
from coordatt_deploy.host import available_cores, describe
from coordatt_deploy.logs import logged
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

    def __post_init__(self) -> None:
        for option, value in (("limit", self.limit), ("workers", self.workers)):
            if value is not None and value < 1:
                raise UsageError(f"--{option} is {value}; it must be a whole number of at least 1")
        if self.metric not in (None, TOP1, MIOU) and ":" not in str(self.metric):
            raise UsageError(f"unknown --metric {self.metric!r}; known: {TOP1}, {MIOU}, FILE.py:FUNCTION")
        if self.max_drop is None:
            return
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise UsageError(f"--max-drop is {self.max_drop}; give a number of at least 0, in the metric's unit")
        if self.max_drop > 100 and self.metric in (None, TOP1, MIOU):
            raise UsageError(f"--max-drop is {self.max_drop}; give percentage points from 0 to 100, such as 0.5")


def evaluate_bundle(bundle: Bundle, plan: EvaluationPlan, stages: Stages) -> Evaluation:
    """Evaluate the artifacts and write ``reports/evaluate.json``, ``evaluate-TARGET.json``, or the user's file.

    Raises:
        UsageError: The bundle has no such artifact or gives nothing that the metric scores, the dataset does not fit,
            or the figures could not be kept.
        MetricError: A metric of the user's own raises, or gives no number.
        MissingDependencyError: The digits need scikit-learn, which is not installed.
    """
    target = None if plan.target is None else targets.parse(plan.target)
    kept = ReportFile(bundle, report_name("evaluate", None if target is None else str(target)), plan.output)
    kept.check()
    own = _own_metric(plan.metric)
    classes = _classes(bundle)
    tensor = image_input(bundle)
    dataset = open_dataset(plan.dataset, bundle.manifest.model.labels, classes, plan.labels_by, tensor)
    scoring = _scoring(bundle, plan, dataset, own)
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
    effects = {} if place is not None else _host_effects(bundle, artifacts)
    exact = frozenset(path for path, effect in effects.items() if effect.foreign)
    trial = Trial(bundle, tuple(artifacts), missing is None, tensor.name, scoring, place, exact)
    predictions, unreadable = _predictions(trial, dataset, plan.workers, stages)
    subjects: list[Artifact | None] = [*artifacts] if missing else [None, *artifacts]
    with stages.stage(scoring.record.name), logged("metric"):
        judged = judge(subjects, predictions, dataset, scoring, classes, plan.max_drop, _warnings(effects, bundle))
    images = len(predictions.rows)
    notes = [*dataset.notes]
    if missing is not None:
        notes.append(f"compared with {judged[0].name} instead of the float64 reference: {missing}")
    notes += _doubts(judged[0], images, classes)
    evaluation = Evaluation(
        dataset, scoring.record, classes, images, unreadable, judged, skipped, plan.max_drop, place, tuple(notes)
    )
    with kept.replacing():
        _keep(kept, evaluation.record(), plan.command)
    return evaluation


def _predictions(
    trial: Trial, dataset: Dataset, workers: int | None, stages: Stages
) -> tuple[Predictions, tuple[tuple[str, str], ...]]:
    """Return what the subjects of *trial* predict, and each image that cannot be read with the reason."""
    where = "" if trial.target is None else f" on {trial.target}"
    with stages.stage(f"{trial.subjects} × {len(dataset):,} images{where}", len(dataset)) as step:
        predictions = run(trial, dataset.images, workers or available_cores(), step)
    unreadable = tuple((dataset.images[row].name, reason) for row, reason in predictions.unreadable)
    if not len(predictions.rows):
        name, reason = unreadable[0]
        raise UsageError(f"none of the {len(unreadable)} images of {dataset.source} can be read; {name}: {reason}")
    return predictions, unreadable


def _host_effects(bundle: Bundle, artifacts: Sequence[Artifact]) -> dict[str, HostEffect]:
    """Return what this machine's CPU makes otherwise of artifacts, by path."""
    machine = describe()
    found = {item.path: host_effect(bundle.path(item.path), item, machine) for item in artifacts}
    return {path: effect for path, effect in found.items() if effect is not None}


def _warnings(effects: Mapping[str, HostEffect], bundle: Bundle) -> dict[str, str | None]:
    """Return what is to be known of each artifact's figures on this machine's CPU."""
    return {
        path: effect.judged() if effect.foreign else effect.warning(str(bundle.root))
        for path, effect in effects.items()
    }


def _keep(file: ReportFile, result: EvaluationResult, command: str) -> None:
    """Add the runs of this call to the report."""
    earlier = file.earlier(read_reports, EvaluationReports())
    session = begin_session(result.target, command)
    runs = runs_of(result, session.tool_versions, session.time)
    runs = tuple(replace(run, machine=session.machine, command=session.command) for run in runs)
    file.write(dump(EvaluationReports(accumulated(earlier.runs, runs), result.skipped)))


def _own_metric(named: str | None) -> Own | None:
    """Import a metric of the user's own, before anything is run; None for what is built in."""
    if named is None or named in (TOP1, MIOU):
        return None
    with logged("metric"):
        metric = load_metric(named)
    record = MetricRecord(metric.name, metric.higher_is_better, "", named, metric.per_image)
    return Own(record, LabelKind.CLASSES)


def _classes(bundle: Bundle) -> int | None:
    """The number of logits; None where the model is no classifier."""
    try:
        return logits_of(bundle)[1]
    except UsageError:
        return None


def _scoring(bundle: Bundle, plan: EvaluationPlan, dataset: Dataset, own: Own | None) -> Scoring:
    """Return what becomes of the outputs.

    Raises:
        UsageError: The model's outputs or the dataset's labels are not what the metric scores.
    """
    if own is not None:
        return replace(own, kind=dataset.kind)
    asked = plan.metric or {LabelKind.CLASSES: TOP1, LabelKind.MASKS: MIOU}.get(dataset.kind)
    if asked is None:
        raise UsageError(
            f"the labels of {dataset.source} are neither classes nor masks; give --metric FILE.py:FUNCTION"
        )
    needed = LabelKind.CLASSES if asked == TOP1 else LabelKind.MASKS
    if asked == TOP1:
        scoring: Scoring = Top1(logits_of(bundle)[0].name)
    else:
        spec, classes = mask_of(bundle)
        scoring = MeanIou(spec.name, classes)
    if dataset.kind is not needed:
        raise UsageError(f"{asked} needs {needed.value} as labels; {dataset.source} has {dataset.kind.value}")
    return scoring


def mask_of(bundle: Bundle) -> tuple[TensorSpec, int]:
    """Return the output that holds a class, or a score of each class, for every pixel, and the number of classes.

    An output whose kind is said or proven to be a mask comes before one that looks like it. Where it holds the classes
    themselves there are as many as the model has labels, or 255.

    Raises:
        UsageError: There is none.
    """
    manifest = bundle.manifest
    said = [spec for spec in manifest.outputs if manifest.output_kinds.get(spec.name) is OutputKind.MASK]
    for spec in (*said, *manifest.outputs):
        channels = spec.shape[1] if len(spec.shape) == 4 else None
        if channels is not None and channels > 1:
            return spec, channels
        if spec.dtype.startswith(("int", "uint")) and (len(spec.shape) == 3 or channels == 1):
            return spec, len(manifest.model.labels or ()) or IGNORED
    found = ", ".join(f"{spec.name} {spec.shape}" for spec in manifest.outputs)
    raise UsageError(
        "mIoU needs scores (1, classes, H, W) or classes (1, H, W) for every pixel;"
        f" {manifest.model.name} gives {found}"
    )


def logits_of(bundle: Bundle) -> tuple[TensorSpec, int]:
    """Return the output that holds the logits and the number of classes.

    Raises:
        UsageError: The model is no classifier.
    """
    for spec in bundle.manifest.outputs:
        classes = spec.shape[-1]
        if len(spec.shape) == 2 and classes is not None and classes > 1:
            return spec, classes
    found = ", ".join(f"{spec.name} {spec.shape}" for spec in bundle.manifest.outputs)
    raise UsageError(
        f"accuracy needs a classifier with logits (1, classes); {bundle.manifest.model.name} gives {found}"
    )


def image_input(bundle: Bundle) -> TensorSpec:
    """Return the input that takes the image.

    Raises:
        UsageError: The model takes something else, or more.
    """
    inputs, preprocessing = bundle.manifest.inputs, bundle.manifest.model.preprocessing
    channels = len(preprocessing.mean) if preprocessing.takes_images else None
    if len(inputs) == 1 and len(inputs[0].shape) == 4 and inputs[0].shape[1] == channels:
        return inputs[0]
    found = ", ".join(f"{spec.name} {spec.shape}" for spec in inputs)
    raise UsageError(
        "accuracy needs a model of one image (1, 3, H, W), or grey (1, 1, H, W);"
        f" {bundle.manifest.model.name} takes {found}"
    )


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
