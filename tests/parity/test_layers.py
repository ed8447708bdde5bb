"""The judge of layers, on values made by hand."""

import numpy as np
import pytest

from coordatt_deploy.documents import object_of
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.layer_map import Layer, LayerMap, Part
from coordatt_deploy.parity.error_statistics import FEW, LayerErrorStats
from coordatt_deploy.parity.grid_ends import outside_calibration
from coordatt_deploy.parity.layers import UNIT_ROUNDOFF, ArtifactLayers, LayerJudge, LayerRow
from coordatt_deploy.parity.reference_rounding import RoundingError
from coordatt_deploy.parity.tolerances import TOLERANCES

TOLERANCE = TOLERANCES[Format.ONNX, Precision.FP32]
REFERENCE = np.linspace(-1.0, 1.0, 24).reshape(1, 2, 3, 4)
ROUNDING = 1e-7
UNIT = UNIT_ROUNDOFF[Precision.FP32]


def rounding(greatest=ROUNDING, noise=(1e-14, 1e-14), step=0.0):
    return RoundingError(greatest, np.array(noise), step)


def tally(error, *, reference=REFERENCE):
    made = LayerErrorStats(TOLERANCE.multiple, UNIT)
    made.add(reference + error, reference, rounding())
    return made


def row(name, whole=0.0, alone=0.0, probed=None, **more):
    return LayerRow(name, "conv2d", tally(whole), tally(alone), more.pop("seen_through", None), None,
                    probed=None if probed is None else tally(probed), **more)  # fmt: skip


def judged(*rows):
    return ArtifactLayers(None, "net.onnx", rows)


def test_all_within():
    """
    Errors below the allowance pass, and nothing is named.
    """
    found = judged(row("a", 1e-7, 1e-7), row("b", 1.5e-6, 1e-7, 1e-6))

    assert (True, None) == (found.passed, found.first_diverging_layer)
    assert "net.onnx: all layers within tolerance" == found.sentence()


@pytest.mark.parametrize("rows", [(), (LayerRow("a", "conv2d", None, None, None, "gone"),)], ids=["none", "absent"])
def test_nothing_judged_is_not_passed(rows):
    """
    No layers, or none of which anything can be seen.
    """
    found = judged(*rows)

    assert (False, None, 0) == (found.passed, found.first_diverging_layer, found.judged)
    assert f"net.onnx: no layer was judged: nothing can be seen of any of its {len(rows)}" == found.sentence()


def test_wrong_is_told_from_inherited():
    """
    The layer that is wrong with right inputs is named; those behind it are off in the whole file only.
    """
    found = judged(row("a"), row("b", 1e-2, 1e-2), row("c", 1e-2, 0.0), row("d", 1e-2, 0.0))

    assert "b" == found.first_diverging_layer
    assert [False, False, True, True] == [item.inherits for item in found.rows]
    assert found.sentence().endswith("layers after it only inherit")


def test_fault_that_inputs_do_not_reach():
    """
    A layer that is right on the inputs and wrong on stirred values fails, and the sentence says on which.
    """
    found = judged(row("a", probed=0.0), row("b", probed=0.5))

    assert "b" == found.first_diverging_layer
    assert "on values that the inputs do not reach" in found.sentence()


def test_error_that_only_accumulates():
    """
    Nothing wrong on its own, but the sum is: the first layer beyond tolerance is named as such.
    """
    found = judged(row("a"), row("b", 1e-3, 0.0))

    assert "b" == found.first_diverging_layer
    assert "no layer is wrong on its own" in found.sentence()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_come_first(value):
    """
    The layer that makes NaN or infinity is named before an earlier one that is merely off.
    """
    found = judged(row("a", 1e-2, 1e-2), row("b", value, value), row("c", value, 0.0))

    assert "b" == found.first_diverging_layer
    assert "24 values are NaN or infinite" in found.sentence()


def test_tensor_of_another_shape_is_named():
    """
    A value that cannot be compared at all fails its layer and says why.
    """
    found = judged(row("a"), row("b", misfit="its tensor does not fit the layer map (shape (1, 2))"))

    assert "b" == found.first_diverging_layer
    assert (
        "net.onnx: first beyond tolerance at b: its tensor does not fit the layer map (shape (1, 2))"
        == found.sentence()
    )


def test_nothing_is_allowed_where_torch_itself_overflows():
    """
    A rounding error that is not finite gives no tolerance.
    """
    made = LayerErrorStats(TOLERANCE.multiple, UNIT)
    made.add(REFERENCE + 1e-9, REFERENCE, rounding(np.inf))

    assert np.inf == made.excess


