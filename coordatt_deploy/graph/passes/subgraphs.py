"""Put the operators of a subgraph in the place of its call: ``torch.no_grad()`` or ``autocast`` inside ``forward``.

torch.export keeps what is under such a statement as a call of a graph of its own. No file knows gradients or autocast,
so its operators stand in the surrounding graph as if the statement had not been written.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import fx
from torch.fx.node import Argument, Target

# Position of the subgraph among the arguments of its call; what the graph takes comes behind it.
CALLS: Final[Mapping[Target, int]] = {
    torch.ops.higher_order.wrap_with_set_grad_enabled: 1,
    torch.ops.higher_order.wrap_with_autocast: 4,
}


def without_subgraphs(module: fx.GraphModule) -> fx.Graph:
    """Return the graph of *module* with every subgraph's operators in the place of its call.

    Placeholders keep their names. A graph without subgraphs is returned itself.
    """
    if not any(node.target in CALLS for node in module.graph.nodes):
        return module.graph
    graph = fx.Graph()
    copies: dict[fx.Node, Argument] = {}
    for node in module.graph.nodes:
        if node.op == "output":
            graph.output(fx.map_arg(node.args[0], copies.__getitem__))
        else:
            _copy(module, node, graph, copies)
    return graph


def casts(module: fx.GraphModule) -> bool:
    """Whether a subgraph computes in half precision on the CPU: autocast that is switched on."""
    for node in module.graph.nodes:
        at = CALLS.get(node.target)
        if at is None:
            continue
        # autocast gives device, type, enabled, cache
        if at == CALLS[torch.ops.higher_order.wrap_with_autocast] and node.args[0] == "cpu" and node.args[2]:
            return True
        if casts(_inner(module, node, at)):
            return True
    return False


def _copy(module: fx.GraphModule, node: fx.Node, graph: fx.Graph, copies: dict[fx.Node, Argument]) -> None:
    """Append one node of *module* to *graph*, a subgraph as its operators."""
    at, first = CALLS.get(node.target), node.args[0] if node.args else None
    if at is not None:
        inner = _inner(module, node, at)
        copies[node] = _append(inner, fx.map_arg(node.args[at + 1 :], copies.__getitem__), graph)
    elif isinstance(first, fx.Node) and first.target in CALLS:  # an element of what a subgraph gives
        results, index = copies[first], node.args[1]
        assert isinstance(results, Sequence)  # noqa: S101 - _append gives all results
        assert isinstance(index, int)  # noqa: S101
        copies[node] = results[index]
    elif node.op != "get_attr" or not isinstance(getattr(module, str(node.target), None), fx.GraphModule):
        copies[node] = graph.node_copy(node, copies.__getitem__)


def _inner(module: fx.GraphModule, node: fx.Node, at: int) -> fx.GraphModule:
    read = node.args[at]
    assert isinstance(read, fx.Node)  # noqa: S101 - torch.export reads the subgraph's graph off an attribute
    return module.get_submodule(str(read.target))  # type: ignore[return-value]


def _append(inner: fx.GraphModule, given: Sequence[Argument], graph: fx.Graph) -> Argument:
    """Append the operators of a subgraph to *graph* and return its results."""
    remaining = iter(given)
    copies: dict[fx.Node, Argument] = {}
    for node in inner.graph.nodes:
        if node.op == "placeholder":
            copies[node] = next(remaining)
        elif node.op == "output":
            results = fx.map_arg(node.args[0], copies.__getitem__)
            return results if isinstance(results, Sequence) else (results,)
        else:
            _copy(inner, node, graph, copies)
    raise ValueError("a subgraph of the program gives nothing")
