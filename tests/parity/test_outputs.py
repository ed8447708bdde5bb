import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordatt_deploy.artifact_specs import OutputKind, OutputRegion
from coordatt_deploy.documents import to_json
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.metrics import sqnr_db, top1_agreement
from coordatt_deploy.parity.outputs import allowance, judge, judge_elements, unjudged
from coordatt_deploy.parity.tolerances import TOLERANCES, Tolerance

RNG = np.random.default_rng(0)
REFERENCE = [RNG.standard_normal((1, 10)) for _ in range(6)]
ROUNDING = [value + 1e-6 * RNG.uniform(-1, 1, value.shape) for value in REFERENCE]
EVERY = pytest.mark.parametrize("tolerance", TOLERANCES.values(), ids=[f"{f}-{p}" for f, p in TOLERANCES])


@EVERY
def test_the_reference_itself_passes(tolerance):
    """
    No error, infinite SQNR, full agreement.
    """
    verdict = judge("logits", REFERENCE, REFERENCE, ROUNDING, tolerance)

    assert verdict.passed
    assert (0.0, float("inf"), 1.0) == (verdict.max_abs_error, verdict.sqnr_db, verdict.top1_agreement)


FLOAT = [pytest.param(t, id=f"{f}-{p}") for (f, p), t in TOLERANCES.items() if t.min_sqnr_db is None]
INTEGER = [pytest.param(t, id=f"{f}-{p}") for (f, p), t in TOLERANCES.items() if t.min_sqnr_db is not None]


@pytest.mark.parametrize("tolerance", FLOAT)
def test_within_and_beyond_what_is_allowed(tolerance):
    """
    Just inside passes, just outside fails with the place and the allowance.
    """
    limit = allowance(REFERENCE, ROUNDING, tolerance.multiple)[3]
    for factor, passed in ((0.99, True), (1.01, False)):
        candidate = [value.copy() for value in REFERENCE]
        candidate[3][0, 7] += factor * limit

        verdict = judge("logits", candidate, REFERENCE, ROUNDING, tolerance)

        assert passed == verdict.passed
        assert (3, (0, 7)) == (verdict.worst_case, verdict.worst_index)
    assert "1 of 60 elements differ" in verdict.sentence()
    assert "at (0, 7) of golden case 3" in verdict.sentence()


@pytest.mark.parametrize("tolerance", INTEGER)
def test_decibels_and_classes_judge_integers(tolerance):
    """
    Noise just below what is asked for passes, just above fails, and the sentence says how much was needed.
    """
    noise = [RNG.standard_normal(value.shape) for value in REFERENCE]
    quiet = -sqnr_db([r + n for r, n in zip(REFERENCE, noise, strict=True)], REFERENCE)
    for spare, passed in ((1.0, True), (-1.0, False)):
        gain = 10 ** (-(tolerance.min_sqnr_db + spare + quiet) / 20)
        candidate = [r + gain * n for r, n in zip(REFERENCE, noise, strict=True)]
        verdict = judge("logits", candidate, REFERENCE, ROUNDING, replace(tolerance, min_top1_agreement=None))
        assert (passed, tolerance.min_sqnr_db + spare) == (verdict.passed, pytest.approx(verdict.sqnr_db))
    assert f"{tolerance.min_sqnr_db:g} dB needed" in verdict.sentence()
    turned = [np.roll(value, 1, axis=1) for value in REFERENCE]
    verdict = judge(
        "logits", turned, REFERENCE, ROUNDING, replace(tolerance, min_sqnr_db=-99.0, min_top1_agreement=0.9)
    )
    assert not verdict.passed
    assert "top-1 agreement 0.0%, 83% needed" in verdict.sentence()  # five of six


@pytest.mark.parametrize(
    ("asked", "turned", "passed"),
    [(0.9, 0, True), (0.9, 1, True), (0.9, 2, False), (0.95, 1, False), (1.0, 1, False)],
)
def test_classes_are_asked_for_to_the_nearest_image(asked, turned, passed):
    """
    Of eight images nine in ten are seven: one may turn, two may not; and none where nearly all are asked for.
    """
    reference = [np.eye(1, 5) + 0.01 * RNG.standard_normal((1, 5)) for _ in range(8)]
    candidate = [np.roll(value, 1, axis=1) if index < turned else value for index, value in enumerate(reference)]
    tolerance = replace(INTEGER[0].values[0], min_sqnr_db=-99.0, min_top1_agreement=asked)

    verdict = judge("logits", candidate, reference, reference, tolerance, kind=OutputKind.SCORES)

    assert passed is verdict.passed
    assert 1 - turned / 8 == verdict.top1_agreement


