"""Refuse networks that draw random numbers: two runs of one disagree, so no file can be held against it."""

from typing import Final

import torch
from torch import fx

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.call_arguments import argument
from coordatt_deploy.graph.graph import Graph, op_name
from coordatt_deploy.graph.operators import Trait, having
from coordatt_deploy.user_code import source_line

RANDOM: Final = having(Trait.RANDOM)
# Operators that draw only where an argument says so: its position, its name, and what it is where nothing is drawn.
_QUIET: Final = {"rrelu": (3, "training", False), "scaled_dot_product_attention": (4, "dropout_p", 0.0)}


def check_deterministic(graph: Graph) -> None:
    """Refuse a captured graph whose result depends on random numbers.

    Raises:
        UsageError: The text names each operator with the user's line, and what to do.
    """
    nodes = [node for node in graph.module.graph.nodes if _draws(node)]
    if not nodes:
        return
    places = dict.fromkeys(
        f"{op_name(node)}{f' at {at}' if (at := source_line(node.meta.get('stack_trace') or '')) else ''}"
        for node in nodes
    )
    raise UsageError(
        f"the model draws random numbers while it runs ({', '.join(places)}), so no two runs of it agree and no file"
        " can be held against it; let the noise follow self.training, or keep fixed numbers with register_buffer"
    )


def _draws(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not node.users:
        return False
    if op_name(node) in _QUIET:
        position, name, quiet = _QUIET[op_name(node)]
        return bool(argument(node, position, name, quiet) != quiet)
    return torch.Tag.nondeterministic_seeded in target.tags or op_name(node) in RANDOM
