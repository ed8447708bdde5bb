"""Drop the operators that compute nothing at inference: copies, aliases, dropout, guards."""

from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.graph import aten, erase_unused_reads, overloads
from coordatt_deploy.graph.operators import Trait

IDENTITIES: Final = overloads(Trait.IDENTITY)
VIEWS: Final = frozenset({aten.view.default, aten._unsafe_view.default})


def drop_identities(module: fx.GraphModule) -> None:
    """Drop what computes nothing, in place; a view of a value that was copied first is a reshape of the value."""
    for node in list(module.graph.nodes):
        is_guard = node.op == "call_function" and "assert" in getattr(node.target, "__name__", "")
        if node.target in IDENTITIES:
            if _moves_memory(node):
                _reshape_behind(node)
            node.replace_all_uses_with(node.args[0])
        if (node.target in IDENTITIES or is_guard) and not node.users:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    erase_unused_reads(module)
    module.delete_all_unused_submodules()
    module.recompile()


def _moves_memory(node: fx.Node) -> bool:
    """Whether a copy lies in memory otherwise than what it copies, which is what a view asks for."""
    values = [item.meta.get("val") for item in (node, node.args[0]) if isinstance(item, fx.Node)]
    strides = [tuple(map(str, value.stride())) for value in values if isinstance(value, torch.Tensor)]
    return len(strides) == 2 and strides[0] != strides[1]


def _reshape_behind(node: fx.Node) -> None:
    """Turn the views that follow on *node* into reshapes, which mean the same wherever the values lie in memory."""
    pending, seen = [*node.users], set[fx.Node]()
    while pending:
        user = pending.pop()
        if user not in seen:
            seen.add(user)
            pending += user.users
            if user.target in VIEWS:
                user.target = aten.reshape.default
