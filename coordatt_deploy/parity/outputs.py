"""The judge: does an artifact compute the reference's function? NumPy and the standard library only.

The reference is the user's module in float64 on the golden inputs. An artifact in float may differ from it by rounding,
and how much rounding costs depends on the network and the input. So nobody chooses a constant here:

    error(case)   = max |candidate - reference|
    rounding      = max |torch in the artifact's own precision - reference|
    allowed(case) = multiple * max(rounding(case), median of rounding over the cases)

(and of a sigmoid at least multiple * ``sigmoid_error``),

with the multiple, and its reason, in ``TOLERANCES``. Cases that torch's own rounding does not reproduce prove nothing
(``conditioning``); over the others a floor in decibels stands beside the multiple. NaN and infinity never pass. Where
weights are integers the sum of their errors is no matter of rounding alone; outputs are then judged by SQNR and by the
class that they name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.artifact_specs import OutputKind, OutputRegion
from coordatt_deploy.metrics import (
    Arrays,
    box_ious,
    cosine,
    infinities_set_aside,
    sqnr_db,
    sqnr_db_of_energies,
    top1_agreement,
)
from coordatt_deploy.output_grids import coarse_parts, grid_step, is_bounded, part_of, whole
from coordatt_deploy.parity.conditioning import MOST_SET_ASIDE, conditioning
from coordatt_deploy.parity.tolerances import OTHERWISE_INTEGERS, Tolerance, allowed_otherwise, least_box_iou

BOUNDED_SIGNAL: Final = 0.25  # mean square of the values 0 and 1, half of each: what a score can come to


@dataclass(frozen=True, slots=True)
class RegionParity:
    """The verdict on a part of an integer artifact's output that an operator of its own makes.

    Attributes:
        layer: Id of the layer that makes it.
        sqnr_db: Over all cases; of values within 0 and 1 as if they were as loud as 0.5.
        problem: Why it is not right; None where it is.
    """

    layer: str
    sqnr_db: float
    problem: str | None


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
        min_top1_agreement: What was asked for, to the nearest whole case; None where the classes do not matter.
        least_db: What was asked for besides the allowance of each element; None where ``min_sqnr_db`` was.
        set_aside: Cases that torch's own rounding does not reproduce; they are not judged.
        unproven: Why nothing can be proven of the output; None where it was judged.
        regions: Of an integer artifact, the parts that different operators make.
        kind: What the output is.
        mask_agreement: Share of the pixels of a mask, or of the places of a detector's scores, with the same class;
            None for what has no classes at several places.
        min_mask_agreement: What was asked for; None where it was not.
        by_share: Whether elements are classes, positions, or yes and no. The error and what is allowed are then shares
            of the elements, of all cases together.
        box_iou: Mean IoU of the boxes with the reference's in their places; None where they are not decoded, or none.
        min_box_iou: What was asked for; None where it was not, as every element is judged.
        judged_error: What is held against ``allowed``: the greatest error of the worst case. None in reports of older
            versions.
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
    least_db: float | None = None
    set_aside: tuple[int, ...] = ()
    unproven: str | None = None
    regions: tuple[RegionParity, ...] = ()
    kind: OutputKind = OutputKind.OTHER
    mask_agreement: float | None = None
    min_mask_agreement: float | None = None
    by_share: bool = False
    box_iou: float | None = None
    min_box_iou: float | None = None
    judged_error: float | None = None

    @property
    def error_of_worst_case(self) -> float:
        """The error that ``allowed`` is of; the greatest of all cases in reports of older versions."""
        return self.max_abs_error if self.judged_error is None else self.judged_error

    def sentence(self) -> str:
        """Say what was found, in one line."""
        if self.nonfinite:
            wrong = f"{self.nonfinite} of {self.elements} values"
            found = f"{self.name}: {wrong} are NaN or infinite where the reference is not, or the other way round"
            return found if self.unproven is None else f"{found}; {self.unproven}"
        if self.unproven is not None:
            return f"{self.name} cannot be proven: {self.unproven}"
        if self.by_share:
            return (
                f"{self.name}: {self.mismatched} of {self.elements} elements differ ({self.max_abs_error:.2%}),"
                f" {self.allowed:.2%} allowed"
            )
        masks, needed = self.mask_agreement, self.min_mask_agreement
        if masks is not None and needed is not None and masks < needed:
            places = "pixels" if self.kind is OutputKind.MASK else "places"
            return f"{self.name}: {masks:.1%} of the {places} have the same class, {needed:.0%} needed"
        overlap, least = self.box_iou, self.min_box_iou
        if overlap is not None and least is not None and overlap < least:
            return f"{self.name}: the boxes have a mean IoU of {overlap:.3f} with the reference's, {least:g} needed"
        coarse = [region.problem for region in self.regions if region.problem is not None]
        if coarse:
            return f"{self.name}: {'; '.join(coarse)}"
        agreement, asked = self.top1_agreement, self.min_top1_agreement
        if agreement is not None and asked is not None and agreement < asked:
            agrees = f"; top-1 agreement {agreement:.1%}, {asked:.0%} needed"
            if self.kind is OutputKind.OTHER:
                agrees += f" if these are scores of classes; else export with --output {self.name}=embedding or boxes"
        else:
            agrees = ""
        if self.min_sqnr_db is not None:
            return f"{self.name}: SQNR {self.sqnr_db:.1f} dB, {self.min_sqnr_db:g} dB needed{agrees}"
        if self.least_db is not None and not self.mismatched:
            return f"{self.name}: SQNR {self.sqnr_db:.1f} dB, {self.least_db:.0f} dB needed whatever rounding costs"
        return (
            f"{self.name}: {self.mismatched} of {self.elements} elements differ; greatest difference "
            f"{self.error_of_worst_case:.3g} ({self.allowed:.3g} allowed) at {self.worst_index} of golden case "
            f"{self.worst_case}, SQNR {self.sqnr_db:.1f} dB{agrees}"
        )


def judge(
    name: str,
    candidate: Arrays,
    reference: Arrays,
    rounding: Arrays,
    tolerance: Tolerance,
    images: Sequence[bool] = (),
    regions: Sequence[OutputRegion] = (),
    kind: OutputKind = OutputKind.OTHER,
    moved: Arrays = (),
) -> OutputParity:
    """Compare an output over all golden cases.

    Args:
        name: Of the output.
        candidate: One array per case, dequantized, in the reference's layout.
        reference: float64, one array per case.
        rounding: The same output computed by torch in the precision of ``tolerance.basis``.
        tolerance: What to apply.
        images: Which of the cases are real images; see ``conditioning``.
        regions: Parts of the output that different operators make; none for a single one.
        kind: What the output is.
        moved: What values moved by half a unit in the last place make of it (``moved_values``), one array per case;
            nothing where that was not asked.

    Raises:
        ValueError: The cases differ in number or shape, or there is nothing to compare, or a part is none of it.
    """
    _check_shapes(name, candidate, reference, rounding)
    agreement = top1_agreement(candidate, reference) if kind in {OutputKind.SCORES, OutputKind.OTHER} else None
    least_masks = None
    masks = place_agreement(candidate, reference, kind)
    if masks is not None:
        least_masks = 1.0 - allowed_otherwise(tolerance, 1.0 - (place_agreement(rounding, reference, kind) or 0.0))
    boxes = box_ious(candidate, reference) if kind is OutputKind.BOXES else None
    overlap = None if boxes is None else float(boxes.mean())
    least_overlap = None if boxes is None else least_box_iou(tolerance)
    reference, candidate, rounding, moved = infinities_set_aside(reference, candidate, rounding, moved)
    if kind not in {OutputKind.SCORES, OutputKind.OTHER}:  # then the greatest of its numbers names no class
        tolerance = replace(tolerance, min_top1_agreement=None, floor_top1=None)
    sigmoids = tolerance.sigmoid_error > 0 and bool(regions) and all(item.operator == "sigmoid" for item in regions)
    # A sigmoid's absolute error says nothing of what torch keeps of a small one.
    condition = conditioning(reference, rounding, tolerance, images, () if sigmoids else moved)
    kept = [index for index in range(len(reference)) if index not in condition.set_aside]
    floor = tolerance.sigmoid_error if sigmoids else 0.0
    exact, own, others = ([values[i] for i in kept] for values in (reference, rounding, moved or reference))
    limits = allowance(exact, own, tolerance.multiple, floor, others)
    allowed = dict(zip(kept, limits, strict=True))
    errors = [np.abs(np.asarray(c, np.float64) - r) for c, r in zip(candidate, reference, strict=True)]
    with np.errstate(invalid="ignore"):
        beyond = sum(int((~(errors[index] <= limit)).sum()) for index, limit in allowed.items())  # NaN is beyond
    nonfinite = sum(int((~np.isfinite(item)).sum()) for item in candidate)
    worst = max(kept or range(len(errors)), key=lambda index: _excess(errors[index], allowed.get(index, math.inf)))
    flat = int(np.argmax(np.nan_to_num(errors[worst], nan=math.inf)))
    by_element = tolerance.min_sqnr_db is None
    if tolerance.min_sqnr_db is None:
        over_kept = _region_db([candidate[i] for i in kept], [reference[i] for i in kept], bounded=sigmoids)
        within = not beyond and (tolerance.least_db is None or over_kept >= tolerance.least_db)
    else:
        within = sqnr_db(candidate, reference) >= tolerance.min_sqnr_db
    parts = judge_regions(candidate, reference, regions, tolerance)
    asked = tolerance.min_top1_agreement
    least_top1 = None if asked is None else least_agreement(asked, len(reference))
    agrees = least_top1 is None or agreement is None or agreement >= least_top1
    return OutputParity(
        name=name,
        passed=within
        and agrees
        and not nonfinite
        and condition.problem is None
        and (masks is None or least_masks is None or masks >= least_masks)
        and (overlap is None or least_overlap is None or overlap >= least_overlap)
        and all(part.problem is None for part in parts),
        max_abs_error=max((_worst(error) for error in errors), key=lambda e: math.inf if math.isnan(e) else e),
        allowed=allowed.get(worst, 0.0) if by_element else math.nan,
        worst_case=worst,
        worst_index=tuple(int(i) for i in np.unravel_index(flat, errors[worst].shape)),
        mismatched=beyond if by_element else 0,
        elements=sum(item.size for item in reference),
        sqnr_db=sqnr_db(candidate, reference),
        cosine=cosine(candidate, reference),
        top1_agreement=agreement,
        nonfinite=nonfinite,
        min_sqnr_db=tolerance.min_sqnr_db,
        min_top1_agreement=least_top1,
        least_db=tolerance.least_db,
        set_aside=condition.set_aside,
        unproven=condition.problem,
        regions=parts,
        kind=kind,
        mask_agreement=masks,
        min_mask_agreement=least_masks,
        box_iou=overlap,
        min_box_iou=least_overlap,
        judged_error=_worst(errors[worst]),
    )


def least_agreement(asked: float, cases: int) -> float:
    """Return the share of *cases* that comes nearest to the share that is asked for; a half counts as asked for.

    Nine in ten of eight images are seven: asking for all eight would fail a file for one image at a near tie.
    """
    return math.floor(asked * cases + 0.5) / cases


def judge_elements(
    name: str,
    candidate: Arrays,
    reference: Arrays,
    rounding: Arrays,
    tolerance: Tolerance,
    images: Sequence[bool] = (),
    moved: Arrays = (),
) -> OutputParity:
    """Compare an output of classes, positions, or yes and no, over all golden cases: the share that differs is judged.

    How far one class is from another says nothing. What torch itself has otherwise in more than ``OTHERWISE_INTEGERS``
    of the elements proves nothing. Made-up cases in which values moved by half a unit in the last place decide so much
    that a multiple of it is a tenth (a constant image, where every class scores alike) are set aside, while they are
    not more than half.

    Raises:
        ValueError: The cases differ in number or shape, or there is nothing to compare.
    """
    _check_shapes(name, candidate, reference, rounding)
    wrong = [int((c != r).sum()) for c, r in zip(candidate, reference, strict=True)]
    own = [int((c != r).sum()) for c, r in zip(rounding, reference, strict=True)]
    if moved:
        further = [int((c != r).sum()) for c, r in zip(moved, reference, strict=True)]
        own = [max(pair) for pair in zip(own, further, strict=True)]
    aside = _ties(own, reference, images, tolerance.multiple) if moved else ()
    kept = [index for index in range(len(reference)) if index not in aside]
    elements = sum(reference[index].size for index in kept)
    torch_own = sum(own[index] for index in kept) / elements
    share, allowed = sum(wrong[index] for index in kept) / elements, allowed_otherwise(tolerance, torch_own)
    nonfinite = sum(int((~np.isfinite(item)).sum()) for item in candidate)
    worst = max(kept, key=lambda index: wrong[index])
    flat = int(np.argmax(candidate[worst] != reference[worst]))
    unproven = None
    if torch_own > OTHERWISE_INTEGERS:
        unproven = (
            f"torch's own rounding has {torch_own:.0%} of its elements otherwise, {OTHERWISE_INTEGERS:.0%} at most"
            " prove it"
        )
    return OutputParity(
        name=name,
        passed=share <= allowed and not nonfinite and unproven is None,
        max_abs_error=share,
        allowed=allowed,
        worst_case=worst,
        worst_index=tuple(int(i) for i in np.unravel_index(flat, reference[worst].shape)),
        mismatched=sum(wrong[index] for index in kept),
        elements=elements,
        sqnr_db=sqnr_db(candidate, reference),
        cosine=cosine(candidate, reference),
        top1_agreement=None,
        nonfinite=nonfinite,
        set_aside=aside,
        unproven=unproven,
        kind=OutputKind.MASK,
        by_share=True,
        judged_error=share,
    )


def _ties(own: Sequence[int], reference: Arrays, images: Sequence[bool], multiple: float) -> tuple[int, ...]:
    """Return the made-up cases in which the last digits decide; none where they are more than half of all."""
    made_up = [index for index in range(len(reference)) if index < len(images) and not images[index]]
    found = tuple(index for index in made_up if multiple * own[index] > OTHERWISE_INTEGERS * reference[index].size)
    return found if len(found) <= MOST_SET_ASIDE * len(reference) else ()


def place_agreement(candidate: Arrays, reference: Arrays, kind: OutputKind) -> float | None:
    """Share of the pixels of a mask, or of the places of a detector, with the same class; None for everything else.

    Scores of a detector are (1, places, classes) or (1, classes, places); there are more places than classes.
    """
    if kind is OutputKind.MASK:
        return mask_agreement(candidate, reference)
    if kind is not OutputKind.SCORES or any(item.ndim != 3 for item in reference):
        return None
    if all(item.shape[1] >= item.shape[2] for item in reference):
        candidate, reference = ([np.swapaxes(item, 1, 2) for item in values] for values in (candidate, reference))
    return mask_agreement(candidate, reference)


def mask_agreement(candidate: Arrays, reference: Arrays) -> float | None:
    """Share of the pixels with the same greatest channel; None unless there are channels, (N, C, ...) with C > 1."""
    if any(item.ndim < 3 or item.shape[1] < 2 for item in reference):
        return None
    same = [np.argmax(c, 1) == np.argmax(r, 1) for c, r in zip(candidate, reference, strict=True)]
    return sum(int(item.sum()) for item in same) / int(sum(item.size for item in same))


def judge_regions(
    candidate: Arrays, reference: Arrays, regions: Sequence[OutputRegion], tolerance: Tolerance
) -> tuple[RegionParity, ...]:
    """Judge each part of an integer artifact's output on its own; nothing in float, where every element is judged.

    Raises:
        ValueError: A part is none of the output's.
    """
    if tolerance.weight_bits is None or tolerance.min_sqnr_db is None:
        return ()
    step = grid_step(candidate)
    coarse = {} if step is None else {part.region: part for part in coarse_parts(reference, regions, step)}
    found = []
    for region in regions or (whole(reference[0].ndim),):
        decibels = _region_db(
            [part_of(v, region) for v in candidate], [part_of(v, region) for v in reference], bounded=is_bounded(region)
        )
        problem = None
        if region in coarse:
            problem = f"carries nothing: {coarse[region].sentence()}"
        elif regions and not decibels >= tolerance.min_sqnr_db:
            problem = f"{region.layer}: SQNR {decibels:.1f} dB, {tolerance.min_sqnr_db:g} dB needed of each part"
        found.append(RegionParity(region.layer, decibels, problem))
    return tuple(found)


def _region_db(candidate: Arrays, reference: Arrays, *, bounded: bool) -> float:
    if not bounded:
        return sqnr_db(candidate, reference)
    elements = sum(value.size for value in reference)
    signal = sum(float(np.sum(np.square(value, dtype=np.float64))) for value in reference)
    noise = sum(float(np.sum(np.square(c - r))) for c, r in zip(candidate, reference, strict=True))
    return sqnr_db_of_energies(max(signal, BOUNDED_SIGNAL * elements), noise)


def _check_shapes(name: str, candidate: Arrays, reference: Arrays, rounding: Arrays) -> None:
    if not len(candidate) == len(reference) == len(rounding):
        raise ValueError(f"{name}: {len(candidate)} results for {len(reference)} golden cases")
    for mine, theirs, own in zip(candidate, reference, rounding, strict=True):
        if mine.shape != theirs.shape:
            raise ValueError(f"{name}: a result has shape {mine.shape}, the reference {theirs.shape}")
        if own.shape != theirs.shape:
            raise ValueError(f"{name}: torch's own rounding has shape {own.shape}, the reference {theirs.shape}")
    if not sum(item.size for item in reference):
        raise ValueError(f"{name}: the reference holds no value to compare with")


def _excess(error: NDArray[np.float64], allowed: float) -> float:
    """Error over what is allowed; infinite for NaN, and where nothing is allowed."""
    worst = _worst(error)
    if not worst:
        return 0.0
    ratio = worst / allowed if allowed > 0 else math.inf
    return math.inf if math.isnan(ratio) else ratio


def unjudged(expected: Sequence[str], judged: Sequence[OutputParity]) -> str | None:
    """Say which outputs no value was compared of; None where each was judged. Nothing judged is not passed.

    Args:
        expected: Names of the model's outputs, of the manifest.
        judged: What was judged.
    """
    if not expected:
        return "not judged: the manifest names no output of the model"
    compared = {output.name for output in judged if output.elements}
    missing = [name for name in expected if name not in compared]
    if not missing:
        return None
    return f"{len(missing)} of {len(expected)} outputs were not judged: {', '.join(missing)}"


def allowance(
    reference: Arrays, rounding: Arrays, multiple: float, least: float = 0.0, moved: Arrays = ()
) -> list[float]:
    """Return what is allowed in each case; 0 where the rounding itself is not finite, so that nothing passes.

    The median over the cases is a floor: a case may round to nearly nothing by luck. So is *least*, and in its own case
    what *moved* is off by.
    """
    own = [_worst(np.abs(np.asarray(r, np.float64) - e)) for r, e in zip(rounding, reference, strict=True)]
    finite = [value for value in own if math.isfinite(value)]
    floor = max(least, float(np.median(finite)) if finite else 0.0)
    asked = [_worst(np.abs(np.asarray(m, np.float64) - e)) for m, e in zip(moved or reference, reference, strict=True)]
    return [
        multiple * max(value, floor, further if math.isfinite(further) else 0.0) if math.isfinite(value) else 0.0
        for value, further in zip(own, asked, strict=True)
    ]


def _worst(error: NDArray[np.float64]) -> float:
    return float(np.max(error)) if error.size else 0.0  # np.max hands NaN on