@EVERY
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_pass(tolerance, value):
    """
    Not even when the allowance is not finite either.
    """
    candidate = [item.copy() for item in REFERENCE]
    candidate[0][0, 0] = value
    for rounding in (ROUNDING, [item * np.nan for item in ROUNDING], [item + np.inf for item in ROUNDING]):
        verdict = judge("logits", candidate, REFERENCE, rounding, tolerance)

        assert not verdict.passed
        assert "1 of 60 values are NaN or infinite" in verdict.sentence()
    assert '"sqnr_db": null' in json.dumps(to_json(verdict), allow_nan=False)


@EVERY
def test_minus_infinity_of_a_masked_class_is_right_where_it_is_the_references(tolerance):
    """
    Wherever else it stands, or where a number stands in its place, even 0, the file is wrong, not unproven.
    """

    def masked(values, columns=(1, 3), by=-np.inf):
        found = [item.astype(np.float64) for item in values]
        for item in found:
            item[:, list(columns)] = by
        return found

    reference, rounding = masked(REFERENCE), masked(ROUNDING)
    right = judge("logits", rounding, reference, rounding, tolerance)
    assert right.passed
    assert right.nonfinite == 0
    for wrong in (
        masked(ROUNDING, (1, 2)),
        masked(ROUNDING, (1,)),
        masked(ROUNDING, by=0.0),
        masked(ROUNDING, by=np.inf),
    ):
        verdict = judge("logits", wrong, reference, rounding, tolerance)

        assert not verdict.passed
        assert verdict.unproven is None
        assert "infinite" in verdict.sentence()


def test_a_reference_that_overflows_in_the_artifacts_precision_allows_nothing():
    """
    Where torch itself overflows float16, no tolerance can be derived, so only equality passes.
    """
    tolerance = next(iter(TOLERANCES.values()))
    overflowed = [np.full_like(value, np.inf) for value in REFERENCE]
    candidate = [value + 1e-9 for value in REFERENCE]

    assert not judge("logits", candidate, REFERENCE, overflowed, tolerance).passed


def test_a_case_that_rounds_to_nothing_by_luck_gets_the_median():
    """
    The allowance of a case has the median over the cases as its floor.
    """
    lucky = [REFERENCE[0], *ROUNDING[1:]]

    allowed = allowance(REFERENCE, lucky, 8.0)

    assert allowed[0] == pytest.approx(np.median([0.0, *(a / 8 for a in allowed[1:])]) * 8, rel=0.5)
    assert allowed[0] > 0


def test_results_of_another_shape_are_no_results():
    """
    Broadcasting must not hide a missing axis.
    """
    with pytest.raises(ValueError, match="shape"):
        judge("logits", [v[:, :1] for v in REFERENCE], REFERENCE, ROUNDING, next(iter(TOLERANCES.values())))


def test_sqnr_against_a_hand_computed_value():
    """
    Signal power 25, noise power 0.25: 20 dB.
    """
    assert sqnr_db([np.array([3.5, 4.0])], [np.array([3.0, 4.0])]) == pytest.approx(20.0)


def test_top1_counts_cases():
    """
    One of two cases agrees; an output that is no row of classes has no top-1.
    """
    assert 0.5 == top1_agreement([np.array([[1.0, 2.0]]), np.array([[2.0, 1.0]])], [np.array([[0.0, 1.0]])] * 2)
    assert top1_agreement([np.zeros((1, 2, 3, 3))], [np.zeros((1, 2, 3, 3))]) is None


@settings(deadline=None)
@given(
    noise=hnp.arrays(np.float64, (1, 10), elements=st.floats(-1, 1)),
    scale=st.floats(1e-9, 1e3),
)
def test_the_verdict_is_the_comparison_of_error_and_allowance(noise, scale):
    """
    For any error: passed if and only if no element is beyond its case's allowance.
    """
    tolerance = next(iter(TOLERANCES.values()))
    candidate = [REFERENCE[0] + scale * noise, *REFERENCE[1:]]
    limit = allowance(REFERENCE, ROUNDING, tolerance.multiple)[0]

    verdict = judge("logits", candidate, REFERENCE, ROUNDING, tolerance)

    assert verdict.passed == bool((np.abs(candidate[0] - REFERENCE[0]) <= limit).all())


@EVERY
@pytest.mark.parametrize("arrays", [[], [np.zeros((0, 10))] * 6], ids=["no case", "no element"])
def test_nothing_to_compare_is_an_error(tolerance, arrays):
    """
    Not a verdict, least of all a good one.
    """
    with pytest.raises(ValueError, match="logits: the reference holds no value to compare with"):
        judge("logits", arrays, arrays, arrays, tolerance)


def test_outputs_are_counted_against_the_manifest():
    """
    Each of its outputs is judged, or named.
    """
    verdict = judge("logits", REFERENCE, REFERENCE, ROUNDING, next(iter(TOLERANCES.values())))

    assert unjudged(("logits",), (verdict,)) is None
    assert "1 of 2 outputs were not judged: boxes" == unjudged(("logits", "boxes"), (verdict,))
    assert "1 of 1 outputs were not judged: logits" == unjudged(("logits",), (replace(verdict, elements=0),))
    assert "not judged: the manifest names no output of the model" == unjudged((), ())


