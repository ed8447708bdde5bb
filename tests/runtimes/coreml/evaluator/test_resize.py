"""Resizing against torch, inside a package that was saved and read back."""

import numpy as np
import pytest
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_programs import BOTH, IOS17, check_sum, double, evaluate, inner, mb, noise

from coordatt_deploy.errors import InferenceError
from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError


@settings(max_examples=20, deadline=None)
@given(size=st.tuples(st.integers(1, 6), st.integers(1, 6)), out=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_resize_bilinear(size, out):
    """
    Aligned and unaligned corners are torch's.
    """
    x = noise(2, 3, *size)

    def build(a):
        sizes = {"target_size_height": out[0], "target_size_width": out[1]}
        return (
            mb.resize_bilinear(x=a, sampling_mode="STRICT_ALIGN_CORNERS", **sizes),
            mb.resize_bilinear(x=a, sampling_mode="UNALIGN_CORNERS", **sizes),
        )

    aligned, unaligned = evaluate(build, x, operator="resize_bilinear")

    check_sum(F.interpolate(double(x), out, mode="bilinear", align_corners=True), aligned)
    check_sum(F.interpolate(double(x), out, mode="bilinear", align_corners=False), unaligned)


@pytest.mark.parametrize(
    ("mode", "out", "expected"),
    [
        ("UNALIGN_CORNERS", 5, [0.0, 0.1, 0.5, 0.9, 1.0]),
        ("STRICT_ALIGN_CORNERS", 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("ALIGN_CORNERS", 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("DEFAULT", 5, [0.0, 0.4, 0.8, 1.0, 1.0]),
        ("OFFSET_CORNERS", 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("UNALIGN_CORNERS", 6, [0.0, 0.0, 1 / 3, 2 / 3, 1.0, 1.0]),
        ("STRICT_ALIGN_CORNERS", 6, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ("DEFAULT", 6, [0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
        ("OFFSET_CORNERS", 6, [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12]),
        ("ALIGN_CORNERS", 1, [0.5]),
        ("STRICT_ALIGN_CORNERS", 1, [0.0]),
    ],
)
def test_sampling_modes(mode, out, expected):
    """
    The values 0 and 1 are sampled at the places that the operator set's documentation tabulates.
    """
    x = np.array([0.0, 1.0], dtype=np.float32).reshape(1, 1, 1, 2)

    old = evaluate(
        lambda a: mb.resize_bilinear(x=a, target_size_height=1, target_size_width=out, sampling_mode=mode), x
    )
    new = evaluate(
        lambda a: mb.resize(
            x=a, shape=np.array([0, out], np.int32), resized_dims=np.uint32(2), sampling_mode=mode,
            interpolation_mode="LINEAR"),
        x, opset=IOS17, operator="resize",
    )  # fmt: skip

    np.testing.assert_allclose(old.ravel(), expected, atol=1e-6)
    np.testing.assert_allclose(new.ravel(), expected, atol=1e-6)


@BOTH
def test_upsampling(dtype):
    """
    By whole factors and by fractions, nearest and bilinear, upsampling is torch's.
    """
    x = noise(2, 3, 4, 6, dtype=dtype)

    def build(a):
        whole = {"scale_factor_height": 2, "scale_factor_width": 3}
        part = {"scale_factor_height": 1.5, "scale_factor_width": 2.5}
        return (
            mb.upsample_nearest_neighbor(x=a, **whole),
            mb.upsample_nearest_neighbor(x=a, **part),
            mb.upsample_bilinear(x=a, align_corners=False, **whole),
            mb.upsample_bilinear(x=a, align_corners=True, **part),
            mb.resize_nearest_neighbor(x=a, target_size_height=8, target_size_width=6),
            mb.resize_nearest_neighbor(x=a, target_size_height=3, target_size_width=9),
        )

    nearest, partial_nearest, unaligned, aligned, doubled, odd = evaluate(build, x)
    wide = double(x)

    np.testing.assert_array_equal(nearest, F.interpolate(wide, scale_factor=(2, 3)).numpy())
    np.testing.assert_array_equal(partial_nearest, F.interpolate(wide, (6, 15)).numpy())
    check_sum(F.interpolate(wide, scale_factor=(2, 3), mode="bilinear", align_corners=False), unaligned)
    check_sum(F.interpolate(wide, (6, 15), mode="bilinear", align_corners=True), aligned)
    np.testing.assert_array_equal(doubled, F.interpolate(wide, (8, 6)).numpy())
    np.testing.assert_array_equal(odd, F.interpolate(wide, (3, 9), mode="nearest-exact").numpy())


def test_nearest_neighbours_of_core_ml():
    """
    What coremltools' own tests expect of Core ML on macOS: upsampling goes by the ratio of the sizes, not by the factor
    that is given; resizing looks at where the centre of each element falls.
    """
    x = np.array([1.5, -2.5, 3.5], np.float32).reshape(1, 1, 1, 3)
    y = np.array([-6.174, 9.371], np.float32).reshape(1, 1, 2, 1)

    less, same = evaluate(
        lambda a: (
            mb.upsample_nearest_neighbor(x=a, scale_factor_height=3.17, scale_factor_width=0.67),
            mb.upsample_nearest_neighbor(x=a, scale_factor_height=2.0, scale_factor_width=1.12),
        ),
        x,
    )
    resized = evaluate(
        lambda a: mb.resize(
            x=a, shape=[1, 1, 3, 2], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR",
            sampling_mode="DEFAULT"),
        y, opset=IOS17, operator="resize",
    )  # fmt: skip

    assert [[1.5, -2.5]] * 3 == less[0, 0].tolist()
    assert [[1.5, -2.5, 3.5]] * 2 == same[0, 0].tolist()
    np.testing.assert_array_equal(y[0, 0][[0, 1, 1]].repeat(2, 1), resized[0, 0])


def test_resizing_that_is_not_documented_is_refused():
    """
    Nearest neighbours with aligned corners round in a way that nobody states: refused, with operator and tensor.
    """
    with pytest.raises(UnsupportedFormError, match="resize at big: nearest-neighbour resize with sampling mode"):
        evaluate(
            lambda a: mb.resize(
                x=a, shape=np.array([3, 3], np.int32), resized_dims=np.uint32(2), name="big",
                interpolation_mode="NEAREST_NEIGHBOR", sampling_mode="ALIGN_CORNERS"),
            noise(1, 1, 2, 2), opset=IOS17,
        )  # fmt: skip


# Faults as somebody might write them: the operator, what is made of it, and the test that must notice.
FAULTS = {
    "corners aligned": (
        "resize_bilinear", lambda right: lambda x, **rest: right(x, **{**rest, "sampling_mode": "ALIGN_CORNERS"}),
        inner(test_resize_bilinear, (3, 4), (5, 6))),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault, monkeypatch):
    """
    The tests above fail when the operator is wrong.
    """
    operator, spoil, noticed_by = FAULTS[fault]
    monkeypatch.setitem(OPERATORS, operator, spoil(OPERATORS[operator]))

    # a wrong shape is noticed by the evaluator itself
    with pytest.raises((AssertionError, ExceptionGroup, InferenceError, RuntimeError, ValueError)):
        noticed_by()


TESTED = {"resize", "resize_bilinear", "resize_nearest_neighbor", "upsample_bilinear", "upsample_nearest_neighbor"}
