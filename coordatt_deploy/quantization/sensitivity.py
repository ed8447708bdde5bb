"""Which layers int8 costs most: quantize each alone, leave the others in float, and look at the outputs.

    cost of a layer   SQNR = 10 log10(sum of y^2 / sum of (y' - y)^2),   y the outputs in float, y' with this layer in
                      int8: its inputs, its weights and its result rounded to their grids

Errors of layers add up nearly independently, so the noise that a layer alone brings, over that of all, is its share.
A layer here is what a runtime computes in one go: a convolution with the activation behind it counts once, under the
convolution's name; the same layer in two branches counts once; operators that lowering put in go with the layer they
serve. What a layer does not reach is not computed again: on average half of the network.

The simulation ranks; verdicts come from artifacts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.artifact_specs import RangeMethod
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.graph.call_arguments import argument, outputs
from coordatt_deploy.graph.graph import Graph, at_capture, is_tensor, op_name, weight
from coordatt_deploy.quantization.ranges import input_range
from coordatt_deploy.quantization.simulate import (
    FUSED_BEHIND,
    MOVES,
    WEIGHTED,
    Grid,
    Values,
    apply,
    computes,
    grid_of,
    is_fused_into,
    sqnr_db,
    stored_values,
)
from coordatt_deploy.quantization.union_find import UnionFind

MEMORY: Final = 512 * 2**20  # bytes that the values of all cases may take
FEWEST: Final = 4
MOST: Final = 32


@dataclass(frozen=True, slots=True)
class Unit:
    """What is quantized, or kept in float, as one.

    Attributes:
        name: The name of its first layer.
        layers: Layer ids that keep it in float when a recipe names them; empty for an input.
        nodes: Names of the graph's nodes.
    """

    name: str
    layers: tuple[str, ...]
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What quantizing one layer alone costs.

    Attributes:
        name: The layer.
        layers: Layer ids that keep it in float.
        operator: The operator of its first node, e.g. ``conv2d``.
        sqnr_db: The simulated SQNR of the outputs; infinite where nothing changes.
        share: Its share of the noise that all layers bring, each alone.
        agreement: Share of the cases whose first class stays; None for outputs without classes.
        verified_db: The same SQNR, of a real artifact with this layer in int8 and the others in float; None where it
            was not measured.
    """

    name: str
    layers: tuple[str, ...]
    operator: str
    sqnr_db: float
    share: float = math.nan
    agreement: float | None = None
    verified_db: float | None = None


def units(graph: Graph, integer: frozenset[str] | None = None) -> tuple[Unit, ...]:
    """Group the nodes of *graph* that are quantized together, in execution order.

    Args:
        graph: Lowered.
        integer: Operators that are computed in int8; None for all. What holds none of them is left out.
    """
    owners = _owners(graph)
    groups: UnionFind[str] = UnionFind()
    computing = [node for node in graph.module.graph.nodes if computes(node)]
    for node in reversed(computing):
        groups.find(node.name)
        behind = [user for user in _readers(node) if computes(user)]
        if behind and (is_fused_into(node, behind) or node.name not in owners):
            groups.join(node.name, behind[0].name)
    first: dict[str, str] = {}
    for node in computing:
        for layer_id in owners.get(node.name, ()):
            groups.join(node.name, first.setdefault(layer_id, node.name))
    members: dict[str, list[str]] = {}
    for node in computing:
        members.setdefault(groups.find(node.name), []).append(node.name)
    found = [_unit(names, owners) for names in members.values()]
    inputs = [Unit(node.name, (), frozenset({node.name})) for node in graph.module.graph.nodes
              if node.op == "placeholder" and node.users]  # fmt: skip
    op_names = {node.name: op_name(node) for node in computing}
    counted = [unit for unit in found if integer is None or any(op_names[name] in integer for name in unit.nodes)]
    return (*inputs, *counted)


