"""The judge of layers, on values made by hand."""

import numpy as np
import pytest

from coordatt_deploy.layers import Layer, LayerMap, Part
from coordatt_deploy.parity.layer_parity import UNIT_ROUNDOFF, ArtifactLayers, LayerJudge, LayerRow, Tally
from coordatt_deploy.parity.outputs import TOLERANCES
from coordatt_deploy.specs import Format, Precision

TOLERANCE = TOLERANCES[Format.ONNX, Precision.FP32]
REFERENCE = np.linspace(-1.0, 1.0, 24).reshape(1, 2, 3, 4)
ROUNDING = 1e-7


def tally(error, *, reference=REFERENCE):
    made = Tally(TOLERANCE.multiple)
    made.add(reference + error, reference, ROUNDING, UNIT_ROUNDOFF[Precision.FP32])
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
    made = Tally(TOLERANCE.multiple)
    made.add(REFERENCE + 1e-9, REFERENCE, np.inf, UNIT_ROUNDOFF[Precision.FP32])

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
    judge = LayerJudge(layers, TOLERANCE, Precision.FP32)
    for tallies in (judge.whole, judge.alone):
        judge.add(tallies, "act", REFERENCE + 0.1, REFERENCE, ROUNDING)
    rows = judge.rows()

    assert [False, False, None] == [item.passed for item in rows]
    assert ["act", None, None] == [item.seen_through for item in rows]
    assert "lowered away" == rows[2].note
    assert "conv (seen through act)" in ArtifactLayers(None, "net", rows).sentence()


def test_entry_of_the_document():
    """
    What parity.json promises stands there, and infinity is written as null beside ``exact``.
    """
    entry = row("a", 0.0, 1e-3).to_json()

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