SCORES = OutputRegion("scores", (None, None), "sigmoid")


@pytest.mark.parametrize(("error", "passes"), [(1.7e-7, True), (2e-6, False)])
def test_scores_of_nothing_are_judged_by_an_absolute_error(error, passes):
    """
    Sigmoids of 1e-5, which torch knows to the last digit and ONNX Runtime to 1.7e-7; twelve times that is a fault, as
    are zeros. Behind a softmax, in other formats, and without either the same value is held to torch's own
    rounding.
    """
    tolerance = TOLERANCES[Format.ONNX, "fp32"]
    reference = [np.full((1, 4), 1e-5) * (1 + 0.1 * case) for case in range(4)]
    rounding = [value.astype(np.float32) for value in reference]
    candidate = [value + error for value in reference]

    assert passes is judge("scores", candidate, reference, rounding, tolerance, (), (SCORES,)).passed
    assert not judge("scores", candidate, reference, rounding, tolerance).passed
    softmax = replace(SCORES, operator="softmax")
    assert not judge("scores", candidate, reference, rounding, tolerance, (), (softmax,)).passed
    for other in (
        TOLERANCES[Format.TFLITE, "fp32"],
        TOLERANCES[Format.COREML, "fp32"],
        TOLERANCES[Format.COREML, "fp16"],
    ):
        assert not judge("scores", candidate, reference, rounding, other, (), (SCORES,)).passed
    zeros = [np.zeros_like(value) for value in reference]
    assert not judge("scores", zeros, reference, rounding, tolerance, (), (SCORES,)).passed


def vectors(seed=0, shape=(1, 16), count=20):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape) for _ in range(count)]


@pytest.mark.parametrize(
    ("kind", "passes"),
    [
        (OutputKind.SCORES, False),
        (OutputKind.OTHER, False),
        (OutputKind.EMBEDDING, True),
        (OutputKind.BOXES, True),
    ],
)
def test_the_greatest_number_matters_where_it_names_a_class(kind, passes):
    """
    Two numbers that are nearly alike change places: another class of scores, the same embedding.
    """
    reference = vectors()
    for value in reference:
        value[0, 0], value[0, 1] = 4.0, 4.001
    candidate = [value + np.eye(1, 16) * 0.01 for value in reference]
    tolerance = replace(next(iter(TOLERANCES.values())), min_sqnr_db=20.0, min_top1_agreement=0.95, floor_db=None)

    verdict = judge("features", candidate, reference, reference, tolerance, kind=kind)

    assert passes is verdict.passed
    assert ("--output features=embedding" in verdict.sentence()) is (kind is OutputKind.OTHER)
    assert not judge(
        "features", [value * 1.2 for value in reference], reference, reference, tolerance, kind=kind
    ).passed


def test_a_mask_is_judged_by_the_class_of_each_pixel():
    """
    Where one pixel of many differs it passes, where one in ten does it fails, however good its SQNR is.
    """
    reference = vectors(shape=(1, 2, 200, 200), count=4)
    for value in reference:
        value[:, 1] = value[:, 0] + 0.01  # the second class everywhere, by little
    tolerance = replace(next(iter(TOLERANCES.values())), min_sqnr_db=20.0, floor_db=None)

    def turned(pixels):
        candidate = [value.copy() for value in reference]
        for value in candidate:
            value[0, 0].reshape(-1)[:pixels] += 0.02
        return judge("mask", candidate, reference, reference, tolerance, kind=OutputKind.MASK)

    assert turned(1).passed
    assert not turned(5).passed
    assert not turned(4000).passed
    assert 0.9 == pytest.approx(turned(4000).mask_agreement)
    assert "90.0% of the pixels have the same class" in turned(4000).sentence()


@pytest.mark.parametrize("turned_round", [False, True])
def test_scores_of_a_detector_are_judged_by_the_class_at_each_place(turned_round):
    """
    Of 1,000 places one may not be of another class in float, however good the SQNR; classes first or last.
    """
    reference = vectors(shape=(1, 1000, 6), count=4)
    for value in reference:
        value[..., 2] = value.max(axis=2) + 0.01
    candidate = [value.copy() for value in reference]
    for value in candidate:
        value[0, :5, 3] = value[0, :5, 2] + 0.01
    near = [value + 0.001 for value in reference]
    if turned_round:
        reference, candidate, near = (
            [np.swapaxes(value, 1, 2).copy() for value in values] for values in (reference, candidate, near)
        )
    tolerance = replace(next(iter(TOLERANCES.values())), min_sqnr_db=20.0, floor_db=None)
    verdict = judge("scores", candidate, reference, reference, tolerance, kind=OutputKind.SCORES)

    assert judge("scores", near, reference, reference, tolerance, kind=OutputKind.SCORES).passed
    assert not verdict.passed
    assert verdict.mask_agreement == pytest.approx(0.995)
    assert "99.5% of the places have the same class" in verdict.sentence()
    assert judge("scores", candidate, reference, reference, tolerance, kind=OutputKind.BOXES).mask_agreement is None


