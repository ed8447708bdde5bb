"""What shapes an artifact's tensors should have, told from its layer map, where the artifact could not be run."""

from collections.abc import Mapping, Sequence

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.layer_map import Layer

Shape = tuple[int, ...]


def expected_shapes(
    present: Sequence[Layer], values: Mapping[str, NumberArray], seen: Mapping[str, Shape]
) -> dict[str, Shape] | None:
    """Return the shapes of all tensors where each layer has its value in *values*.

    Args:
        present: Layers with parts, in execution order.
        values: By layer id, in the captured graph's layout.
        seen: Shapes in a case that ran, maybe of another size; empty where none did.

    Returns:
        None where the map does not tell one: how long each of several parts is follows from other layers alone.
    """
    found: dict[str, Shape] = {}
    lengths: dict[tuple[int, int], list[int]] = {}  # of parts along their axis, by their number and sum
    for layer in sorted(present, key=lambda item: len(item.parts)):  # stable: execution order among equals
        value = values[layer.layer_id]
        many = len(layer.parts) > 1
        kind = (len(layer.parts), value.shape[layer.axis])
        for position, part in enumerate(layer.parts):
            if part.tensor in found:
                continue
            axes = part.axes or tuple(range(value.ndim))
            before = seen.get(part.tensor, ())
            sizes = [value.shape[axis] for axis in axes]
            if part.channels is not None:
                sizes[axes.index(1)] = before[axes.index(1)] if len(before) == len(axes) else part.channels[1]
            if many:
                if kind not in lengths:
                    return None
                sizes[axes.index(layer.axis)] = lengths[kind][position]
            other_rank = bool(before) and len(before) != len(sizes) and np.prod(before) == np.prod(sizes)
            found[part.tensor] = before if other_rank else tuple(sizes)
        if many:
            along = [(found[part.tensor], part.axes or tuple(range(value.ndim))) for part in layer.parts]
            if all(len(shape) == len(axes) for shape, axes in along):
                lengths[kind] = [shape[axes.index(layer.axis)] for shape, axes in along]
    return found