def test_sqnr_limit_takes_the_place_of_the_multiple():
    """
    With a limit in dB an error of any size passes above it, and fails below.
    """
    coarse = judged(row("a", 0.01, 0.01, limit_db=30.0))
    assert (True, True) == (coarse.passed, judged(row("a", 0.01, 0.01, limit_db=35.0)).passed)
    assert not judged(row("a", 0.01, 0.01, limit_db=36.0)).passed
    assert "36 dB needed" in judged(row("a", 0.01, 0.01, limit_db=36.0)).sentence()


def test_fused_layer_is_judged_where_it_is_seen():
    """
    A layer without a value of its own gets the row of the one it was fused into; an absent one gets none.
    """
    layers = LayerMap((
        Layer("conv", "conv2d", (1, 2, 3, 4), seen_through="act"),
        Layer("act", "relu6", (1, 2, 3, 4), (Part("t"),)),
        Layer("gone", "cat", (1, 2, 3, 4), absent="lowered away"),
    ))  # fmt: skip
    judge = LayerJudge(layers, TOLERANCE)
    for tallies in (judge.whole, judge.alone):
        judge.add(tallies, "act", REFERENCE + 0.1, REFERENCE, rounding())
    rows = judge.rows()

    assert [False, False, None] == [item.passed for item in rows]
    assert ["act", None, None] == [item.seen_through for item in rows]
    assert "lowered away" == rows[2].note
    assert "conv (seen through act)" in ArtifactLayers(None, "net", rows).sentence()


def test_entry_of_the_document():
    """
    What parity.json promises stands there, and infinity is written as null beside ``exact``.
    """
    entry = object_of(row("a", 0.0, 1e-3).record())

    assert {"layer_id", "sqnr_db", "max_abs_error", "local_sqnr_db", "local_max_abs_error", "passed", "note"} <= set(
        entry
    )
    assert (None, True, False) == (entry["sqnr_db"], entry["exact"], entry["passed"])


def test_smallest_weight_change():
    """
    What is allowed over the greatest value, of the layers that have weights.
    """
    layer = row("a", 0.0, 0.0)

    expected = TOLERANCE.multiple * ROUNDING / 1.0
    assert expected == pytest.approx(ArtifactLayers(None, "net", (layer,)).smallest_weight_change)
    assert ArtifactLayers(None, "net", ()).smallest_weight_change is None


STEP = 0.02
NOISE = STEP**2 / 12
GRID = np.random.default_rng(0).uniform(-2.0, 2.0, (1, 4, 40, 40))


def on_grid(value, *, reference=GRID, noise=NOISE, **masks):
    made = LayerErrorStats(5.0, 0.0, on_grid=True)
    made.add(value, reference, rounding(STEP / 2, [noise] * 4, STEP), **masks)
    return made


def alone(value, whole, noise=NOISE):
    """A layer of a file that is rounded on data: by itself, beside what it gave in the whole file."""
    made = on_grid(value)
    made.upstream = on_grid(whole, noise=noise)
    return made


def test_noise_of_a_grid_passes():
    """
    Rounding to the grid, and three times as much of it, is within five times what rounding costs.
    """
    assert on_grid(np.round(GRID / STEP) * STEP).excess == pytest.approx(1 / 5, rel=0.05)
    assert on_grid(np.round(GRID / (3 * STEP)) * 3 * STEP).excess < 1


def test_one_wrong_channel_of_a_grid_is_seen():
    """
    A channel that is off by two steps everywhere is named, though no value of it is far off.
    """
    wrong = np.round(GRID / STEP) * STEP
    wrong[:, 2] += 2 * STEP
    found = on_grid(wrong)

    assert found.excess > 1
    assert found.evidence().startswith("channel 2 is off by 7.")
    assert found.max_steps == pytest.approx(2.5, abs=0.01)


def test_a_layer_may_make_up_for_those_before_it():
    """
    A shift that is gone in the whole file was meant; one that is there as well is the layer's own.
    """
    right = np.round(GRID / STEP) * STEP
    shifted = right.copy()
    shifted[:, 2] += 5 * STEP

    assert on_grid(shifted).excess > 1
    assert alone(shifted, right).excess < 0.5
    assert alone(shifted, 2 * right - shifted).excess < 0.5
    assert alone(shifted, shifted).excess == pytest.approx(on_grid(shifted).excess)


