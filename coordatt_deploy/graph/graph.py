"""The captured graph: ATen calls, weights, and what is asked of a single node."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import fx, nn

from coordatt_deploy import tensors
from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.graph.operators import OPERATORS, Trait
from coordatt_deploy.layer_map import LayerMap, Part

aten = torch.ops.aten

Feeds = Mapping[str, NumberArray]
"""One array per input, by its name, in the layout of the capture."""

# Attributes that torch's modules have of their own: a weight of that name would stand in the place of one.
RESERVED: Final = frozenset(dir(nn.Module()))
RESERVED_AT_ROOT: Final = frozenset(dir(fx.GraphModule))


@dataclass(frozen=True, slots=True)
class DynamicSize:
    """Bounds of a dynamic height and width, in pixels, both inclusive; every size is a multiple of ``multiple``."""

    minimum: int
    maximum: int
    multiple: int = 1


@dataclass(frozen=True, slots=True)
class DynamicBatch:
    """Bounds of a dynamic batch, both inclusive: how many images the network takes at once."""

    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class Graph:
    """A captured network: pure ATen calls, weights included.

    Attributes:
        module: Flat; takes the inputs in order and returns a tuple of the outputs. Weights are ``get_attr`` nodes.
        inputs: The inputs in the layout and sizes of the capture (NCHW float32).
        outputs: The outputs' stable names, in order.
        layers: Every layer of the *captured* network; a part's tensor is the name of a node of ``module``.
        example: One tensor per input, of the captured size.
        dynamic: Bounds of height and width; None for a static size.
        batch: Bounds of the first axis of the inputs that share it; None for a static batch.
        assignments: Layer ids of the slice assignments that were written as concatenations.
    """

    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    layers: LayerMap
    example: tuple[torch.Tensor, ...]
    dynamic: DynamicSize | None = None
    batch: DynamicBatch | None = None
    assignments: tuple[str, ...] = ()

    @property
    def is_dynamic(self) -> bool:
        """Whether any axis of an input takes more than one size."""
        return self.dynamic is not None or self.batch is not None

    @property
    def images_at_once(self) -> int:
        """How many images a case has: the batch, and of a dynamic one the smallest."""
        return self.example[0].shape[0] if self.batch is None else self.batch.minimum

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


def tensor_outputs(returned: object) -> list[torch.Tensor]:
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


def weight_name(name: str) -> str:
    """Return *name*, a dotted one, with ``_`` behind each part that torch's modules have as an attribute of their own.

    >>> weight_name("meta.to")
    'meta_.to_'
    """
    root, *others = name.split(".")
    own = RESERVED | RESERVED_AT_ROOT
    return ".".join(
        [f"{root}_" if root in own else root, *(f"{part}_" if part in RESERVED else part for part in others)]
    )


def weight(module: fx.GraphModule, node: object) -> torch.Tensor | None:
    """Return the tensor behind a ``get_attr`` node; None if *node* is anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: object = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, torch.Tensor) else None


def erase_unused_reads(module: fx.GraphModule) -> None:
    """Remove the nodes that read a weight for nobody."""
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)


def drop_unused_weights(module: fx.GraphModule) -> None:
    """Remove the weights that no node reads."""
    erase_unused_reads(module)
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_buffers(), *module.named_parameters()]:
        if name not in used:
            path, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(path), leaf)
    module.delete_all_unused_submodules()


def is_tensor(node: fx.Node) -> bool:
    """Whether a call gives one tensor (not a tuple of them, not a size)."""
    return node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor)


def is_judged(node: fx.Node) -> bool:
    """Whether a call gives one tensor that is a layer.

    Complex numbers have no form of their own in files: what is computed from them is judged in their place. The only
    copies in a graph are outputs of a value that is judged as another output, which the user's network does not have.
    """
    return is_tensor(node) and node.target is not aten.clone.default and not node.meta["val"].dtype.is_complex


def op_name(node: object) -> str:
    """Return ``conv2d`` for a call of ``aten.conv2d.default``.

    An in-place variant has the name of the operator itself; what is not a call has an empty name.
    """
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return ""
    function = node.target.overloadpacket if isinstance(node.target, torch._ops.OpOverload) else node.target
    name = str(getattr(function, "__name__", function))
    return name if name.endswith("__") else name.removesuffix("_")


def overloads(trait: Trait) -> frozenset[object]:
    """Return the targets of calls whose operators have *trait*: of each the one overload that its row names."""
    rows = [row for row in OPERATORS.values() if trait in row.traits]
    return frozenset(getattr(getattr(aten, row.name), row.overload) for row in rows)


def module_path(node: fx.Node) -> str:
    """Return the dotted name of the module whose forward made this call; empty for the root."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def static_shape(value: torch.Tensor) -> tuple[int | None, ...]:
    """Return the sizes of a tensor; None for each that is dynamic."""
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def reshape_sizes(value: torch.Tensor) -> list[int] | None:
    """Return the sizes of a tensor for a reshape, a dynamic batch as -1; None where any other size is dynamic."""
    if value.ndim and None in static_shape(value)[1:]:
        return None
    return [-1 if size is None else size for size in static_shape(value)]


def at_capture(size: int | torch.SymInt) -> int:
    """Return a size as it was when the network was captured."""
    return size if isinstance(size, int) else int(size.node.hint)


def is_call(node: fx.Node) -> bool:
    """Whether the node computes a tensor or a tuple of tensors (sizes and guards do not)."""
    value = node.meta.get("val")
    computes = isinstance(value, torch.Tensor) or (
        isinstance(value, (tuple, list)) and any(isinstance(item, torch.Tensor) for item in value)
    )
    return node.op == "call_function" and (computes or node.target is operator.getitem)
