"""How accurate the artifacts are on labelled images, as one call of ``evaluate`` finds it."""

import math
from dataclasses import dataclass
from typing import ClassVar

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.data.labelled import Dataset
from coordatt_deploy.evaluation.paired import CONFIDENCE, PairedDifference
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.run_records import NotRun


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
        lost: Images that the baseline has right and it has not.
        gained: Images that it has right and the baseline has not.
        agreement: Share of the images on which it named the baseline's class.
        sqnr_db: Of its logits against the baseline's, over all images.
        exact: Whether they are equal.
        nonfinite: Images whose logits held NaN or infinity.
        changed: The first images that it sees otherwise than the baseline does.
        passed: Whether the drop stayed within the limit; None without a limit, or where it was not run.
        problem: Why it was not run or failed.
        warning: Why its figures on this machine may not be those of another; None where they are.
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
        classes: Number of logits.
        labels_by: How folders became classes.
        unreadable: Those that could not be read.
    """

    source: str
    images: int
    available: int
    classes: int
    labels_by: str
    unreadable: tuple[UnreadableImage, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What one call of ``evaluate`` found.

    Attributes:
        passed: Whether no artifact lost more than was allowed; None without a limit.
        max_drop_points: The limit, in percentage points.
        target: Where artifacts were run; None for this machine.
        dataset: What was asked.
        baseline: Name of the subject that the others are compared with.
        confidence: Of the intervals.
        subjects: The baseline first.
        skipped: What the target cannot run.
        notes: What the user should know of the whole.
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
        agreement: Share of the images on which it named the baseline's class.
        sqnr_db: Of its logits against the baseline's, over all images.
        nonfinite: Images whose logits held NaN or infinity.
        changed: The first images that it sees otherwise than the baseline does.
        passed: Whether the drop stayed within the limit; None without a limit, or where it was not run.
        problem: Why it was not run or failed.
        missing: Whether it was not run for want of an installed package.
        warning: Why its figures on this machine may not be those of another; None where they are.
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

    def record(self, images: int) -> SubjectAccuracy:
        """Return the figures as documents hold them."""
        artifact, pair = self.artifact, self.difference
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
            difference_points=pair.points if pair else None,
            interval_points=pair.interval_points if pair else None,
            p_value=pair.p_value if pair else None,
            lost=pair.lost if pair else None,
            gained=pair.gained if pair else None,
            agreement=self.agreement,
            sqnr_db=self.sqnr_db,
            exact=self.sqnr_db == math.inf,
            nonfinite=self.nonfinite,
            changed=self.changed,
            passed=self.passed,
            problem=self.problem,
            warning=self.warning,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The accuracy of a bundle on a dataset.

    Attributes:
        dataset: What was asked.
        classes: Number of logits.
        images: How many could be read.
        unreadable: Name and reason of each that could not.
        subjects: The baseline, which the others are compared with, first.
        skipped: What the target cannot run.
        max_drop: Percentage points that an artifact may be worse than the baseline; None for no verdict.
        target: Where it was run; None for this machine.
        notes: What the user should know of the whole.
    """

    dataset: Dataset
    classes: int
    images: int
    unreadable: tuple[tuple[str, str], ...]
    subjects: tuple[Accuracy, ...]
    skipped: tuple[NotRun, ...] = ()
    max_drop: float | None = None
    target: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 done, 1 a drop beyond the limit or an artifact that does not work, 3 one that could not be run here."""
        if any(item.passed is False or (item.problem and not item.missing) for item in self.subjects):
            return 1
        return 3 if any(item.missing for item in self.subjects) else 0

    def record(self) -> EvaluationResult:
        """Return what documents hold."""
        judged = self.max_drop is not None
        return EvaluationResult(
            passed=all(item.passed is True for item in self.subjects[1:]) if judged else None,
            max_drop_points=self.max_drop,
            target=self.target,
            dataset=DatasetRecord(
                source=self.dataset.source,
                images=self.images,
                available=self.dataset.available,
                classes=self.classes,
                labels_by=self.dataset.labels_by.value,
                unreadable=tuple(UnreadableImage(name, reason) for name, reason in self.unreadable),
            ),
            baseline=self.subjects[0].name,
            confidence=CONFIDENCE,
            subjects=tuple(item.record(self.images) for item in self.subjects),
            skipped=self.skipped,
            notes=self.notes,
        )
