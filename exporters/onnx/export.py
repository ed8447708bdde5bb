"""Write ONNX through torch's own exporter, simplified, checked, in one file.

Names of values are those of the graph's nodes; a node is named after the layer it computes, so that profilers of ONNX
Runtime speak of ``features.4.conv.0``. Stack traces, paths and time stamps stay out of the file.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxsim
import torch
from torch import fx

from coordatt_deploy import __version__
from coordatt_deploy.artifact_specs import TensorSpec, metadata
from coordatt_deploy.errors import ConversionError
from coordatt_deploy.exporters import Exported, ExportRequest
from coordatt_deploy.exporters.converter_errors import refusal
from coordatt_deploy.exporters.float32_notes import float32_notes
from coordatt_deploy.exporters.fused_layers import read_by_one
from coordatt_deploy.exporters.onnx.float16 import in_float16
from coordatt_deploy.exporters.onnx.input_layout import CHANNELS_LAST, channels_last
from coordatt_deploy.exporters.onnx.ir_version import lower_ir
from coordatt_deploy.exporters.onnx.opset import in_opset
from coordatt_deploy.exporters.onnx.optimise import optimise
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.call_arguments import argument
from coordatt_deploy.graph.exported_program import BATCH, origin_key, program, provenance
from coordatt_deploy.graph.float16_range import lost_in_float16
from coordatt_deploy.graph.graph import Graph, op_name
from coordatt_deploy.graph.repeats import repeated_calls
from coordatt_deploy.layer_map import LayerMap, Part, takes_together

# The lowest opset that torch's exporter writes natively: the most runtimes open it. Speed does not depend on it
# (measured in ONNX Runtime 1.31: opsets 14 to 22 alike).
OPSET: Final = 18

# With statistics that are known beforehand: scale and shift, which the simplifier fuses into a convolution.
NORMALISATIONS: Final = frozenset({"instance_norm", "batch_norm"})
# With a constant of each channel, or one for all: the optimizer and the simplifier fuse them as well.
SCALES: Final = frozenset({"mul", "div", "add", "sub"})
VIEWS: Final = ("view", "reshape", "_unsafe_view")
CONVOLUTIONS: Final = frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"})


def export(graph: Graph, request: ExportRequest) -> Exported:
    """Write *graph* as an ONNX file; see ``Exporter.export``."""
    exported, _ = program(graph)
    try:
        converted = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in graph.inputs],
            output_names=list(graph.outputs),
            dynamic_shapes=None,
            external_data=False,
            optimize=False,
            verbose=False,
        )
        assert converted is not None  # noqa: S101 - None only with a file argument
        _rename_clashing(converted)
        optimise(converted)
        model, same = onnxsim.simplify(converted.model_proto)
    except Exception as error:
        raise refusal(graph, Format.ONNX, "torch.onnx", error) from error
    if not same:
        raise ConversionError("onnxsim changed the function of the graph; report the model to the project")
    decomposed = converted.exported_program
    assert decomposed is not None  # noqa: S101 - kept unless the exporter is told to forget it
    renamed = provenance(decomposed)
    layers, places = _layer_map(graph, model, renamed)
    _name_batch(graph, model)
    notes: tuple[str, ...] = ()
    if request.precision is Precision.FP16:
        in_float32 = request.float32_nodes | lost_in_float16(graph.module)
        tensors = {part.tensor for name in in_float32 if (part := places.get(name)) is not None}
        model = in_float16(_named_nodes(model), tensors)
        notes = float32_notes(Format.ONNX, graph, in_float32)
    nhwc = channels_last(model) if request.spec.input_layout == CHANNELS_LAST else frozenset()
    model = in_opset(model, request)
    _clean(model, layers, request)
    onnx.checker.check_model(model, full_check=True)
    Path(request.path).write_bytes(model.SerializeToString(deterministic=True))
    inputs = tuple(_spec(value, CHANNELS_LAST if value.name in nhwc else "NCHW") for value in model.graph.input)
    return Exported(inputs, tuple(map(_spec, model.graph.output)), layers, notes)


def _rename_clashing(program: torch.onnx.ONNXProgram) -> None:
    """Give constants that are called as a call's value another name.

    The exporter would number the values anew instead, and ``sigmoid_1`` be another call's than the graph's.
    """
    graph = program.model.graph
    taken = {value.name for node in graph for value in node.outputs}
    for value in [*graph.initializers.values()]:
        if value.name in taken:
            name = f"{value.name}_constant"
            while name in taken or name in graph.initializers:
                name += "_"
            value.name = name


def _named_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every operator a name of its own, by which it can be spared."""
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    return model


