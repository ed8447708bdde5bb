"""Operators that move elements about, or make them of sizes alone; none computes with them."""

import math
from collections.abc import Sequence

import numpy as np

from coordatt_deploy.array_types import IntegerArray, NumberArray
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError


def chosen_axes(axes: NumberArray | None, rank: int) -> tuple[int, ...]:
    """Return the axes that are named; where none are, all of an array of *rank*."""
    return tuple(range(rank)) if axes is None else tuple(int(axis) for axis in np.atleast_1d(axes))


def concat(values: Sequence[NumberArray], *, axis: int, interleave: bool) -> NumberArray:
    """Join arrays along ``axis``, one after the other or element by element in turn; scalars to a list of them."""
    values = [np.atleast_1d(value) for value in values]
    if not interleave:
        return np.concatenate(values, axis=int(axis))
    place = int(axis) % values[0].ndim
    stacked = np.stack(values, axis=place + 1)
    return stacked.reshape(*values[0].shape[:place], -1, *values[0].shape[place + 1 :])


def split(
    x: NumberArray, *, num_splits: int | None = None, split_sizes: NumberArray | None = None, axis: int
) -> tuple[NumberArray, ...]:
    """Cut x along ``axis`` into equal parts, or into parts of ``split_sizes``."""
    if split_sizes is None:
        return tuple(np.split(x, int(num_splits or 1), axis=int(axis)))
    return tuple(np.split(x, np.cumsum(split_sizes)[:-1], axis=int(axis)))


def slice_by_index(
    x: NumberArray,
    *,
    begin: NumberArray,
    end: NumberArray,
    stride: NumberArray | None = None,
    begin_mask: NumberArray | None = None,
    end_mask: NumberArray | None = None,
    squeeze_mask: NumberArray | None = None,
) -> NumberArray:
    """Return x from ``begin`` to ``end``; masks say which ends are open and which axes go."""

    def at(values: NumberArray | None, axis: int, default: int) -> int:
        return default if values is None else int(values[axis])

    places: list[slice[int | None, int | None, int] | int] = []
    for axis in range(x.ndim):
        if at(squeeze_mask, axis, False):
            places.append(int(begin[axis]))
            continue
        first = None if at(begin_mask, axis, False) else int(begin[axis])
        last = None if at(end_mask, axis, False) else int(end[axis])
        if x.shape[axis] == 1 and at(stride, axis, 1) < 0:  # coremltools' own test expects it to fail: rdar://99664032
            raise UnsupportedFormError("Core ML is known to slice an axis of one element backwards wrong")
        places.append(slice(first, last, int(at(stride, axis, 1))))
    return x[tuple(places)]


def slice_by_size(x: NumberArray, *, begin: NumberArray, size: NumberArray) -> NumberArray:
    """Return ``size`` elements of each axis from ``begin``; -1 is all that follow."""
    places = []
    for first, count, length in zip(begin, size, x.shape, strict=True):
        start = int(first) % length if first < 0 else int(first)
        places.append(slice(start, length if count == -1 else start + int(count)))
    return x[tuple(places)]


def reshape(x: NumberArray, *, shape: NumberArray) -> NumberArray:
    """Return x in ``shape``, where -1 follows from the others and 0 keeps the axis that lies there from the end."""
    lengths = (1,) * max(0, len(shape) - x.ndim) + x.shape
    kept = lengths[len(lengths) - len(shape) :]
    return x.reshape([int(n) or have for n, have in zip(shape, kept, strict=True)])


def squeeze(x: NumberArray, *, axes: NumberArray | None = None) -> NumberArray:
    """Remove ``axes`` of size 1; without them, all such axes."""
    candidates = {axis % x.ndim for axis in chosen_axes(axes, x.ndim)}
    return x.reshape([n for axis, n in enumerate(x.shape) if n != 1 or axis not in candidates])


