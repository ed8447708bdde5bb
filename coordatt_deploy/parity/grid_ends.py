"""Which elements of an integer file's layer are at an end of a grid: they are off, and no operator is to blame."""

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.layer_map import Layer, restore

MOST_TOUCHED: Final = 0.2  # share of a layer's elements in one case: what nobody looks at is not judged


def cut_off_by(
    layer: Layer,
    tensors: Mapping[str, NumberArray],
    value: NDArray[np.float64],
    reference: NDArray[np.float64],
    step: float,
) -> NDArray[np.bool_]:
    """Return the elements that lie at an end of the tensor's grid, with the reference more than a step beyond."""
    at_top = {part.tensor: tensors[part.tensor] == tensors[part.tensor].max() for part in layer.parts}
    at_bottom = {part.tensor: tensors[part.tensor] == tensors[part.tensor].min() for part in layer.parts}
    high, low = restore(layer, at_top) != 0, restore(layer, at_bottom) != 0
    found: NDArray[np.bool_] = (high & (reference > value + step)) | (low & (reference < value - step))
    return found


def inherited_from(
    sources: Mapping[str, NDArray[np.bool_]], channelwise: Collection[str], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Return the elements made of such as a source's grid cuts off; they are off as well.

    Where channels stay apart those are whole channels, where they are mixed whole places.

    Args:
        sources: By layer that this one is made of, the elements that its grid cuts off.
        channelwise: Those of them whose channels stay apart.
        shape: Of this layer, batch and channels first.
    """
    touched = np.zeros(shape, np.bool_)
    for name, source in sources.items():
        if source.ndim != len(shape) or source.ndim < 2 or source.shape[0] != shape[0]:
            continue
        if name in channelwise and source.shape[1] == shape[1]:
            touched |= source.any(axis=tuple(range(2, source.ndim)), keepdims=True)
        elif name not in channelwise and source.shape[2:] == shape[2:]:
            touched |= source.any(axis=1, keepdims=True)
    return touched if touched.mean() < MOST_TOUCHED else np.zeros(shape, np.bool_)


def outside_calibration(
    cut_off: NDArray[np.bool_], reference: NDArray[np.float64], ends: tuple[float, float] | None
) -> NDArray[np.bool_]:
    """Return those of the elements *cut_off* that go beyond all that calibration saw; no file could have had them.

    Args:
        cut_off: By the artifact's grid.
        reference: What they should be.
        ends: Least and greatest value of the reference on the calibration data, where that is known.
    """
    if ends is None:
        return np.zeros(cut_off.shape, np.bool_)
    found: NDArray[np.bool_] = cut_off & ((reference < ends[0]) | (reference > ends[1]))
    return found if found.mean() < MOST_TOUCHED else np.zeros(cut_off.shape, np.bool_)
