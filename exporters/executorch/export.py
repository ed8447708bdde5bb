"""Write ExecuTorch files through torch.export and executorch, with everything that XNNPACK takes in its delegate.

executorch gives every operator that it writes the number of the node that it came from. These numbers say where a layer
can be (``layer_search``), and values prove that it is there. Nothing in the file depends on the machine or the moment.
"""

import copy
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch
from torch import fx

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import TensorSpec, metadata
from coordatt_deploy.errors import BundleError, ConversionError, UsageError
from coordatt_deploy.exporters import Exported, ExportRequest
from coordatt_deploy.exporters.converter_errors import refusal
from coordatt_deploy.exporters.executorch.executorch_import import (
    EdgeCompileConfig,
    LoweredBackendModule,
    fast,
    partitioner,
    quiet,
    to_edge_transform_and_lower,
)
from coordatt_deploy.exporters.layer_search import feeds_for, find
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.call_arguments import argument
from coordatt_deploy.graph.exported_program import node_of_origin, program
from coordatt_deploy.graph.graph import Graph, layout, op_name, weight
from coordatt_deploy.graph.operators import Trait, having
from coordatt_deploy.runtimes.argument_checks import first_line
from coordatt_deploy.runtimes.executorch.program_file import METADATA_METHOD, METHOD, ProgramFile, opened, packed
from coordatt_deploy.runtimes.executorch.runner import start
from coordatt_deploy.runtimes.executorch.tensors import DTYPES, VIEW, operators, sources, tap

MOVING: Final = frozenset({"XNNStaticTranspose", "XNNStaticReshape", "XNNCopy", VIEW})
NUMBERED: Final = frozenset({"add", "sub", "mul", "div"})
FUSED_BEHIND: Final = having(Trait.FUSED_BEHIND)


def export(graph: Graph, request: ExportRequest) -> Exported:
    """Write *graph* as an ExecuTorch file; see ``Exporter.export``.

    Raises:
        UsageError: Another precision than float32, or a dynamic input size.
        ConversionError: executorch refused the graph.
    """
    if request.precision is not Precision.FP32:
        raise UsageError(f"the ExecuTorch exporter writes fp32, not {request.precision}")
    if graph.is_dynamic:
        raise UsageError("ExecuTorch files have a fixed input size; capture the model without dynamic sizes or batch")
    names = {"inputs": [spec.name for spec in graph.inputs], "outputs": list(graph.outputs)}
    document = json.dumps(metadata(request.spec, request.target_cpu) | names, ensure_ascii=False)
    try:
        with quiet(), fast(resizing=any("bilinear" in op_name(node) for node in graph.module.graph.nodes)):
            edge = to_edge_transform_and_lower(
                program(_with_own_outputs(_with_own_kernels(_with_constants(graph))))[0],
                partitioner=[partitioner(softmax=not _has_softmax_of_rows(graph))],
                constant_methods={METADATA_METHOD: document},
                compile_config=EdgeCompileConfig(_check_ir_validity=False),  # operators that the runtime may not have
            )
            handles = _handles(edge.exported_program().graph_module)
            made = edge.to_executorch()
            content = bytes(made.buffer)
            instructions = _numbered(made.debug_handle_map[METHOD])
    except Exception as error:
        raise refusal(graph, Format.EXECUTORCH, "executorch", error) from error
    request.path.write_bytes(content)
    file = opened(content, request.path.name)
    inputs, outputs = _interface(file, graph)
    places, copies = _sources(file, graph, handles, instructions)
    results = _results(opened(content, request.path.name), list(places), graph, inputs)
    found = find(graph, results, places, copies)
    return Exported(inputs, outputs, graph.layers.carried(found.places, found.reasons))


def _has_softmax_of_rows(graph: Graph) -> bool:
    """Whether there is a softmax over the last of four axes."""
    found = (node for node in graph.module.graph.nodes if op_name(node) in ("softmax", "_softmax"))
    return any(node.meta["val"].ndim == 4 and argument(node, 1, "dim") in (-1, 3) for node in found)


def _with_constants(graph: Graph) -> Graph:
    """Write numbers that whole maps are added to or multiplied by as constants of four axes.

    executorch keeps a number outside of the delegate, and turns the map into the layout of torch and back around it.
    """
    module = copy.deepcopy(graph.module)
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if (
            op_name(node) in NUMBERED
            and len(node.args) == 2
            and not node.kwargs
            and isinstance(value, torch.Tensor)
            and value.ndim == 4
            and value.dtype == torch.float32
            and isinstance(node.args[1], (int, float))
        ):
            name = f"number_of_{node.name}"
            module.register_buffer(name, torch.full((1, 1, 1, 1), float(node.args[1])))
            with module.graph.inserting_before(node):
                node.update_arg(1, module.graph.get_attr(name))
    module.recompile()
    return replace(graph, module=module)


def _with_own_kernels(graph: Graph) -> Graph:
    """Give each convolution along one axis a kernel of its own.

    executorch's pass that makes those two-dimensional adds an axis to the kernel at each of its readers.
    """
    module = copy.deepcopy(graph.module)
    taken: set[str] = set()
    for node in module.graph.nodes:
        kernel = node.args[1] if op_name(node) == "conv1d" else None
        values = weight(module, kernel)
        if not isinstance(kernel, fx.Node) or values is None:
            continue
        if str(kernel.target) in taken:
            name = f"kernel_of_{node.name}"
            module.register_buffer(name, values.detach().clone())
            with module.graph.inserting_before(node):
                copied = module.graph.get_attr(name)
            copied.meta = dict(kernel.meta)
            node.update_arg(1, copied)
        taken.add(str(kernel.target))
    module.recompile()
    return replace(graph, module=module)


