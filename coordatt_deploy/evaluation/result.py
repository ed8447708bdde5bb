"""How accurate the artifacts are on labelled images, as one call of ``evaluate`` finds it."""

import math
from dataclasses import dataclass
from typing import ClassVar, Final

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.data.dataset import Dataset
from coordatt_deploy.evaluation.jackknife import ScoreDifference
from coordatt_deploy.evaluation.paired import CONFIDENCE, PairedDifference
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.run_records import NotRun

TOP1: Final = "top-1"
MIOU: Final = "miou"
POINTS: Final = "points"


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """What is scored, as documents hold it.

    Attributes:
        name: ``top-1``, ``miou``, or the name of the user's function.
        higher_is_better: Which way is better.
        unit: ``points`` where scores are shares and differences percentage points; empty for the metric's own.
        file: ``FILE.py:FUNCTION`` of the user's own; None for what is built in.
        per_image: Whether images have scores of their own, of which the score is the mean.
    """

    name: str
    higher_is_better: bool
    unit: str
    file: str | None = None
    per_image: bool = True

    @property
    def in_points(self) -> bool:
        """Whether differences are percentage points."""
        return self.unit == POINTS


@dataclass(frozen=True, slots=True)
class Changed:
    """An image that the reference and an artifact do not see alike; classes by index, None for none."""

    image: str
    label: int
    reference: int | None
    candidate: int | None


@dataclass(frozen=True, slots=True)
class SubjectAccuracy:
    """What one subject made of the images, as documents hold it.

    Attributes:
        name: ``reference``, or the artifact's path.
        path: Of the artifact; None for the reference, as for the next five.
        sha256: Of the file when it was run.
        format: Of the file.
        precision: That it computes in.
        recipe: How it was quantized; None for float.
        target_cpu: The CPU family of its form; None where the form is the same for all.
        runtime: Name and version of what ran it.
        origin: Measured, emulated or evaluated; None for the reference.
        correct: Images whose class it named.
        top1: Share of all images.
        correct_top5: Images whose class was among its first five; None where there are no more than five.
        top5: Share of all images.
        difference_points: Percentage points more than the baseline; None for the baseline itself.
        interval_points: Of that, low and high.
        p_value: Of no difference.
        lost: Images that the baseline has right and it has not; of another metric, those that it is worse on.
        gained: Images that it has right and the baseline has not; of another metric, those that it is better on.
        agreement: Share of the images, or of the pixels, on which it named the baseline's class.
        sqnr_db: Of its logits against the baseline's, over all images.
        exact: Whether they are equal.
        nonfinite: Images whose outputs held NaN or infinity.
        changed: The first images that it sees otherwise than the baseline does.
        passed: Whether the drop stayed within the limit; None without a limit, or where it was not run.
        problem: Why it was not run or failed.
        warning: Why its figures on this machine may not be those of another; None where they are.
        score: Of the metric; a share where its unit is points.
        score_difference: To the baseline's, in the metric's unit.
        score_interval: Of that, low and high; None where the images do not tell.
        class_iou: Of mIoU, of each class; None for a class that no mask has.
        score_as_run_here: The score that this CPU gives a file that is made for another one, whose figures are those of
            the other: information, no verdict. None for every other file.
    """

    name: str
    path: str | None
    sha256: str | None
    format: Format | None
    precision: Precision | None
    recipe: str | None
    target_cpu: TargetCpu | None
    runtime: str
    origin: Origin | None
    correct: int | None
    top1: float | None
    correct_top5: int | None
    top5: float | None
    difference_points: float | None
    interval_points: tuple[float, float] | None
    p_value: float | None
    lost: int | None
    gained: int | None
    agreement: float | None
    sqnr_db: float | None
    exact: bool
    nonfinite: int
    changed: tuple[Changed, ...]
    passed: bool | None
    problem: str | None
    warning: str | None
    score: float | None = None
    score_difference: float | None = None
    score_interval: tuple[float, float] | None = None
    class_iou: tuple[float | None, ...] | None = None
    score_as_run_here: float | None = None


