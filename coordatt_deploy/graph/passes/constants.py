"""Make a freshly captured graph say what the user's network does, not how torch.export came to write it down.

Weights that are computed from weights alone (a kernel that is chunked, standardised or re-parameterised in ``forward``)
become plain weights. Sizes are read off the value that the user read them off: torch.export reads them off the first
value that has them, which makes a convolution look as if something besides its BatchNorm used it.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import fx
from torch.fx.node import Argument

from coordatt_deploy.graph.graph import attach, module_path, overloads, weight, weight_name
from coordatt_deploy.graph.operators import Trait

LARGEST_CONSTANT: Final = 4_000_000  # elements: 16 MB; beyond it computing anew is the smaller evil
NOT_CONSTANT: Final = overloads(Trait.NOT_CONSTANT)
READS_SIZE: Final = overloads(Trait.READS_SIZE)


def compute_constants(module: fx.GraphModule) -> tuple[str, ...]:
    """Replace every value that depends on weights alone by a weight, in place.

    Returns:
        The names of the new weights.
    """
    known: dict[fx.Node, Argument] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            known[node] = weight(module, node)
        elif node.op == "call_function" and _is_constant(node, known):
            with torch.no_grad():
                known[node] = fx.Interpreter(module).call_function(
                    node.target,
                    fx.map_arg(node.args, known.__getitem__),
                    fx.map_arg(node.kwargs, known.__getitem__),
                )
    made = []
    for node in list(module.graph.nodes):
        value = known.get(node)
        needed = any(user not in known for user in node.users)
        if node.op == "call_function" and needed and isinstance(value, torch.Tensor):
            name = _free_name(module, node)
            attach(module, name, value.detach().clone().contiguous())
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            constant.meta = {"val": node.meta["val"]}
            node.replace_all_uses_with(constant)
            made.append(name)
    module.graph.eliminate_dead_code()
    return tuple(made)


def _is_constant(node: fx.Node, known: Mapping[fx.Node, Argument]) -> bool:
    if not all(source in known for source in node.all_input_nodes):
        return False
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        sizes = tuple(value.shape)
        if not all(isinstance(size, int) for size in sizes) or value.numel() > LARGEST_CONSTANT:
            return False
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):  # getitem of a tuple that is known
        return bool(node.all_input_nodes)
    is_random = torch.Tag.nondeterministic_seeded in target.tags
    return target not in NOT_CONSTANT and not is_random and _makes_tensors(target._schema)


def _makes_tensors(schema: torch._C.FunctionSchema) -> bool:
    return all(str(item.type) in {"Tensor", "List[Tensor]"} for item in schema.returns)


def _free_name(module: fx.GraphModule, node: fx.Node) -> str:
    """A name below the module whose forward computes the value."""
    path = module_path(node)
    taken = {name for name, _ in module.named_buffers()}
    name = base = weight_name(f"{path}.{node.name}".lstrip("."))
    count = 1
    while name in taken or name in {child for child, _ in module.named_modules()}:
        count += 1
        name = f"{base}_{count}"
    return name


def read_sizes_late(module: fx.GraphModule) -> None:
    """Read sizes off the last value in a chain of operators that keep them, in place.

    The chain is followed as long as one operator alone takes the value and keeps its shape, and ends before the first
    place that needs the size.
    """
    position = {node: index for index, node in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        if node.target not in READS_SIZE or not node.users:
            continue
        first_use = min(position[user] for user in node.users)
        value = node.args[0]
        while True:
            takers = [user for user in value.users if user.target not in READS_SIZE]
            if (
                len(takers) != 1
                or position.get(takers[0], first_use) >= first_use
                or not _keeps_shape(value, takers[0])
            ):
                break
            value = takers[0]
        if value is not node.args[0]:
            node.args = (value, *node.args[1:])
            value.append(node)


def _keeps_shape(before: fx.Node, after: fx.Node) -> bool:
    old, new = before.meta.get("val"), after.meta.get("val")
    if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor) or old.ndim != new.ndim:
        return False
    # Symbols are compared as expressions: comparing sizes themselves would ask torch to guess.
    return (
        all(str(one) == str(other) for one, other in zip(old.shape, new.shape, strict=True)) and after.args[0] is before
    )
