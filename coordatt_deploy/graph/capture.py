"""Capture a module as a flat graph of ATen operators in which every tensor has a stable layer id.

``torch.export`` flattens the user's classes; what is kept of them is each operator's module path. The flat graph is
what every pass edits and every exporter converts, whatever the classes looked like. It is also what the bundle keeps as
its reference, in a form that runs no code when it is read (a list of ATen calls and a safetensors file).
"""

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, free_unbacked_symbols

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.graph.call_arguments import listed_nodes
from coordatt_deploy.graph.editor import Editor
from coordatt_deploy.graph.execution import input_values
from coordatt_deploy.graph.exported_program import BATCH, dynamic_shapes, set_shapes
from coordatt_deploy.graph.fixed_batch import FIXED_BATCH, check_batch
from coordatt_deploy.graph.graph import (
    DynamicBatch,
    DynamicSize,
    Graph,
    aten,
    attach,
    is_judged,
    is_tensor,
    layout,
    module_path,
    op_name,
    static_shape,
    weight_name,
)
from coordatt_deploy.graph.passes.constants import compute_constants, read_sizes_late
from coordatt_deploy.graph.passes.functionalise import DROPOUTS, functional, functionalise
from coordatt_deploy.graph.passes.identities import drop_identities
from coordatt_deploy.graph.passes.simplify import simplify
from coordatt_deploy.graph.passes.subgraphs import casts, without_subgraphs
from coordatt_deploy.layer_map import Layer, LayerMap, Part
from coordatt_deploy.logs import captured, log_folder, write_traceback
from coordatt_deploy.user_code import first_line, place, source_line

_KEPT_META: Final = ("val", "nn_module_stack", "stack_trace")