def _unit(names: Sequence[str], owners: Mapping[str, Sequence[str]]) -> Unit:
    layers = dict.fromkeys(layer for name in names for layer in owners.get(name, ()))
    return Unit(next(iter(layers), names[0]), tuple(layers), frozenset(names))


def _owners(graph: Graph) -> dict[str, list[str]]:
    """Return the layers that each node computes: one for each place where its value is seen, even moved or reshaped.

    Of several layers that are seen at one place, the first in the network stands for all.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes}
    owners: dict[str, list[str]] = {}
    places: set[str] = set()
    for layer in graph.layers.layers:
        seen = graph.layers.resolved(layer.layer_id)
        for part in seen.parts if seen is not None else ():
            if part.tensor not in places and part.tensor in nodes:
                places.add(part.tensor)
                owners.setdefault(_origin(nodes[part.tensor]).name, []).append(layer.layer_id)
    return owners


def _origin(node: fx.Node) -> fx.Node:
    """The node that computed the value which *node* moves."""
    while op_name(node) in MOVES and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _readers(node: fx.Node) -> list[fx.Node]:
    """The nodes that compute with the value, beyond those that only move it."""
    found: list[fx.Node] = []
    for user in node.users:
        found += _readers(user) if op_name(user) in MOVES else [user]
    return found


def rank(
    graph: Graph,
    data: CalibrationSet,
    *,
    method: RangeMethod = RangeMethod.PERCENTILE,
    levels: int = 127,
    integer: frozenset[str] | None = None,
    step: Callable[[], None] = lambda: None,
) -> list[LayerCost]:
    """Return what each layer costs alone, the costliest first.

    Args:
        graph: Folded, evened out and lowered, as it is exported.
        data: Cases to compute; as many as fit into memory, at most ``MOST``.
        method: How activation ranges are found.
        levels: Greatest level of a weight.
        integer: Operators that are computed in int8; None for all.
        step: Called once per unit.
    """
    with torch.no_grad():
        simulation = Simulation.of(graph, data, method, levels, integer)
        costs = []
        for unit in units(graph, integer):
            costs.append(simulation.cost(unit, simulation.rough_outputs(unit.nodes)))
            step()
    noise = [0.0 if math.isinf(cost.sqnr_db) else 10 ** (-cost.sqnr_db / 10) for cost in costs]
    total = sum(noise) or 1.0
    shared = [_shared(cost, part / total) for cost, part in zip(costs, noise, strict=True)]
    return sorted(shared, key=lambda cost: cost.sqnr_db)


def _shared(cost: LayerCost, share: float) -> LayerCost:
    return LayerCost(cost.name, cost.layers, cost.operator, cost.sqnr_db, share, cost.agreement)


def affordable(graph: Graph, count: int) -> int:
    """Return how many of *count* cases can be held with all their inner values."""
    per_case = sum(4 * math.prod(map(at_capture, node.meta["val"].shape))
                   for node in graph.module.graph.nodes if is_tensor(node))  # fmt: skip
    return max(min(FEWEST, count), min(MOST, count, MEMORY // max(1, per_case)))


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """A graph, its float values in every case, and the grid of every tensor that int8 stores."""

    graph: Graph
    levels: int
    cases: int
    exact: dict[fx.Node, Values]
    grids: dict[str, Grid]
    integer: frozenset[str] | None = None
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        graph: Graph,
        data: CalibrationSet,
        method: RangeMethod,
        levels: int,
        integer: frozenset[str] | None = None,
    ) -> "Simulation":
        """Compute every value of the first cases of *data* in float."""
        batch = graph.images_at_once
        chosen = data.first(affordable(graph, len(data) // batch) * batch)
        feeds = list(chosen.feeds(batch))
        exact: dict[fx.Node, Values] = {}
        grids: dict[str, Grid] = {}
        kept = stored_values(graph)
        for node in graph.module.graph.nodes:
            if node.op == "placeholder":
                exact[node] = [torch.from_numpy(case[node.name]) for case in feeds]
                grids[node.name] = Grid.of(input_range(chosen.arrays[node.name]))
            elif node.op == "get_attr":
                exact[node] = [_weight(graph, node)] * len(feeds)
            elif node.op == "call_function":
                exact[node] = apply(node, exact, len(feeds))
            if node.name in kept and node.op != "placeholder":
                grid = grid_of(node, exact[node], method)
                grids |= {} if grid is None else {node.name: grid}
        return cls(graph, levels, len(feeds), exact, grids, integer)

    def rough_outputs(self, nodes: frozenset[str]) -> list[Values]:
        """Return the graph's outputs with *nodes*, and nothing else, in int8."""
        rough: dict[fx.Node, Values] = {}
        for node in self.graph.module.graph.nodes:
            if node.op == "placeholder" and node.name in nodes:
                rough[node] = self._snapped(node, self.exact[node])
            elif node.name in nodes and self._is_integer(node):
                inputs = {source: self._read(source, rough, node) for source in node.all_input_nodes}
                rough[node] = self._snapped(node, apply(node, inputs, self.cases))
            elif node.op != "output" and any(source in rough for source in node.all_input_nodes):
                inputs = {source: rough.get(source, self.exact[source]) for source in node.all_input_nodes}
                rough[node] = apply(node, inputs, self.cases)
        return [rough.get(item, self.exact[item]) for item in outputs(self.graph.module.graph)]

    def _is_integer(self, node: fx.Node) -> bool:
        if self.integer is None or op_name(node) in self.integer:
            return True
        return op_name(node) in FUSED_BEHIND and is_fused_into(node.all_input_nodes[0], [node])

    def _read(self, source: fx.Node, rough: Mapping[fx.Node, Values], reader: fx.Node) -> Values:
        """Return a value as int8 arithmetic reads it: on its grid, or with rounded weights."""
        if source.op == "get_attr":
            if op_name(reader) not in WEIGHTED or source is not argument(reader, 1, "weight"):
                return self.exact[source]
            if source.name not in self.weights:
                self.weights[source.name] = rounded(self.exact[source][0], self.levels)
            return [self.weights[source.name]] * self.cases
        values = rough.get(source, self.exact[source])
        grid = self.grids.get(_origin(source).name)
        return values if grid is None else [grid.snap(value) for value in values]

    def _snapped(self, node: fx.Node, values: Values) -> Values:
        grid = self.grids.get(node.name)
        return values if grid is None else [grid.snap(value) for value in values]

    def cost(self, unit: Unit, rough: Sequence[Values]) -> LayerCost:
        """Compare the outputs *rough* with the float ones."""
        exact = [self.exact[item] for item in outputs(self.graph.module.graph)]
        ratio = sqnr_db([v for values in rough for v in values], [v for values in exact for v in values])
        classes = [(_classes(values), _classes(true)) for values, true in zip(rough, exact, strict=True)
                   if true[0].ndim == 2 and true[0].shape[1] > 1]  # fmt: skip
        agreement = float(np.mean(classes[0][0] == classes[0][1])) if classes else None
        first = next(node for node in self.graph.module.graph.nodes if node.name in unit.nodes)
        operator = "input" if first.op == "placeholder" else op_name(first) or "?"
        return LayerCost(unit.name, unit.layers, operator, ratio, agreement=agreement)


def _weight(graph: Graph, node: fx.Node) -> torch.Tensor:
    tensor = weight(graph.module, node)
    assert tensor is not None  # noqa: S101 - a captured graph reads tensors only
    return tensor


def rounded(tensor: torch.Tensor, levels: int) -> torch.Tensor:
    """Round weights to the nearest step of their output channel."""
    flat = tensor.reshape(tensor.shape[0], -1)
    scale = (flat.abs().amax(1) / levels).clamp_min(1e-30).reshape(-1, *[1] * (tensor.ndim - 1))
    return torch.clamp(torch.round(tensor / scale), -levels, levels) * scale


def _classes(values: Values) -> NDArray[np.int64]:
    return torch.cat([value.argmax(1) for value in values]).numpy()
