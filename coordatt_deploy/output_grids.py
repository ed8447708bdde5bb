"""Whether the grid of an integer output is fine enough for each of its parts. NumPy only.

One grid serves a whole tensor. Where boxes of 0...640 share it with scores of 0...1, its steps are 2.5 wide: every
score is 0, and an SQNR over the whole tensor does not notice. So each part is held to what its own float values need:

    a sigmoid or softmax   at least BOUNDED_STEPS steps between 0 and 1, whatever the images happen to reach
    other values           in every channel at least CHANNEL_STEPS steps between its least and its greatest value,
                           where other channels have WIDE_STEPS

A channel that hardly changes in float carries nothing in float either, and is left out; so is an output of which no
channel changes by much (of random weights, say), since a finer grid for some channels would show no more of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import OutputRegion

BOUNDED: Final = frozenset({"sigmoid", "softmax", "_softmax", "hardsigmoid"})
BOUNDED_STEPS: Final = 64.0
CHANNEL_STEPS: Final = 2.0
WIDE_STEPS: Final = 64.0
# What quantization leaves alone must not fail afterwards because other images reach a little less far.
MARGIN: Final = 2.0
CONSTANT: Final = 1e-4  # of a channel's greatest value: what changes less changes nothing
MOST_CHANNELS: Final = 4096
MOST_VALUES: Final = 65_536


@dataclass(frozen=True, slots=True)
class CoarsePart:
    """A part of an output that its grid is too coarse for.

    Attributes:
        region: The part.
        channels: Which of its channels, counted on ``channel_axis`` of the output; empty for all of a bounded part.
        steps: How many steps of the grid the narrowest of them has.
        needed: How many it needs.
    """

    region: OutputRegion
    channels: tuple[int, ...]
    steps: float
    needed: float

    def sentence(self) -> str:
        """Say what is too coarse."""
        axis = channel_axis(self.region)
        names = ", ".join(map(str, self.channels[:4])) + (", …" if len(self.channels) > 4 else "")
        where = f"{self.region.layer}, channels {names} of axis {axis}" if self.channels else self.region.layer
        return f"{where}: {self.steps:.1f} steps of the output's grid, {self.needed:g} needed"


def part_of(value: NumberArray, region: OutputRegion) -> NumberArray:
    """Return a part of an output.

    Raises:
        ValueError: The region is none of this output's.
    """
    if len(region.axes) != value.ndim:
        raise ValueError(f"the part made by {region.layer} has {len(region.axes)} axes, the output {value.ndim}")
    for axis, places in enumerate(region.axes):
        if places is None:
            continue
        if not places or min(places) < 0 or max(places) >= value.shape[axis]:
            raise ValueError(f"the part made by {region.layer} lies outside the output's axis {axis}")
        value = np.take(value, places, axis)
    return value


def is_bounded(region: OutputRegion) -> bool:
    """Whether the values of a part lie within 0 and 1 by construction, so that a relative error says little of them."""
    return region.operator in BOUNDED


def channel_axis(region: OutputRegion) -> int:
    """Return the axis that tells the parts of the output apart; 1, where channels are, for an output of one part."""
    return next((axis for axis, places in enumerate(region.axes) if axis and places is not None), 1)


def coarse_parts(
    reference: Sequence[NumberArray], regions: Sequence[OutputRegion], step: float, *, margin: float = 1.0
) -> tuple[CoarsePart, ...]:
    """Return the parts that a grid of *step* is too coarse for.

    Args:
        reference: The output's float values, one array per case.
        regions: Its parts; none for a single one.
        step: Of the grid, in the unit of the values.
        margin: Times as many steps are asked for.
    """
    return tuple(_coarse(reference, regions or (whole(reference[0].ndim),), step, margin))


def whole(rank: int) -> OutputRegion:
    """Return the region of an output that has one part."""
    return OutputRegion("all of it", (None,) * rank)


def _coarse(
    reference: Sequence[NumberArray], regions: Sequence[OutputRegion], step: float, margin: float
) -> Iterator[CoarsePart]:
    extremes = {region: _extremes(reference, region) for region in regions}
    widest = max((float((high - low).max()) for low, high in extremes.values() if low.size), default=0.0)
    for region, (low, high) in extremes.items():
        if is_bounded(region) and 1.0 / step < BOUNDED_STEPS * margin:
            yield CoarsePart(region, (), 1.0 / step, BOUNDED_STEPS * margin)
        if is_bounded(region) or widest < WIDE_STEPS * step:
            continue
        changing = high - low > CONSTANT * np.maximum(np.abs(low), np.abs(high))
        steps = (high - low) / step
        coarse = np.flatnonzero(changing & (steps < CHANNEL_STEPS * margin))
        if coarse.size:
            places = region.axes[channel_axis(region)] or range(len(steps))
            named = tuple(places[int(index)] for index in coarse)
            yield CoarsePart(region, named, float(steps[coarse].min()), CHANNEL_STEPS * margin)


def _extremes(
    reference: Sequence[NumberArray], region: OutputRegion
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the least and the greatest value of each channel of a part; none where there are too many channels."""
    axis = channel_axis(region)
    parts = [np.moveaxis(part_of(value, region), axis, 0) for value in reference if value.ndim > axis]
    if not parts or not 0 < len(parts[0]) <= MOST_CHANNELS:
        return np.zeros(0), np.zeros(0)
    rows = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1).astype(np.float64)
    return rows.min(axis=1), rows.max(axis=1)


def grid_step(values: Sequence[NumberArray]) -> float | None:
    """Return the step of the grid that all values lie on; None where they lie on none that can be told."""
    levels = np.unique(np.concatenate([np.asarray(value, np.float64).ravel() for value in values]))
    if not 4 <= levels.size <= MOST_VALUES or not np.isfinite(levels).all():
        return None
    gaps = np.diff(levels)
    step = float(gaps.min())
    if step <= 1e-6 * float(np.abs(levels).max()):  # float32 tells no such steps apart
        return None
    steps = gaps / step
    return step if bool((np.abs(steps - np.round(steps)) < 0.02).all()) else None
