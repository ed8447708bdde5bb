"""Operators that resize the last two axes.

    linear:             y[o] = (1 - f) * x[floor(g)] + f * x[floor(g) + 1],   f = g - floor(g)
    resize, nearest:    y[o] = x[floor((o + 1/2) * size / out)]
    upsample, nearest:  y[o] = x[floor(o * size / out)]

``g`` is the place in the input that output ``o`` looks at; the sampling modes differ in it alone. The operator set does
not say how its nearest neighbours round. The formulas are those that fit what coremltools' tests expect on macOS, where
``resize_nearest_neighbor`` stands for TensorFlow's with half-pixel centres, ``upsample_nearest_neighbor`` for the one
without. Arrays are float32; arguments have the names of the MIL operator set.
"""

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError

Array = NumberArray


def grid(size: int, out: int, mode: str) -> NDArray[np.float64]:
    """Return the places in an axis of *size* that *out* outputs look at.

    Raises:
        UnsupportedFormError: The sampling mode is not one that the operator set documents.
    """
    place = np.arange(out, dtype=np.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        middle = (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0
        points = place * (size - 1) / (out - 1) if out > 1 else np.full(1, middle)
    elif mode == "DEFAULT":
        points = place * size / out
    elif mode == "UNALIGN_CORNERS":
        points = (place + 0.5) * size / out - 0.5
    elif mode == "OFFSET_CORNERS":
        points = (place + 0.5) * max(1, size - 1) / out
    else:
        raise UnsupportedFormError(f"sampling mode {mode!r} is not known")
    return np.clip(points, 0, size - 1)


def _linear(x: Array, axis: int, points: NDArray[np.float64]) -> Array:
    low = np.floor(points).astype(np.intp)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    fraction = (points - low).astype(np.float32).reshape(-1, *[1] * (x.ndim - axis - 1))
    result: Array = np.take(x, low, axis) * (1 - fraction) + np.take(x, high, axis) * fraction
    return result


def _resize_linear(x: Array, height: int, width: int, mode: str) -> Array:
    for axis, out in ((x.ndim - 2, height), (x.ndim - 1, width)):
        if out != x.shape[axis] or mode == "OFFSET_CORNERS":
            x = _linear(x, axis, grid(x.shape[axis], out, mode))
    return x


def _nearest(x: Array, axis: int, out: int, *, centres: bool) -> Array:
    """Look at the element that the centre of each output falls into, or its first corner."""
    size = x.shape[axis]
    if out % size == 0:  # the same by both
        return np.repeat(x, out // size, axis)
    places = (2 * np.arange(out) + 1) * size // (2 * out) if centres else np.arange(out) * size // out
    nearest: Array = np.take(x, places, axis)
    return nearest


def resize_bilinear(x: Array, *, target_size_height: int, target_size_width: int, sampling_mode: str) -> Array:
    """Resize (…, H, W) to the target size."""
    return _resize_linear(x, int(target_size_height), int(target_size_width), sampling_mode)


def upsample_bilinear(
    x: Array,
    *,
    scale_factor_height: float,
    scale_factor_width: float,
    align_corners: bool,
    half_pixel_centers: bool | None = None,
) -> Array:
    """Resize (…, H, W) by the scale factors; the exact scale then follows from the two sizes."""
    half = not align_corners if half_pixel_centers is None else bool(half_pixel_centers)
    if align_corners and half:
        raise UnsupportedFormError("align_corners and half_pixel_centers exclude each other")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    height, width = int(x.shape[-2] * scale_factor_height), int(x.shape[-1] * scale_factor_width)
    return _resize_linear(x, height, width, mode)


def resize_nearest_neighbor(x: Array, *, target_size_height: int, target_size_width: int) -> Array:
    """Resize (…, H, W) to the target size."""
    rows = _nearest(x, x.ndim - 2, int(target_size_height), centres=True)
    return _nearest(rows, x.ndim - 1, int(target_size_width), centres=True)


def upsample_nearest_neighbor(x: Array, *, scale_factor_height: float, scale_factor_width: float) -> Array:
    """Resize (…, H, W) by the scale factors; the exact scale then follows from the two sizes."""
    for axis, factor in ((x.ndim - 2, float(scale_factor_height)), (x.ndim - 1, float(scale_factor_width))):
        x = _nearest(x, axis, int(x.shape[axis] * factor), centres=False)
    return x


def resize(x: Array, *, shape: Array, resized_dims: int, interpolation_mode: str, sampling_mode: str) -> Array:
    """Resize the last axes (iOS 17); a 0 in ``shape`` keeps an axis as it is."""
    count = int(resized_dims)
    wanted = [int(n) or x.shape[x.ndim - count + i] for i, n in enumerate(shape[len(shape) - count :])]
    for axis, out in zip(range(x.ndim - count, x.ndim), wanted, strict=True):
        if interpolation_mode == "LINEAR":
            if out != x.shape[axis] or sampling_mode == "OFFSET_CORNERS":
                x = _linear(x, axis, grid(x.shape[axis], out, sampling_mode))
        elif sampling_mode == "DEFAULT":
            x = _nearest(x, axis, out, centres=True)
        else:  # the operator set does not say how these round
            raise UnsupportedFormError(f"nearest-neighbour resize with sampling mode {sampling_mode!r}")
    return x


def crop(x: Array, *, crop_height: Array, crop_width: Array) -> Array:
    """Cut elements off the last two axes."""
    height, width = x.shape[-2:]
    return x[..., int(crop_height[0]) : height - int(crop_height[1]), int(crop_width[0]) : width - int(crop_width[1])]
