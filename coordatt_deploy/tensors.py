"""Feeds and results between the reference's layout (NCHW, float) and an artifact's own (NHWC, int8, …)."""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import TensorSpec

REFERENCE_LAYOUT = "NCHW"


def axes_to(layout: str, rank: int) -> tuple[int, ...]:
    """Return the axes that bring a tensor of the reference's layout into *layout*: axis i of the result is axes[i]."""
    reference = REFERENCE_LAYOUT[:rank]
    if sorted(reference) != sorted(layout):  # not an image: nothing to move
        return tuple(range(rank))
    return tuple(reference.index(letter) for letter in layout)


def encode(value: NumberArray, spec: TensorSpec) -> NumberArray:
    """Bring a float tensor of the reference's layout into the layout and dtype of *spec*, quantizing where it asks.

    q = clip(round(value / scale) + zero_point)
    """
    moved = np.ascontiguousarray(np.transpose(value, axes_to(spec.layout, value.ndim)))
    dtype = np.dtype(spec.dtype)
    if spec.scale is None or spec.zero_point is None:
        return moved.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.round(np.true_divide(moved, spec.scale)) + spec.zero_point, limits.min, limits.max).astype(dtype)


def decode(value: NumberArray, spec: TensorSpec) -> NDArray[np.float64]:
    """Undo ``encode``: float64, in the reference's layout."""
    return np.transpose(dequantized(value, spec), np.argsort(axes_to(spec.layout, value.ndim)))


def dequantized(value: NumberArray, spec: TensorSpec) -> NDArray[np.float64]:
    """Return the floats that *value* stands for, in the layout that it has."""
    floats = value.astype(np.float64)
    if spec.scale is not None and spec.zero_point is not None:
        floats = (floats - spec.zero_point) * spec.scale
    return floats


def weights_sha256(state: Mapping[str, NumberArray]) -> str:
    """Return the hash of all weights by name, shape, dtype and bytes; counters of training steps are left out."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if not name.endswith("num_batches_tracked"):
            array = np.ascontiguousarray(value)
            digest.update(f"{name} {array.dtype} {value.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
