"""Add calls to a flat graph in place, with the shapes of their results and the module that they stand for."""

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import Argument, Target

from coordatt_deploy.graph.graph import attach, module_path, weight, weight_name


class Editor:
    """Adds calls to *module*, whose values carry their shapes (``meta["val"]``)."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.mode = fake_mode(module)

    def call(self, like: fx.Node, target: Target, *args: Argument, **kwargs: Argument) -> fx.Node:
        """Add a call before *like*, as if the module that called *like* had made it."""
        assert callable(target)  # noqa: S101 - targets of other nodes are names
        with self.module.graph.inserting_before(like):
            node = self.module.graph.call_function(target, args, kwargs)
        node.meta = {key: like.meta[key] for key in ("nn_module_stack", "stack_trace") if key in like.meta}
        node.meta["val"] = result_of(node, self.module, self.mode)
        return node

    def constant(self, like: fx.Node, name: str, tensor: torch.Tensor) -> fx.Node:
        """Read a new weight before *like*, named below the module that called it."""
        taken = {key for key, _ in self.module.named_buffers()} | {key for key, _ in self.module.named_modules()}
        free = base = weight_name(f"{module_path(like)}.{name}".lstrip("."))
        index = 1
        while free in taken:
            index += 1
            free = f"{base}_{index}"
        attach(self.module, free, tensor.detach().clone().contiguous())
        with self.module.graph.inserting_before(like):
            node = self.module.graph.get_attr(free)
        node.meta["val"] = self.mode.from_tensor(tensor.detach().contiguous(), static_shapes=True)
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Give the users of *old* the value of *new*, and drop *old*."""
        old.replace_all_uses_with(new)
        self.module.graph.erase_node(old)


def result_of(node: fx.Node, module: fx.GraphModule, mode: FakeTensorMode) -> object:
    """Return what a new call gives, as a value that carries its shape."""

    def known(item: fx.Node) -> Argument:
        tensor = weight(module, item)
        value: Argument = item.meta["val"] if tensor is None else mode.from_tensor(tensor, static_shapes=True)
        return value

    assert callable(node.target)  # noqa: S101 - targets of other nodes are names
    with mode:
        return node.target(*fx.map_arg(node.args, known), **fx.map_arg(node.kwargs, known))


def fake_mode(module: fx.GraphModule) -> FakeTensorMode:
    """Return the mode in which the shapes of a graph's values were computed.

    Raises:
        ValueError: The graph carries no shapes.
    """
    for node in module.graph.nodes:
        if isinstance(node.meta.get("val"), FakeTensor):
            mode: FakeTensorMode = node.meta["val"].fake_mode
            return mode
    raise ValueError("the graph carries no shapes; capture it or annotate it first")
