"""Which layers have to stay in float because one integer grid cannot serve all parts of an output.

A detector's head often ends in a concatenation of boxes in pixels and scores in 0...1. The concatenation, and what
follows it, costs next to nothing in float; in integers it costs the scores. Found before anything is written, on the
calibration data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.graph import Graph
from coordatt_deploy.graph.output_regions import OutputParts, output_parts
from coordatt_deploy.output_grids import MARGIN, coarse_parts

CASES: Final = 32


@dataclass(frozen=True, slots=True)
class FloatTail:
    """The end of a network that stays in float.

    Attributes:
        output: Name of the output.
        layers: Ids of the layers, in the order of execution.
        reason: Why, in one sentence.
    """

    output: str
    layers: tuple[str, ...]
    reason: str


def float_tails(graph: Graph, data: CalibrationSet, bits: int = 8) -> tuple[FloatTail, ...]:
    """Return what has to stay in float, for each output of which a part would be lost on one grid.

    Args:
        graph: As it was captured.
        data: Calibration data; the first cases are looked at.
        bits: Of the activations' grid.
    """
    parts = output_parts(graph)
    if not parts:
        return ()
    run = prepare(graph, dtype=torch.float32)
    values: dict[str, list[NumberArray]] = {name: [] for name in parts}
    for feeds in data.first(CASES).feeds(graph.images_at_once):
        found = run(feeds)
        for name, kept in values.items():
            kept.append(found[name])
    tails = (_tail(graph, name, parts[name], values[name], bits) for name in parts)
    return tuple(tail for tail in tails if tail is not None)


def _tail(graph: Graph, name: str, parts: OutputParts, values: Sequence[NumberArray], bits: int) -> FloatTail | None:
    if not values:
        return None
    low, high = (min(0.0, *(float(v.min()) for v in values)), max(0.0, *(float(v.max()) for v in values)))
    step = (high - low) / (2**bits - 1)
    if not np.isfinite(step) or step <= 0.0:
        return None
    coarse = coarse_parts(values, parts.regions, step, margin=MARGIN)
    if not coarse:
        return None
    nodes = set(parts.tail)
    for part in coarse:  # where channels of one maker differ, that one's own grid is too coarse as well
        if part.channels or len(parts.regions) == 1:
            nodes.add(parts.makers[parts.regions.index(part.region)])
    layer_of = {part.tensor: layer.layer_id for layer in graph.layers.layers for part in layer.parts}
    order = [node.name for node in graph.module.graph.nodes if node.name in nodes]
    layers = tuple(dict.fromkeys(layer_of[node] for node in order if node in layer_of))
    told = "; ".join(part.sentence() for part in coarse)
    return FloatTail(name, layers, f"{name}: {', '.join(layers)} in float, since int{bits} would not carry {told}")
