"""Find attention blocks in a file by structure: a feature map that is multiplied by gates computed from itself.

A gate is smaller than the feature map (one value per row, per column, per channel or per place) until a product, a
Resize or a copy spreads it. Two gates along different axes make coordinate attention or its local form, one gate per
channel squeeze-and-excitation, ECA, global context or half of CBAM, by what they are computed with. This holds for
every form that an exporter writes, ours or another's; names do not matter. Gates as large as the map are not found:
what a file of ours was written with stands in its manifest.
"""

import math
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Final

from coordatt_deploy.runtimes.file_graph import FileGraph, Node
from coordatt_deploy.runtimes.reader import reader
from coordatt_deploy.runtimes.vocabulary import Work

DYNAMIC: Final = 997  # stands for a dynamic size: no other size is taken for it


@dataclass(frozen=True, slots=True)
class FoundBlock:
    """An attention block in a file.

    Attributes:
        kind: ``coordatt``, ``timm_ela``, ``squeeze_excite``, ``eca``, ``global_context``, ``cbam``, or one half of it.
        output: Tensor that holds the gated feature map.
        channels: Of the feature map.
        height: None where dynamic.
        width: None where dynamic.
    """

    kind: str
    output: str
    channels: int
    height: int | None
    width: int | None


@dataclass(frozen=True, slots=True)
class _Gate:
    """A gate where it is smallest, and the axes of the feature map that it has one value for."""

    tensor: str
    spread: frozenset[int]


def find_blocks(graph: FileGraph) -> tuple[FoundBlock, ...]:
    """Return the attention blocks of *graph*, in execution order."""
    return _Search(graph).blocks()


