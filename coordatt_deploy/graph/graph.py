"""The captured graph: ATen calls, weights, and what is asked of a single node."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import fx, nn

from coordatt_deploy import tensors
from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.layer_map import LayerMap, Part

aten = torch.ops.aten


Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class DynamicSize:
    """Bounds of a dynamic height and width, in pixels, both inclusive; every size is a multiple of ``multiple``."""

    minimum: int
    maximum: int
    multiple: int = 1


@dataclass(frozen=True, slots=True)
class Graph:
    """A captured network: pure ATen calls, weights included.

    Attributes:
        module: Flat; takes the inputs in order and returns a tuple of the outputs. Weights are ``get_attr`` nodes.
        inputs: In the layout and sizes of the capture (NCHW float32).
        outputs: Stable names, in order.
        layers: Every layer of the *captured* network; a part's tensor is the name of a node of ``module``.
        example: One tensor per input, of the captured size.
        dynamic: Bounds of height and width; None for a static size.
        assignments: Layer ids of the slice assignments that were written as concatenations.
    """

    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    layers: LayerMap
    example: tuple[torch.Tensor, ...]
    dynamic: DynamicSize | None = None
    assignments: tuple[str, ...] = ()

    def edited(
        self, module: fx.GraphModule, places: Mapping[str, Part | None], reasons: Mapping[str, str] | None = None
    ) -> "Graph":
        """Return the graph after a pass that turned ``self.module`` into *module*.

        Args:
            module: The edited copy; nodes that are not in *places* kept their name and value.
            places: Where the value of an old node is now; None where it is gone.
            reasons: Why it is gone (``->layer_id`` where it is seen through that layer).
        """
        module.graph.lint()
        module.recompile()
        kept = {node.name for node in module.graph.nodes}
        everywhere = {node.name: Part(node.name) for node in self.module.graph.nodes if node.name in kept}
        return replace(self, module=module, layers=self.layers.carried({**everywhere, **places}, reasons))

    def layer_of(self, node_name: str) -> str | None:
        """Return the first layer whose value, or a part of it, is at the node of that name."""
        for layer in self.layers.layers:
            if any(part.tensor == node_name for part in layer.parts):
                return layer.layer_id
        return None


def layout(rank: int) -> str:
    """Return the axis letters of a tensor of the reference; empty where they are not known."""
    return "NCHW"[:rank] if rank <= 4 else ""


def tensor_outputs(returned: Any) -> list[torch.Tensor]:
    """Return the tensors among what a model returned, in the order of a captured graph's outputs."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(returned) if isinstance(leaf, torch.Tensor)]


def weights_sha256(module: nn.Module) -> str:
    """Return the hash of all weights; see ``tensors.weights_sha256``."""
    return tensors.weights_sha256({name: tensor.detach().numpy() for name, tensor in module.state_dict().items()})


def attach(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Register *tensor* as a buffer under a dotted name, making the modules on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.register_buffer(leaf, tensor)


def weight(module: fx.GraphModule, node: Any) -> torch.Tensor | None:
    """Return the tensor behind a ``get_attr`` node; None if *node* is anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, torch.Tensor) else None


def is_tensor(node: fx.Node) -> bool:
    """Whether a call gives one tensor (not a tuple of them, not a size)."""
    return node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor)


def operator_name(node: fx.Node) -> str:
    """``conv2d`` for ``aten.conv2d.default``."""
    target: Any = node.target
    return str(getattr(target, "overloadpacket", target).__name__)


def module_path(node: fx.Node) -> str:
    """Return the dotted name of the module whose forward made this call; empty for the root."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def _shape(value: torch.Tensor) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def is_call(node: fx.Node) -> bool:
    """Whether the node computes a tensor or a tuple of tensors (sizes and guards do not)."""
    value = node.meta.get("val")
    computes = isinstance(value, torch.Tensor) or (
        isinstance(value, (tuple, list)) and any(isinstance(item, torch.Tensor) for item in value)
    )
    return node.op == "call_function" and (computes or node.target is operator.getitem)
