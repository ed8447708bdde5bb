"""The judge: does an artifact compute the reference's function? NumPy and the standard library only.

The reference is the user's module in float64 on the golden inputs. An artifact in float may differ from it by rounding,
and how much rounding costs depends on the network and the input. So nobody chooses a constant here:

    error(case)   = max |candidate - reference|
    rounding      = max |torch in the artifact's own precision - reference|
    allowed(case) = multiple * max(rounding(case), median of rounding over the cases)

with the multiple, and its reason, in ``TOLERANCES``. NaN and infinity never pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.specs import Format, Precision

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an artifact may be from the reference, and why.

    Attributes:
        multiple: Of the rounding error of torch in the precision named by *basis*, on the same inputs.
        basis: ``fp32``: torch computing in float32. ``fp16``: torch rounding every value to float16 and computing in
            float32, as runtimes with float16 storage do.
        reason: Shown beside every verdict.
        min_sqnr_db: What outputs and layers must reach instead of staying within the multiple.
        min_top1_agreement: Share of the cases in which the first class must be the reference's; asked for besides.
    """

    multiple: float
    basis: Precision
    reason: str
    min_sqnr_db: float | None = None
    min_top1_agreement: float | None = None


_FP32_REASON: Final = (
    "another order of float32 sums: torch adds in 32 lanes, XNNPACK one after another; over 1,280 channels that was"
    " measured to cost up to 10 times torch's own rounding"
)
TOLERANCES: Final = {
    (Format.ONNX, Precision.FP32): Tolerance(16.0, Precision.FP32, _FP32_REASON),
    (Format.TFLITE, Precision.FP32): Tolerance(16.0, Precision.FP32, _FP32_REASON),
    (Format.COREML, Precision.FP32): Tolerance(16.0, Precision.FP32, _FP32_REASON),
    (Format.COREML, Precision.FP16): Tolerance(
        6.0,
        Precision.FP16,
        "float16 storage at other places than torch's: fused operators round less often, split ones more often;"
        " measured up to 3 times torch's own",
    ),
}


@dataclass(frozen=True, slots=True)
class OutputParity:
    """The verdict over all golden cases of one output, with its evidence.

    Attributes:
        name: Of the output.
        passed: Every case within what is allowed, and nothing that is NaN or infinite.
        max_abs_error: Greatest over all cases; NaN where a value is NaN.
        allowed: What was allowed in the worst case, which is the one with the greatest error over allowance.
        worst_case: Index of that case.
        worst_index: Where in that case's array the greatest error is.
        mismatched: Elements beyond what is allowed, over all cases.
        elements: Elements compared.
        sqnr_db: 10 log10(sum of reference² / sum of error²); infinite where they are equal.
        cosine: Of candidate and reference over all cases.
        top1_agreement: Share of the cases with the same greatest element; None for an output without classes.
        nonfinite: How many values of the candidate are NaN or infinite.
    """

    name: str
    passed: bool
    max_abs_error: float
    allowed: float
    worst_case: int
    worst_index: tuple[int, ...]
    mismatched: int
    elements: int
    sqnr_db: float
    cosine: float
    top1_agreement: float | None
    nonfinite: int

    def sentence(self) -> str:
        """Say what was found, in one line."""
        if self.nonfinite:
            return f"{self.name}: {self.nonfinite} of {self.elements} values are NaN or infinite"
        return (
            f"{self.name}: {self.mismatched} of {self.elements} elements differ; greatest difference "
            f"{self.max_abs_error:.3g} ({self.allowed:.3g} allowed) at {self.worst_index} of golden case "
            f"{self.worst_case}, SQNR {self.sqnr_db:.1f} dB"
        )


