"""Capture a module as a flat graph of ATen operators in which every tensor has a stable layer id.

``torch.export`` flattens the user's classes; what is kept of them is each operator's module path. The flat graph is
what every pass edits and every exporter converts, whatever the classes looked like. It is also what the bundle keeps as
its reference, in a form that runs no code when it is read (a list of ATen calls and a safetensors file).
"""

import copy
import math
import operator
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, free_unbacked_symbols

from coordatt_deploy import tensors
from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.graph.mutations import exchange, functional
from coordatt_deploy.graph.summing import in_sequence
from coordatt_deploy.graph.tidy import compute_constants, read_sizes_late
from coordatt_deploy.layers import Layer, LayerMap, Part
from coordatt_deploy.quiet import captured, log_folder
from coordatt_deploy.specs import TensorSpec
from coordatt_deploy.user_code import first_line, place, source_line, write_log

aten = torch.ops.aten

# Operators that compute nothing at inference: the user's value passes through them unchanged.
IDENTITIES: Final = frozenset({
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.alias.default,
    aten.detach.default, aten.contiguous.default, aten.clone.default, aten.lift_fresh_copy.default,
})  # fmt: skip
DROPOUTS: Final = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})

_KEPT_META: Final = ("val", "nn_module_stack", "stack_trace")
_SIZE_AXES: Final = {2: "height", 3: "width"}

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


def capture(
    module: nn.Module,
    example: Sequence[torch.Tensor],
    *,
    input_names: Sequence[str] = ("image",),
    output_names: Sequence[str] | None = None,
    dynamic: DynamicSize | None = None,
) -> Graph:
    """Capture *module*, which is left alone.

    Args:
        module: In evaluation mode, float32, on the CPU.
        example: One tensor per input, (N, C, H, W) for images.
        input_names: Stable names, one per input.
        output_names: Stable names; by default ``logits`` for a single output, ``output_0``… for several.
        dynamic: Capture height and width of every 4-D input as symbols within these bounds.

    Raises:
        UsageError: The module is in training mode, its weights are not finite float32, it rejects the input, or
            torch.export cannot follow its code.
    """
    check_weights(module)
    program = _export(module, tuple(example), dynamic)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own, about its copies of programs
        program = functional(program)
    names = tuple(input_names)
    flat, outputs = _flatten(program, names)
    assigned = exchange(flat)
    _check_calls(flat)
    _drop_identities(flat)
    compute_constants(flat)
    read_sizes_late(flat)
    flat.recompile()
    wanted = tuple(output_names or (("logits",) if outputs == 1 else tuple(f"output_{i}" for i in range(outputs))))
    if len(wanted) != outputs:
        raise UsageError(f"the model has {outputs} outputs, but {len(wanted)} names were given: {', '.join(wanted)}")
    inputs = tuple(_input_spec(name, value) for name, value in zip(names, _input_values(flat), strict=True))
    graph = Graph(flat, inputs, wanted, _layers(flat), tuple(example), dynamic)
    return replace(graph, assignments=tuple(layer for name in assigned if (layer := graph.layer_of(name)) is not None))


def _input_spec(name: str, value: torch.Tensor) -> TensorSpec:
    return TensorSpec(name, _shape(value), str(value.dtype).removeprefix("torch."), layout(value.ndim))


def layout(rank: int) -> str:
    """Return the axis letters of a tensor of the reference; empty where they are not known."""
    return "NCHW"[:rank] if rank <= 4 else ""


