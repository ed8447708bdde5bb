"""Whether torch's own arithmetic reproduces the reference at all: what it does not, no file can be held to.

A tolerance is a multiple of what rounding costs torch. Where rounding costs everything, a multiple of it allows
everything: sin(1e8 x) in float32 is noise, and noise within 16 times noise proves nothing. So each case must keep

    10 log10(max(signal(case), median of signal over the cases) / noise(case)) >= floor of the tolerance

where signal and noise are mean squares, of the reference and of torch's own error. A case that does not is set aside
and said to be; where it is a real image, or where most cases are so, nothing can be proven. The same where torch's own
rounding names other classes than the reference. The median is there for cases in which a network gives next to nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.formats import Precision
from coordatt_deploy.metrics import Arrays, decibels_by_case, sqnr_db
from coordatt_deploy.parity.tolerances import Tolerance

MOST_SET_ASIDE: Final = 0.5  # share of the cases; the rest still has to say something of the network
TIE: Final = 1e-9  # of the greatest score: closer ones are one class as well as the other
SPELLED: Final = {Precision.FP32: "float32", Precision.FP16: "float16 storage", Precision.INT8: "float32"}


@dataclass(frozen=True, slots=True)
class Conditioning:
    """How far torch's own rounding reproduces an output.

    Attributes:
        set_aside: Cases that it does not reproduce, so that they prove nothing.
        problem: Why nothing can be proven of the output; None where something can.
    """

    set_aside: tuple[int, ...] = ()
    problem: str | None = None


def conditioning(
    reference: Arrays,
    rounding: Arrays,
    tolerance: Tolerance,
    images: Sequence[bool] = (),
    moved: Arrays = (),
) -> Conditioning:
    """Say which cases of an output can prove something, and whether they suffice.

    Args:
        reference: float64, one array per case.
        rounding: The same output computed by torch in the precision of ``tolerance.basis``.
        tolerance: With its floors.
        images: Which of the cases are real images; empty where that is not known.
        moved: What values moved by half a unit in the last place make of it, where that was asked; whichever of both is
            farther off counts.
    """
    computed = SPELLED[tolerance.basis]
    if tolerance.min_sqnr_db is not None:
        own = sqnr_db(rounding, reference)
        short = not own >= tolerance.min_sqnr_db
        return Conditioning(problem=_unreproduced(computed, own, tolerance.min_sqnr_db) if short else None)
    if tolerance.floor_db is None:
        return Conditioning()
    decibels = case_decibels(reference, rounding)
    if moved:
        decibels = [min(pair) for pair in zip(decibels, case_decibels(reference, moved), strict=True)]
    aside = tuple(index for index, value in enumerate(decibels) if not value >= tolerance.floor_db)
    if any(images[index] for index in aside if images) or mostly_lost(decibels, tolerance.floor_db):
        return Conditioning(aside, _unreproduced(computed, min(decibels), tolerance.floor_db))
    if tolerance.floor_top1 is not None:
        kept = [index for index in range(len(decibels)) if index not in aside]
        exact = [reference[index] for index in kept]
        both = [
            classes_kept([own[index] for index in kept], exact) for own in ((rounding, moved) if moved else (rounding,))
        ]
        agreement = min((share for share in both if share is not None), default=None)
        if agreement is not None and agreement < tolerance.floor_top1:
            return Conditioning(
                aside,
                f"torch's own {computed} names the reference's class in {agreement:.1%} of the cases, where"
                f" {tolerance.floor_top1:.0%} are needed",
            )
    return Conditioning(aside)


def case_decibels(reference: Arrays, rounding: Arrays) -> list[float]:
    """Return what each case keeps in torch's own rounding, in dB; minus infinity where a value is not finite."""
    with np.errstate(invalid="ignore"):
        errors = [np.asarray(mine, np.float64) - theirs for mine, theirs in zip(rounding, reference, strict=True)]
    return decibels_by_case([_mean_square(value) for value in reference], [_mean_square(error) for error in errors])


def mostly_lost(decibels: Sequence[float], floor_db: float) -> bool:
    """Whether more than ``MOST_SET_ASIDE`` of the cases keep less than the floor."""
    return sum(not value >= floor_db for value in decibels) > MOST_SET_ASIDE * len(decibels)


def classes_kept(candidate: Arrays, reference: Arrays) -> float | None:
    """Share of the cases whose class is the reference's, ties aside; None unless the output is (1, classes)."""
    if not reference or any(item.ndim != 2 or item.shape[1] < 2 for item in reference):
        return None
    kept = []
    for mine, theirs in zip(candidate, reference, strict=True):
        scores = np.asarray(theirs, np.float64)  # a mask is stored as yes and no
        greatest = scores.max(axis=1)
        named = np.take_along_axis(scores, np.argmax(mine, axis=1)[:, None], axis=1)[:, 0]
        kept.append(bool(np.all(greatest - named <= TIE * np.abs(scores).max(axis=1))))
    return sum(kept) / len(kept)


def _unreproduced(computed: str, decibels: float, least: float) -> str:
    kept = "not at all" if math.isinf(decibels) or math.isnan(decibels) else f"to {decibels:.1f} dB"
    return f"torch's own {computed} reproduces the reference {kept}, {least:g} dB needed"


def _mean_square(value: NumberArray) -> float:
    return float(np.mean(np.square(value, dtype=np.float64))) if value.size else 0.0
