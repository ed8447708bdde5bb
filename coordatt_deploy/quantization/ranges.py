"""Ranges of activations, measured on calibration data. NumPy only, for every runtime alike.

    minmax       the least and greatest value met
    percentile   all but TAIL of the values at either end
    mse          the bounds l, u that minimise  sum over values of (x - Q(x))^2, where Q clips to [l, u] and rounds to
                 255 steps; rounding counts as step^2 / 12

The first pass over the data finds the least and greatest values, the second a histogram between them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import RangeMethod
from coordatt_deploy.errors import UsageError
from coordatt_deploy.quantization.recipes import Recipe

BINS: Final = 2048
TAIL: Final = 1e-5
SHRINK: Final = np.linspace(0.3, 1.0, 71)  # candidates of the mse search, as shares of the extremes

Tensors = Mapping[str, NumberArray]


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a tensor's values; they always hold 0, which padding needs on the grid."""

    low: float
    high: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", min(float(self.low), 0.0))
        object.__setattr__(self, "high", max(float(self.high), 0.0))


def needed(ranges: Mapping[str, Range] | None, recipe: Recipe) -> Mapping[str, Range]:
    """Return the *ranges* of a static recipe.

    Raises:
        UsageError: Nothing was measured.
    """
    if ranges is None:
        raise UsageError(f"{recipe.name} needs calibration data: give --calibration-data with a folder of images")
    return ranges


def measure(passes: Callable[[], Iterable[Tensors]], method: RangeMethod, steps: int = 255) -> dict[str, Range]:
    """Measure the range of every tensor.

    Args:
        passes: Each call runs the data once more and yields, case by case, every tensor by name.
        method: See the top of this module.
        steps: The number of steps of the grid.
    """
    extremes: dict[str, tuple[float, float]] = {}
    for tensors in passes():
        for name, value in tensors.items():
            low, high = float(value.min()), float(value.max())
            if name in extremes:
                low, high = min(low, extremes[name][0]), max(high, extremes[name][1])
            extremes[name] = low, high
    if method is RangeMethod.MIN_MAX or not np.isfinite(list(extremes.values())).all():  # the caller refuses NaN
        return {name: Range(*ends) for name, ends in extremes.items()}
    counts = {name: np.zeros(BINS, np.int64) for name in extremes}
    for tensors in passes():
        for name, value in tensors.items():
            counts[name] += histogram(value, *extremes[name])
    choose = percentile if method is RangeMethod.PERCENTILE else least_error
    return {name: choose(counts[name], *extremes[name], steps) for name in extremes}


def histogram(value: NumberArray, low: float, high: float) -> NDArray[np.int64]:
    """Count the values in BINS equal bins between *low* and *high*."""
    if high - low < np.finfo(np.float32).tiny:
        return np.bincount([0], weights=[value.size], minlength=BINS).astype(np.int64)
    place = (value.ravel().astype(np.float64) - low) * (BINS / (high - low))
    return np.bincount(np.clip(place.astype(np.int64), 0, BINS - 1), minlength=BINS)


def percentile(counts: NDArray[np.int64], low: float, high: float, steps: int = 255) -> Range:  # noqa: ARG001
    """Leave TAIL of the values out at either end; a bound that many values share (a ReLU's 0) stays."""
    total = int(counts.sum())
    cumulated = np.cumsum(counts)
    width = (high - low) / BINS
    first = int(np.searchsorted(cumulated, TAIL * total, side="right"))
    last = int(np.searchsorted(cumulated, (1 - TAIL) * total, side="left"))
    return Range(low + first * width, low + (min(last, BINS - 1) + 1) * width)


def least_error(counts: NDArray[np.int64], low: float, high: float, steps: int = 255) -> Range:
    """Search the bounds with the least mean squared error."""
    width = (high - low) / BINS
    centres = low + (np.arange(BINS) + 0.5) * width
    total = float(counts.sum())

    def clipped(bound: float, sign: float) -> float:
        return float(np.sum(counts * np.square(np.maximum(sign * (centres - bound), 0.0))))

    lows = [(low * share, clipped(low * share, -1.0)) for share in SHRINK] if low < 0 else [(0.0, 0.0)]
    highs = [(high * share, clipped(high * share, 1.0)) for share in SHRINK] if high > 0 else [(0.0, 0.0)]
    best = min(
        ((below + above + total * ((upper - lower) / steps) ** 2 / 12, lower, upper)
         for lower, below in lows for upper, above in highs),
        key=lambda item: item[0],
    )  # fmt: skip
    return Range(best[1], best[2])


def of_values(values: Sequence[NumberArray], method: RangeMethod, steps: int = 255) -> Range:
    """Return the range of one tensor from its values in every case."""
    return measure(lambda: ({"": value} for value in values), method, steps)[""]


def input_range(values: NumberArray) -> Range:
    """Return the range for a network's input, of which the pixels have a grid of their own.

    An image normalised to [-1, 1] has its 256 values halfway between the steps of a grid that covers just that range
    with 0 on it: each is off by half a step, the worst there is. So a few wider ranges are tried as well, and the one
    with the least error on the values themselves is taken.
    """
    levels, counts = np.unique(values.astype(np.float64), return_counts=True)
    low, high = min(float(levels[0]), 0.0), max(float(levels[-1]), 0.0)
    best, least = Range(low, high), np.inf
    for wider in np.linspace(0.0, 0.02, 21):
        bounds = Range(low * (1 + wider), high * (1 + wider))
        scale = (bounds.high - bounds.low) / 255
        if scale <= 0:
            return bounds
        zero_point = round(-128 - bounds.low / scale)
        steps = np.clip(np.round(levels / scale) + zero_point, -128, 127)
        error = float(np.sum(counts * np.square((steps - zero_point) * scale - levels)))
        if error < least:
            best, least = bounds, error
    return best
