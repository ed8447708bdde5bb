"""Find attention blocks by structure, whatever they are called and however they are written.

Coordinate attention and squeeze-and-excitation are gates along strips (``strip_gates``); every other block is read as
terms of operators (``terms``) and told by them (``families``). What begins like a block and is none is a near miss.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import sizes
from coordatt_deploy.graph.graph import Graph, is_call, op_name
from coordatt_deploy.graph.lowering.activations import HardActivation, find_activations
from coordatt_deploy.graph.lowering.blocks import AttentionBlock, Kind, Reading, Recognition, Role, Terms
from coordatt_deploy.graph.lowering.families import Families, Match
from coordatt_deploy.graph.lowering.mixed_pooling import mixed_pooling
from coordatt_deploy.graph.lowering.strip_gates import StripSearch, common_path, pools_of
from coordatt_deploy.graph.lowering.terms import TermReader
from coordatt_deploy.manifest import NearMiss


def find_attention(graph: Graph) -> Recognition:
    """Find attention blocks and hard activations; the graph may be folded or not."""
    activations = find_activations(graph.module)
    by_output = {item.output: item for item in activations}
    search, others = StripSearch(graph, by_output), _Search(graph, by_output)
    blocks: dict[str, AttentionBlock] = {}
    misses: dict[str, NearMiss] = {}
    for feature in graph.module.graph.nodes:
        pools = pools_of(feature)
        found, miss = search.around(feature, pools) if pools else ([], None)
        if not found:
            found, other = others.around(feature)
            miss = miss or other
        if not found and pools and (mixed := mixed_pooling(feature, pools, search.inside)) is not None:
            paths = (search.paths.get(name, "") for name in (*mixed.inner, mixed.output))
            found = [replace(mixed, name=common_path(paths) or mixed.output)]
        blocks |= {block.output: block for block in found}
        misses |= {} if miss is None or found else {feature.name: miss}
    inside = {name for block in blocks.values() for name in block.inner}
    outermost = {output: block for output, block in blocks.items() if output not in inside}
    order = {node.name: index for index, node in enumerate(graph.module.graph.nodes)}
    joined = sorted(_joined(outermost, graph.module.graph), key=lambda block: order[block.output])
    kept = tuple(miss for feature, miss in misses.items() if feature not in inside)
    return Recognition(tuple(joined), kept, activations)


class _Search:
    """The search for blocks that are read as terms, in one graph."""

    def __init__(self, graph: Graph, activations: Mapping[str, HardActivation]) -> None:
        self.module, self.activations = graph.module, activations
        self.position = {node: index for index, node in enumerate(graph.module.graph.nodes)}
        self.nodes = {node.name: node for node in self.position}
        self.paths = {part.tensor: layer.layer_id.partition(":")[0]
                      for layer in reversed(graph.layers.layers) for part in layer.parts}  # fmt: skip
        self.families = Families(graph.module, self.nodes)

    def around(self, feature: fx.Node) -> tuple[list[AttentionBlock], NearMiss | None]:
        """Search for blocks of *feature*, and say what is amiss where there is none."""
        value = feature.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.ndim != 4 or len(feature.users) < 2:
            return [], None
        if not isinstance(value.shape[1], int):  # a map whose second axis is its height
            return [], None
        reader = TermReader(self.module, self.position, self.activations, feature)
        found: list[AttentionBlock] = []
        reasons: list[str] = []
        for node, match in reversed(list(self._matches(reader))):
            inner = self._between(feature, node)
            outside = [f"{item.name} by {user.name}" for item in inner for user in item.users
                       if user not in inner and user is not node and op_name(user) != "sym_size"]  # fmt: skip
            if outside:
                reasons.append(f"values inside it are used outside as well: {', '.join(outside)}")
            elif not any(node.name in block.inner for block in found):
                found.append(self._described(feature, node, inner, match, reader.readings))
        return found, None if found else self._missed(reader, reasons)

    def _matches(self, reader: TermReader) -> Iterator[tuple[fx.Node, Match]]:
        """The nodes whose terms are blocks, in execution order; of a block inside a block both."""
        shape, seen = [*map(str, sizes(reader.feature))], set[str]()
        for node, reading in reader.readings.items():
            term = reading.term
            made = term.role in {Role.PRODUCT, Role.SUM, Role.SCALE} and reading.axes == "NCHW"
            if made and term.node not in seen and [*map(str, sizes(node))] == shape:
                seen.add(term.node)
                match = self.families.match(term)
                if match is not None:
                    yield node, match

    def _missed(self, reader: TermReader, reasons: list[str]) -> NearMiss | None:
        """Why the pools over the channels of a feature map that is gated then are no block."""
        pools = [node for node, reading in reader.readings.items()
                 if reading.term.role in {Role.MEAN, Role.GREATEST} and reading.term.node == node.name
                 and "C" not in reading.term.axes]  # fmt: skip
        gated = [
            node for node in self._after(pools) if op_name(node) == "mul" and reader.feature in node.all_input_nodes
        ]
        if not pools or not gated:
            return None
        reasons = [*reader.reasons.values(), *reasons]
        where = common_path(self.paths.get(node.name, "") for node in (*pools, *reader.reasons)) or pools[0].name
        return NearMiss(where, reasons[-1] if reasons else f"{gated[0].name} gates it in a way that is not known")

    def _after(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        pending, seen = [*nodes], set[fx.Node]()
        while pending:
            for user in pending.pop().users:
                if user not in seen:
                    seen.add(user)
                    pending.append(user)
        return seen

    def _between(self, feature: fx.Node, output: fx.Node) -> list[fx.Node]:
        """All calls on the ways from the feature map to *output*, in execution order, without both ends."""
        seen: set[fx.Node] = set()
        pending = [*output.all_input_nodes]
        while pending:
            node = pending.pop()
            if node is not feature and node not in seen and is_call(node):
                seen.add(node)
                pending += node.all_input_nodes
        return sorted(seen, key=self.position.__getitem__)

    def _described(
        self,
        feature: fx.Node,
        output: fx.Node,
        inner: list[fx.Node],
        match: Match,
        readings: Mapping[fx.Node, Reading],
    ) -> AttentionBlock:
        _, channels, height, width = sizes(feature)
        held = {node.name: readings[node] for node in inner if node in readings}
        return AttentionBlock(
            kind=match.kind,
            name=common_path(self.paths.get(node.name, "") for node in (*inner, output)) or output.name,
            channels=int(channels),
            height=height if isinstance(height, int) else None,
            width=width if isinstance(width, int) else None,
            feature=feature.name,
            output=output.name,
            anatomy=Terms(match.squeezed, readings[output].term, held),
            inner=tuple(node.name for node in inner),
        )


def _joined(blocks: Mapping[str, AttentionBlock], graph: fx.Graph) -> list[AttentionBlock]:
    """The blocks, with both halves of CBAM as one where nothing else takes what is between them."""
    users = {node.name: {user.name for user in node.users} for node in graph.nodes if node.name in blocks}
    halves = {block.output: block for block in blocks.values() if block.kind is Kind.CHANNEL_GATE}
    joined = []
    for block in blocks.values():
        joins = block.kind is Kind.SPATIAL_GATE and block.feature in halves
        if joins and users[block.feature] <= {*block.inner, block.output}:
            joined.append(_both(halves.pop(block.feature), block))
        elif block.kind is not Kind.CHANNEL_GATE:
            joined.append(block)
    return [*joined, *halves.values()]


def _both(first: AttentionBlock, second: AttentionBlock) -> AttentionBlock:
    assert isinstance(first.anatomy, Terms)  # noqa: S101 - both halves are read as terms
    assert isinstance(second.anatomy, Terms)  # noqa: S101
    gated = Reading(first.anatomy.output, "NCHW")
    readings = {**first.anatomy.readings, first.output: gated, **second.anatomy.readings}
    return replace(
        first,
        kind=Kind.CBAM,
        name=common_path((first.name, second.name)) or second.name,
        output=second.output,
        anatomy=Terms(first.anatomy.squeezed, second.anatomy.output.put(first.anatomy.output), readings),
        inner=(*first.inner, first.output, *second.inner),
    )
