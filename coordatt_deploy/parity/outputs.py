"""The judge: does an artifact compute the reference's function? NumPy and the standard library only.

The reference is the user's module in float64 on the golden inputs. An artifact in float may differ from it by rounding,
and how much rounding costs depends on the network and the input. So nobody chooses a constant here:

    error(case)   = max |candidate - reference|
    rounding      = max |torch in the artifact's own precision - reference|
    allowed(case) = multiple * max(rounding(case), median of rounding over the cases)

with the multiple, and its reason, in ``TOLERANCES``. NaN and infinity never pass. Where weights are integers the sum
of their errors is no matter of rounding alone; outputs are then judged by SQNR and by the class that they name.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.errors import BundleError
from coordatt_deploy.specs import Artifact, Format, Precision, Storage

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an artifact may be from the reference, and why.

    Attributes:
        multiple: Of the error of torch rounding to *basis* (and to *weight_bits*) on the same inputs. Where weights are
            integers it is judged at the layers only, in the root of the mean square of each channel.
        basis: ``fp32``: torch computing in float32. ``fp16``: torch rounding every value to float16 and computing in
            float32, as runtimes with float16 storage do. ``int8``: the same for grids of 256 values.
        reason: Shown beside every verdict.
        min_sqnr_db: What outputs must reach instead of staying within the multiple; in float, layers as well.
        min_top1_agreement: Share of the cases in which the first class must be the reference's; asked for besides.
        weight_bits: Of weights that are stored as integers; None in float.
        calibrated: Whether activations are on grids that end where calibration ended, so that real images alone can be
            judged, and no values beyond those.
        value_bits: Of activations that are stored as integers.
    """

    multiple: float
    basis: Precision
    reason: str
    min_sqnr_db: float | None = None
    min_top1_agreement: float | None = None
    weight_bits: int | None = None
    calibrated: bool = False
    value_bits: int = 8

    @property
    def storage(self) -> Storage:
        """What torch rounds to for comparison."""
        return Storage(self.basis, self.weight_bits, self.value_bits)

    @property
    def layer_sqnr_db(self) -> float | None:
        """What layers must reach instead of staying within the multiple."""
        return self.min_sqnr_db if self.weight_bits is None else None


_FP32_REASON: Final = (
    "another order of float32 sums: torch adds in 32 lanes, XNNPACK one after another; over 1,280 channels that was"
    " measured to cost up to 10 times torch's own rounding"
)
_FP16_REASON: Final = (
    "float16 storage at other places than torch's: fused operators round less often, split ones more often;"
    " measured up to 3 times torch's own"
)
_LAYERS_REASON: Final = (
    "eighteen healthy files of five networks took up to two thirds of it in the worst channel of the worst layer, half"
    " in nearly all; what adds up in the whole file was up to 3.6 times what rounding to int8 costs torch, of 6 allowed"
)


def _static(least: float) -> Tolerance:
    reason = f"{_LAYERS_REASON}; at the output the embedded network keeps 35 dB"
    return Tolerance(4.0, Precision.INT8, reason, least, 0.9, 8, calibrated=True)


def _weights(values: Precision, bits: int, least: float, what: str, kept: float) -> Tolerance:
    reason = f"{what}: at every layer what rounding the weights costs torch; the embedded network keeps {kept:g} dB"
    return Tolerance(5.0, values, reason, least, 0.9, bits)


def _palette(bits: int, least: float, kept: float) -> Tolerance:
    reason = (
        f"a palette of {2**bits} values serves a whole tensor, where torch's steps are each channel's own: up to 7.2"
        f" times was measured; the embedded network keeps {kept:g} dB"
    )
    return Tolerance(10.0, Precision.FP16, reason, least, 0.9 if bits > 4 else None, bits)


FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
# By format, and recipe or precision.
TOLERANCES: Final[Mapping[tuple[Format, str], Tolerance]] = {
    (Format.ONNX, "fp32"): Tolerance(16.0, FP32, _FP32_REASON),
    (Format.TFLITE, "fp32"): Tolerance(16.0, FP32, _FP32_REASON),
    (Format.COREML, "fp32"): Tolerance(16.0, FP32, _FP32_REASON),
    (Format.COREML, "fp16"): Tolerance(6.0, FP16, _FP16_REASON),
    **{(kind, "static_wi8_ai8"): _static(20.0) for kind in Format},
    (Format.TFLITE, "static_wi8_ai16"): Tolerance(
        5.0,
        INT8,
        f"{_LAYERS_REASON}; with activations of 16 bits the embedded network keeps 50 dB",
        45.0,
        0.9,
        8,
        calibrated=True,
        value_bits=16,
    ),
    (Format.TFLITE, "dynamic_wi8_afp32"): Tolerance(
        5.0,
        INT8,
        "ranges that the runtime finds as it goes: within what int8 costs torch; the embedded network keeps 44 dB",
        25.0,
        0.9,
        8,
        calibrated=True,
    ),
    (Format.TFLITE, "weight_only_wi8_afp32"): _weights(FP32, 8, 30.0, "int8 weights", 44.0),
    (Format.TFLITE, "weight_only_wfp16_afp32"): _weights(
        FP32, 11, 50.0, "float16 weights, which keep eleven bits", 58.0
    ),
    (Format.ONNX, "weight_only_wi8_afp32"): _weights(FP32, 8, 30.0, "int8 weights", 43.0),
    (Format.COREML, "weight_only_wi8"): _weights(FP16, 8, 30.0, "int8 weights", 45.0),
    (Format.COREML, "palettized_w8"): _palette(8, 25.0, 45.0),
    (Format.COREML, "palettized_w6"): _palette(6, 15.0, 33.0),
    (Format.COREML, "palettized_w4"): _palette(4, 5.0, 18.0),
}