def tensor_outputs(returned: Any) -> list[torch.Tensor]:
    """Return the tensors among what a model returned, in the order of a captured graph's outputs."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(returned) if isinstance(leaf, torch.Tensor)]


def check_weights(module: nn.Module) -> None:
    """Refuse a module that cannot be shipped as it is.

    Raises:
        UsageError: Training mode, a device other than the CPU, half precision, or weights that are not finite.
    """
    if module.training:
        raise UsageError("the model is in training mode; call model.eval() before it is exported")
    for name, tensor in module.state_dict().items():
        if tensor.device.type != "cpu":
            raise UsageError(f"{name} is on device {tensor.device}; move the model to the CPU with model.cpu()")
        if tensor.is_floating_point():
            if tensor.dtype != torch.float32:
                raise UsageError(f"{name} is {tensor.dtype}; export needs float32 weights, call model.float()")
            if not bool(torch.isfinite(tensor).all()):
                bad = int((~torch.isfinite(tensor)).sum())
                raise UsageError(f"{name} holds {bad} values that are NaN or infinite; the checkpoint is damaged")


def weights_sha256(module: nn.Module) -> str:
    """Return the hash of all weights; see ``tensors.weights_sha256``."""
    return tensors.weights_sha256({name: tensor.detach().numpy() for name, tensor in module.state_dict().items()})


def _export(
    module: nn.Module, example: tuple[torch.Tensor, ...], dynamic: DynamicSize | None
) -> torch.export.ExportedProgram:
    trial(module, example)
    # A GraphModule's forward takes its inputs positionally; a tuple matches any signature.
    shapes = None if dynamic is None else _dynamic_shapes(example, dynamic)
    log = log_folder() / f"capture-{os.getpid()}.log"
    try:
        with captured(log):
            program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises many kinds
        write_log(error, "capture")
        reason = _boiled_down(error)
        raise UsageError(f"torch.export cannot follow the model: {reason}; its own text is in {log}") from error
    log.unlink(missing_ok=True)
    return program


def trial(module: nn.Module, example: Sequence[torch.Tensor]) -> Any:
    """Run the user's module once and return what it returns.

    Raises:
        UsageError: It rejects the input; the text names the line of the user's code.
    """
    log = log_folder() / f"trial-{os.getpid()}.log"
    try:
        with captured(log), torch.no_grad():
            returned = module(*example)
    except Exception as error:  # the user's code may raise anything
        sizes = ", ".join(str(tuple(tensor.shape)) for tensor in example)
        at = place(error)
        raise UsageError(
            f"the model rejects an input of shape {sizes}: {first_line(error)}{f' at {at}' if at else ''};"
            f" everything it said is in {write_log(error, 'trial')}"
        ) from error
    log.unlink(missing_ok=True)
    return returned


def _boiled_down(error: BaseException) -> str:
    """Say in one line what torch.export says in a page."""
    at, text = place(error), str(error)
    where = f" at {at}" if at else ""
    if isinstance(error, GuardOnDataDependentSymNode):
        return (
            f"control flow or a size depends on the values of a tensor{where}; a file for a phone computes the same"
            " operators for every input: use torch.where, a mask, or a size that is known beforehand"
        )
    if "Constraints violated" in text:
        return _constraint(text)
    if "in output, which is not a known type" in text:
        kind = text.partition("<class '")[2].partition("'")[0]
        return f"its forward returns a {kind}; return tensors, or a tuple, list or dict of tensors"
    return f"{first_line(error)}{where}"


def _constraint(text: str) -> str:
    """Read torch.export's list of violated bounds: a multiple is suggested, a constant or another bound is quoted."""
    multiples = {int(number) for number in re.findall(r"^\s*\w+ = (\d+)\*_\w+\s*$", text, flags=re.MULTILINE)}
    if multiples:
        step = math.lcm(*multiples)
        return f"height and width must be multiples of {step}; give --dynamic-size MIN:MAX:{step}"
    reasons = re.findall(r"^\s*- (.*)$", text, flags=re.MULTILINE)
    constants = dict(re.findall(r"(height|width) was inferred to be a constant \((\d+)\)", text))
    if constants:
        fixed = " and ".join(f"{name} to {size}" for name, size in sorted(constants.items()))
        return f"its code fixes {fixed} pixels, so it takes no other size; leave --dynamic-size out"
    return "its code allows only some of the sizes: " + "; ".join(reasons or [first_line(ValueError(text))])


