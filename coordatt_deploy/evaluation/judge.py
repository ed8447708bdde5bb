"""Judge what the subjects answered: each against the first, by the metric and by outputs. NumPy only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.data.dataset import Dataset
from coordatt_deploy.errors import MetricError
from coordatt_deploy.evaluation.jackknife import ScoreDifference, difference, groups_of
from coordatt_deploy.evaluation.paired import NOT_FINITE, PairedDifference
from coordatt_deploy.evaluation.predictions import Predictions
from coordatt_deploy.evaluation.result import Accuracy, Changed
from coordatt_deploy.evaluation.scoring import MeanIou, Own, Scoring, unpacked
from coordatt_deploy.evaluation.user_metric import UserMetric
from coordatt_deploy.metrics import sqnr_db_of_energies

TOP: Final = 5
CHANGED: Final = 20  # images that a document names
ROUNDING: Final = 1e-5  # relative; a hundred roundings to float32


def judge(
    subjects: Sequence[Artifact | None],
    answers: Predictions,
    dataset: Dataset,
    scoring: Scoring,
    classes: int | None = None,
    max_drop: float | None = None,
    warnings: Mapping[str, str | None] | None = None,
) -> tuple[Accuracy, ...]:
    """Compare each subject with the first.

    Args:
        subjects: None for the reference; in the order of *answers*.
        answers: At least one image was read.
        dataset: The images that were asked.
        scoring: What was made of the outputs.
        classes: Number of logits; None where there are none.
        max_drop: In the metric's unit; None for no verdict.
        warnings: By path of an artifact.

    Raises:
        MetricError: A metric of the user's own raises, or gives no number.
    """
    scored = _scored(subjects, answers, scoring)
    judged = []
    for index, artifact in enumerate(subjects):
        name = _name(artifact)
        runtime, origin = answers.runtimes.get(index, ("", None))
        failure = answers.failures.get(index)
        blank = Accuracy(name, artifact, runtime, origin)
        if failure is not None:
            text = f"not run: {failure.text}" if failure.missing else failure.text
            passed = None if failure.missing else False
            judged.append(replace(blank, passed=passed, problem=text, missing=failure.missing))
            continue
        compared = index != 0 and 0 not in answers.failures
        one_output = len(answers.shapes) == 1 or len(scoring.outputs) == 1
        known = replace(
            blank,
            sqnr_db=_sqnr_db(answers.signal, answers.noise[index]) if compared and one_output else None,
            nonfinite=int(answers.nonfinite[index].sum()),
            warning=(warnings or {}).get(name),
        )
        if scored is None:
            judged.append(_top1(known, answers, index, dataset, classes, max_drop, compared=compared))
        else:
            judged.append(_other(known, scored, answers, index, scoring, max_drop, compared=compared))
    return tuple(judged)


def _name(artifact: Artifact | None) -> str:
    return artifact.path if artifact else "reference"


def _top1(
    known: Accuracy,
    answers: Predictions,
    index: int,
    dataset: Dataset,
    classes: int | None,
    max_drop: float | None,
    *,
    compared: bool,
) -> Accuracy:
    """Add what a classifier names."""
    named, places = answers.scored[index].T.astype(np.int64)
    pair, agreement = None, None
    changed: tuple[Changed, ...] = ()
    if compared:
        theirs, their_places = answers.scored[0].T.astype(np.int64)
        pair = PairedDifference.of(their_places == 0, places == 0)
        agreement, changed = float(np.mean(named == theirs)), _changed(answers, index, dataset)
    return replace(
        known,
        correct=int((places == 0).sum()),
        correct_top5=int((places < TOP).sum()) if classes is not None and classes > TOP else None,
        difference=pair,
        agreement=agreement,
        changed=changed,
        passed=None if pair is None or max_drop is None else not pair.exceeds(max_drop),
    )


@dataclass(frozen=True, slots=True)
class _Scored:
    """What subjects score: over all images, and without each group of them; by subject.

    *no_interval* says why there are no scores of the second kind.
    """

    whole: Mapping[int, float]
    without: Mapping[int, NDArray[np.float64]]
    no_interval: Mapping[int, str] = field(default_factory=dict)


def _other(
    known: Accuracy,
    scored: _Scored,
    answers: Predictions,
    index: int,
    scoring: Scoring,
    max_drop: float | None,
    *,
    compared: bool,
) -> Accuracy:
    """Add what another metric gives."""
    metric, score = scoring.record, scored.whole[index]
    found: ScoreDifference | None = None
    agreement = None
    rows = answers.scored[index]
    if compared:
        per_image = _differences(answers.scored[0][:, 0], rows[:, 0]) if metric.per_image else None
        pair = scored.without[0], scored.without[index]
        both = np.stack(pair) if len(pair[0]) == len(pair[1]) else np.zeros((2, 0))
        found = difference(scored.whole[0], score, both, per_image=per_image)
        if isinstance(scoring, MeanIou):
            agreement = float(rows[:, -2].sum() / rows[:, -1].sum())
    passed = None
    if found is not None and max_drop is not None:
        allowed = max_drop / 100 if metric.in_points else max_drop
        passed = not found.exceeds(allowed, higher_is_better=metric.higher_is_better)
    ious = tuple(map(float, scoring.class_ious(rows))) if isinstance(scoring, MeanIou) else None
    reason = scored.no_interval.get(index) or scored.no_interval.get(0) if compared else None
    return replace(
        known,
        score=score,
        score_difference=found,
        agreement=agreement,
        class_iou=ious,
        passed=passed,
        warning="; ".join(filter(None, (known.warning, reason))) or None,
    )


def _differences(theirs: NDArray[np.float64], mine: NDArray[np.float64]) -> NDArray[np.float64]:
    """How images' own scores differ; 0 where they are equal but for what float32 makes of outputs anyhow."""
    alike = np.abs(mine - theirs) <= ROUNDING * np.maximum(np.abs(mine), np.abs(theirs))
    return np.where(alike, 0.0, mine - theirs)


