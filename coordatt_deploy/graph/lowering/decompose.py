"""Put operators that a converter does not write, or writes wrongly, in the terms of others."""

from collections.abc import Sequence
from typing import Final

from torch import fx

from coordatt_deploy.graph.graph import Graph, is_tensor
from coordatt_deploy.graph.lowering.decompositions.table import DECOMPOSITIONS, Decomposition, operator_of
from coordatt_deploy.graph.rewriter import LETTERS, Placed, Rewriter
from coordatt_deploy.manifest import DecomposedOperator

ROUNDS: Final = 3  # what one decomposition is written with may need another, and that one more


def decompose(graph: Graph, wanted: Sequence[Decomposition]) -> tuple[Graph, tuple[DecomposedOperator, ...]]:
    """Write every call anew that one of the *wanted* decompositions is for.

    Returns:
        The graph, *graph* itself where nothing is to be written anew, and what was, in execution order.
    """
    done: list[DecomposedOperator] = []
    for _ in range(ROUNDS):
        rewriter = Rewriter(graph)
        found = _round(rewriter, wanted)
        if not found:
            break
        graph = rewriter.finish()
        done += found
    return graph, tuple(done)


def _round(rewriter: Rewriter, wanted: Sequence[Decomposition]) -> list[DecomposedOperator]:
    found = []
    for node in list(rewriter.module.graph.nodes):
        name = operator_of(node)
        if not is_tensor(node) or not node.users:
            continue
        for rule in (rule for rule in wanted if name in DECOMPOSITIONS[rule].operators):
            with rewriter.before(node, node):
                result = DECOMPOSITIONS[rule].write(rewriter, node)
            if result is not None:
                layer = rewriter.graph.layer_of(node.name) or node.name
                found.append(DecomposedOperator(layer, name, rule.value))
                _hand_on(rewriter, node, result)
                break
    return found


def _hand_on(rewriter: Rewriter, node: fx.Node, result: fx.Node) -> None:
    """Give the users of *node* the new value, and its layer the place where it is now."""
    if str(tuple(result.meta["val"].shape)) == str(tuple(node.meta["val"].shape)):
        letters = LETTERS[: node.meta["val"].ndim]
        rewriter.put(node.name, letters, [Placed(result, letters)])
    else:  # a copy that broadcasting makes unnecessary: it is judged where it is used
        rewriter.fuse(node.name, _first_layer(rewriter.graph, node).name)
    rewriter.replace(node, result)


def _first_layer(graph: Graph, node: fx.Node) -> fx.Node:
    """The nearest node behind *node* that holds a layer's value."""
    behind = [*node.users]
    while behind:
        user = behind.pop(0)
        if graph.layer_of(user.name) is not None:
            return user
        behind += user.users
    return node
