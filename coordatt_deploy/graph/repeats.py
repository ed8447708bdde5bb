"""Calls that compute what an earlier call has computed already: a head that is called twice on the same features."""

from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.graph import op_name
from coordatt_deploy.graph.summation_order import averaged_axes

# Their results differ from call to call.
RANDOM: Final = torch.Tag.nondeterministic_seeded


def repeated_calls(graph: fx.Graph) -> dict[str, str]:
    """Return, for the name of each call that is made a second time, the name of the first.

    Calls are the same where operator and arguments are, and where these are made by calls that are the same. Many
    converters keep one of them, so that one tensor of a file is several layers of the network.
    """
    first: dict[tuple[object, str], fx.Node] = {}
    same: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op not in ("call_function", "get_attr") or RANDOM in getattr(node.target, "tags", ()):
            continue
        arguments = fx.map_arg((node.args, node.kwargs), lambda item: same.get(item, item))
        kept = first.setdefault((node.target, repr(arguments)), node)
        if kept is not node:
            same[node] = kept
    return {node.name: kept.name for node, kept in same.items() if node.op == "call_function"}


def same_means(graph: fx.Graph) -> dict[str, frozenset[str]]:
    """Return, for the name of each mean over whole axes, the others that take the same mean, in whatever shape.

    Such as ``x.mean((2, 3))`` and ``adaptive_avg_pool2d(x, 1)``: converters write both as one operator, and keep one.
    """
    first = repeated_calls(graph)
    groups: dict[tuple[str, tuple[int, ...]], set[str]] = {}
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_function" and node.args else None
        if op_name(node) == "sum" or not isinstance(source, fx.Node):
            continue
        read, made = source.meta.get("val"), node.meta.get("val")
        if (
            isinstance(read, torch.Tensor)
            and isinstance(made, torch.Tensor)
            and (axes := averaged_axes(node, read, made))
        ):
            groups.setdefault((first.get(source.name, source.name), axes), set()).add(node.name)
    return {name: frozenset(names - {name}) for names in groups.values() for name in names if len(names) > 1}