@dataclass(frozen=True, slots=True)
class UnreadableImage:
    """An image that could not be read, and why."""

    image: str
    reason: str


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """The images that were asked.

    Attributes:
        source: A folder, or the name of a packaged set.
        images: How many could be read.
        available: How many there are.
        classes: Number of logits; None where a metric of the user's own does not need them.
        labels_by: How folders became classes; ``masks``, or ``values`` of another kind.
        unreadable: Those that could not be read.
    """

    source: str
    images: int
    available: int
    classes: int | None
    labels_by: str
    unreadable: tuple[UnreadableImage, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What one call of ``evaluate`` found.

    Attributes:
        passed: Whether no artifact lost more than was allowed; None without a limit.
        max_drop_points: The limit, in percentage points; None where the metric has another unit.
        target: Where artifacts were run; None for this machine.
        dataset: What was asked.
        baseline: Name of the subject that the others are compared with.
        confidence: Of the intervals.
        subjects: The baseline first.
        skipped: What the target cannot run.
        notes: What the user should know of the whole.
        metric: What was scored; None in reports of older versions, which knew top-1 alone.
        max_drop: The limit, in the metric's unit; None without one.
    """

    VERSION: ClassVar[int] = 1

    passed: bool | None
    max_drop_points: float | None
    target: str | None
    dataset: DatasetRecord
    baseline: str
    confidence: float
    subjects: tuple[SubjectAccuracy, ...]
    skipped: tuple[NotRun, ...] = ()
    notes: tuple[str, ...] = ()
    metric: MetricRecord | None = None
    max_drop: float | None = None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What one subject, the reference or an artifact, made of the images.

    Attributes:
        name: ``reference``, or the artifact's path.
        artifact: None for the reference.
        runtime: Name and version of what ran it.
        origin: Measured, emulated or evaluated; None for the reference.
        correct: Images whose class it named.
        correct_top5: Images whose class was among its first five; None where there are no more than five.
        difference: To the baseline; None for the baseline itself.
        agreement: Share of the images, or of the pixels, on which it named the baseline's class.
        sqnr_db: Of its logits against the baseline's, over all images.
        nonfinite: Images whose outputs held NaN or infinity.
        changed: The first images that it sees otherwise than the baseline does.
        passed: Whether the drop stayed within the limit; None without a limit, or where it was not run.
        problem: Why it was not run or failed.
        missing: Whether it was not run for want of an installed package.
        warning: Why its figures on this machine may not be those of another; None where they are.
        score: Of another metric than top-1; a share where its unit is points.
        score_difference: To the baseline's, as the score has it.
        class_iou: Of mIoU, of each class; NaN for a class that no mask has.
        score_as_run_here: See ``SubjectAccuracy``.
    """

    name: str
    artifact: Artifact | None
    runtime: str = ""
    origin: Origin | None = None
    correct: int | None = None
    correct_top5: int | None = None
    difference: PairedDifference | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    nonfinite: int = 0
    changed: tuple[Changed, ...] = ()
    passed: bool | None = None
    problem: str | None = None
    missing: bool = False
    warning: str | None = None
    score: float | None = None
    score_difference: ScoreDifference | None = None
    class_iou: tuple[float, ...] | None = None
    score_as_run_here: float | None = None

    def share(self, images: int) -> float | None:
        """Return the score: of top-1, the share of the images whose class it named."""
        return self.score if self.correct is None else self.correct / images

    def change(self, metric: MetricRecord) -> tuple[float | None, tuple[float, float] | None]:
        """Return the difference to the baseline and its interval, in the metric's unit; None for what there is not."""
        if self.difference is not None:
            return self.difference.points, self.difference.interval_points
        found = self.score_difference
        if found is None:
            return None, None
        scale = 100.0 if metric.in_points else 1.0
        interval = None if found.interval is None else (scale * found.interval[0], scale * found.interval[1])
        return scale * found.value, interval

    def record(self, images: int, metric: MetricRecord) -> SubjectAccuracy:
        """Return the figures as documents hold them."""
        artifact, pair, own = self.artifact, self.difference, self.score_difference
        change, interval = self.change(metric)
        better, worse = (None, None) if own is None else (own.greater, own.lower)
        if not metric.higher_is_better:
            better, worse = worse, better
        return SubjectAccuracy(
            name=self.name,
            path=artifact.path if artifact else None,
            sha256=artifact.sha256 if artifact else None,
            format=artifact.format if artifact else None,
            precision=artifact.precision if artifact else None,
            recipe=artifact.recipe if artifact else None,
            target_cpu=artifact.target_cpu if artifact else None,
            runtime=self.runtime,
            origin=self.origin,
            correct=self.correct,
            top1=None if self.correct is None else self.correct / images,
            correct_top5=self.correct_top5,
            top5=None if self.correct_top5 is None else self.correct_top5 / images,
            difference_points=change if metric.in_points else None,
            interval_points=interval if metric.in_points else None,
            p_value=pair.p_value if pair else None,
            lost=pair.lost if pair else worse,
            gained=pair.gained if pair else better,
            agreement=self.agreement,
            sqnr_db=self.sqnr_db,
            exact=self.sqnr_db == math.inf,
            nonfinite=self.nonfinite,
            changed=self.changed,
            passed=self.passed,
            problem=self.problem,
            warning=self.warning,
            score=self.share(images),
            score_difference=change,
            score_interval=interval,
            class_iou=_known(self.class_iou),
            score_as_run_here=self.score_as_run_here,
        )


def _known(values: tuple[float, ...] | None) -> tuple[float | None, ...] | None:
    return None if values is None else tuple(None if math.isnan(value) else value for value in values)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The accuracy of a bundle on a dataset.

    Attributes:
        dataset: What was asked.
        metric: What was scored.
        classes: Number of logits; None where a metric of the user's own does not need them.
        images: How many could be read.
        unreadable: Name and reason of each that could not.
        subjects: The baseline, which the others are compared with, first.
        skipped: What the target cannot run.
        max_drop: By how much an artifact may be worse than the baseline, in the metric's unit; None for no verdict.
        target: Where it was run; None for this machine.
        notes: What the user should know of the whole.
    """

    dataset: Dataset
    metric: MetricRecord
    classes: int | None
    images: int
    unreadable: tuple[tuple[str, str], ...]
    subjects: tuple[Accuracy, ...]
    skipped: tuple[NotRun, ...] = ()
    max_drop: float | None = None
    target: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 done, 1 a drop beyond the limit or an artifact that does not work, 3 where none could be run here."""
        if any(item.passed is False or (item.problem and not item.missing) for item in self.subjects):
            return 1
        files = [item for item in self.subjects if item.artifact is not None]
        return 3 if self.subjects[0].missing or (files and all(item.missing for item in files)) else 0

    def record(self) -> EvaluationResult:
        """Return what documents hold."""
        ran = [item.passed is True for item in self.subjects[1:] if not item.missing]
        return EvaluationResult(
            passed=None if self.max_drop is None else bool(ran) and all(ran),
            max_drop_points=self.max_drop if self.metric.in_points else None,
            target=self.target,
            dataset=DatasetRecord(
                source=self.dataset.source,
                images=self.images,
                available=self.dataset.available,
                classes=self.classes,
                labels_by=self.dataset.labelled_by,
                unreadable=tuple(UnreadableImage(name, reason) for name, reason in self.unreadable),
            ),
            baseline=self.subjects[0].name,
            confidence=CONFIDENCE,
            subjects=tuple(item.record(self.images, self.metric) for item in self.subjects),
            skipped=self.skipped,
            notes=self.notes,
            metric=self.metric,
            max_drop=self.max_drop,
        )
