"""Find coordinate attention and squeeze-and-excitation: gates along strips, from two pointwise convolutions each.

Every mean over rows or columns of a feature map is followed forward as a strip (``strip_axes``) until it gates the map:

    pools of x -> [join] -> 1x1 convolution, activation -> [part] -> 1x1 convolution, gate -> product with x

An operator that a strip does not survive ends it, and is the reason given for a near miss.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import fx

from coordatt_deploy.graph.call_arguments import argument, integer, listed_nodes, sizes, source
from coordatt_deploy.graph.graph import Graph, is_call, op_name, weight
from coordatt_deploy.graph.lowering.activations import HardActivation
from coordatt_deploy.graph.lowering.blocks import AttentionBlock, Branch, Branches, Kind
from coordatt_deploy.graph.lowering.strip_axes import (
    BROADCAST,
    COLUMNS,
    CONVOLUTIONS,
    DIRECTIONS,
    GATES,
    LAYOUT,
    ROWS,
    SPLITS,
    STRIP_AXIS,
    UNARY,
    WHOLE,
    Strip,
    joined,
    moved,
    not_pointwise,
    parted,
    pooled_axes,
    pooled_letters,
    sliced,
)
from coordatt_deploy.manifest import NearMiss


def pools_of(feature: fx.Node) -> dict[fx.Node, tuple[tuple[int, ...], bool]]:
    """Return the pools of a feature map, each with the axes that it reduces and whether it takes the mean."""
    found = {node: pooled_axes(node, feature) for node in feature.users}
    return {node: pool for node, pool in found.items() if pool is not None}


class StripSearch:
    """The search in one graph; what it knows of a feature map is reset for the next."""

    def __init__(self, graph: Graph, activations: Mapping[str, HardActivation]) -> None:
        self.module = graph.module
        self.nodes: dict[str, fx.Node] = {node.name: node for node in graph.module.graph.nodes}
        self.activations = activations
        self.inside = {name for item in activations.values() for name in item.inner}
        self.paths = {part.tensor: layer.layer_id.partition(":")[0]
                      for layer in reversed(graph.layers.layers) for part in layer.parts}  # fmt: skip
        self.strips: dict[fx.Node, Strip] = {}
        self.expanded: dict[fx.Node, fx.Node] = {}
        self.pieces: dict[fx.Node, tuple[Strip, ...]] = {}
        self.reasons: list[str] = []

    def around(
        self, feature: fx.Node, pools: Mapping[fx.Node, tuple[tuple[int, ...], bool]]
    ) -> tuple[list[AttentionBlock], NearMiss | None]:
        """Search for blocks that pool and gate *feature*, and say what is amiss where there is none."""
        self.feature = feature
        self.strips = {node: Strip((DIRECTIONS[axes],), pooled_letters(node, axes), (), (node.name,))
                       for node, (axes, is_mean) in pools.items() if is_mean}  # fmt: skip
        self.expanded, self.pieces = {}, {}
        self.reasons = [f"{node.name} takes the greatest value of each strip, not the mean"
                        for node, (axes, is_mean) in pools.items() if not is_mean and axes != (2, 3)]  # fmt: skip
        reached, products = self._follow(pools)
        blocks = [block for node in products if (block := self._block(node)) is not None]
        is_strip = any(axes != (2, 3) for axes, _ in pools.values())
        gates = any(feature in node.all_input_nodes for node in products)
        if not is_strip and not (gates and self.reasons):
            return blocks, None  # an ordinary global pool
        pool = next(iter(pools))
        reason = self.reasons[-1] if self.reasons else f"nothing made from its pools gates {feature.name}"
        where = common_path(self.paths.get(node.name, "") for node in (*pools, *reached)) or pool.name
        return blocks, NearMiss(where, reason)

    # -- following the strips forward --

    def _follow(self, pools: Iterable[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
        """Give every node after the pools its strip; return those nodes, and the products."""
        after = set(pools)
        products, reached = [], []
        for node in self.module.graph.nodes:
            if node in after or not after.intersection(node.all_input_nodes):
                continue
            if op_name(node) == "mul" and node.name not in self.activations and node.name not in self.inside:
                products.append(node)
                after.add(node)
                continue
            if products and not self._begins_at_strip(node):
                continue
            after.add(node)
            reached.append(node)
            if node.name not in self.inside:
                self._step(node)
        return reached, products

    def _begins_at_strip(self, node: fx.Node) -> bool:
        return any(item in self.strips or item in self.pieces or item.name in self.inside
                   for item in node.all_input_nodes)  # fmt: skip

    def _step(self, node: fx.Node) -> None:
        activation = self.activations.get(node.name)
        if activation is not None:
            origin = self.nodes[activation.source]
            if origin in self.strips:
                self.strips[node] = self._extended(origin, node)
            return
        before = next((item for item in node.all_input_nodes if item in self.strips), None)
        if before is None:
            if op_name(node) == "getitem" and source(node) in self.pieces:
                self.strips[node] = self.pieces[source(node)][integer(node, 1, "index")]
            return
        result = self._after(node, before)
        if isinstance(result, Strip):
            self.strips[node] = result
        elif result is not None:
            self.reasons.append(result)

    def _after(self, node: fx.Node, before: fx.Node) -> Strip | str | None:
        """What *node* makes of the strip *before* it; a reason if that is not a strip."""
        operator, strip = op_name(node), self.strips[before]
        lengths = [sizes(self.feature)[STRIP_AXIS[item]] if item in STRIP_AXIS else 1 for item in strip.directions]
        if operator == "batch_norm" or (operator in UNARY and len(node.all_input_nodes) == 1):
            return self._extended(before, node)
        if operator in CONVOLUTIONS:
            return not_pointwise(self.module, node, strip.axes) or self._extended(before, node)
        if operator in LAYOUT:
            axes = moved(node, strip.axes)
            return f"{node.name} mixes the axes of a strip" if axes is None else replace(strip, axes=axes)
        if operator == "cat":
            return joined(node, [self.strips.get(item) for item in listed_nodes(argument(node, 0, "tensors"))])
        if operator in SPLITS:
            pieces = parted(node, strip, lengths)
            self.pieces |= {} if pieces is None else {node: pieces}
            return f"{node.name} does not part the strips where they were joined" if pieces is None else None
        if operator in {"slice", "narrow"}:
            return sliced(node, strip, lengths) or f"{node.name} does not part the strips where they were joined"
        if operator in {"expand", "expand_as"}:
            self.expanded[node] = before
        return None if operator in {"expand", "expand_as", "sym_size"} else f"{node.name} is no part of such a block"

    def _extended(self, before: fx.Node, node: fx.Node) -> Strip:
        strip = self.strips[before]
        return replace(strip, chain=(*strip.chain, node.name))

    # -- reading a block off its product --

    def _block(self, output: fx.Node) -> AttentionBlock | None:
        leaves = self._leaves(output)
        if leaves is None or leaves.count(self.feature) != 1:
            return None
        branches = []
        for gate in leaves:
            branch = None if gate is self.feature else self._branch(gate)
            if isinstance(branch, str):
                self.reasons.append(branch)
                return None
            branches += [] if branch is None else [branch]
        branches.sort(key=lambda branch: (ROWS, COLUMNS, WHOLE).index(branch.direction))
        directions = tuple(branch.direction for branch in branches)
        if directions not in {(ROWS, COLUMNS), (WHOLE,)}:
            if len(directions) == 1:
                self.reasons.append(f"only its {directions[0]} are gated")
            return None
        inner = self._between(output)
        outside = [f"{node.name} by {user.name}" for node in inner for user in node.users
                   if user not in inner and user is not output and op_name(user) != "sym_size"]  # fmt: skip
        if outside:
            self.reasons.append(f"values inside it are used outside as well: {', '.join(outside)}")
            return None
        return self._described(output, tuple(branches), inner)

    def _leaves(self, node: fx.Node) -> list[fx.Node] | None:
        """Factors of a product down to the feature map and its strips; None if anything else is among them."""
        leaves = []
        for item in node.args[:2]:
            if not isinstance(item, fx.Node):
                return None
            if item is self.feature or item in self.strips:
                leaves.append(item)
            elif item in self.expanded:
                leaves.append(self.expanded[item])
            elif op_name(item) == "mul" and len(item.users) == 1 and (below := self._leaves(item)) is not None:
                leaves += below
            else:
                return None
        return leaves

    def _branch(self, gate: fx.Node) -> Branch | str:
        """Read a gate's chain as pool, convolution, activation, convolution, gate; or say why it is not one."""
        strip = self.strips[gate]
        direction = strip.directions[0]
        if len(strip.directions) != 1:
            return f"{gate.name} holds both strips"
        if strip.axes != BROADCAST[direction]:
            return f"{gate.name} comes from the {direction} but does not lie along them"
        chain = [node for name in strip.chain if op_name(node := self.nodes[name]) != "batch_norm"]
        convs = [node for node in chain if op_name(node) in CONVOLUTIONS]
        if not chain or self._operator(chain[-1]) not in GATES:
            return f"{gate.name} is no sigmoid or hard-sigmoid, so it is no gate"
        if len(convs) != 2 or len(chain) > 4 or chain[0] is not convs[0] or chain[-2] is not convs[1]:
            names = ", ".join(node.name for node in chain)
            return f"between pool and product stand {names}; expected: convolution, activation, convolution, gate"
        channels, expected = sizes(gate)[1], sizes(self.feature)[1]
        if channels != expected:
            return f"{gate.name} has {channels} channels, the feature map has {expected}"
        activation = chain[1].name if len(chain) == 4 else None
        return Branch(direction, strip.pools[0], convs[0].name, activation, convs[1].name, chain[-1].name)

    def _operator(self, node: fx.Node) -> str:
        found = self.activations.get(node.name)
        return op_name(node) if found is None else found.op_name

    def _between(self, output: fx.Node) -> list[fx.Node]:
        """All calls on the ways from the feature map to *output*, in execution order, without both ends."""
        seen: set[fx.Node] = set()
        pending = deque(output.all_input_nodes)
        while pending:
            node = pending.popleft()
            if node is not self.feature and node not in seen and is_call(node):
                seen.add(node)
                pending += node.all_input_nodes
        return [node for node in self.module.graph.nodes if node in seen]

    def _described(self, output: fx.Node, branches: tuple[Branch, ...], inner: list[fx.Node]) -> AttentionBlock:
        shape = sizes(self.feature)
        kernel = weight(self.module, argument(self.nodes[branches[0].squeeze], 1, "weight"))
        assert kernel is not None  # noqa: S101 - not_pointwise has checked it
        strips = {node.name: self.strips[node] for node in inner if node in self.strips}
        return AttentionBlock(
            kind=Kind.SQUEEZE_EXCITE if branches[0].direction == WHOLE else Kind.COORDATT,
            name=common_path(self.paths.get(node.name, "") for node in (*inner, output)) or output.name,
            channels=int(shape[1]),
            height=shape[2] if isinstance(shape[2], int) else None,
            width=shape[3] if isinstance(shape[3], int) else None,
            feature=self.feature.name,
            output=output.name,
            anatomy=Branches(int(kernel.shape[0]), branches, strips),
            inner=tuple(node.name for node in inner),
        )


def common_path(paths: Iterable[str]) -> str:
    """Path of the innermost module that holds all of these; calls without a path are left out."""
    shared: list[str] = []
    for parts in zip(*(path.split(".") for path in paths if path), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
