"""Calls that compute what an earlier call has computed already: a head that is called twice on the same features."""

from typing import Final

import torch
from torch import fx

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