def pad(x: NumberArray, *, pad: NumberArray, mode: str, constant_val: float) -> NumberArray:
    """Add elements around the last axes: a constant, the edge, or what is mirrored at it."""
    counts = [(0, 0)] * (x.ndim - len(pad) // 2) + [(int(a), int(b)) for a, b in pad.reshape(-1, 2)]
    if mode == "constant":
        return np.pad(x, counts, constant_values=np.asarray(constant_val).astype(x.dtype))
    return np.pad(x, counts, mode="reflect" if mode == "reflect" else "edge")


def gather(
    x: NumberArray,
    *,
    indices: IntegerArray,
    axis: int,
    batch_dims: int = 0,
    validate_indices: bool = False,  # noqa: ARG001 - NumPy always validates
) -> NumberArray:
    """Return the slices of x at ``indices`` of ``axis``."""
    if batch_dims:
        raise UnsupportedFormError(f"batch_dims is {batch_dims}; only 0 is supported")
    result: NumberArray = np.take(x, indices, axis=int(axis))
    return result


def gather_along_axis(
    x: NumberArray,
    *,
    indices: IntegerArray,
    axis: int,
    validate_indices: bool = False,  # noqa: ARG001 - NumPy always validates
) -> NumberArray:
    """Return one element of x along ``axis`` for each of ``indices``."""
    return np.take_along_axis(x, indices, axis=int(axis))


def fill(shape: NumberArray, *, value: float) -> NumberArray:
    """Return an array of ``shape`` that holds ``value``."""
    return np.full([int(n) for n in shape], value)


def fill_like(ref_tensor: NumberArray, *, value: float = 0.0) -> NumberArray:
    """Return an array of the shape of ``ref_tensor`` that holds ``value``, in the type of that."""
    return np.full(ref_tensor.shape, value)


def range_1d(end: float, *, start: float, step: float) -> NumberArray:
    """Return the numbers from ``start`` to below ``end``."""
    return np.arange(start, end, step)


def reverse(x: NumberArray, *, axes: NumberArray | None = None) -> NumberArray:
    """Turn ``axes`` around; without them, all."""
    return np.flip(x, chosen_axes(axes, x.ndim))


def flatten2d(x: NumberArray, *, axis: int) -> NumberArray:
    """Join the axes before ``axis``, and those from it on."""
    return x.reshape(math.prod(x.shape[: int(axis)]), -1)


def depth_to_space(x: NumberArray, *, block_size: int) -> NumberArray:
    """Move blocks of channels into height and width; the block is the outer part of the channel axis."""
    (n, c, h, w), b = x.shape, int(block_size)
    return x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, -1, h * b, w * b)


def space_to_depth(x: NumberArray, *, block_size: int) -> NumberArray:
    """Undo ``depth_to_space``."""
    (n, c, h, w), b = x.shape, int(block_size)
    return x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4).reshape(n, -1, h // b, w // b)


def pixel_shuffle(x: NumberArray, *, upscale_factor: int) -> NumberArray:
    """Move blocks of channels into height and width; the block is the inner part of the channel axis."""
    (n, c, h, w), b = x.shape, int(upscale_factor)
    return x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, -1, h * b, w * b)


def pixel_unshuffle(x: NumberArray, *, downscale_factor: int) -> NumberArray:
    """Undo ``pixel_shuffle``."""
    (n, c, h, w), b = x.shape, int(downscale_factor)
    return x.reshape(n, c, h // b, b, w // b, b).transpose(0, 1, 3, 5, 2, 4).reshape(n, -1, h // b, w // b)


def topk(
    x: NumberArray,
    *,
    k: NumberArray | int,
    axis: int,
    ascending: bool,
    sort: bool = True,  # noqa: ARG001 - in order is one of the orders that are right without
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[NumberArray, ...]:
    """Return the k greatest values along an axis, or the least, in order, and their positions; of equals the first."""
    order = np.argsort(x if ascending else np.negative(x), axis=int(axis), kind="stable")
    chosen = np.take(order, np.arange(int(k)), axis=int(axis))
    values = np.take_along_axis(x, chosen, int(axis))
    return (values, chosen.astype(output_indices_dtype)) if return_indices else (values,)