def _dynamic_shapes(example: Sequence[torch.Tensor], dynamic: DynamicSize) -> tuple[dict[int, Any] | None, ...]:
    step = dynamic.multiple
    bounds = {"min": -(-dynamic.minimum // step), "max": dynamic.maximum // step}
    axes = {axis: torch.export.Dim(name if step == 1 else f"_{name}", **bounds) for axis, name in _SIZE_AXES.items()}
    sizes = {axis: symbol if step == 1 else step * symbol for axis, symbol in axes.items()}
    return tuple(sizes if tensor.ndim == 4 else None for tensor in example)


def _flatten(program: torch.export.ExportedProgram, input_names: Sequence[str]) -> tuple[fx.GraphModule, int]:
    """Copy the program into a graph of our own: weights by name, inputs in order, no guards, a tuple of outputs."""
    root, graph = nn.Module(), fx.Graph()
    signature = program.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers,
               **signature.inputs_to_lifted_tensor_constants}  # fmt: skip
    copies: dict[fx.Node, fx.Node] = {}
    returned: list[fx.Node] = []
    user_inputs = [spec.arg.name for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
    if len(user_inputs) != len(input_names):
        raise UsageError(f"the model takes {len(user_inputs)} inputs, but {len(input_names)} names were given")
    names = dict(zip(user_inputs, input_names, strict=True))
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in weights:
            target = weights[node.name]
            tensor = program.state_dict.get(target, program.constants.get(target))
            if tensor is None:
                raise ConversionError(f"torch.export lists {target} as a weight, but holds no tensor of that name")
            attach(root, target, tensor.detach().clone().contiguous())
            copies[node] = graph.get_attr(target)
        elif node.op == "placeholder":
            copies[node] = graph.placeholder(names[node.name])
        elif node.op == "output":
            # After functionalization the new values of overwritten inputs come first; they are no outputs of the model.
            results = node.args[0][len(signature.user_inputs_to_mutate) :]
            returned = [item for item in torch.utils._pytree.tree_leaves(results) if isinstance(item, fx.Node)]
            graph.output(tuple(copies[item] for item in returned))
        else:
            copies[node] = graph.node_copy(node, lambda old: copies[old])
        if node in copies:
            copies[node].meta = {key: node.meta[key] for key in _KEPT_META if key in node.meta}
    return fx.GraphModule(root, graph), len(returned)


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


def _check_calls(module: fx.GraphModule) -> None:
    """Refuse what is set to training, and results whose size depends on the values of a tensor."""
    for node in module.graph.nodes:
        norm = node.target is aten.batch_norm.default and node.args[5] is True
        if norm or (node.target in DROPOUTS and node.args[2] is True):
            what = "BatchNorm" if norm else "dropout"
            layer = module_path(node) or "the model's own forward"
            raise UsageError(
                f"{what} in {layer} is in training mode although the model is not: either it was set after"
                " model.eval(), or the call itself says training=True; make it follow self.training"
            )
        if is_tensor(node) and free_unbacked_symbols(node.meta["val"].shape):
            at = source_line(node.meta.get("stack_trace", ""))
            raise UsageError(
                f"the size of the result of {operator_name(node)}{f' at {at}' if at else ''} depends on the values of"
                " a tensor; a file for a phone has sizes that are known beforehand: use torch.where, a mask, or topk"
            )


def _drop_identities(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        is_guard = node.op == "call_function" and "assert" in getattr(node.target, "__name__", "")
        if node.target in IDENTITIES:
            node.replace_all_uses_with(node.args[0])
        if (node.target in IDENTITIES or is_guard) and not node.users:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()


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


def _layers(module: fx.GraphModule) -> LayerMap:
    nodes = [node for node in module.graph.nodes if is_tensor(node)]
    calls = Counter(module_path(node) for node in nodes)
    seen: Counter[tuple[str, str]] = Counter()
    layers = []
    for node in nodes:
        path, name = module_path(node), operator_name(node)
        repeat = seen[path, name]
        seen[path, name] += 1
        alone = calls[path] == 1 and path
        layer_id = path if alone else f"{path}:{name}" + (f"_{repeat}" if repeat else "")
        layers.append(Layer(layer_id, name, _shape(node.meta["val"]), (Part(node.name),)))
    return LayerMap(tuple(layers))


def _shape(value: torch.Tensor) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _input_values(module: fx.GraphModule) -> list[torch.Tensor]:
    return [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]


class _Recorder(fx.Interpreter):
    """Runs a graph in one type and keeps the values of the nodes asked for.

    Tensors that the graph makes itself, or casts, come in the type of the capture and are brought to that of the run.
    Means in float32 are summed as phones sum (``summing``).
    """

    def __init__(
        self,
        module: fx.GraphModule,
        dtype: torch.dtype,
        nodes: frozenset[str],
        after: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> None:
        super().__init__(module)
        self.dtype, self.nodes, self.after = dtype, nodes, after
        self.kept: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.to(self.dtype)
            if is_tensor(n) and n.args and isinstance(n.args[0], fx.Node):
                value = in_sequence(n, operator_name(n), self.env[n.args[0]], value)
        if self.after is not None and isinstance(value, torch.Tensor) and value.is_floating_point():
            value = self.after(value)
        if n.name in self.nodes:
            self.kept[n.name] = value
        return value


def run(
    graph: Graph,
    feeds: Feeds,
    *,
    dtype: torch.dtype = torch.float64,
    nodes: frozenset[str] = frozenset(),
    after: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, NDArray[Any]]:
    """Run the graph once; see ``prepare``."""
    return prepare(graph, dtype=dtype, nodes=nodes, after=after)(feeds)


def prepare(
    graph: Graph,
    *,
    dtype: torch.dtype = torch.float64,
    nodes: frozenset[str] = frozenset(),
    after: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Callable[[Feeds], dict[str, NDArray[Any]]]:
    """Make the graph ready to run many times in *dtype*.

    Args:
        graph: Any stage's graph.
        dtype: Computing type; float64 is the reference.
        nodes: Names of nodes whose values are wanted as well.
        after: Applied to every floating value, weights included: rounds to a storage type, for instance.

    Returns:
        A function of the feeds (one array per input, in the reference's layout) that gives the outputs by name, and the
        nodes by theirs.
    """
    module = copy.deepcopy(graph.module).to(dtype)

    def call(feeds: Feeds) -> dict[str, NDArray[Any]]:
        recorder = _Recorder(module, dtype, nodes, after)
        with torch.no_grad():
            values = recorder.run(*(_as_tensor(feeds[spec.name], dtype) for spec in graph.inputs))
        results = {name: value.numpy() for name, value in recorder.kept.items()}
        return results | {name: value.numpy() for name, value in zip(graph.outputs, values, strict=True)}

    return call


def _as_tensor(array: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.asarray(array))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def program(graph: Graph) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    """Export the edited graph again, for the converters.

    Returns:
        The program, and for each call of ``graph.module`` the name of the program's node that makes it.

    Raises:
        ConversionError: The new program makes other calls than the graph.
    """
    shapes = None if graph.dynamic is None else _dynamic_shapes(graph.example, graph.dynamic)
    exported = torch.export.export(graph.module, graph.example, dynamic_shapes=shapes, strict=False)
    before = [node for node in graph.module.graph.nodes if is_call(node)]
    after = [node for node in exported.graph.nodes if is_call(node)]
    if [node.target for node in before] != [node.target for node in after]:
        raise ConversionError("torch.export changed the order of the graph's operators; the layer map would be lost")
    return exported, {old.name: new.name for old, new in zip(before, after, strict=True)}


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
        origin = _origin(node)
        if node.op != "call_function" or origin is None:
            continue
        if node.target is operator.getitem:
            where[f"{origin}[{node.args[1]}]"] = node.name
        else:
            where[origin] = node.name
    return where


def _origin(node: fx.Node) -> str | None:
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


def is_call(node: fx.Node) -> bool:
    """Whether the node computes a tensor or a tuple of tensors (sizes and guards do not)."""
    value = node.meta.get("val")
    computes = isinstance(value, torch.Tensor) or (
        isinstance(value, (tuple, list)) and any(isinstance(item, torch.Tensor) for item in value)
    )
    return node.op == "call_function" and (computes or node.target is operator.getitem)
