"""Find the values of a graph's nodes among the tensors of the file that was made from it.

A converter says at best which nodes went into the operator that makes a tensor, and changes layouts as it likes. So
names only say where to look; what is claimed is proven: the file and the graph are run on the same random
feeds, and

    tensor i holds node n  <=>  max |transpose(tensor_i) - value_n| <= max(TOLERANCE * std(value_n), ROUNDED * own)

on every feed for one order of the axes, where own is what torch itself is off by there in float32: what depends on the
last digits (a small difference of large values) is no farther from the file's than that. What has been found is where
the values behind it begin, so that rounding does not add up over the layers. Feeds of two widths make sure that
clipping operators clip, hence that what stands before one is told from what stands behind it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.exporters.fused_layers import read_by_one
from coordatt_deploy.graph.execution import Exact, Values, run
from coordatt_deploy.graph.graph import Graph, is_tensor, op_name
from coordatt_deploy.graph.operators import Trait, having
from coordatt_deploy.graph.repeats import repeated_calls
from coordatt_deploy.layer_map import Part, spare_axes, takes_together
from coordatt_deploy.metrics import without_shared_infinities

# Both sides compute in float32 or better; rounding stays a thousand times below this, another layer's value far above.
TOLERANCE: Final = 1e-3
ROUNDED: Final = 16.0  # as parity allows: sums in another order
WIDTHS: Final = (1.0, 4.0)  # standard deviations of the feeds
SEED: Final = 20210305

FUSES: Final = having(Trait.FUSES)
FUSED_BEHIND: Final = having(Trait.FUSED_BEHIND)
# Operators whose result has the same elements, so that one tensor can stand for what is before and behind them.
MOVES: Final = frozenset({
    "view", "reshape", "permute", "transpose", "flatten", "unflatten", "squeeze", "unsqueeze", "movedim", "swapaxes",
})  # fmt: skip

Arrays = Mapping[str, NumberArray]


@dataclass(frozen=True, slots=True)
class Found:
    """Where the nodes are.

    Attributes:
        places: For each node that computes a tensor: the tensor and the order of its axes; None where it is nowhere.
        reasons: Why it is nowhere; ``->layer_id`` where it was fused into that layer, ``=>layer_id`` where that
            one alone reads it.
        owners: Name of a tensor to the node that it holds first of all.
    """

    places: dict[str, Part | None]
    reasons: dict[str, str]
    owners: dict[str, str]


def feeds_for(graph: Graph) -> list[dict[str, NDArray[np.float32]]]:
    """Return random feeds in the reference's layout, the same ones every time."""
    generator = np.random.default_rng(SEED)
    return [
        {
            spec.name: (width * generator.standard_normal(tuple(tensor.shape))).astype(np.float32)
            for spec, tensor in zip(graph.inputs, graph.example, strict=True)
        }
        for width in WIDTHS
    ]


