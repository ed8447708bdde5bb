"""Even out the channels that share an activation tensor, without changing the function.

An int8 activation has one step for all its channels, so a channel with small values is left with few levels. Where
everything between two layers with weights commutes with a positive factor per channel, f(k x) = k f(x), the factor can
be moved into the weights:

    y = W2 f(W1 x + b1)  =  (W2 / k) f(k W1 x + k b1)

That holds for sums, means, pools, ReLU and gates, so whole residual chains are scaled at once. It holds for a clamp to
[0, u] as well as long as a channel stays below u: with m_c the greatest value met in channel c

    tensors behind a clamp:  k_c = sqrt(u / (MARGIN m_c)), at least 1
    other tensors:           k_c = sqrt(max m / m_c)

and a channel that reaches its clamp keeps k = 1. The tensors of a chain share the least of their factors: more would
widen the range of one of them. The square root leaves half of the unevenness to the activations and
half to the weights behind them (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", 2019, equation 9, where r1 and r2 are the two ranges).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.graph.call_arguments import (
    argument,
    clamp_bounds,
    input_node,
    integer,
    integers,
    is_number,
    source,
)
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.graph import Graph, is_tensor, op_name, weight
from coordatt_deploy.graph.operators import Trait, having
from coordatt_deploy.graph.rewriter import Rewriter
from coordatt_deploy.layer_map import Part
from coordatt_deploy.quantization.union_find import UnionFind

MARGIN: Final = 1.1  # room above the greatest value that calibration met, before the clamp begins to bite
GREATEST: Final = 16.0  # factor; what a channel of next to nothing would need lies far above
CLAMPED: Final = 0.999  # share of the bound from which on a channel counts as clamped

HOMOGENEOUS: Final = having(Trait.HOMOGENEOUS)
CLAMPS: Final = having(Trait.CLAMP)
WEIGHTED: Final = having(Trait.QUANTIZED_WEIGHT)


@dataclass(slots=True)
class Chain:
    """Nodes that must share one factor per channel.

    Attributes:
        nodes: Names.
        bound: Least upper bound of the clamps among them; None without a clamp.
        pinned: Whether the factor must be 1.
    """

    nodes: list[str] = field(default_factory=list)
    bound: float | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class EqualiseReport:
    """What equalisation did.

    Attributes:
        chains: How many chains of tensors were scaled.
        channels: Channels with a factor other than 1.
        greatest_factor: The greatest factor of all channels.
    """

    chains: int
    channels: int
    greatest_factor: float


def equalise(graph: Graph, data: CalibrationSet) -> tuple[Graph, EqualiseReport]:
    """Return *graph* with evened-out channels; its layer map knows the factors.

    Args:
        graph: Folded.
        data: The greatest value of each channel is taken from it.
    """
    chains = [chain for chain in find_chains(graph) if not chain.pinned and _made_by_weights(graph, chain)]
    greatest = channel_maxima(graph, data, [name for chain in chains for name in chain.nodes])
    rewriter = Rewriter(graph)
    places: dict[str, Part | None] = {}
    factors: list[NDArray[np.float64]] = []
    for chain in chains:
        found = _factors(chain, rewriter, greatest)
        if found is None or np.allclose(found, 1.0):
            continue
        factors.append(found)
        _scale(rewriter, chain, found)
        places |= {name: Part(name, factor=tuple(float(factor) for factor in found)) for name in chain.nodes}
    report = EqualiseReport(
        chains=len(factors),
        channels=sum(int(np.count_nonzero(found != 1.0)) for found in factors),
        greatest_factor=max((float(found.max()) for found in factors), default=1.0),
    )
    return graph.edited(rewriter.module, places), report


def find_chains(graph: Graph) -> list[Chain]:
    """Group the nodes of *graph* that must be scaled alike."""
    builder = _ChainBuilder()
    gated = []
    for node in graph.module.graph.nodes:
        if node.op == "placeholder":
            builder.pin(node)
        elif node.op == "output":
            for returned in node.all_input_nodes:
                builder.pin(returned)
        elif node.op == "call_function" and _has_channels(node):
            operator = op_name(node)
            if operator in WEIGHTED and _reads_weight(graph, node):
                builder.add(node)
                builder.add(source(node))
                builder.share(node)
            elif operator == "mul" and len(_operands(node)) == 2:
                gated.append(node)
                builder.add(node)
            elif not _joined(builder, operator, node):
                builder.pin(node)
                for operand in _operands(node):
                    builder.pin(operand)
    _join_gates(builder, gated)
    return builder.chains()


class _ChainBuilder:
    """Chains of nodes, merged step by step."""

    def __init__(self) -> None:
        self._sets: UnionFind[fx.Node] = UnionFind()
        self._pinned: set[fx.Node] = set()
        self._bounds: dict[fx.Node, float] = {}
        self._readers: dict[str, fx.Node] = {}

    def add(self, node: fx.Node) -> None:
        """Make *node* a chain of its own, unless it is in one."""
        self._sets.find(node)

    def join(self, *nodes: fx.Node) -> None:
        self._sets.join(*nodes)

    def share(self, node: fx.Node) -> None:
        """Layers that read the same weight are scaled alike, before and behind."""
        for weight_node in node.all_input_nodes[1:]:
            other = self._readers.setdefault(str(weight_node.target), node)
            if other is not node:
                self.join(other, node)
                self.join(source(other), source(node))

    def pin(self, node: fx.Node) -> None:
        self.add(node)
        self._pinned.add(node)

    def is_pinned(self, node: fx.Node) -> bool:
        root = self._sets.find(node)
        return any(self._sets.find(pinned) is root for pinned in self._pinned)

    def clamp(self, node: fx.Node, bound: float) -> None:
        self._bounds[node] = bound

    def chains(self) -> list[Chain]:
        found: dict[fx.Node, Chain] = {}
        for node in self._sets:
            chain = found.setdefault(self._sets.find(node), Chain())
            chain.nodes.append(node.name)
            chain.pinned |= node in self._pinned
            if node in self._bounds:
                chain.bound = min(self._bounds[node], chain.bound or self._bounds[node])
        return list(found.values())


def _joined(builder: _ChainBuilder, operator: str, node: fx.Node) -> bool:
    """Join *node* with what it is made of, if it commutes with a factor per channel."""
    sources = _operands(node)
    if operator == "add" and len(sources) == 2 and _shape(sources[0]) == _shape(sources[1]):
        builder.join(node, *sources)
        return bool(argument(node, 2, "alpha", 1) == 1)
    if operator == "cat" and sources and integer(node, 1, "dim", 0) % len(_shape(node)) != 1:
        builder.join(node, *sources)
        return True
    if len(sources) != 1 or not _keeps_channels(operator, node, sources[0]):
        return False
    if operator in CLAMPS:
        low, high = clamp_bounds(node)
        if low != 0.0 or high is None or high <= 0.0:
            return False
        builder.clamp(node, high)
    elif operator in {"mul", "div"}:  # by a number
        if not is_number(node.args[1]):
            return False
    elif operator not in HOMOGENEOUS or (operator == "constant_pad_nd" and argument(node, 2, "value", 0.0) != 0.0):
        return False
    builder.join(node, sources[0])
    return True


def _keeps_channels(operator: str, node: fx.Node, operand: fx.Node) -> bool:
    """Whether axis 1 of the result holds the channels of axis 1 of the source, in the same order."""
    before, after = _shape(operand), _shape(node)
    if len(before) < 2 or len(after) < 2 or before[1] != after[1] or before[0] != after[0]:
        return False
    if operator == "permute":
        axes = [axis % len(before) for axis in integers(argument(node, 1, "dims"))]
        return axes[:2] == [0, 1]
    if operator == "transpose":
        return all(axis % len(before) > 1 for axis in integers(node.args[1:3]))
    if operator == "mean":
        reduced = integers(argument(node, 1, "dim") or range(len(before)))
        return all(axis % len(before) > 1 for axis in reduced)
    if operator in {"split", "split_with_sizes", "slice"}:
        return integer(node, 2 if operator != "slice" else 1, "dim", 0) % len(before) > 1
    return True


def _join_gates(builder: _ChainBuilder, products: Iterable[fx.Node]) -> None:
    """A product is scaled as one of its factors is, and the other is not scaled: usually that is a gate."""
    for node in products:
        left, right = _operands(node)
        if builder.is_pinned(left):
            left, right = right, left
        if _shape(left) != _shape(node):
            builder.pin(left)
        builder.pin(right)
        builder.join(node, left)


def _has_channels(node: fx.Node) -> bool:
    return is_tensor(node) or isinstance(node.meta.get("val"), (tuple, list))


def _operands(node: fx.Node) -> list[fx.Node]:
    """The values that a call computes with, weights and sizes left out."""
    return [
        item for item in node.all_input_nodes if item.op in {"placeholder", "call_function"} and _has_channels(item)
    ]


def _shape(node: fx.Node) -> tuple[str, ...]:
    value = node.meta["val"]
    value = value[0] if isinstance(value, (tuple, list)) else value
    return tuple(str(size) for size in value.shape)


def _reads_weight(graph: Graph, node: fx.Node) -> bool:
    """Whether a layer's weight and bias are plain tensors, and its channels lie on axis 1."""
    rank = len(_shape(node))
    bias = argument(node, 2, "bias")
    return (
        rank == (2 if op_name(node) == "linear" else 4)
        and weight(graph.module, argument(node, 1, "weight")) is not None
        and (bias is None or weight(graph.module, bias) is not None)
    )


