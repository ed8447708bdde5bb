"""Chains of tensors of a graph that can only be scaled together, channel by channel, without changing the function.

A sum has one factor per channel for all that it adds up; a ReLU hands on the factor of what it reads. A chain that
holds an input or output of the graph, or meets an operator that does not commute with a factor, is pinned to 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from torch import fx

from coordatt_deploy.graph.call_arguments import argument, clamp_bounds, integer, integers, is_number, source
from coordatt_deploy.graph.graph import Graph, is_tensor, op_name, weight
from coordatt_deploy.graph.operators import Trait, having
from coordatt_deploy.quantization.union_find import UnionFind

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