def test_boxes_of_integer_files_must_lie_on_the_references():
    """
    Small boxes that all miss keep the decibels of the large numbers that they are made of; their IoU tells.
    """
    random = np.random.default_rng(0)
    corner = [random.uniform(0, 600, (1, 100, 2)) for _ in range(4)]
    reference = [np.concatenate([value, value + 20], axis=2) for value in corner]
    tolerance = next(item for item in TOLERANCES.values() if item.weight_bits is not None)

    def verdict(shift, values=reference):
        return judge("boxes", [v + shift for v in values], values, values, tolerance, kind=OutputKind.BOXES)

    assert verdict(3.0).passed
    assert verdict(3.0).box_iou == pytest.approx(17**2 / (2 * 20**2 - 17**2))
    assert not verdict(12.0).passed
    assert verdict(12.0).sqnr_db > 28
    assert "mean IoU of 0.087 with the reference's, 0.5 needed" in verdict(12.0).sentence()
    offsets = [random.normal(size=(1, 100, 4)) * 100 for _ in range(4)]
    assert verdict(3.0, offsets).box_iou is None


def test_classes_are_judged_by_the_share_that_differs():
    """
    Class 9 in place of 8 is as wrong as class 0; one pixel in ten thousand may be, and more where torch has more.
    """
    random = np.random.default_rng(0)
    reference = [random.integers(0, 10, (1, 100, 100)).astype(np.float64) for _ in range(4)]
    tolerance = next(iter(TOLERANCES.values()))

    def turned(pixels, rounding=reference):
        candidate = [value.copy() for value in reference]
        for value in candidate:
            value.reshape(-1)[:pixels] = 9 - value.reshape(-1)[:pixels]
        return judge_elements("classes", candidate, reference, rounding, tolerance)

    own = [value.copy() for value in reference]
    for value in own:
        value[0, :, 0] += 1
    lost = [value + 1 for value in reference]

    assert turned(1).passed
    assert not turned(2).passed
    assert "8 of 40000 elements differ (0.02%), 0.01% allowed" in turned(2).sentence()
    assert turned(400, own).passed
    assert turned(2, lost).unproven is not None
    assert not turned(4000, own).passed


def test_integer_files_of_random_weights_may_name_more_classes_otherwise():
    """
    As with the class of an image; a file that names hardly one of them still fails.
    """
    random = np.random.default_rng(0)
    reference = [random.integers(0, 10, (1, 20, 20)).astype(np.float64) for _ in range(4)]
    trained = next(item for item in TOLERANCES.values() if item.weight_bits is not None and item.min_top1_agreement)
    untrained = replace(trained, min_top1_agreement=None, untrained=True)
    palette = replace(trained, min_top1_agreement=None)  # asked for no class, and trained

    def turned(share):
        candidate = [value.copy() for value in reference]
        for value in candidate:
            value.reshape(-1)[: int(400 * share)] += 1
        return candidate

    assert not judge_elements("classes", turned(0.5), reference, reference, trained).passed
    assert not judge_elements("classes", turned(0.5), reference, reference, palette).passed
    assert judge_elements("classes", turned(0.5), reference, reference, untrained).passed
    assert not judge_elements("classes", turned(0.8), reference, reference, untrained).passed


def test_the_error_beside_an_allowance_is_of_the_same_case():
    """
    A case with a greater error that is allowed more is not what decides: 4 of 16 is less than 2 of 1.
    """
    reference = [np.ones((1, 4)), np.ones((1, 4)), np.ones((1, 4))]
    rounding = [reference[0] + 1.0 / 16, reference[1] + 1.0 / 16, reference[2] + 1.0]
    tolerance = Tolerance(16.0, Precision.FP32, "a test", floor_db=None)
    candidate = [reference[0], reference[1] + 0.75, reference[2] + 4.0]

    verdict = judge("logits", candidate, reference, rounding, tolerance, kind=OutputKind.EMBEDDING)

    assert (1, 4.0, 0.75, 1.0) == (
        verdict.worst_case, verdict.max_abs_error, verdict.judged_error, verdict.allowed,
    )  # fmt: skip
    candidate[1] = reference[1] + 2.0
    failed = judge("logits", candidate, reference, rounding, tolerance, kind=OutputKind.EMBEDDING)
    assert not failed.passed
    assert "greatest difference 2 (1 allowed)" in failed.sentence()