def test_only_layers_that_were_adjusted_make_up_for_others():
    """
    A pool has no weights to do so with: the same shift fails there.
    """
    shifted = np.round(GRID / STEP) * STEP
    shifted[:, 2] += 5 * STEP
    layers = LayerMap(tuple(Layer(name, "conv2d", GRID.shape, (Part(name),)) for name in ("conv", "pool")))
    judge = LayerJudge(layers, TOLERANCES[Format.ONNX, "static_wi8_ai8"], adjusted=frozenset({"conv"}))
    for name in ("conv", "pool"):
        judge.add(judge.whole, name, GRID, GRID, rounding(STEP / 2, [NOISE] * 4, STEP))
        judge.add(judge.alone, name, shifted, GRID, rounding(STEP / 2, [NOISE] * 4, STEP))

    assert [True, False] == [row.passed for row in judge.rows()]


def test_what_the_layers_before_cost_is_allowed():
    """
    Noise of its own passes below half as much again as all layers up to it cost, whatever it costs itself.
    """
    noise = STEP * np.random.default_rng(1).standard_normal(GRID.shape)

    assert alone(GRID + 3 * noise, GRID).excess > 1
    assert alone(GRID + 3 * noise, GRID, noise=(2.2 * STEP) ** 2).excess < 1
    assert alone(GRID + 3 * noise, GRID, noise=(1.8 * STEP) ** 2).excess > 1


def test_values_beyond_the_grid_do_not_count_while_they_are_few():
    """
    What calibration left out may be cut off: a few values, not one in ten; inherited ones may be any number.
    """
    top = np.sort(GRID, axis=None)[-FEW]
    few, many = (np.minimum(GRID, limit) for limit in (top, np.quantile(GRID, 0.9)))
    few[GRID > top] -= 1.0

    assert on_grid(few).excess > 1
    assert on_grid(few, cut_off=top < GRID).excess == 0
    assert on_grid(many, cut_off=many < GRID).excess > 1
    assert on_grid(many, inherited=many < GRID).excess == 0


def test_values_that_calibration_never_saw_may_be_cut_off():
    """
    However many they are, unless they are most of the layer; those within what it saw are the file's own fault.
    """
    reference = np.linspace(-1.0, 1.0, 201)
    beyond = np.abs(reference) > 0.85

    assert (reference > 0.95).sum() == outside_calibration(beyond, reference, (-1.0, 0.95)).sum()
    assert not outside_calibration(beyond, reference, (-1.0, 1.0)).any()
    assert not outside_calibration(beyond, reference, None).any()
    assert not outside_calibration(reference < 2, reference, (-0.1, 0.1)).any()


def test_nan_on_a_grid():
    """
    It is counted, and passes no allowance.
    """
    wrong = GRID.copy()
    wrong[0, 0, 0, 0] = np.nan

    assert (1, np.inf) == (on_grid(wrong).nonfinite, on_grid(wrong).excess)


@pytest.mark.parametrize(("operator", "error", "passes"), [
    ("sigmoid", 1.7e-7, True), ("sigmoid", 2e-6, False), ("sigmoid", -1e-5, False), ("conv2d", 1.7e-7, False),
])  # fmt: skip
def test_a_sigmoid_of_little_is_judged_by_an_absolute_error(operator, error, passes):
    """
    Scores of 1e-5: a runtime's own approximation passes, a greater error and zeros do not, nor does a convolution that
    is off by as much.
    """
    layers = LayerMap((Layer("scores", operator, (1, 2), (Part("scores"),)),))
    judge = LayerJudge(layers, TOLERANCE)
    reference = np.full((1, 2), 1e-5)
    for tallies in (judge.whole, judge.alone):
        judge.add(tallies, "scores", reference + error, reference, rounding(1e-12, (1e-25, 1e-25)))

    assert passes is ArtifactLayers(None, "net.onnx", judge.rows()).passed


def test_the_error_beside_an_allowance_is_what_was_judged():
    """
    In float of the same case, on a grid the noise of the same channel: never the greatest of all.
    """
    made = LayerErrorStats(TOLERANCE.multiple, UNIT)
    made.add(REFERENCE, REFERENCE, rounding())
    made.add(REFERENCE + 4 * ROUNDING, REFERENCE, rounding())
    made.add(REFERENCE + 40 * ROUNDING, REFERENCE, rounding(100 * ROUNDING))
    wrong = np.round(GRID / STEP) * STEP
    wrong[:, 2] += 2 * STEP
    wrong[0, 0, 0, 0] += 9.0
    noisy = on_grid(wrong)

    for tally_ in (made, noisy):
        assert tally_.judged_error / tally_.allowed == pytest.approx(tally_.excess)
        assert tally_.judged_error < tally_.max_abs_error
        row_ = LayerRow("layer", "conv2d", tally_, tally_, None, None).record()
        assert (tally_.judged_error, tally_.allowed) == (row_.local_judged_error, row_.local_allowed)
