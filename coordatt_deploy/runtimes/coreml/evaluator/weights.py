"""Operators that compress weights and quantize activations.

    affine:    value = scale * (q - zero_point)
    palette:   value = table[index]
    sparse:    value = the next of nonzero_data where the mask is set, else 0
    quantize:  q = clip(round(x / scale) + zero_point), ties to even

The constexpr operators exist in two editions that differ in their arguments: iOS 16 packs indices and masks into bytes
and names the shape; iOS 18 has sub-byte types, one scale per block, and one table per block. Arguments have the names
of the MIL operator set.
"""

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray

Array = NumberArray
Bits = NDArray[np.uint8]  # packed into bytes, or one byte for each element


def _given(axis: int | None) -> int:
    if axis is None:
        raise TypeError("several values need an axis, and none is given")
    return int(axis)


def _along(parameter: Array | float, rank: int, axis: int | None) -> NDArray[np.float32]:
    """Bring a scalar, or one value per element of *axis*, to the shape that broadcasts over a tensor of *rank*."""
    values = np.asarray(parameter, dtype=np.float32)
    if values.ndim == 0 or values.size == 1:
        return values.reshape([1] * rank)
    shape = [1] * rank
    shape[_given(axis)] = -1
    return values.reshape(shape)


def quantize(
    input: Array,  # noqa: A002 - the operator set's own name
    *,
    scale: Array | float,
    output_dtype: str,
    zero_point: Array | float | None = None,
    axis: int | None = None,
) -> Array:
    """Bring floats onto the grid of an 8-bit type, saturating."""
    limits = np.iinfo(output_dtype)
    grid = np.rint(input / _along(scale, input.ndim, axis)) + _along(
        0 if zero_point is None else zero_point, input.ndim, axis
    )
    stored: Array = np.clip(grid, limits.min, limits.max).astype(output_dtype)
    return stored


def dequantize(
    input: Array,  # noqa: A002 - the operator set's own name
    *,
    scale: Array | float,
    zero_point: Array | float | None = None,
    axis: int | None = None,
) -> Array:
    """Bring 8-bit integers back to floats."""
    return _affine(
        input, _along(scale, input.ndim, axis), _along(0 if zero_point is None else zero_point, input.ndim, axis)
    )


def _affine(q: Array, scale: Array, zero_point: Array) -> Array:
    value: Array = (q.astype(np.float32) - zero_point.astype(np.float32)) * scale.astype(np.float32)
    return value


def constexpr_affine_dequantize(
    quantized_data: Array, *, zero_point: Array | float, scale: Array | float, axis: int
) -> Array:
    """Per tensor or per element of one axis (iOS 16)."""
    rank = quantized_data.ndim
    return _affine(quantized_data, _along(scale, rank, axis), _along(zero_point, rank, axis))


def constexpr_blockwise_shift_scale(data: Array, *, scale: Array, offset: Array | None = None) -> Array:
    """One scale and offset per block (iOS 18); the blocks' size is the ratio of the shapes."""
    zero_point = np.zeros(1, dtype=np.float32) if offset is None else _spread(offset, data.shape)
    return _affine(data, _spread(scale, data.shape), zero_point)


def _spread(parameter: Array, shape: tuple[int, ...]) -> Array:
    """Repeat one value per block until there is one per element."""
    for axis, (have, want) in enumerate(zip(parameter.shape, shape, strict=True)):
        if have not in (1, want):
            parameter = np.repeat(parameter, want // have, axis)
    return parameter


def constexpr_lut_to_dense(
    indices: Bits, *, lut: Array, shape: Array | None = None, vector_axis: int | None = None
) -> Array:
    """Look weights up in a palette: one for the tensor (iOS 16, ``shape`` given), or one per block (iOS 18)."""
    if shape is None:
        return _look_up(indices, lut, vector_axis)
    bits = int(lut.size).bit_length() - 1
    count = int(np.prod(shape))
    stream = np.unpackbits(indices, bitorder="little")[: count * bits].reshape(count, bits)
    table: Array = lut[stream @ (1 << np.arange(bits))]
    return table.reshape([int(n) for n in shape])


def _look_up(indices: Array, lut: Array, vector_axis: int | None) -> Array:
    """Look up in palettes of shape (blocks …, entries, vector size); a vector is laid along ``vector_axis``."""
    rank, (entries, size) = indices.ndim, lut.shape[-2:]
    which = np.zeros(indices.shape, dtype=np.intp)  # number of the palette that serves each element
    for axis, (blocks, length) in enumerate(zip(lut.shape[:-2], indices.shape, strict=True)):
        block = np.arange(length) // (length // blocks)
        which = which * blocks + block.reshape(-1, *[1] * (rank - axis - 1))
    vectors: Array = lut.reshape(-1, entries, size)[which, indices.astype(np.intp)]  # (*indices.shape, size)
    if size == 1:
        return vectors[..., 0]
    axis = _given(vector_axis) % rank
    shape = [n * size if number == axis else n for number, n in enumerate(indices.shape)]
    return np.moveaxis(vectors, -1, axis + 1).reshape(shape)


def constexpr_sparse_to_dense(nonzero_data: Array, *, mask: Bits, shape: Array | None = None) -> Array:
    """Put the stored elements where the mask is set; the mask is packed into bytes (iOS 16) or has the shape itself."""
    if shape is not None:
        count = int(np.prod(shape))
        mask = np.unpackbits(mask, bitorder="little")[:count].reshape([int(n) for n in shape])
    dense = np.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


def constexpr_lut_to_sparse(
    indices_mask: Bits, *, indices_nonzero_data: Array, lut: Array, vector_axis: int | None = None
) -> tuple[Array, Array]:
    """Look up the stored elements alone (iOS 18); give the mask and the values."""
    dense = _look_up(constexpr_sparse_to_dense(indices_nonzero_data, mask=indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1:
        mask = np.repeat(mask, lut.shape[-1], _given(vector_axis))
    return mask, dense[mask != 0]


def constexpr_sparse_blockwise_shift_scale(
    data_mask: Bits, *, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    """Dequantize the stored elements alone (iOS 18); give the mask and the values."""
    data = constexpr_sparse_to_dense(nonzero_data, mask=data_mask)
    return data_mask, constexpr_blockwise_shift_scale(data, scale=scale, offset=offset)[data_mask != 0]


def constexpr_cast(source_val: Array, *, output_dtype: str) -> Array:
    """Store in fp16, compute in fp32."""
    return source_val.astype({"fp32": np.float32, "fp16": np.float16}[output_dtype])