def _layer_map(
    graph: Graph, model: onnx.ModelProto, renamed: dict[str, str]
) -> tuple[LayerMap, dict[str, Part | None]]:
    """Return where every layer is, and where every call of the graph is."""
    values = {name for node in model.graph.node for name in node.output} | {item.name for item in model.graph.output}
    returned = next(node for node in graph.module.graph.nodes if node.op == "output").args[0]
    outputs = {node.name: name for node, name in zip(returned, graph.outputs, strict=True)}
    places: dict[str, Part | None] = {}
    made: dict[str, fx.Node] = {}  # by the name of a node what makes the tensor that holds its value
    rows = _Rows(model)
    repeated = repeated_calls(graph.module.graph)

    def place(node: fx.Node) -> Part | None:
        key = origin_key(node)
        stem, _, index = key.partition("[")
        candidates = [outputs.get(node.name), renamed.get(key)]
        if index:  # the exporter names the outputs of Split after the call
            candidates.append(f"{renamed.get(stem, stem)}_split_{index.rstrip(']')}")
        name = next((item for item in candidates if item is not None and item in values), None)
        if name is None and (same := _before_ones(node)) is not None:
            made[node.name] = made.get(same.name, same)
            part = places.get(same.name)
            return part and replace(part, axes=_past_ones(made[node.name], node) or part.axes)
        if name is None and node.name in repeated:  # the simplifier keeps one of them
            return places.get(repeated[node.name])
        if name is None:
            name = rows.of(node, places)
        return None if name is None else Part(name)

    for node in graph.module.graph.nodes:
        places[node.name] = place(node)
    reasons = _fused(graph, places)
    for node in graph.module.graph.nodes:
        if places[node.name] is None and node.name not in reasons and (layer := read_by_one(graph, node, places)):
            reasons[node.name] = f"=>{layer}"
    return graph.layers.carried(places, reasons), places