def capture(
    module: nn.Module,
    example: Sequence[torch.Tensor],
    *,
    input_names: Sequence[str] = ("image",),
    output_names: Sequence[str] | None = None,
    dynamic: DynamicSize | None = None,
    batch: DynamicBatch | None = None,
) -> Graph:
    """Capture *module*, which is left alone.

    Args:
        module: A module in evaluation mode, float32, on the CPU.
        example: One tensor per input, (N, C, H, W) for images.
        input_names: Stable names, one per input.
        output_names: Stable names; by default ``logits`` for a single output, ``output_0``… for several.
        dynamic: Capture height and width of every 4-D input as symbols within these bounds.
        batch: Capture the first axis as a symbol within these bounds, of every input where it is as long as that of the
            first input. An example has at least two images: torch.export takes one for what there always is.

    Raises:
        UsageError: The module is in training mode, its weights are not finite float32, it rejects the input, or
            torch.export cannot follow its code; its code fixes the batch.
    """
    check_weights(module)
    shapes = None if dynamic is None and batch is None else dynamic_shapes(example, dynamic, batch)
    program = _export(module, tuple(example), shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own, about its copies of programs
        program = functional(program)
    names = tuple(input_names)
    flat, outputs = _flatten(program, names)
    assigned = functionalise(flat)
    _check_calls(flat)
    drop_identities(flat)
    if casts(program.graph_module):
        values = [value for value in input_values(flat) if isinstance(value, FakeTensor)]
        set_shapes(flat, values, values[0].fake_mode)  # what autocast cast is float32 again
    compute_constants(flat)
    _check_norms(flat)
    simplify(flat)
    read_sizes_late(flat)
    _copy_outputs(flat)
    flat.recompile()
    wanted = tuple(output_names or (("logits",) if outputs == 1 else tuple(f"output_{i}" for i in range(outputs))))
    if len(wanted) != outputs:
        raise UsageError(f"the model has {outputs} outputs, but {len(wanted)} names were given: {', '.join(wanted)}")
    inputs = tuple(_input_spec(name, value) for name, value in zip(names, input_values(flat), strict=True))
    graph = Graph(flat, inputs, wanted, _layers(flat), tuple(example), dynamic, batch)
    if batch is not None:
        check_batch(graph)
    return replace(graph, assignments=tuple(layer for name in assigned if (layer := graph.layer_of(name)) is not None))


def _input_spec(name: str, value: torch.Tensor) -> TensorSpec:
    return TensorSpec(name, static_shape(value), str(value.dtype).removeprefix("torch."), layout(value.ndim))


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


def _export(
    module: nn.Module, example: tuple[torch.Tensor, ...], shapes: tuple[dict[int, Dim] | None, ...] | None
) -> torch.export.ExportedProgram:
    trial(module, example)
    log = log_folder() / f"capture-{os.getpid()}.log"
    try:
        with captured(log):
            # A GraphModule's forward takes its inputs positionally; a tuple of shapes matches any signature.
            program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises many kinds
        write_traceback(error, "capture")
        reason = _boiled_down(error)
        raise UsageError(f"torch.export cannot follow the model: {reason}; its own text is in {log}") from error
    log.unlink(missing_ok=True)
    return program


def trial(module: nn.Module, example: Sequence[torch.Tensor]) -> object:
    """Run the user's module once and return what it returns.

    Raises:
        UsageError: It rejects the input; the text names the line of the user's code.
    """
    log = log_folder() / f"trial-{os.getpid()}.log"
    try:
        with captured(log), torch.no_grad():
            returned: object = module(*example)
    except Exception as error:  # the user's code may raise anything
        sizes = ", ".join(str(tuple(tensor.shape)) for tensor in example)
        at = place(error)
        raise UsageError(
            f"the model rejects an input of shape {sizes}: {first_line(error)}{f' at {at}' if at else ''};"
            f" everything it said is in {write_traceback(error, 'trial')}"
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
        type_name = text.partition("<class '")[2].partition("'")[0]
        return f"its forward returns a {type_name}; return tensors, or a tuple, list or dict of tensors"
    return f"{first_line(error)}{where}"


def _constraint(text: str) -> str:
    """Read torch.export's list of violated bounds: a multiple is suggested, a constant or another bound is quoted."""
    multiples = re.findall(r"^\s*(\w+) = (\d+)\*_\w+\s*$", text, flags=re.MULTILINE)
    if any(name.strip("_") == BATCH for name, _ in multiples):
        count = math.lcm(*(int(number) for name, number in multiples if name.strip("_") == BATCH))
        return f"the batch must be a multiple of {count}, which no range of batches is; {FIXED_BATCH}"
    if multiples:
        step = math.lcm(*(int(number) for _, number in multiples))
        return f"height and width must be multiples of {step}; give --dynamic-size MIN:MAX:{step}"
    reasons = re.findall(r"^\s*- (.*)$", text, flags=re.MULTILINE)
    special = r"(?:was inferred|as dynamic but your code specialized it) to be a constant \((\d+)\)"
    constants = dict(re.findall(rf"(height|width|batch) {special}", text))
    solved = re.search(rf"guards generated for {BATCH} = .* resulted in a specialized value of (\d+)", text)
    if BATCH in constants or solved:
        return f"its code fixes the batch to {solved[1] if solved else constants[BATCH]}; {FIXED_BATCH}"
    if any(f"values of {BATCH} = " in reason for reason in reasons):
        return f"its code does not take every batch of the range alike; {FIXED_BATCH}"
    if constants:
        fixed = " and ".join(f"{name} to {size}" for name, size in sorted(constants.items()))
        return f"its code fixes {fixed} pixels, so it takes no other size; leave --dynamic-size out"
    return "its code allows only some of the sizes: " + "; ".join(reasons or [first_line(ValueError(text))])


def _flatten(program: torch.export.ExportedProgram, input_names: Sequence[str]) -> tuple[fx.GraphModule, int]:
    """Copy the program into a graph of our own: weights by name, inputs in order, no guards, a tuple of outputs."""
    root, graph = nn.Module(), fx.Graph()
    signature = program.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers,
               **signature.inputs_to_lifted_tensor_constants}  # fmt: skip
    copies: dict[fx.Node, fx.Node] = {}
    returned: list[fx.Node] = []
    taken: set[str] = set()
    user_inputs = [spec.arg.name for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
    if len(user_inputs) != len(input_names):
        raise UsageError(f"the model takes {len(user_inputs)} inputs, but {len(input_names)} names were given")
    names = dict(zip(user_inputs, input_names, strict=True))
    for node in without_subgraphs(program.graph_module).nodes:
        _refuse_control_flow(node)
        if node.op == "placeholder" and node.name in weights:
            target = weights[node.name]
            tensor = program.state_dict.get(target, program.constants.get(target))
            if tensor is None:
                raise ConversionError(f"torch.export lists {target} as a weight, but holds no tensor of that name")
            target = weight_name(target)
            while target in taken:
                target += "_"
            taken.add(target)
            attach(root, target, tensor.detach().clone().contiguous())
            copies[node] = graph.get_attr(target)
        elif node.op == "placeholder":
            copies[node] = graph.placeholder(names[node.name])
        elif node.op == "get_attr" and isinstance(
            getattr(program.graph_module, str(node.target), None), fx.GraphModule
        ):
            continue  # of an operator that is refused
        elif node.op == "output":
            # After functionalization the new values of overwritten inputs come first; the model does not return them.
            results = node.args[0][len(signature.user_inputs_to_mutate) :]
            returned = [item for item in torch.utils._pytree.tree_leaves(results) if isinstance(item, fx.Node)]
            graph.output(tuple(copies[item] for item in returned))
        else:
            copies[node] = graph.node_copy(node, lambda old: copies[old])
        if node in copies:
            copies[node].meta = {key: node.meta[key] for key in _KEPT_META if key in node.meta}
    return fx.GraphModule(root, graph), len(returned)


def _refuse_control_flow(node: fx.Node) -> None:
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        at = source_line(node.meta.get("stack_trace") or "")
        raise UsageError(
            f"the model calls {node.target}{f' at {at}' if at else ''}, an operator that runs parts of the"
            " network by itself; a file for a phone computes the same operators for every input: write them out"
        )


def _check_calls(module: fx.GraphModule) -> None:
    """Refuse what is set to training, and results whose size depends on the values of a tensor."""
    for node in module.graph.nodes:
        if node.target in DROPOUTS and node.args[2] is True:
            raise UsageError(_in_training(node, "dropout"))
        if is_tensor(node) and free_unbacked_symbols(node.meta["val"].shape):
            at = source_line(node.meta.get("stack_trace", ""))
            raise UsageError(
                f"the size of the result of {op_name(node)}{f' at {at}' if at else ''} depends on the values of"
                " a tensor; a file for a phone has sizes that are known beforehand: use torch.where, a mask, or topk"
            )


def _check_norms(module: fx.GraphModule) -> None:
    """Refuse a BatchNorm in training mode; one on weights alone is a weight by now.

    A BatchNorm that keeps no running statistics takes those of its input in either mode: it is what the user trained.
    """
    for node in module.graph.nodes:
        if node.target is aten.batch_norm.default and node.args[5] is True and node.args[3] is not None:
            raise UsageError(_in_training(node, "BatchNorm"))


def _in_training(node: fx.Node, what: str) -> str:
    layer = module_path(node) or "the model's own forward"
    return (
        f"{what} in {layer} is in training mode although the model is not: either it was set after model.eval(), or"
        " the call itself says training=True; make it follow self.training"
    )


def _copy_outputs(module: fx.GraphModule) -> None:
    """Give each output a tensor of its own: not every format has one under two names, as an input that is returned."""
    editor = Editor(module)
    (output,) = module.graph.find_nodes(op="output")
    seen: set[fx.Node] = set()
    returned = []
    for node in listed_nodes(output.args[0]):
        own = node.op == "call_function" and node not in seen
        returned.append(node if own else editor.call(output, aten.clone.default, node))
        seen.add(node)
    output.args = (tuple(returned),)


def _layers(module: fx.GraphModule) -> LayerMap:
    nodes = [node for node in module.graph.nodes if is_judged(node)]
    calls = Counter(module_path(node) for node in nodes)
    seen: Counter[tuple[str, str]] = Counter()
    layers = []
    for node in nodes:
        path, name = module_path(node), op_name(node)
        repeat = seen[path, name]
        seen[path, name] += 1
        alone = calls[path] == 1 and path
        layer_id = path if alone else f"{path}:{name}" + (f"_{repeat}" if repeat else "")
        layers.append(Layer(layer_id, name, static_shape(node.meta["val"]), (Part(node.name),)))
    return LayerMap(tuple(layers))