def find(
    graph: Graph,
    tensors: Sequence[Arrays],
    sources: Mapping[str, Collection[str]],
    copies: frozenset[str] = frozenset(),
) -> Found:
    """Match nodes and tensors.

    Args:
        graph: What was converted.
        tensors: The file's tensors in execution order, for each of ``feeds_for(graph)``.
        sources: For each tensor the names of the nodes that the converter says went into it.
        copies: The tensors that hold another one's elements in another order.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes if is_tensor(node)}
    search = _Search(graph, nodes, tensors, sources, copies)
    while search.step(lenient=False) or search.step(lenient=True):  # what has been found is where values begin
        pass
    owners, places = search.owners, search.places()
    reasons = {
        name: _reason(graph, nodes[name], sources, owners, places) for name, part in places.items() if part is None
    }
    return Found(places, reasons, owners)


class _Search:
    """Finds nodes step by step.

    Rounding grows from layer to layer, on random feeds beyond all bounds where gates or divisions come one after the
    other. So values are computed again from the file's own tensors that have been found, until nothing more is found.
    """

    def __init__(
        self,
        graph: Graph,
        nodes: Mapping[str, fx.Node],
        tensors: Sequence[Arrays],
        sources: Mapping[str, Collection[str]],
        copies: frozenset[str],
    ) -> None:
        self.graph, self.nodes, self.tensors, self.copies = graph, nodes, tensors, copies
        self.feeds = feeds_for(graph)
        named = {name for names in sources.values() for name in names}
        self.mentioned = {tensor: _mentioned(graph, source, named) for tensor, source in sources.items()}
        self.first = repeated_calls(graph.module.graph)
        self.order = {name: position for position, name in enumerate(nodes)}
        self.moved = _moved_together(nodes.values())
        self.owners: dict[str, str] = {}
        self.named: dict[str, Part] = {}
        self.implied: dict[str, Part] = {}

    def step(self, *, lenient: bool) -> bool:
        """Look for the nodes that are nowhere yet; whether it is worth looking again.

        Args:
            lenient: Allow what torch itself is off by. Only where nothing is found without it: where rounding has
                grown beyond bounds every tensor would do.
        """
        places = self.places()
        wanted = {tensor: names for tensor, names in self.mentioned.items()
                  if tensor not in self.owners and any(places.get(name) is None for name in names)}  # fmt: skip
        if not wanted:
            return False
        results = [self._exact(case) for case in range(len(self.tensors))]
        own: dict[str, list[float]] = {name: [] for name in self.nodes}
        if lenient:
            rounded = [self._rounded(case) for case in range(len(self.tensors))]
            for name, found in own.items():
                found += [_off(mine[name], one[name]) for mine, one in zip(rounded, results, strict=True)]
        before = len(self.owners)
        for tensor, names in wanted.items():
            self._look(tensor, names, results, own)
        return before < len(self.owners)

    def _look(
        self,
        tensor: str,
        mentioned: set[str],
        results: Sequence[Exact],
        own: Mapping[str, Sequence[float]],
    ) -> None:
        candidates = {name for node in mentioned for name in self.moved.get(node, ())}
        matches = {
            name: axes
            for name in sorted(candidates, key=lambda name: self.order[name], reverse=True)
            if (axes := axes_between([one[tensor] for one in self.tensors], [one[name] for one in results], own[name]))
            is not None
        }
        if not matches:
            return
        # The last operator in a fused one is what the tensor holds; an earlier one that looks the same on these feeds
        # (a clip that clipped nothing) does not count, unless only the order of the elements differs.
        owner = next((name for name in matches if name in mentioned), next(iter(matches)))
        self.owners[tensor] = owner
        for name in self.moved[owner]:
            if name in matches and name in mentioned:
                if name not in self.named or tensor not in self.copies:  # the last operator of a call gives its value
                    self.named[name] = Part(tensor, matches[name])
            elif name in matches:
                self.implied.setdefault(name, Part(tensor, matches[name]))

    def _exact(self, case: int) -> Exact:
        """Return the nodes' values on a feed; those that are found are the file's own."""
        return run(self.graph, self.feeds[case], nodes=frozenset(self.nodes), given=self._given(case))

    def _rounded(self, case: int) -> Values:
        nodes = frozenset(self.nodes)
        return run(self.graph, self.feeds[case], dtype=torch.float32, nodes=nodes, given=self._given(case))

    def _given(self, case: int) -> dict[str, NumberArray]:
        return {
            name: _as_value(self.tensors[case][part.tensor], part, self.nodes[name])
            for name, part in self.named.items()
            if self.nodes[name].meta["val"].is_floating_point()
        }

    def places(self) -> dict[str, Part | None]:
        """Return where each node is; None for those that are nowhere."""
        places = {name: self.named.get(name, self.implied.get(name)) for name in self.nodes}
        for name, first in self.first.items():  # the converter keeps one of them
            if name in places and first in places:
                places[name] = places[name] or places[first]
                places[first] = places[first] or places[name]
        return places


def axes_between(
    tensors: Sequence[NumberArray], values: Sequence[NDArray[np.float64]], own: Sequence[float] = ()
) -> tuple[int, ...] | None:
    """Return the axes by which the tensor is the value on every feed (axis i of it is axis ``axes[i]`` of the value).

    A tensor may lack or add axes of size 1, and have neighbouring axes in one.

    Args:
        tensors: Of the file, one for each feed.
        values: float64, likewise.
        own: What torch itself is off by in float32; nothing where it is not given.

    Returns:
        None if no order of the axes does it.
    """
    tensor, value = tensors[0], values[0]
    if tensor.size != value.size:
        return None
    fitting = [axes for axes in _orders(value.ndim) if _fits(tensor.shape, [value.shape[axis] for axis in axes])]
    shape = _without_spare_ones(tensor.shape, value.ndim)
    exact = [axes for axes in fitting if shape == tuple(value.shape[axis] for axis in axes)]
    for axes in dict.fromkeys([*exact, *fitting]):
        pairs = zip(tensors, values, own or (0.0,) * len(values), strict=True)
        if all(_equal(one, other, axes, off) for one, other, off in pairs):
            return axes
    return None


def _as_value(tensor: NumberArray, part: Part, node: fx.Node) -> NumberArray:
    """Return a tensor of the file in the order and shape of the node whose value it is."""
    shape = tuple(node.meta["val"].shape)
    axes = part.axes or tuple(range(len(shape)))
    return np.transpose(tensor.reshape([shape[axis] for axis in axes]), np.argsort(axes))


def _fits(shape: tuple[int, ...], sizes: Sequence[int]) -> bool:
    """Whether a tensor of *shape* can be a value whose axes, in its order, have *sizes*."""
    if len(sizes) == len(shape) and tuple(sizes) != shape:
        return takes_together(shape, sizes)
    return _longer(sizes) == _longer(shape) or (len(shape) < len(sizes) and takes_together(shape, sizes))


def _without_spare_ones(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The shape as ``layer_map.restore`` reads it: of axes of size 1 beyond *rank*, the last ones are left out."""
    spare = spare_axes(shape, rank)
    return tuple(size for axis, size in enumerate(shape) if axis not in spare)