def judge(name: str, candidate: Arrays, reference: Arrays, rounding: Arrays, tolerance: Tolerance) -> OutputParity:
    """Compare an output over all golden cases.

    Args:
        name: Of the output.
        candidate: One array per case, dequantized, in the reference's layout.
        reference: float64, one array per case.
        rounding: The same output computed by torch in the precision of ``tolerance.basis``.
        tolerance: What to apply.

    Raises:
        ValueError: The cases differ in number or shape.
    """
    if not len(candidate) == len(reference) == len(rounding):
        raise ValueError(f"{name}: {len(candidate)} results for {len(reference)} golden cases")
    for mine, theirs in zip(candidate, reference, strict=True):
        if mine.shape != theirs.shape:
            raise ValueError(f"{name}: a result has shape {mine.shape}, the reference {theirs.shape}")
    allowed = allowance(reference, rounding, tolerance.multiple)
    errors = [np.abs(np.asarray(c, np.float64) - r) for c, r in zip(candidate, reference, strict=True)]
    with np.errstate(invalid="ignore"):
        beyond = [int((~(error <= limit)).sum()) for error, limit in zip(errors, allowed, strict=True)]  # NaN is beyond
    nonfinite = sum(int((~np.isfinite(item)).sum()) for item in candidate)
    ratios = [_worst(error) / limit if limit > 0 else math.inf for error, limit in zip(errors, allowed, strict=True)]
    ratios = [0.0 if not _worst(error) else ratio for error, ratio in zip(errors, ratios, strict=True)]
    worst = int(np.argmax(np.nan_to_num(ratios, nan=math.inf)))
    flat = int(np.argmax(np.nan_to_num(errors[worst], nan=math.inf)))
    decibels, agreement = sqnr_db(candidate, reference), top1_agreement(candidate, reference)
    within = not any(beyond) if tolerance.min_sqnr_db is None else decibels >= tolerance.min_sqnr_db
    agrees = tolerance.min_top1_agreement is None or agreement is None or agreement >= tolerance.min_top1_agreement
    return OutputParity(
        name=name,
        passed=within and agrees and not nonfinite,
        max_abs_error=max((_worst(error) for error in errors), key=lambda e: math.inf if math.isnan(e) else e),
        allowed=allowed[worst],
        worst_case=worst,
        worst_index=tuple(int(i) for i in np.unravel_index(flat, errors[worst].shape)),
        mismatched=sum(beyond),
        elements=sum(item.size for item in reference),
        sqnr_db=decibels,
        cosine=cosine(candidate, reference),
        top1_agreement=agreement,
        nonfinite=nonfinite,
    )


def allowance(reference: Arrays, rounding: Arrays, multiple: float) -> list[float]:
    """Return what is allowed in each case; 0 where the rounding itself is not finite, so that nothing passes.

    The median over the cases is a floor: a case may round to nearly nothing by luck.
    """
    own = [_worst(np.abs(np.asarray(r, np.float64) - e)) for r, e in zip(rounding, reference, strict=True)]
    finite = [value for value in own if math.isfinite(value)]
    floor = float(np.median(finite)) if finite else 0.0
    return [multiple * max(value, floor) if math.isfinite(value) else 0.0 for value in own]


def _worst(error: NDArray[np.float64]) -> float:
    return float(np.max(error)) if error.size else 0.0  # np.max hands NaN on


def sqnr_db(candidate: Arrays, reference: Arrays) -> float:
    """Signal-to-quantization-noise ratio over all cases, in dB; NaN where a value is not finite."""
    signal = sum(float(np.sum(np.square(r, dtype=np.float64))) for r in reference)
    noise = sum(
        float(np.sum(np.square(np.asarray(c, np.float64) - r))) for c, r in zip(candidate, reference, strict=True)
    )
    if not math.isfinite(noise):
        return math.nan
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0 else -math.inf


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
    """Share of the cases in which both name the same class; None unless the output is (1, classes)."""
    if not reference or any(item.ndim != 2 or item.shape[1] < 2 for item in reference):
        return None
    same = [
        bool(np.isfinite(mine).all()) and bool((np.argmax(mine, 1) == np.argmax(theirs, 1)).all())
        for mine, theirs in zip(candidate, reference, strict=True)
    ]
    return sum(same) / len(same)
