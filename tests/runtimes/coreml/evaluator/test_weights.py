"""Compressed weights and quantized activations, inside a package that was saved and read back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mil_programs import FEW, IOS16, IOS17, IOS18, check, double, evaluate, inner, mb, noise, types

from coordatt_deploy.errors import InferenceError
from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS


def test_affine_weights():
    """
    Per tensor and per axis, iOS 16's affine weights are scale * (q - zero_point).
    """
    q = np.random.default_rng(0).integers(-128, 128, (3, 4, 2)).astype(np.int8)
    scale, zero = np.array([0.1, 0.02, 3.0, 0.5], np.float32), np.array([0, 5, -7, 100], np.int8)

    def build(a):
        per_axis = mb.constexpr_affine_dequantize(quantized_data=q, scale=scale, zero_point=zero, axis=1)
        whole = mb.constexpr_affine_dequantize(
            quantized_data=q, scale=np.float32(0.25), zero_point=np.int8(3), axis=0)  # fmt: skip
        return mb.mul(x=a, y=per_axis), mb.mul(x=a, y=whole)

    per_axis, whole = evaluate(build, np.ones((1, 1, 1), np.float32), operator="constexpr_affine_dequantize")

    check((double(q) - double(zero)[:, None]) * double(scale)[:, None], per_axis)
    check((double(q) - 3) * 0.25, whole)


def test_blockwise_weights():
    """
    iOS 18's int4 and int8 weights have one scale and offset per block.
    """
    q = np.random.default_rng(0).integers(-8, 8, (4, 6)).astype(types.np_int4_dtype)
    scale, offset = noise(2, 3, low=0.1, high=2), np.array([[0, 1, -2], [3, -4, 5]])

    def build(a):
        return mb.mul(
            x=a,
            y=mb.constexpr_blockwise_shift_scale(data=q, scale=scale, offset=offset.astype(types.np_int4_dtype)),
        ), mb.mul(x=a, y=mb.constexpr_blockwise_shift_scale(data=q, scale=scale[:1, :1]))

    blocks, plain = evaluate(
        build, np.ones((1, 1), np.float32), opset=IOS18, operator="constexpr_blockwise_shift_scale"
    )

    per_element = torch.ones(2, 2, dtype=torch.float64)
    wide = double(q.astype(np.int8))
    expected = (wide - torch.kron(double(offset), per_element)) * torch.kron(double(scale), per_element)
    # blocks are (2, 2): both axes of 4 × 6 hold 2 × 3 scales
    check(expected, blocks)
    check(wide * float(scale[0, 0]), plain)


def test_packed_palette():
    """
    iOS 16 packs indices from the least significant bit on, across bytes: the example of the documentation.
    """
    # i4 = 3 | i3..i0 = 1, 2, 3, 0
    indices = np.array([0b01_10_11_00, 0b11], dtype=np.uint8)
    lut = np.array([10.0, 20.0, 30.0, 40.0], dtype=np.float32)

    actual = evaluate(
        lambda a: mb.add(x=a, y=mb.constexpr_lut_to_dense(indices=indices, lut=lut, shape=np.array([5], np.uint32))),
        np.zeros(5, np.float32), operator="constexpr_lut_to_dense",
    )  # fmt: skip

    assert [10.0, 40.0, 30.0, 20.0, 40.0] == actual.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_packed_palettes_of_every_width(bits):
    """
    Indices of 1, 2, 4, 6 and 8 bits are unpacked to what was packed.
    """
    generator = np.random.default_rng(bits)
    indices = generator.integers(0, 2**bits, 3 * 7)
    lut = generator.normal(size=2**bits).astype(np.float32)
    stream = "".join(f"{index:0{bits}b}"[::-1] for index in indices)
    packed = np.array([int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)], dtype=np.uint8)

    actual = evaluate(
        lambda a: mb.add(x=a, y=mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=np.array([3, 7], np.uint32))),
        np.zeros((3, 7), np.float32),
    )

    np.testing.assert_array_equal(actual, lut[indices].reshape(3, 7))


def test_palette_per_group_and_of_vectors():
    """
    iOS 18's grouped and vector palettes: the two examples of the documentation.
    """
    grouped = np.array([[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]]).astype(types.np_uint2_dtype)
    tables = np.array([1.0, 5.0, 9.0, 13.0, 2.0, 10.0, 18.0, 26.0], np.float32).reshape(2, 1, 4, 1)
    bits = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]]).astype(types.np_uint1_dtype)
    vectors = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], np.float32).reshape(1, 1, 1, 2, 3)

    def build(a):
        return (
            mb.mul(x=a, y=mb.constexpr_lut_to_dense(indices=grouped, lut=tables)),
            mb.mul(x=a, y=mb.constexpr_lut_to_dense(indices=bits, lut=vectors, vector_axis=1)),
            mb.mul(x=a, y=mb.constexpr_lut_to_dense(indices=bits, lut=vectors, vector_axis=-1)),
        )

    groups, along_1, along_2 = evaluate(build, np.ones(1, np.float32), opset=IOS18)
    a, b = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]

    assert [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]] == groups.tolist()
    assert [[*map(list, zip(a, a, strict=True)), *map(list, zip(b, a, strict=True))],
            [*map(list, zip(b, b, strict=True)), *map(list, zip(a, a, strict=True))]] == along_1.tolist()  # fmt: skip
    assert [[a + a, b + a], [b + b, a + a]] == along_2.tolist()


def test_sparse_weights():
    """
    Both editions put the stored values where the mask is set.
    """
    # set bits, from the least significant on: i2 and i3
    packed = np.array([0b01100], dtype=np.uint8)
    mask = np.array([[1, 0, 0], [0, 1, 1]]).astype(types.np_uint1_dtype)

    old = evaluate(
        lambda a: mb.add(
            x=a,
            y=mb.constexpr_sparse_to_dense(
                nonzero_data=np.array([3.0, 5.0], np.float32), mask=packed, shape=np.array([5], np.uint32)),
        ),
        np.zeros(5, np.float32), operator="constexpr_sparse_to_dense",
    )  # fmt: skip
    new = evaluate(
        lambda a: mb.add(
            x=a, y=mb.constexpr_sparse_to_dense(nonzero_data=np.array([3.0, 5.0, 7.0], np.float32), mask=mask)
        ),
        np.zeros((2, 3), np.float32), opset=IOS18,
    )  # fmt: skip

    assert [0.0, 0.0, 3.0, 5.0, 0.0] == old.tolist()
    assert [[3.0, 0.0, 0.0], [0.0, 5.0, 7.0]] == new.tolist()


def test_sparse_and_compressed_weights():
    """
    iOS 18's sparse weights that are quantized or palettized as well: the examples of the documentation.
    """
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]]).astype(types.np_uint1_dtype)
    data = np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8)
    scale, offset = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32), np.array([[1, 2, 3, 4]], np.int8)
    indices = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1]).astype(types.np_uint1_dtype)
    lut = np.array([2.0, 3.0], np.float32).reshape(1, 1, 2, 1)

    def build(a):
        where, values = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask, nonzero_data=data, scale=scale, offset=offset
        )
        places, looked_up = mb.constexpr_lut_to_sparse(indices_mask=mask, indices_nonzero_data=indices, lut=lut)
        return (
            mb.add(x=a, y=mb.constexpr_sparse_to_dense(nonzero_data=values, mask=where)),
            mb.add(x=a, y=mb.constexpr_sparse_to_dense(nonzero_data=looked_up, mask=places)),
        )  # fmt: skip

    scaled, table = evaluate(build, np.zeros((4, 4), np.float32), opset=IOS18)

    expected = [[0.9, 1.8, 0, 0], [0.2, 0.4, 0.6, 0], [0, 0, 0.9, 1.2], [0.7, 1.4, 0, 0]]
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)
    assert [[2, 3, 0, 0], [3, 2, 3, 0], [0, 0, 3, 2], [2, 3, 0, 0]] == table.tolist()


@pytest.mark.parametrize("opset", [IOS16, IOS18])
def test_weights_stored_in_fp16(opset):
    """
    A weight that is stored in fp16 computes in fp32.
    """
    stored = noise(3, 4, dtype=np.float16)

    actual = evaluate(
        lambda a: mb.mul(x=a, y=mb.constexpr_cast(source_val=stored, output_dtype="fp32")),
        np.ones((1, 1), np.float32), opset=opset, operator="constexpr_cast",
    )  # fmt: skip

    np.testing.assert_array_equal(actual, stored.astype(np.float32))


@pytest.mark.parametrize(("name", "kind"), [("int8", torch.int8), ("uint8", torch.uint8)])
@FEW
@given(
    scale=st.sampled_from([2**-8, 0.125, 0.375, 0.5, 0.75, 1.5]),  # few bits: every product below is exact
    zero=st.integers(0, 100),
    dtype=st.sampled_from([np.float32, np.float16]),
)
def test_quantized_activations(name, kind, scale, zero, dtype):
    """
    Quantizing saturates and rounds as torch does, per tensor and per channel; dequantizing undoes it up to half a step.
    """
    x, step = noise(2, 3, 40, low=-60, high=60), dtype(scale)
    x = (np.round(x * 4) / 4 * step).astype(dtype)  # quarters of a step: ties as well
    point = np.dtype(name).type(zero)

    def build(a):
        whole = mb.quantize(input=a, scale=step, zero_point=point, output_dtype=name)
        channels = mb.quantize(
            input=a, scale=np.array([step] * 3), zero_point=np.array([point] * 3), output_dtype=name, axis=1
        )
        return (
            mb.cast(x=whole, dtype="int32"),
            mb.dequantize(input=whole, scale=step, zero_point=point),
            mb.dequantize(input=channels, scale=np.array([step] * 3), zero_point=np.array([point] * 3), axis=1),
            mb.dequantize(input=mb.quantize(input=a, scale=step, output_dtype=name), scale=step),
        )  # fmt: skip

    grid, whole, channels, plain = evaluate(build, x, opset=IOS17)
    # torch's own kernel multiplies by 1 / scale, which may round a tie away: fake_quantize's definition, in float64
    limits, steps = torch.iinfo(kind), torch.round(double(x) / float(step))
    expected = torch.clamp(steps + zero, limits.min, limits.max)
    centred = torch.clamp(steps, limits.min, limits.max)

    np.testing.assert_array_equal(grid, expected.numpy())
    np.testing.assert_array_equal(whole, ((expected - zero) * float(step)).numpy().astype(dtype))
    np.testing.assert_array_equal(channels, whole)
    np.testing.assert_array_equal(plain, (centred * float(step)).numpy().astype(dtype))


# Faults as somebody might write them: the operator, what is made of it, and the test that must notice.
FAULTS = {
    "zero point added": (
        "dequantize", lambda right: lambda zero_point=0, **rest: right(zero_point=-1.0 * zero_point, **rest),
        inner(test_quantized_activations, "int8", torch.int8, 0.5, 3, np.float32)),
    "bits from the other end": (
        "constexpr_lut_to_dense",
        lambda right: lambda indices, **rest: right(np.packbits(np.unpackbits(indices), bitorder="little"), **rest),
        lambda: test_packed_palettes_of_every_width(2)),
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


TESTED = {
    "constexpr_affine_dequantize", "constexpr_blockwise_shift_scale", "constexpr_cast", "constexpr_lut_to_dense",
    "constexpr_lut_to_sparse", "constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense", "dequantize",
    "quantize",
}  # fmt: skip
