"""Judge what the subjects answered: each against the first, by class and by logits. NumPy only."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.data.labelled import Dataset
from coordatt_deploy.evaluation.paired import NOT_FINITE, PairedDifference
from coordatt_deploy.evaluation.predict import Failure, Predictions
from coordatt_deploy.evaluation.result import Accuracy, Changed
from coordatt_deploy.metrics import sqnr_db_of_energies

TOP: Final = 5
CHANGED: Final = 20  # images that a document names


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