def _orders(rank: int) -> Iterable[tuple[int, ...]]:
    """All orders of the axes, channels last and the unchanged one first."""
    likely = [(0, *range(2, rank), 1)] if rank >= 3 else []
    likely.append(tuple(range(rank)))
    return dict.fromkeys([*likely, *permutations(range(rank))])


def _longer(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in sizes if size != 1)


def _off(rounded: NumberArray, value: NDArray[np.float64]) -> float:
    """The greatest error of *rounded* where it is finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(np.asarray(rounded, np.float64) - value)
    return float(np.max(error, initial=0.0, where=np.isfinite(error)))


def _equal(tensor: NumberArray, value: NDArray[np.float64], axes: tuple[int, ...], own: float) -> bool:
    moved = np.transpose(value, axes).reshape(tensor.shape)
    if np.issubdtype(tensor.dtype, np.bool_) or not np.issubdtype(value.dtype, np.floating):  # truth values, positions
        return bool(np.array_equal(tensor, moved))
    tensor, moved = without_shared_infinities(tensor, moved)
    finite = value[np.isfinite(value)]
    allowed = max(TOLERANCE * np.std(finite) + 1e-6 * np.max(np.abs(finite), initial=0.0), ROUNDED * own)
    with np.errstate(invalid="ignore"):
        return bool(np.max(np.abs(tensor - moved), initial=0.0) <= allowed)


def _moved_together(nodes: Iterable[fx.Node]) -> dict[str, set[str]]:
    """For each node, the nodes that hold the same elements, itself among them."""
    together: dict[str, set[str]] = {}
    for node in nodes:
        together[node.name] = {node.name}
        before = node.args[0] if node.args else None
        if op_name(node) in MOVES and isinstance(before, fx.Node) and before.name in together:
            joined = together[before.name]
            joined.add(node.name)
            together[node.name] = joined
    return together


def _mentioned(graph: Graph, source: Collection[str], named: set[str]) -> set[str]:
    """The nodes that went into a tensor, of a tuple all its elements; and what they read under their name.

    The converter calls the view that a matrix product reads by the product's name, and the piece of a split by the name
    of what reads the piece.

    Args:
        graph: What was converted.
        source: Those that the converter names.
        named: All nodes that it names for any tensor.
    """
    names = set(source)
    nodes = [node for node in graph.module.graph.nodes if node.name in names]
    elements = {user.name for node in nodes if not is_tensor(node) for user in node.users}
    read = {view.name for node in nodes for view in node.all_input_nodes if op_name(view) in MOVES}
    open_ends = nodes
    while open_ends:
        before = [
            item for node in open_ends for item in node.all_input_nodes if item.op not in ("placeholder", "get_attr")
        ]
        open_ends = [item for item in dict.fromkeys(before) if item.name not in named | read | names]
        names |= {item.name for item in open_ends if is_tensor(item)}
    return names | elements | read


def _reason(
    graph: Graph,
    node: fx.Node,
    sources: Mapping[str, Collection[str]],
    owners: Mapping[str, str],
    places: Mapping[str, Part | None],
) -> str:
    """Why a node has no tensor: the name of the first tensor behind it tells whether it was fused into that."""
    followers = _followers(node)
    for tensor, owner in owners.items():  # in execution order
        if owner in followers and node.name in sources[tensor]:
            layer = graph.layer_of(owner)
            if layer is not None:
                return f"->{layer}"
    activation = next(iter(node.users)) if len(node.users) == 1 else None
    if activation is not None and op_name(node) in FUSES and op_name(activation) in FUSED_BEHIND:
        layer = graph.layer_of(activation.name)  # an output's tensor has the output's name, which mentions no node
        if activation.name in owners.values() and layer is not None:
            return f"->{layer}"
    if (layer := read_by_one(graph, node, places)) is not None:
        return f"=>{layer}"
    return "the converter made other operators of it; no tensor of the file holds its value"


def _followers(node: fx.Node) -> set[str]:
    names: set[str] = set()
    open_ends = list(node.users)
    while open_ends:
        user = open_ends.pop()
        if user.name not in names:
            names.add(user.name)
            open_ends += user.users
    return names
