"""Refuse a network whose own code puts the images of a batch together, or counts them.

torch.export follows such code, and the graph computes what the code computes; but what it returns has no row per image:
``x.view(1, -1)`` gives one row for all of them.
"""

from collections.abc import Iterator
from typing import Final

import torch
from torch import fx

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.call_arguments import outputs, same_size, sizes
from coordatt_deploy.graph.graph import Graph, is_tensor, module_path, op_name
from coordatt_deploy.user_code import source_line

FIXED_BATCH: Final = (
    "let the code ask for it, as in x.flatten(1) or x.reshape(x.shape[0], -1), or leave --dynamic-batch out"
)


def check_batch(graph: Graph) -> None:
    """Look at every output of a graph with a dynamic batch.

    Raises:
        UsageError: An output's first axis is a number, and the images lie along another axis, beside other values.
    """
    batch = next(sizes(node)[0] for node in graph.module.graph.nodes if node.op == "placeholder")
    for node, name in zip(outputs(graph.module.graph), graph.outputs, strict=True):
        if is_tensor(node) and _joins(node, batch):
            maker = next(item for item in _behind(node) if _joins(item, batch))
            at = source_line(maker.meta.get("stack_trace") or "")
            layer = module_path(maker) or "the model's own forward"
            raise UsageError(
                f"the output {name} has a first axis of {sizes(node)[0]} for every batch: {op_name(maker)} in {layer}"
                f"{f' at {at}' if at else ''} puts the images of a batch together; {FIXED_BATCH}"
            )


def _joins(node: fx.Node, batch: int | torch.SymInt) -> bool:
    """Whether a tensor has a number for its first axis, and the batch times something on another."""
    first, *others = sizes(node) or (batch,)
    return isinstance(first, int) and any(_depends(size, batch) and not same_size(size, batch) for size in others)


def _depends(size: int | torch.SymInt, batch: int | torch.SymInt) -> bool:
    if isinstance(size, int) or isinstance(batch, int):
        return False
    return bool(batch.node.expr.free_symbols & size.node.expr.free_symbols)


def _behind(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the tensors that *node* is made of, itself included, in the order in which they are computed."""
    needed = {node}
    for item in reversed(node.graph.nodes):
        if item in needed:
            needed.update(item.all_input_nodes)
    yield from (item for item in node.graph.nodes if item in needed and is_tensor(item))
