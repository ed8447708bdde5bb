"""Export an edited graph again for the converters, and follow its nodes through that."""

import operator
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.graph.graph import DynamicBatch, DynamicSize, Graph, is_call

_SIZE_AXES: Final = {2: "height", 3: "width"}
BATCH: Final = "batch"


def dynamic_shapes(
    example: Sequence[torch.Tensor], dynamic: DynamicSize | None, batch: DynamicBatch | None = None
) -> tuple[dict[int, Dim] | None, ...]:
    """Return what torch.export is to take for a symbol.

    Args:
        example: One tensor per input.
        dynamic: Bounds of height and width of every 4-D input.
        batch: Bounds of the first axis, of every input where it is as long as that of the first input.
    """
    sizes = {} if dynamic is None else _sizes(dynamic)
    images = None if batch is None else Dim(BATCH, min=batch.minimum, max=batch.maximum)
    shapes = []
    for tensor in example:
        axes = dict(sizes) if tensor.ndim == 4 else {}
        if images is not None and tensor.ndim and tensor.shape[0] == example[0].shape[0]:
            axes[0] = images
        shapes.append(axes or None)
    return tuple(shapes)


def _sizes(dynamic: DynamicSize) -> dict[int, Dim]:
    step = dynamic.multiple
    bounds = {"min": -(-dynamic.minimum // step), "max": dynamic.maximum // step}
    axes = {axis: Dim(name if step == 1 else f"_{name}", **bounds) for axis, name in _SIZE_AXES.items()}
    return {axis: symbol if step == 1 else step * symbol for axis, symbol in axes.items()}


def program(graph: Graph) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    """Export the edited graph again, for the converters.

    Returns:
        The program, and for each call of ``graph.module`` the name of the program's node that makes it.

    Raises:
        ConversionError: The new program makes other calls than the graph.
    """
    shapes = dynamic_shapes(graph.example, graph.dynamic, graph.batch) if graph.is_dynamic else None
    exported = torch.export.export(graph.module, graph.example, dynamic_shapes=shapes, strict=False)
    before, after = (
        [node for node in calls if is_call(node) and node.target is not operator.getitem]
        for calls in (graph.module.graph.nodes, exported.graph.nodes)
    )
    if [node.target for node in before] != [node.target for node in after]:
        raise ConversionError("torch.export changed the order of the graph's operators; the layer map would be lost")
    names = {old.name: new.name for old, new in zip(before, after, strict=True)}
    return exported, names | _elements(graph.module.graph, exported.graph, names)


def _elements(before: fx.Graph, after: fx.Graph, names: Mapping[str, str]) -> dict[str, str]:
    """Follow what is picked from tuples: torch.export lists every element, also those that nothing reads."""
    picked = {_picked(node): node.name for node in after.nodes if node.target is operator.getitem}
    found = {}
    for node in before.nodes:
        if node.target is operator.getitem:
            whole, index = _picked(node)
            found[node.name] = picked[names[whole], index]
    return found


def _picked(node: fx.Node) -> tuple[str, int]:
    """The call that a tuple comes from, and which of its elements is picked."""
    whole, index = node.args
    assert isinstance(whole, fx.Node)  # noqa: S101 - operator.getitem picks from a call
    assert isinstance(index, int)  # noqa: S101
    return whole.name, index


class _Through(nn.Module):
    """Gives its inputs back."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.clone() for tensor in inputs)


def symbolic_inputs(
    example: Sequence[torch.Tensor], dynamic: DynamicSize | None, batch: DynamicBatch | None = None
) -> tuple[tuple[FakeTensor, ...], FakeTensorMode]:
    """Return tensors without values in which dynamic axes are the symbols that a capture would have."""
    shapes = (dynamic_shapes(example, dynamic, batch),)  # of a forward that takes any number of inputs
    exported = torch.export.export(_Through(), tuple(example), dynamic_shapes=shapes, strict=False)
    inputs = tuple(node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder")
    return inputs, inputs[0].fake_mode


def set_shapes(module: fx.GraphModule, inputs: Sequence[FakeTensor], mode: FakeTensorMode) -> None:
    """Give every node its value's shape and type (``meta["val"]``), as they follow from those of the inputs."""
    with enable_python_dispatcher():  # without it, resizing to a symbol's size has no implementation
        FakeTensorProp(module, mode).propagate_dont_convert_inputs(*inputs)


def provenance(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Follow the nodes of the graph through re-export and decomposition.

    Args:
        program: What ``program`` gave, after any number of ``run_decompositions``.

    Returns:
        For each node of ``graph.module``, the name of the program's node that holds its value. The elements of a tuple
        (``split``) are listed as ``name[index]``.
    """
    where: dict[str, str] = {}
    for node in program.graph.nodes:
        origin = node_of_origin(node)
        if not is_call(node) or origin is None:  # torch says of a size that is read from a value that it is that value
            continue
        if node.target is operator.getitem:
            where[f"{origin}[{node.args[1]}]"] = node.name
        else:
            where[origin] = node.name
    return where


def node_of_origin(node: fx.Node) -> str | None:
    """Return the name at the root of the node's history (torch records it as ``from_node``)."""
    history, name = node.meta.get("from_node"), None
    while history:
        name, history = history[0].name, history[0].from_node
    return name


def origin_key(node: fx.Node) -> str:
    """Return the key under which ``provenance`` lists a node of ``graph.module``."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return f"{node.args[0].name}[{node.args[1]}]"
    return node.name