def _with_own_outputs(graph: Graph) -> Graph:
    """Give what is returned twice, or was an input, a tensor for each name: XNNPACK's delegate hands nothing through.

    A copy, as the graph has it, is taken away on the way there. A product with 1 is the value, to the last bit, and
    stays; of two alike one would be left, so each is made of the one before.
    """
    module = copy.deepcopy(graph.module)
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    latest: dict[fx.Node, fx.Node] = {}
    for node in output.all_input_nodes:
        source = node
        while op_name(source) == "clone":
            source = source.all_input_nodes[0]
        own, value = node, node.meta.get("val")
        if (
            isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and (source in latest or source.op == "placeholder")
        ):
            name = f"one_for_{node.name}"
            module.register_buffer(name, torch.ones([1] * value.ndim, dtype=value.dtype))
            with module.graph.inserting_before(output):
                one = module.graph.get_attr(name)
                own = module.graph.call_function(torch.ops.aten.mul.Tensor, (latest.get(source, source), one))
            own.meta["val"] = value
            output.replace_input_with(node, own)
        latest[source] = own
    module.graph.eliminate_dead_code()
    module.recompile()
    return replace(graph, module=module)


def _handles(module: fx.GraphModule) -> dict[int, list[str]]:
    """For each number that executorch gave the names of the graph's nodes which it stands for."""
    found: dict[int, list[str]] = defaultdict(list)
    delegates = [child for _, child in module.named_children() if isinstance(child, LoweredBackendModule)]
    for graph in (module.graph, *(child.original_module.graph for child in delegates)):
        for node in graph.nodes:
            handle, name = node.meta.get("debug_handle"), node_of_origin(node)
            if node.op == "call_function" and isinstance(handle, int) and name is not None:
                found[handle].append(name)
    return found


def _numbered(handles: Mapping[int, object]) -> dict[int, list[int]]:
    """For each instruction of the method the numbers of its nodes, which are a list for a delegate."""
    return {
        instruction: [found] if isinstance(found, int) else [item for item in found if isinstance(item, int)]
        for instruction, found in handles.items()
        if isinstance(found, (int, list, tuple))
    }


def _interface(file: ProgramFile, graph: Graph) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    method = file.method
    given = [(spec.name, spec.layout) for spec in graph.inputs]

    def described(name: str, index: int, axes: str) -> TensorSpec:
        value = method.values[index].val
        shape = tuple(value.sizes)
        return TensorSpec(name, shape, DTYPES[value.scalar_type], axes or layout(len(shape)))

    inputs = tuple(described(name, index, axes) for (name, axes), index in zip(given, method.inputs, strict=True))
    outputs = tuple(described(name, index, "") for name, index in zip(graph.outputs, method.outputs, strict=True))
    return inputs, outputs


def _sources(
    file: ProgramFile, graph: Graph, handles: Mapping[int, list[str]], instructions: Mapping[int, list[int]]
) -> tuple[dict[str, list[str]], frozenset[str]]:
    """For each tensor that an operator makes, in execution order, the nodes that went into it; and which are copies."""
    nodes = {node.name: node for node in graph.module.graph.nodes}
    kernels = _kernel_handles(file, instructions)
    known = sources(file)
    found: dict[str, list[str]] = {}
    copies: set[str] = set()
    for item in operators(file):
        numbers = [item.record.debug_handle] if item.delegate is not None else kernels.get(id(item.record), [])
        names = [name for number in numbers for name in handles.get(number, []) if name in nodes]
        if item.name in MOVING:
            copies.update(item.outputs)
            names += found.get(item.inputs[0], []) if not names and item.inputs else []
        if item.delegate is not None and item.record.output_min_max is not None:
            names += _activations(nodes, names)
        found |= {name: list(dict.fromkeys(names)) for name in item.outputs if name in known}
    return found, frozenset(copies)


def _kernel_handles(file: ProgramFile, instructions: Mapping[int, list[int]]) -> dict[int, list[int]]:
    """The numbers of a call's nodes, by the identity of the call."""
    chain = [instruction for chain in file.method.chains for instruction in chain.instructions]
    return {id(item.instr_args): instructions.get(number, []) for number, item in enumerate(chain)}


def _activations(nodes: Mapping[str, fx.Node], names: list[str]) -> list[str]:
    """The activations behind operators that compute them as well."""
    users = [next(iter(nodes[name].users)) for name in names if len(nodes[name].users) == 1]
    return [user.name for user in users if op_name(user) in FUSED_BEHIND]


def _results(
    file: ProgramFile, names: list[str], graph: Graph, inputs: tuple[TensorSpec, ...]
) -> list[dict[str, NumberArray]]:
    """Run the file with all its tensors as outputs on the feeds that layers are found by.

    Raises:
        ConversionError: The runtime refuses it, or a process died of it.
    """
    places = tap(file, names)
    results = []
    try:
        tapped = start(packed(file), file.name)
        for feeds in feeds_for(graph):
            made = tapped.run([feeds[spec.name].astype(spec.dtype) for spec in inputs])
            results.append({name: made[places[name]] for name in names})
    except (BundleError, RuntimeError) as error:
        raise ConversionError(f"ExecuTorch does not run what it wrote: {first_line(error)}") from error
    tapped.drop()
    return results