# Random weights magnify every error, and between the classes that they name there is no margin: of MobileNetV2-1.0 int8
# leaves 15 to 18 dB and half of the classes, while every layer is within what rounding costs. Layers tell a wrong file.
UNTRAINED_DB: Final = 10.0


def for_untrained(table: Mapping[tuple[Format, str], Tolerance]) -> Mapping[tuple[Format, str], Tolerance]:
    """Return *table* with what integer artifacts of a network with random weights are asked for at the outputs.

    What somebody chose instead of the built-in tolerance stays. Layers are judged as ever.
    """
    why = f"the weights are random, so outputs need {UNTRAINED_DB:g} dB and no class; train it before int8 says more"
    found = {}
    for key, tolerance in table.items():
        ours = tolerance.weight_bits is not None and tolerance == TOLERANCES.get(key)
        least = min(UNTRAINED_DB, tolerance.min_sqnr_db or UNTRAINED_DB)
        changed = replace(tolerance, min_sqnr_db=least, min_top1_agreement=None, reason=f"{tolerance.reason}; {why}")
        found[key] = changed if ours else tolerance
    return found


def tolerance_of(artifact: Artifact, table: Mapping[tuple[Format, str], Tolerance]) -> Tolerance:
    """Return what holds for *artifact*: by its recipe, whatever its suffixes say of inputs and layers left in float.

    Raises:
        BundleError: Of a recipe that this version does not know.
    """
    name = artifact.recipe or artifact.precision.value
    known = [label for kind, label in table if kind is artifact.format and name.startswith(label)]
    label = max(known, key=len, default=artifact.precision.value)
    if (artifact.format, label) not in table:
        raise BundleError(f"{artifact.path} is of the recipe {name}, for which this version has no tolerance")
    return table[artifact.format, label]


@dataclass(frozen=True, slots=True)
class OutputParity:
    """The verdict over all golden cases of one output, with its evidence.

    Attributes:
        name: Of the output.
        passed: Every case within what is allowed, and nothing that is NaN or infinite.
        max_abs_error: Greatest over all cases; NaN where a value is NaN.
        allowed: What was allowed in the worst case, which is the one with the greatest error over allowance; NaN where
            decibels are asked for.
        worst_case: Index of that case.
        worst_index: Where in that case's array the greatest error is.
        mismatched: Elements beyond what is allowed, over all cases.
        elements: Elements compared.
        sqnr_db: 10 log10(sum of reference² / sum of error²); infinite where they are equal.
        cosine: Of candidate and reference over all cases.
        top1_agreement: Share of the cases with the same greatest element; None for an output without classes.
        nonfinite: How many values of the candidate are NaN or infinite.
        min_sqnr_db: What was asked for; None where each element had to be within what is allowed.
        min_top1_agreement: The same; None where the classes do not matter.
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
    min_sqnr_db: float | None = None
    min_top1_agreement: float | None = None

    def sentence(self) -> str:
        """Say what was found, in one line."""
        if self.nonfinite:
            return f"{self.name}: {self.nonfinite} of {self.elements} values are NaN or infinite"
        if self.min_top1_agreement is not None and (self.top1_agreement or 0.0) < self.min_top1_agreement:
            agrees = f"; top-1 agreement {self.top1_agreement:.1%}, {self.min_top1_agreement:.0%} needed"
        else:
            agrees = ""
        if self.min_sqnr_db is not None:
            return f"{self.name}: SQNR {self.sqnr_db:.1f} dB, {self.min_sqnr_db:g} dB needed{agrees}"
        return (
            f"{self.name}: {self.mismatched} of {self.elements} elements differ; greatest difference "
            f"{self.max_abs_error:.3g} ({self.allowed:.3g} allowed) at {self.worst_index} of golden case "
            f"{self.worst_case}, SQNR {self.sqnr_db:.1f} dB{agrees}"
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
    by_element = tolerance.min_sqnr_db is None
    within = not any(beyond) if tolerance.min_sqnr_db is None else decibels >= tolerance.min_sqnr_db
    agrees = tolerance.min_top1_agreement is None or agreement is None or agreement >= tolerance.min_top1_agreement
    return OutputParity(
        name=name,
        passed=within and agrees and not nonfinite,
        max_abs_error=max((_worst(error) for error in errors), key=lambda e: math.inf if math.isnan(e) else e),
        allowed=allowed[worst] if by_element else math.nan,
        worst_case=worst,
        worst_index=tuple(int(i) for i in np.unravel_index(flat, errors[worst].shape)),
        mismatched=sum(beyond) if by_element else 0,
        elements=sum(item.size for item in reference),
        sqnr_db=decibels,
        cosine=cosine(candidate, reference),
        top1_agreement=agreement,
        nonfinite=nonfinite,
        min_sqnr_db=tolerance.min_sqnr_db,
        min_top1_agreement=tolerance.min_top1_agreement,
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