def _made_by_weights(graph: Graph, chain: Chain) -> bool:
    nodes = {node.name: node for node in graph.module.graph.nodes}
    return any(op_name(nodes[name]) in WEIGHTED for name in chain.nodes)


def channel_maxima(graph: Graph, data: CalibrationSet, names: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Return the greatest absolute value of each channel (axis 1) of the nodes called *names*."""
    wanted = {node.name for node in graph.module.graph.nodes if is_tensor(node)} & set(names)
    call = prepare(graph, dtype=torch.float32, nodes=frozenset(wanted))
    found: dict[str, NDArray[np.float64]] = {}
    for feeds in data.feeds(graph.example[0].shape[0]):
        for name, value in call(feeds).items():
            if name in wanted:
                axes = tuple(axis for axis in range(value.ndim) if axis != 1)
                greatest = np.abs(value).max(axis=axes).astype(np.float64)
                found[name] = np.maximum(found.get(name, greatest), greatest)
    return found


def _factors(
    chain: Chain, rewriter: Rewriter, greatest: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64] | None:
    wanted: NDArray[np.float64] | None = None
    for name in chain.nodes:
        if name in greatest:
            own = _wanted(greatest[name], chain.bound if op_name(rewriter.nodes[name]) in CLAMPS else None)
            wanted = own if wanted is None else np.minimum(wanted, own)
    return wanted


def _wanted(top: NDArray[np.float64], bound: float | None) -> NDArray[np.float64]:
    """The factor for each channel of one tensor, of which *top* are the greatest values and *bound* is the clamp."""
    goal = float(top.max()) if bound is None else bound / MARGIN
    wanted: NDArray[np.float64] = np.clip(np.sqrt(goal / np.maximum(top, 1e-12)), 1.0, GREATEST)
    return wanted if bound is None else np.where(top < CLAMPED * bound, wanted, 1.0)


def _scale(rewriter: Rewriter, chain: Chain, factors: NDArray[np.float64]) -> None:
    """Write the factors into the layers before the chain, and their inverse into those behind it."""
    names = set(chain.nodes)
    per_channel = torch.from_numpy(factors)
    done: set[tuple[str, str]] = set()
    for name in chain.nodes:
        node = rewriter.nodes[name]
        if op_name(node) in WEIGHTED:
            for place in node.all_input_nodes[1:]:
                _multiply(rewriter, place, per_channel, "out", done)
        for user in node.users:
            if op_name(user) in WEIGHTED and user.args[0] is node and node.name in names:
                _multiply(rewriter, input_node(user, 1, "weight"), 1 / per_channel, "in", done)


def _multiply(
    rewriter: Rewriter, place: fx.Node | None, factors: torch.Tensor, side: str, done: set[tuple[str, str]]
) -> None:
    """Multiply a weight in place, on the axis of its output or of its input channels; once per weight and side."""
    tensor = rewriter.weight(place)
    assert place is not None  # noqa: S101 - find_chains has checked it
    assert tensor is not None  # noqa: S101
    if (str(place.target), side) in done:
        return
    done.add((str(place.target), side))
    doubled = tensor.detach().double()
    if side == "out":
        scaled = doubled * factors.reshape(-1, *[1] * (doubled.ndim - 1))
    else:
        groups = len(factors) // doubled.shape[1]
        blocks = doubled.reshape(groups, -1, *doubled.shape[1:])  # (g, out / g, in / g, ...)
        ones = [1] * (doubled.ndim - 2)
        scaled = (blocks * factors.reshape(groups, 1, -1, *ones)).reshape(doubled.shape)
    with torch.no_grad():
        tensor.copy_(scaled.to(tensor.dtype))
