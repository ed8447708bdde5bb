"""Rounding to float16 within float32 gives NumPy's conversion, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordatt_deploy.runtimes.coreml.evaluator.float16 import BLOCK, pack_float16, round_to_float16

with np.errstate(invalid="ignore"):
    HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    WIDE = HALVES.astype(np.float32)


def check(values):
    """Hold ``rounded`` and ``packed`` to NumPy; of NaN only that it is one."""
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16)
        wide = expected.astype(np.float32)
    given_back = round_to_float16(values)
    halves = pack_float16(given_back)
    nan = np.isnan(expected)

    assert (np.float32, np.float16) == (given_back.dtype, halves.dtype)
    assert expected.shape == given_back.shape == halves.shape
    assert np.array_equal(nan, np.isnan(given_back))
    assert np.array_equal(nan, np.isnan(halves))
    assert np.array_equal(wide[~nan].view(np.uint32), given_back[~nan].view(np.uint32))
    assert np.array_equal(expected[~nan].view(np.uint16), halves[~nan].view(np.uint16))


def test_every_float16_stays():
    """
    All 65,536 come back as they are: subnormals, both zeros, infinities, NaN.
    """
    check(WIDE)
    real = ~np.isnan(WIDE)
    assert np.array_equal(HALVES[real].view(np.uint16), pack_float16(WIDE)[real].view(np.uint16))


@pytest.mark.parametrize("towards", [None, np.inf, -np.inf, 0])
def test_midpoints(towards):
    """
    Halfway between neighbours the even one is taken, a hair beside it the nearer; from 65,520 on infinity.
    """
    finite = np.sort(WIDE[np.isfinite(WIDE)].astype(np.float64))
    middle = np.concatenate([(finite[1:] + finite[:-1]) / 2, [65519.99, 65520.0, 65536.0, -65520.0]]).astype(np.float32)

    check(middle if towards is None else np.nextafter(middle, np.float32(towards)))


def test_any_bits():
    """
    A million patterns of 32 bits: every exponent, NaN with any payload.
    """
    patterns = np.random.default_rng(0).integers(0, 1 << 32, 1_000_000, dtype=np.uint64)

    check(patterns.astype(np.uint32).view(np.float32))


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0), elements=st.floats(width=32)))
def test_any_array(values):
    """
    Of any shape, with no elements or no axes as well; the array itself is left alone.
    """
    before = values.copy()

    check(values)
    check(values.T)
    np.testing.assert_array_equal(before, values)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_blocks(size):
    """
    Arrays longer than a block are rounded to their end.
    """
    check(np.random.default_rng(size).standard_normal(size).astype(np.float32) * 1e-3)
