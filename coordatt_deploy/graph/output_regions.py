"""Which operators the parts of an output come from: boxes in pixels and scores in 0...1 may share a tensor.

Every element of what computes gets a label, and what only moves values (a concatenation, a permutation) is run on the
labels themselves. So a part is found wherever its elements end up, on whatever axis.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.artifact_specs import OutputRegion
from coordatt_deploy.graph.call_arguments import outputs as returned_nodes
from coordatt_deploy.graph.graph import Graph, at_capture, is_tensor, op_name
from coordatt_deploy.graph.operators import Trait, having
from coordatt_deploy.output_grids import is_bounded

JOINS: Final = frozenset({"cat", "stack", "slice_scatter", "select_scatter"})
CARRIES: Final = JOINS | having(Trait.LAYOUT) | having(Trait.IDENTITY) | {"slice", "select", "_unsafe_view"}
SCALES: Final = frozenset({"mul", "add", "sub", "div"})
SPLITS: Final = having(Trait.SPLIT) | {"chunk", "unbind"}
MOST_REGIONS: Final = 64
MOST_INDICES: Final = 4096  # on one axis; more are no channels


@dataclass(frozen=True, slots=True)
class OutputParts:
    """The parts of one output, and the way from what makes them.

    Attributes:
        regions: Where each part is; one for the whole output where it has a single maker.
        makers: Names of the nodes that compute the parts, in the order of *regions*.
        tail: Names of the nodes that only join, move or scale them, up to the output.
    """

    regions: tuple[OutputRegion, ...]
    makers: tuple[str, ...]
    tail: tuple[str, ...]


def output_parts(graph: Graph) -> Mapping[str, OutputParts]:
    """Return the parts of every floating output that has at least two axes, by its name.

    An output of which the parts cannot be told (more than ``MOST_REGIONS``, or not whole rows of any axis) is one part.
    Where sizes are dynamic every output is; a dynamic batch is none of the axes that parts lie along.
    """
    layer_of = {part.tensor: layer.layer_id for layer in graph.layers.layers for part in layer.parts}
    found = {}
    for node, name in zip(returned_nodes(graph.module.graph), graph.outputs, strict=True):
        value = node.meta["val"]
        if not is_tensor(node) or not value.is_floating_point() or value.ndim < 2:
            continue
        found[name] = _parts(node, layer_of, dynamic=graph.dynamic is not None)
    return found


def output_regions(graph: Graph) -> Mapping[str, tuple[OutputRegion, ...]]:
    """Return the parts of the outputs that have more than one, or values within 0 and 1."""
    found = {name: parts.regions for name, parts in output_parts(graph).items()}
    return {name: parts for name, parts in found.items() if len(parts) > 1 or is_bounded(parts[0])}


def _parts(node: fx.Node, layer_of: Mapping[str, str], *, dynamic: bool) -> OutputParts:
    tracer = _Labels()
    whole = OutputParts((_region(node, layer_of, (None,) * node.meta["val"].ndim, scaled=False),), (node.name,), ())
    if dynamic:
        return whole
    labels = tracer.of(node).numpy()
    present = np.unique(labels)
    if len(present) > MOST_REGIONS:
        return whole
    regions, makers = [], []
    for label in present:
        axes = _axes(labels == label)
        if axes is None:
            return whole
        maker, scaled = tracer.makers[int(label)]
        regions.append(_region(maker, layer_of, axes, scaled=scaled))
        makers.append(maker.name)
    return OutputParts(tuple(regions), tuple(makers), tuple(tracer.passed))


def _region(
    maker: fx.Node, layer_of: Mapping[str, str], axes: tuple[tuple[int, ...] | None, ...], *, scaled: bool
) -> OutputRegion:
    return OutputRegion(layer_of.get(maker.name, maker.name), axes, None if scaled else op_name(maker))


def _axes(mask: NDArray[np.bool_]) -> tuple[tuple[int, ...] | None, ...] | None:
    """Return the places of *mask* on each axis, None for all of an axis; None where they are no whole rows."""
    places = [np.unique(found) for found in np.nonzero(mask)]
    if int(mask.sum()) != int(np.prod([len(found) for found in places])):
        return None
    axes = [
        None if len(found) == size else tuple(int(index) for index in found)
        for found, size in zip(places, mask.shape, strict=True)
    ]
    return None if any(axis is not None and len(axis) > MOST_INDICES for axis in axes) else tuple(axes)


class _Labels:
    """Runs what moves values on labels."""

    def __init__(self) -> None:
        self.makers: list[tuple[fx.Node, bool]] = []
        self.passed: dict[str, None] = {}
        self.known: dict[fx.Node, torch.Tensor] = {}

    def of(self, node: fx.Node) -> torch.Tensor:
        if node not in self.known:
            self.known[node] = self._found(node)
        return self.known[node]

    def _argument(self, node: fx.Node) -> torch.Tensor | int:
        value = node.meta.get("val")
        return at_capture(value) if isinstance(value, (int, torch.SymInt)) else self.of(node)

    def _found(self, node: fx.Node) -> torch.Tensor:
        name = op_name(node)
        if is_tensor(node) and name in CARRIES:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._argument)
            assert callable(node.target)  # noqa: S101 - a call
            moved: torch.Tensor = node.target(*args, **kwargs)
            self.passed[node.name] = None
            return moved
        split = node.args[0] if name == "getitem" else None
        if isinstance(split, fx.Node) and op_name(split) in SPLITS:
            args, kwargs = fx.node.map_arg((split.args, split.kwargs), self._argument)
            assert callable(split.target)  # noqa: S101 - a call
            self.passed[node.name] = None
            piece: torch.Tensor = split.target(*args, **kwargs)[node.args[1]]
            return piece
        source = _scaled(node) if name in SCALES else None
        if source is None:
            return self._maker(node, tuple(map(at_capture, node.meta["val"].shape)), scaled=False)
        labels = self.of(source)
        self.passed[node.name] = None
        scaled = torch.empty_like(labels)
        for label in np.unique(labels.numpy()).tolist():
            maker, _ = self.makers[label]
            scaled[labels == label] = len(self.makers)
            self.makers.append((maker, True))
        return scaled

    def _maker(self, node: fx.Node, shape: tuple[int, ...], *, scaled: bool) -> torch.Tensor:
        self.makers.append((node, scaled))
        return torch.full(shape, len(self.makers) - 1, dtype=torch.int64)


def _scaled(node: fx.Node) -> fx.Node | None:
    """Return what a product or sum with constants reads, where nothing else varies and the shape stays."""
    varying = [source for source in node.all_input_nodes if source.op != "get_attr"]
    if len(varying) != 1 or not is_tensor(varying[0]):
        return None
    source = varying[0]
    return source if tuple(source.meta["val"].shape) == tuple(node.meta["val"].shape) else None