class _Rows:
    """Values of several axes that the optimizer hands on as rows of a matrix, by the name of the tensor.

    A linear layer of (N, tokens, C) is written as Reshape, Gemm, Reshape; reshapes around it are merged into these.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.shapes = {
            value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in onnx.shape_inference.infer_shapes(model).graph.value_info
        }
        self.products: dict[str, list[str]] = {}  # by the name of a bias what is made with it
        self.views: dict[str, list[str]] = {}  # by the name of a tensor its reshapes
        for node in model.graph.node:
            if node.op_type == "Gemm" and len(node.input) == 3:
                self.products.setdefault(node.input[2], []).extend(node.output)
            elif node.op_type == "Reshape":
                self.views.setdefault(node.input[0], []).extend(node.output)

    def of(self, node: fx.Node, places: dict[str, Part | None]) -> str | None:
        """Return the tensor whose elements are those of the value of *node*, in this order; None for none."""
        found: list[str] = []
        if op_name(node) == "linear":
            bias = argument(node, 2, "bias")
            made = self.products.get(str(bias.target), []) if isinstance(bias, fx.Node) else []
            found = made if len(made) == 1 else []  # of a layer that is called twice nothing tells which
        elif op_name(node) in (*VIEWS, "flatten") and node.args and isinstance(node.args[0], fx.Node):
            part = places.get(node.args[0].name)
            if part is not None and part == Part(part.tensor):
                found = [*self.views.get(part.tensor, []), part.tensor]
        sizes = node.meta["val"].shape if isinstance(node.meta.get("val"), torch.Tensor) else ()
        if not found or not all(isinstance(size, int) for size in sizes):
            return None
        return next((name for name in found if takes_together(self.shapes.get(name, [0]), sizes)), None)


def _fused(graph: Graph, places: dict[str, Part | None]) -> dict[str, str]:
    """Move the places of scales and normalisations that were fused into the convolution before them.

    The tensor keeps the convolution's name and holds the value of the last of them.

    Returns:
        For each layer that is gone so, the layer that it is seen through.
    """
    reasons: dict[str, str] = {}
    fused: set[str] = set()
    for node in graph.module.graph.nodes:
        before = _scaled(node)
        if before is None or places[node.name] is not None or places[before.name] is None or len(before.users) != 1:
            continue
        layer = _layer_behind(graph, node)
        if layer is not None and (op_name(before) in CONVOLUTIONS or before.name in fused):
            places[node.name], places[before.name] = places[before.name], None
            reasons[before.name] = f"->{layer}"
            fused.add(node.name)
    return reasons


def _layer_behind(graph: Graph, node: fx.Node) -> str | None:
    """The layer that a call is, or where it is a part of one, the layer that it is a part of."""
    while graph.layer_of(node.name) is None and len(node.users) == 1:
        (node,) = node.users
    return graph.layer_of(node.name)


def _scaled(node: fx.Node) -> fx.Node | None:
    """Return what a call scales or shifts by constants; None for every other call."""
    varying = [source for source in node.all_input_nodes if source.op != "get_attr"]
    if len(varying) != 1 or (op_name(node) not in SCALES and op_name(node) not in NORMALISATIONS):
        return None
    if op_name(node) in NORMALISATIONS and argument(node, 5, "use_input_stats") is not False:  # of its own statistics
        return None
    return varying[0]


def _before_ones(node: fx.Node) -> fx.Node | None:
    """What a node reads that only adds or drops axes of size 1; None for every other node.

    The simplifier leaves such a one out where the next reader adds them again.
    """
    before = node.args[0] if node.args else None
    if not isinstance(before, fx.Node) or op_name(node) not in (*VIEWS, "unsqueeze", "squeeze"):
        return None
    shapes = [[size for size in item.meta["val"].shape if size != 1] for item in (node, before)]
    return before if shapes[0] == shapes[1] else None


def _past_ones(held: fx.Node, node: fx.Node) -> tuple[int, ...] | None:
    """Which axis of a node's value each axis of *held* is, where both have as many and only those of size 1 moved."""
    sizes = [[size != 1 for size in item.meta["val"].shape] for item in (held, node)]
    if len(sizes[0]) != len(sizes[1]) or sizes[0] == sizes[1]:
        return None
    places = {wide: [axis for axis, own in enumerate(sizes[1]) if own is wide] for wide in (True, False)}
    return tuple(places[wide].pop(0) for wide in sizes[0])


def _name_batch(graph: Graph, model: onnx.ModelProto) -> None:
    """Call the dynamic batch so on every axis, where torch.onnx gives it a number."""
    given = model.graph.input[0].type.tensor_type.shape.dim
    if graph.batch is None or not given[0].dim_param:
        return
    symbol = re.compile(rf"\b{re.escape(given[0].dim_param)}\b")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = symbol.sub(BATCH, axis.dim_param)


def _clean(model: onnx.ModelProto, layers: LayerMap, request: ExportRequest) -> None:
    model.producer_name, model.producer_version = "coordatt-deploy", __version__
    lower_ir(model)
    model.doc_string, model.graph.name = request.spec.about.description or "", request.spec.name
    del model.metadata_props[:]
    for key, value in metadata(request.spec, request.target_cpu).items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    first: dict[str, str] = {}
    for layer in layers.layers:
        holder = layers.resolved(layer.layer_id)
        for part in holder.parts if holder is not None else ():
            first.setdefault(part.tensor, layer.layer_id)
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        node.doc_string = ""
        del node.metadata_props[:]
        name = next((first[output] for output in node.output if output in first), f"{node.op_type}_{index}")
        node.name = name if name not in taken else f"{name}/{node.op_type}_{index}"
        taken.add(node.name)
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        value.doc_string = ""
        if hasattr(value, "metadata_props"):
            del value.metadata_props[:]
    del model.graph.metadata_props[:]


def _spec(value: onnx.ValueInfoProto, layout: str = "NCHW") -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return TensorSpec(value.name, shape, dtype, layout[: len(shape)] if len(shape) <= 4 else "")
