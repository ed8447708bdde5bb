"""Find mixed pooling modules (MPM): what two strips and some grids of means say is joined, mixed and added to the map.

    near, far = mix(x), mix(x)
    y = x + mix(join(conv(near + grid means of near, spread), conv(row means of far + column means of far)))

Q. Hou et al., "Strip Pooling", CVPR 2020. Nothing in it gates the map, so it is no block of ``families``. It is named,
and exported as it stands: no runtime was measured to run it faster in another form.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from torch import fx

from coordatt_deploy.graph.call_arguments import sizes
from coordatt_deploy.graph.graph import is_call, op_name
from coordatt_deploy.graph.lowering.blocks import AttentionBlock, Kind, Role, Term, Terms
from coordatt_deploy.graph.lowering.strip_axes import AVERAGES, CONVOLUTIONS, UNARY

_SPREADS: Final = frozenset({"upsample_bilinear2d", "upsample_nearest2d", "expand", "expand_as"})
_STEPS: Final = frozenset(CONVOLUTIONS) | frozenset(UNARY) | _SPREADS | {"batch_norm"}
_POOLS: Final = frozenset(AVERAGES) | {"mean"}
_INNER: Final = _STEPS | _POOLS | {"add", "cat"}


def mixed_pooling(
    far: fx.Node, pools: Mapping[fx.Node, tuple[tuple[int, ...], bool]], inside: Iterable[str]
) -> AttentionBlock | None:
    """Return the module whose strips are pools of *far*; None if there is none.

    Args:
        far: A map with pools over its rows and over its columns.
        pools: Each with the axes that it reduces, and whether it takes the mean.
        inside: Names of the nodes that hard activations are made of.
    """
    strips = [[node for node, pool in pools.items() if pool == (axes, True)] for axes in ((3,), (2,))]
    if [len(nodes) for nodes in strips] != [1, 1]:
        return None
    steps = _Steps(frozenset(inside))
    summed = steps.first_after({node for nodes in strips for node in nodes}, "add")
    joined = None if summed is None else steps.first_after({summed}, "cat")
    total = None if joined is None else steps.first_after({joined}, "add")
    if summed is None or joined is None or total is None:
        return None
    if not all(steps.leads(nodes[0], summed) for nodes in strips):
        return None
    for feature in total.all_input_nodes:
        inner = steps.between(feature, total)
        if inner is not None and {far, joined} <= set(inner) and _has_grids(inner, pools):
            return _block(feature, total, inner)
    return None


class _Steps:
    """Follows values through the operators that such a module is made of."""

    def __init__(self, inside: frozenset[str]) -> None:
        self.inside = inside

    def _is_step(self, node: fx.Node, operators: frozenset[str] = _STEPS) -> bool:
        return op_name(node) in operators or node.name in self.inside

    def first_after(self, starts: set[fx.Node], operator: str) -> fx.Node | None:
        """The first *operator* that steps from *starts* lead to, in execution order."""
        pending, seen = [*starts], set(starts)
        found = []
        while pending:
            for user in pending.pop().users:
                if user in seen:
                    continue
                seen.add(user)
                if op_name(user) == operator and user.name not in self.inside:
                    found.append(user)
                elif self._is_step(user):
                    pending.append(user)
        return min(found, default=None)

    def leads(self, start: fx.Node, end: fx.Node) -> bool:
        """Whether steps lead from one to the other, and one operand of *end* is made of it alone."""
        return self.first_after({start}, op_name(end)) is end

    def between(self, feature: fx.Node, output: fx.Node) -> list[fx.Node] | None:
        """All calls between a map and *output*, in execution order; None where others have a part in them."""
        seen: set[fx.Node] = set()
        pending = [*output.all_input_nodes]
        while pending:
            node = pending.pop()
            if node is feature or node in seen or not is_call(node):
                if node.op == "placeholder" and node is not feature:
                    return None
                continue
            if not self._is_step(node, _INNER):
                return None
            seen.add(node)
            pending += node.all_input_nodes
        alone = all(user in seen or user is output or not is_call(user) for node in seen for user in node.users)
        return sorted(seen) if alone else None


def _has_grids(inner: Iterable[fx.Node], pools: Mapping[fx.Node, tuple[tuple[int, ...], bool]]) -> bool:
    return any(op_name(node) in _POOLS and node not in pools for node in inner)


def _block(feature: fx.Node, output: fx.Node, inner: list[fx.Node]) -> AttentionBlock:
    _, channels, height, width = sizes(feature)
    return AttentionBlock(
        kind=Kind.MIXED_POOLING,
        name=output.name,
        channels=int(channels),
        height=height if isinstance(height, int) else None,
        width=width if isinstance(width, int) else None,
        feature=feature.name,
        output=output.name,
        anatomy=Terms(None, Term(Role.FEATURE, feature.name, "NCHW"), {}),  # nothing writes it anew
        inner=tuple(node.name for node in inner),
    )
