"""How far arrays lie apart: SQNR, cosine similarity, top-1 agreement, intersection over union of masks and boxes."""

import enum
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray

Arrays = Sequence[NumberArray]


def without_shared_infinities(
    value: NumberArray, reference: NDArray[np.float64]
) -> tuple[NumberArray, NDArray[np.float64]]:
    """Return both with 0 where both are the same infinity, which is no error: a mask of minus infinity, say."""
    shared = np.isinf(reference) & (np.asarray(value) == reference)
    if not shared.any():
        return value, reference
    return np.where(shared, 0.0, value), np.where(shared, 0.0, reference)


def infinities_set_aside(reference: Arrays, *others: Arrays) -> tuple[Arrays, ...]:
    """Return all with 0 where the reference is infinite; NaN in the others where they are not the same infinity.

    Minus infinity as the score of a class that is masked is a value like others: it is right where it is the same.
    """
    if not any(np.isinf(item).any() for item in reference):
        return (reference, *others)
    holes = [np.isinf(item) for item in reference]
    kept = [np.where(hole, 0.0, item) for hole, item in zip(holes, reference, strict=True)]
    return kept, *(
        [
            np.where(hole, np.where(np.asarray(value) == item, 0.0, np.nan), value)
            for hole, item, value in zip(holes, reference, values, strict=bool(values))
        ]
        for values in others
    )


def sqnr_db(candidate: Arrays, reference: Arrays) -> float:
    """Signal-to-quantization-noise ratio over all cases, in dB; NaN where a value is not finite."""
    signal = sum(float(np.sum(np.square(r, dtype=np.float64))) for r in reference)
    noise = sum(
        float(np.sum(np.square(np.asarray(c, np.float64) - r))) for c, r in zip(candidate, reference, strict=True)
    )
    return sqnr_db_of_energies(signal, noise) if math.isfinite(noise) else math.nan


def sqnr_db_of_energies(signal: float, noise: float) -> float:
    """Signal-to-quantization-noise ratio in dB, from the sums of the squares of the values and of their errors.

    Returns:
        Infinity without noise, minus infinity without a signal; else NaN where the noise is not finite.
    """
    if noise == 0.0:
        return math.inf
    if not signal > 0:
        return -math.inf
    return 10.0 * math.log10(signal / noise) if noise < math.inf else math.nan


def decibels_by_case(signals: Sequence[float], noises: Sequence[float]) -> list[float]:
    """Signal-to-noise ratio of each case, in dB; of a case that is fainter than most, as if it were as loud as those.

    Args:
        signals: Mean square of the reference in each case.
        noises: Mean square of the error in each case.

    Returns:
        Infinity without noise; minus infinity where noise is not finite, or all signals are 0.
    """
    finite = [signal for signal in signals if math.isfinite(signal)]
    usual = float(np.median(finite)) if finite else 0.0
    found = []
    for signal, noise in zip(signals, noises, strict=True):
        loudness = max(signal, usual)
        if noise == 0.0:
            found.append(math.inf)
        elif math.isfinite(noise) and math.isfinite(loudness) and loudness > 0.0:
            found.append(10.0 * math.log10(loudness / noise))
        else:
            found.append(-math.inf)
    return found


def cosine(candidate: Arrays, reference: Arrays) -> float:
    """Cosine of the angle between candidate and reference over all cases; NaN where a value is not finite."""
    mine = np.concatenate([np.asarray(item, np.float64).ravel() for item in candidate])
    theirs = np.concatenate([np.asarray(item, np.float64).ravel() for item in reference])
    if not np.isfinite(mine).all():
        return math.nan
    norms = float(np.linalg.norm(mine) * np.linalg.norm(theirs))
    if norms == 0.0:
        return 1.0 if np.array_equal(mine, theirs) else 0.0
    return float(np.clip(np.dot(mine, theirs) / norms, -1.0, 1.0))


def top1_agreement(candidate: Arrays, reference: Arrays) -> float | None:
    """Share of the cases in which both name the same class; None unless the output is (1, classes).

    Where a value is NaN or plus infinity, no class is named; minus infinity is a class that is masked.
    """
    if not reference or any(item.ndim != 2 or item.shape[1] < 2 for item in reference):
        return None
    same = [
        bool((mine < np.inf).all()) and bool((np.argmax(mine, 1) == np.argmax(theirs, 1)).all())
        for mine, theirs in zip(candidate, reference, strict=True)
    ]
    return sum(same) / len(same)


