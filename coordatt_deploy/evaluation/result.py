"""The verdicts on the artifacts' accuracy, and the document ``evaluate.json``. NumPy and the standard library only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.data.labelled import Dataset
from coordatt_deploy.documents import SCHEMA_VERSION, to_json
from coordatt_deploy.evaluation.paired import CONFIDENCE, NOT_FINITE, PairedDifference
from coordatt_deploy.evaluation.predict import Failure, Predictions
from coordatt_deploy.metrics import sqnr_db_of_energies

TOP: Final = 5
CHANGED: Final = 20  # images that a document names


@dataclass(frozen=True, slots=True)
class Changed:
    """An image that the reference and an artifact do not see alike; classes by index, None for none."""

    image: str
    label: int
    reference: int | None
    candidate: int | None


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

    def to_json(self, images: int) -> dict[str, Any]:
        """Return the entry of ``evaluate.json``."""
        artifact, pair = self.artifact, self.difference
        return {
            "name": self.name,
            "path": artifact.path if artifact else None,
            "sha256": artifact.sha256 if artifact else None,
            "format": artifact.format.value if artifact else None,
            "precision": artifact.precision.value if artifact else None,
            "recipe": artifact.recipe if artifact else None,
            "target_cpu": to_json(artifact.target_cpu) if artifact else None,
            "runtime": self.runtime,
            "origin": to_json(self.origin),
            "correct": self.correct,
            "top1": None if self.correct is None else self.correct / images,
            "correct_top5": self.correct_top5,
            "top5": None if self.correct_top5 is None else self.correct_top5 / images,
            "difference_points": pair.points if pair else None,
            "interval_points": list(pair.interval_points) if pair else None,
            "p_value": pair.p_value if pair else None,
            "lost": pair.lost if pair else None,
            "gained": pair.gained if pair else None,
            "agreement": self.agreement,
            "sqnr_db": to_json(self.sqnr_db),
            "exact": self.sqnr_db == math.inf,
            "nonfinite": self.nonfinite,
            "changed": to_json(self.changed),
            "passed": self.passed,
            "problem": self.problem,
            "warning": self.warning,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The accuracy of a bundle on a dataset.

    Attributes:
        dataset: What was asked.
        classes: Number of logits.
        images: How many could be read.
        unreadable: Name and reason of each that could not.
        subjects: The baseline, which the others are compared with, first.
        skipped: Path and reason of each artifact that the target cannot run.
        max_drop: Percentage points that an artifact may be worse than the baseline; None for no verdict.
        target: Where it was run; None for this machine.
        notes: What the user should know of the whole.
    """

    dataset: Dataset
    classes: int
    images: int
    unreadable: tuple[tuple[str, str], ...]
    subjects: tuple[Accuracy, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    max_drop: float | None = None
    target: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 done, 1 a drop beyond the limit or an artifact that does not work, 3 one that could not be run here."""
        if any(item.passed is False or (item.problem and not item.missing) for item in self.subjects):
            return 1
        return 3 if any(item.missing for item in self.subjects) else 0

    def to_json(self) -> dict[str, Any]:
        """Return the document ``evaluate.json``."""
        judged = self.max_drop is not None
        return {
            "schema_version": SCHEMA_VERSION,
            "passed": all(item.passed is True for item in self.subjects[1:]) if judged else None,
            "max_drop_points": self.max_drop,
            "target": self.target,
            "dataset": {
                "source": self.dataset.source,
                "images": self.images,
                "available": self.dataset.available,
                "classes": self.classes,
                "labels_by": self.dataset.labels_by.value,
                "unreadable": [{"image": name, "reason": reason} for name, reason in self.unreadable],
            },
            "baseline": self.subjects[0].name,
            "confidence": CONFIDENCE,
            "subjects": [item.to_json(self.images) for item in self.subjects],
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped],
            "notes": list(self.notes),
        }


def judge(
    subjects: Sequence[Artifact | None],
    answers: Predictions,
    dataset: Dataset,
    classes: int,
    max_drop: float | None = None,
    warnings: Mapping[str, str | None] | None = None,
) -> tuple[Accuracy, ...]:
    """Compare each subject with the first.

    Args:
        subjects: None for the reference; in the order of *answers*.
        answers: At least one image was read.
        dataset: The images that were asked.
        classes: Number of logits.
        max_drop: Percentage points; None for no verdict.
        warnings: By path of an artifact.
    """
    judged = []
    for index, artifact in enumerate(subjects):
        name = artifact.path if artifact else "reference"
        runtime, origin = answers.runtimes.get(index, ("", None))
        failure = answers.failures.get(index)
        if failure is not None:
            judged.append(_not_run(name, artifact, runtime, origin, failure))
            continue
        places = answers.places[index]
        usable = index != 0 and 0 not in answers.failures
        pair = PairedDifference.of(answers.places[0] == 0, places == 0) if usable else None
        judged.append(
            Accuracy(
                name,
                artifact,
                runtime,
                origin,
                correct=int((places == 0).sum()),
                correct_top5=int((places < TOP).sum()) if classes > TOP else None,
                difference=pair,
                agreement=float(np.mean(answers.classes[index] == answers.classes[0])) if pair else None,
                sqnr_db=_sqnr_db(answers.signal, answers.noise[index]) if pair else None,
                nonfinite=int((answers.classes[index] == NOT_FINITE).sum()),
                changed=_changed(answers, index, dataset) if pair else (),
                passed=None if pair is None or max_drop is None else not pair.exceeds(max_drop),
                warning=(warnings or {}).get(name),
            )
        )
    return tuple(judged)


def _not_run(name: str, artifact: Artifact | None, runtime: str, origin: Origin | None, failure: Failure) -> Accuracy:
    text = f"not run: {failure.text}" if failure.missing else failure.text
    passed = None if failure.missing else False
    return Accuracy(name, artifact, runtime, origin, passed=passed, problem=text, missing=failure.missing)


def _sqnr_db(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> float:
    total, error = float(signal.sum()), float(noise.sum())
    if not math.isfinite(total) or not math.isfinite(error):
        return math.nan
    return sqnr_db_of_energies(total, error)


def _changed(answers: Predictions, index: int, dataset: Dataset) -> tuple[Changed, ...]:
    def known(number: int) -> int | None:
        return None if number == NOT_FINITE else number

    columns = np.flatnonzero(answers.classes[index] != answers.classes[0])[:CHANGED]
    found = []
    for column in columns:
        image = dataset.images[int(answers.rows[column])]
        reference, candidate = (known(int(answers.classes[row, column])) for row in (0, index))
        found.append(Changed(image.name, image.label, reference, candidate))
    return tuple(found)