def _scored(subjects: Sequence[Artifact | None], answers: Predictions, scoring: Scoring) -> _Scored | None:
    """The scores of all subjects that answered; None for top-1, which is counted and not scored."""
    if isinstance(scoring, MeanIou):
        whole = {index: scoring.score(rows) for index, rows in answers.scored.items()}
        return _Scored(whole, {index: scoring.without_each(rows) for index, rows in answers.scored.items()})
    if not isinstance(scoring, Own):
        return None
    if scoring.record.per_image:
        values = {index: rows[:, 0] for index, rows in answers.scored.items()}
        count = len(answers.rows)
        return _Scored(
            {index: float(value.mean()) for index, value in values.items()},
            {index: (value.sum() - value) / max(1, count - 1) for index, value in values.items()},
        )
    return _of_all_images(subjects, answers, scoring.loaded())


def _of_all_images(subjects: Sequence[Artifact | None], answers: Predictions, metric: UserMetric) -> _Scored:
    """Call a function that scores all images at once: for all of them, and without each group."""
    every, groups = np.arange(len(answers.rows)), groups_of(len(answers.rows))
    whole: dict[int, float] = {}
    without: dict[int, NDArray[np.float64]] = {}
    reasons: dict[int, str] = {}
    for index in answers.scored:
        subject = _name(subjects[index])
        whole[index] = _of_all(metric, answers, index, every, subject)
        try:
            parts = [_of_all(metric, answers, index, np.setdiff1d(every, group), subject) for group in groups]
        except MetricError as error:  # of fewer images it is not defined, perhaps
            parts, reasons[index] = [], f"no interval: {error}"
        without[index] = np.array(parts)
    return _Scored(whole, without, reasons)


def _of_all(metric: UserMetric, answers: Predictions, index: int, rows: NDArray[np.int64], subject: str) -> float:
    """What a metric of all images gives for those of *rows*."""
    outputs = [unpacked(answers.scored[index][row], answers.shapes) for row in rows]
    asked = [answers.asked[row] for row in rows]
    return metric.of_all(outputs, [item.label for item in asked], [item.image for item in asked], subject)


def _sqnr_db(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> float:
    total, error = float(signal.sum()), float(noise.sum())
    if not math.isfinite(total) or not math.isfinite(error):
        return math.nan
    return sqnr_db_of_energies(total, error)


def _changed(answers: Predictions, index: int, dataset: Dataset) -> tuple[Changed, ...]:
    def known(number: float) -> int | None:
        return None if number == NOT_FINITE else int(number)

    mine, theirs = answers.scored[index][:, 0], answers.scored[0][:, 0]
    found = []
    for column in np.flatnonzero(mine != theirs)[:CHANGED]:
        image = dataset.images[int(answers.rows[column])]
        found.append(Changed(image.name, image.label, known(theirs[column]), known(mine[column])))
    return tuple(found)
