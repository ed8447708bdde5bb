"""Scores under a mask of minus infinity: the same infinity at the same place is no error, at another it is."""

import numpy as np
import pytest
from judged_layers import judged
from masked_attention import MaskedAttention

from coordatt_deploy.formats import Format
from coordatt_deploy.parity.error_statistics import LayerErrorStats
from coordatt_deploy.parity.reference_rounding import compare

MASKED = float("-inf")
FORMATS = [Format.ONNX, pytest.param(Format.TFLITE, marks=pytest.mark.slow),
           pytest.param(Format.COREML, marks=pytest.mark.slow)]  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_a_masked_attention_passes_at_every_layer(kind):
    """
    The mask makes 1,024 values minus infinity, in torch and in the file.
    """
    close, found = judged(kind, MaskedAttention(MASKED), (1, 3, 32, 32))

    assert (True, True) == (close, found.passed), found.sentence()


@pytest.mark.parametrize("other", [MaskedAttention(MASKED, first=47), MaskedAttention(-3.0)])
def test_another_mask_fails_where_it_is(other):
    """
    The twins: one more place hidden, and a mask that hides nothing.
    """
    _, found = judged(Format.ONNX, MaskedAttention(MASKED), (1, 3, 32, 32), made_of=other)

    assert not found.passed
    assert "masked_fill" in found.first_diverging_layer or "hidden" in found.first_diverging_layer


@pytest.mark.parametrize(
    ("value", "nonfinite", "right"),
    [([1.0, MASKED, 3.0], 0, True), ([MASKED, 2.0, 3.0], 1, False), ([1.0, -MASKED, 3.0], 1, False),
     ([1.0, 0.0, 3.0], 0, False), ([1.0, float("nan"), 3.0], 1, False)],
)  # fmt: skip
def test_only_the_same_infinity_at_the_same_place_is_right(value, nonfinite, right):
    """
    Not the other sign, not another place, not a number, and not a number in its stead.
    """
    reference = np.array([[1.0, MASKED, 3.0]])
    tally = LayerErrorStats(16.0, 2.0**-24)
    tally.add(np.array([value], np.float32), reference, compare(reference.astype(np.float32), reference))

    assert nonfinite == tally.nonfinite
    assert right == (tally.max_abs_error <= tally.allowances[0] and not tally.nonfinite)