class _Search:
    def __init__(self, graph: FileGraph) -> None:
        self.graph = graph
        self.words = reader(graph.format).vocabulary()
        self.maker = {name: node for node in graph.nodes for name in node.outputs}
        self.position = {name: index for index, node in enumerate(graph.nodes) for name in node.outputs}
        self.users: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self.users.setdefault(name, []).append(node)

    def blocks(self) -> tuple[FoundBlock, ...]:
        """Follow each product upwards through the products before it, and keep the last of every chain."""
        chains: dict[str, tuple[str, tuple[_Gate, ...]]] = {}
        for node in self.graph.nodes:
            gated = self._gated(node)
            if gated is None:
                continue
            feature, gates = gated
            product = self._product_before(feature, chains)
            if product is not None:
                feature, earlier = chains.pop(product)
                gates = earlier + gates
            chains[node.outputs[0]] = (feature, gates)
        found: list[FoundBlock] = []
        for output, (feature, gates) in chains.items():
            block = self._block(output, feature, gates)
            first = next((item for item in found if item.output == feature), None)
            if (
                block is not None
                and block.kind == "cbam_spatial"
                and first is not None
                and first.kind == "cbam_channel"
            ):
                found[found.index(first)] = replace(block, kind="cbam")
            elif block is not None:
                found.append(block)
        return tuple(found)

    def _product_before(self, feature: str, products: Container[str]) -> str | None:
        """The product that *feature* is, perhaps brought onto a grid and off it; None where others read it as well."""
        name = feature
        while len(self.users.get(name, ())) == 1:
            if name in products:
                return name
            node = self.maker.get(name)
            if node is None or node.operator not in self.words.carriers or not node.inputs:
                return None
            if self._shape(node.inputs[0]) != self._shape(name):
                return None
            name = node.inputs[0]
        return None

    def _gated(self, node: Node) -> tuple[str, tuple[_Gate, ...]] | None:
        """Read *node* as the product of a feature map and a gate, or two gates that were multiplied first."""
        if node.operator not in self.words.products or len(node.inputs) < 2:
            return None
        sides = node.inputs[:2]
        if any(self.graph.is_weight(name) for name in sides) or len(self._shape(node.outputs[0])) != 4:
            return None
        for feature, other in (sides, sides[::-1]):
            if self._shape(feature) != self._shape(node.outputs[0]):
                continue
            gates = self._gates(other, self._shape(feature))
            if gates and all(self._comes_from(gate.tensor, feature) for gate in gates):
                return feature, gates
        return None

    def _gates(self, name: str, full: tuple[int, ...]) -> tuple[_Gate, ...]:
        gate = self._gate(name, full)
        if gate is not None:
            return (gate,)
        node = self.maker.get(name)
        if node is not None and node.operator in self.words.outer and self._shape(name) == full:
            return self._outer_gates(node, full)
        if node is None or node.operator not in self.words.products or self._shape(name) != full:
            return ()
        parts = tuple(self._gate(side, full) for side in node.inputs[:2])
        return tuple(part for part in parts if part is not None) if None not in parts else ()

    def _outer_gates(self, node: Node, full: tuple[int, ...]) -> tuple[_Gate, ...]:
        """Two gates of which a product of matrices made all products: a column, and a row that may lie as a column."""
        height, width = len(full) - 2, len(full) - 1
        column, row = node.inputs[:2]
        swapped = (*full[:-2], full[-1], full[-2])
        if self._shape(column)[-1:] != (1,) or self._shape(row) not in ((*swapped[:-1], 1), (*full[:-2], 1, full[-1])):
            return ()
        lying = self._shape(row) == (*swapped[:-1], 1)
        first, second = self._gate(column, full), self._gate(row, swapped if lying else full)
        if first is None or second is None:
            return ()
        return replace(first, spread=frozenset({width})), replace(second, spread=frozenset({height}))

    def _gate(self, name: str, full: tuple[int, ...]) -> _Gate | None:
        """Follow *name* upwards to where it is smallest; the axes are read where it still has the map's rank."""
        spread: frozenset[int] | None = None
        least = math.prod(full)
        while True:
            shape = self._shape(name)
            if len(shape) == len(full) and all(have in (1, want) for have, want in zip(shape, full, strict=True)):
                reduced = frozenset(
                    axis for axis, (have, want) in enumerate(zip(shape, full, strict=True)) if have < want
                )
                spread = spread or reduced
            least = min(least, math.prod(shape))
            node = self.maker.get(name)
            if node is None or node.operator not in self.words.carriers | self.words.splits or not node.inputs:
                break
            name = node.inputs[0]
        made_like_a_gate = node is not None and node.operator in self.words.gates
        if not spread or not made_like_a_gate or least >= math.prod(full):
            return None
        return _Gate(name, spread)

    def _comes_from(self, gate: str, feature: str) -> bool:
        """Whether the gate is computed from the feature map, or from what the map was before earlier gates."""
        origins = {feature}
        above = [feature]
        while above:
            node = self.maker.get(above.pop())
            if node is None or node.operator not in self.words.products | self.words.carriers:
                continue
            # A gate that Resize has spread is as large as the map: both sides are followed.
            sizes = {name: math.prod(self._shape(name)) for name in node.inputs[:2]}
            largest = {name for name, size in sizes.items() if size == max(sizes.values())}
            above += largest - origins
            origins |= largest
        open_ends, seen = [gate], set[str]()
        while open_ends:
            name = open_ends.pop()
            if name in origins:
                return True
            maker = self.maker.get(name)
            if maker is not None and name not in seen:
                seen.add(name)
                open_ends += maker.inputs
        return False

    def _block(self, output: str, feature: str, gates: tuple[_Gate, ...]) -> FoundBlock | None:
        spreads = {gate.spread for gate in gates}
        axes = frozenset().union(*spreads)
        usual = self.words.channel_axis
        channel = next(iter({1, 2, 3} - axes), usual) if len(axes) == 2 else usual
        height, width = (self._size(output, axis) for axis in (1, 2, 3) if axis != channel)
        channels = self._size(output, channel) or 0
        if {len(spread) for spread in spreads} == {1} and len(spreads) == 2 and channel not in axes:
            local = all(self._made_with(gate, feature)[0] == 1 for gate in gates)
            return FoundBlock("timm_ela" if local else "coordatt", output, channels, height, width)
        if spreads == {axes} and channel not in axes and len(axes) == 2:
            return FoundBlock(self._kind_by_channel(gates[0], feature), output, channels, height, width)
        if spreads == {frozenset({usual})} and self._made_with(gates[0], feature)[1] & self.words.maxima:
            return FoundBlock("cbam_spatial", output, channels, height, width)
        return None

    def _kind_by_channel(self, gate: _Gate, feature: str) -> str:
        """Which block has one gate per channel that is computed with these operators."""
        layers, operators = self._made_with(gate, feature)
        if operators & self.words.softmaxes:
            return "global_context"
        if operators & self.words.maxima:
            return "cbam_channel"
        return "eca" if layers == 1 else "squeeze_excite"

    def _made_with(self, gate: _Gate, feature: str) -> tuple[int, frozenset[str]]:
        """How many layers with weights a gate is computed with from the feature map, and all its operators."""
        pending, nodes = [gate.tensor], dict[str, Node]()
        while pending:
            name = pending.pop()
            node = self.maker.get(name)
            if node is not None and name != feature and node.outputs[0] not in nodes:
                nodes[node.outputs[0]] = node
                pending += node.inputs
        layers = [node for node in nodes.values()
                  if self.words.work.get(node.operator, (None,))[0] in {Work.CONVOLUTION, Work.LINEAR}]  # fmt: skip
        return len(layers), frozenset(node.operator for node in nodes.values())

    def _size(self, name: str, axis: int) -> int | None:
        tensor = self.graph.tensors[name]
        return None if tensor.shape is None else tensor.shape[axis]

    def _shape(self, name: str) -> tuple[int, ...]:
        tensor = self.graph.tensors.get(name)
        if tensor is None or tensor.shape is None:
            return ()
        return tuple(DYNAMIC if size is None else size for size in tensor.shape)