class BoxForm(enum.StrEnum):
    """How four numbers are a box."""

    CORNERS = "corners"
    """Left, top, right, bottom."""
    CENTRE = "centre"
    """The centre's x and y, width and height."""


def box_form(reference: Arrays) -> tuple[BoxForm, int] | None:
    """Return how boxes are written, as far as their numbers show it, and the axis of the four.

    Boxes whose right is nowhere left of their left, and bottom nowhere above their top, are corners; those whose sizes
    are all positive have a centre. What is neither is no boxes yet: offsets that are still to be decoded, say.

    Args:
        reference: (..., 4), or (N, 4, boxes).
    """
    for axis in (-1, 1):
        if all(item.ndim >= 2 and item.shape[axis] == 4 for item in reference):
            first, second, third, fourth = (
                np.concatenate([np.take(item, index, axis).ravel() for item in reference]) for index in range(4)
            )
            if bool(np.all(third >= first) and np.all(fourth >= second)):
                return BoxForm.CORNERS, axis
            if bool(np.all(third > 0) and np.all(fourth > 0)):
                return BoxForm.CENTRE, axis
    return None


def box_ious(candidate: Arrays, reference: Arrays) -> NDArray[np.float64] | None:
    """Return the IoU of each box with the reference's in its place; None where the numbers show no boxes.

    A box without an area in both counts as 1 where both are the same; what is not finite has an IoU of 0.
    """
    form = box_form(reference)
    if form is None:
        return None
    ours, theirs = (_corners(values, *form) for values in (candidate, reference))
    with np.errstate(invalid="ignore"):
        low, high = np.maximum(ours[:2], theirs[:2]), np.minimum(ours[2:], theirs[2:])
        both = np.prod(np.maximum(high - low, 0.0), axis=0)
        areas = [np.prod(np.maximum(box[2:] - box[:2], 0.0), axis=0) for box in (ours, theirs)]
        either = areas[0] + areas[1] - both
        same = (ours == theirs).all(axis=0)
    found = np.where(same, 1.0, 0.0)
    np.divide(both, either, out=found, where=np.isfinite(either) & (either > 0))
    return found


def _corners(values: Arrays, form: BoxForm, axis: int) -> NDArray[np.float64]:
    """All boxes as left, top, right and bottom, (4, boxes)."""
    rows = np.concatenate(
        [np.moveaxis(np.asarray(item, np.float64), axis, 0).reshape(4, -1) for item in values], axis=1
    )
    if form is BoxForm.CORNERS:
        return rows
    half = rows[2:] / 2
    return np.concatenate([rows[:2] - half, rows[:2] + half])


def mask_counts(
    classes: NDArray[np.int64], truth: NDArray[np.int64], number: int, ignored: int | None = None
) -> NDArray[np.int64]:
    """Count the pixels of each class.

    Args:
        classes: That were found, of any shape; what is none of the classes counts for none.
        truth: The right ones, in the same shape.
        number: How many classes there are.
        ignored: A value of *truth* that takes its pixel out of all counts.

    Returns:
        (3, number): pixels that are rightly of the class, that were found to be, and that should be.
    """
    counted = np.ones(truth.shape, bool) if ignored is None else truth != ignored
    found, right = classes[counted], truth[counted]
    known = (found >= 0) & (found < number)

    def per_class(values: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(values, minlength=number)[:number].astype(np.int64)

    return np.stack([per_class(right[found == right]), per_class(found[known]), per_class(right)])


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the IoU of each class from the counts of ``mask_counts``, or of their sum over images.

    IoU = right / (found + should - right), as Pascal VOC and Cityscapes have it.

    Args:
        counts: (..., 3, number).

    Returns:
        (..., number); NaN for a class that was neither found nor there.
    """
    right, named, should = (counts[..., row, :].astype(np.float64) for row in range(3))
    union = named + should - right
    found = np.full(union.shape, np.nan)
    np.divide(right, union, out=found, where=union > 0)
    return found
