"""Write TFLite through litert-torch, with images in NHWC and tensors named after the layers they hold.

Every call of the graph is converted inside a module of its own, because the converter names tensors after modules.
These names lead to the layer map (``layers``). The file then gets the layers' own names, this project's metadata
and weights aligned to 16 bytes, as the format asks for. Nothing in it depends on the machine or the moment.
"""

import copy
import json
import operator
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, Generic, ParamSpec

import flatbuffers
import numpy as np
import torch
from torch import fx, nn

os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")

import litert_torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import TensorSpec, metadata
from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.exporters import Exported, ExportRequest
from coordatt_deploy.exporters.converter_errors import refusal
from coordatt_deploy.exporters.layer_search import Found, feeds_for, find
from coordatt_deploy.exporters.tflite.uint8_input import add_uint8_input
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.graph import Graph, is_call, layout
from coordatt_deploy.runtimes.tflite.flatbuffer import IDENTIFIER
from coordatt_deploy.runtimes.tflite.metadata import METADATA_NAME
from coordatt_deploy.tensors import axes_to

P = ParamSpec("P")

PREFIX: Final = "at_"  # of the module that stands for a node
NODE_NAMES: Final = re.compile(rf"_Call_{PREFIX}(\w+);")  # the converter writes class, underscore, module
ALIGNMENT: Final = 16  # bytes; schema.fbs asks for it, the converter and the Python bindings do not keep to it

OPERATOR_NAMES: Final = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")
}
TYPES: Final = {
    schema.TensorType.FLOAT32: "float32", schema.TensorType.INT32: "int32", schema.TensorType.INT64: "int64",
    schema.TensorType.BOOL: "bool", schema.TensorType.UINT8: "uint8", schema.TensorType.INT8: "int8",
}  # fmt: skip
MOVING: Final = frozenset({"TRANSPOSE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
ROLES: Final = {  # of the constant inputs, by position
    "CONV_2D": {1: "weight", 2: "bias"},
    "DEPTHWISE_CONV_2D": {1: "weight", 2: "bias"},
    "FULLY_CONNECTED": {1: "weight", 2: "bias"},
}


def export(graph: Graph, request: ExportRequest) -> Exported:
    """Write *graph* as a TFLite file; see ``Exporter.export``.

    Raises:
        UsageError: Another precision than float32, or a dynamic input size.
        ConversionError: litert-torch refused the graph.
    """
    if request.precision is not Precision.FP32:
        raise UsageError(f"the TFLite exporter writes fp32, not {request.precision}")
    if graph.is_dynamic:
        raise UsageError("TFLite files have a fixed input size; capture the model without dynamic sizes or batch")
    converted = _convert(graph)
    model = schema.ModelT.InitFromPackedBuf(converted, 0)
    inputs, outputs = _interface(model, graph)
    feeds = [{spec.name: _moved(one[spec.name], spec) for spec in inputs} for one in feeds_for(graph)]
    sources = _sources(model, graph)
    results = [_run(converted, one, sources) for one in feeds]
    found = find(graph, results, sources, _copies(model))
    names = _names(model, graph, found, sources)
    for tensor, name in zip(model.subgraphs[0].tensors, names, strict=True):
        tensor.name = name
    _describe(model, request)
    content = pack(model)
    again = _run(content, feeds[0], sources)
    if any(not np.array_equal(results[0][key], again[key], equal_nan=True) for key in sources):
        raise ConversionError("the renamed TFLite file computes other values; report the model to the project")
    if request.spec.pixels:
        inputs, content = _with_pixels(model, inputs, content)
    request.path.write_bytes(content)
    places = {
        node: None if part is None else replace(part, tensor=names[int(part.tensor)])
        for node, part in found.places.items()
    }
    return Exported(inputs, outputs, graph.layers.carried(places, found.reasons))


def _with_pixels(
    model: schema.ModelT, inputs: tuple[TensorSpec, ...], floats: bytes
) -> tuple[tuple[TensorSpec, ...], bytes]:
    """Let the first input take pixels, and prove on random ones that nothing else changed."""
    image = inputs[0]
    add_uint8_input(model, image.name)
    content = pack(model)
    random = np.random.default_rng(0)
    feeds = {spec.name: random.standard_normal(spec.shape, np.float32) for spec in inputs[1:]}  # type: ignore[arg-type]
    pixels = random.integers(0, 256, image.shape, np.uint8)  # type: ignore[arg-type]
    _, old = _signature_run(floats, feeds | {image.name: pixels.astype(np.float32)})
    _, new = _signature_run(content, feeds | {image.name: pixels})
    if any(not np.array_equal(old[name], new[name], equal_nan=True) for name in old):
        raise ConversionError("the TFLite file computes other values of pixels than of floats; report the model")
    return (replace(image, dtype="uint8"), *inputs[1:]), content


class _Call(nn.Module, Generic[P]):
    """One call of the graph, as a module, so that the converter has a name for it."""

    def __init__(self, function: Callable[P, object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: P.args, **kwargs: P.kwargs) -> object:
        return self.function(*args, **kwargs)


class _Network(nn.Module):
    """The graph with named inputs and outputs, those of rank 4 in NHWC."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.calls = _with_named_calls(graph.module)
        self.inputs = tuple(spec.name for spec in graph.inputs)
        self.outputs = graph.outputs

    def forward(self, **feeds: torch.Tensor) -> dict[str, torch.Tensor]:
        tensors = [feeds[name] for name in self.inputs]
        values = self.calls(*(tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor for tensor in tensors))
        return {
            name: value.permute(0, 2, 3, 1) if value.ndim == 4 else value
            for name, value in zip(self.outputs, values, strict=True)
        }


def _with_named_calls(module: fx.GraphModule) -> fx.GraphModule:
    wrapped = copy.deepcopy(module)
    for node in wrapped.graph.nodes:
        if is_call(node) and node.target is not operator.getitem:
            name = f"{PREFIX}{node.name}"
            wrapped.add_module(name, _Call(node.target))
            node.op, node.target = "call_module", name
    wrapped.recompile()
    return wrapped


def _convert(graph: Graph) -> bytes:
    samples = {
        spec.name: tensor.permute(0, 2, 3, 1).contiguous() if tensor.ndim == 4 else tensor
        for spec, tensor in zip(graph.inputs, graph.example, strict=True)
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own deprecations inside the converter
            converted = litert_torch.convert(_Network(graph).eval(), sample_kwargs=samples)
            return bytes(converted.model_content())
    except Exception as error:
        raise refusal(graph, Format.TFLITE, "litert-torch", error) from error


def _interface(model: schema.ModelT, graph: Graph) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Describe the inputs in the order of the graph's, and the outputs likewise."""
    (signature,) = model.signatureDefs
    tensors = {
        entry.name.decode(): model.subgraphs[0].tensors[entry.tensorIndex]
        for entry in [*signature.inputs, *signature.outputs]
    }
    shapes = {name: tuple(int(size) for size in tensor.shape) for name, tensor in tensors.items()}
    named = [*((spec.name, spec.layout) for spec in graph.inputs), *((name, "") for name in graph.outputs)]
    specs = [
        TensorSpec(
            name,
            shapes[name],
            TYPES[tensors[name].type],
            "NHWC" if len(shapes[name]) == 4 else given or layout(len(shapes[name])),
        )
        for name, given in named
    ]
    return tuple(specs[: len(graph.inputs)]), tuple(specs[len(graph.inputs) :])


def _moved(value: NumberArray, spec: TensorSpec) -> NumberArray:
    return np.ascontiguousarray(np.transpose(value, axes_to(spec.layout, value.ndim)))


def _sources(model: schema.ModelT, graph: Graph) -> dict[str, list[str]]:
    """Index of each tensor that an operator makes, in execution order, and which calls the converter says went into it.

    Outputs have lost that name. They are given the node that is returned, and those before it that no other tensor
    mentions and nothing else reads, for these can only have been fused into the same operator.
    """
    subgraph = model.subgraphs[0]
    made = [int(index) for operation in subgraph.operators for index in operation.outputs]
    sources = {str(index): NODE_NAMES.findall(subgraph.tensors[index].name.decode()) for index in made}
    (returned,) = (node for node in graph.module.graph.nodes if node.op == "output")
    by_name = dict(zip(graph.outputs, returned.args[0], strict=True))
    mentioned = {name for names in sources.values() for name in names}
    for entry in model.signatureDefs[0].outputs:
        node, names = by_name[entry.name.decode()], list[str]()
        while (
            isinstance(node, fx.Node)
            and is_call(node)
            and (not names or (node.name not in mentioned and len(node.users) == 1))
        ):
            names.append(node.name)
            node = node.args[0]
        sources[str(entry.tensorIndex)] = names
    return sources


def _copies(model: schema.ModelT) -> frozenset[str]:
    """Index of each tensor that holds another one's elements in another order."""
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    moving = (op for op in model.subgraphs[0].operators if OPERATOR_NAMES[codes[op.opcodeIndex]] in MOVING)
    return frozenset(str(index) for op in moving for index in op.outputs)


def _run(content: bytes, feeds: Mapping[str, NumberArray], tensors: Iterable[str]) -> dict[str, NumberArray]:
    """Run a file with TFLite's built-in kernels, which keep the tensors that XNNPACK would not."""
    interpreter, _ = _signature_run(content, feeds)
    return {index: interpreter.get_tensor(int(index)) for index in tensors}


def _signature_run(content: bytes, feeds: Mapping[str, NumberArray]) -> tuple[Interpreter, dict[str, NumberArray]]:
    interpreter = Interpreter(
        model_content=content,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    return interpreter, interpreter.get_signature_runner()(**feeds)


def _names(model: schema.ModelT, graph: Graph, found: Found, sources: Mapping[str, list[str]]) -> list[str]:
    """Name every tensor: after its layer, or after the layer it serves."""
    subgraph = model.subgraphs[0]
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    (signature,) = model.signatureDefs
    # An input that is handed through is also an output; ranges are recorded under the input's name.
    names = {entry.tensorIndex: entry.name.decode() for entry in [*signature.outputs, *signature.inputs]}
    taken = set(names.values())
    order = {node.name: position for position, node in enumerate(graph.module.graph.nodes)}

    def give(index: int, name: str) -> None:
        if index not in names:
            count = 0
            while (unique := f"{name}_{count}" if count else name) in taken:
                count += 1
            names[index] = unique
            taken.add(unique)

    for operation in subgraph.operators:
        op_name = OPERATOR_NAMES[codes[operation.opcodeIndex]]
        for output in (int(index) for index in operation.outputs):
            owner = found.owners.get(str(output))
            mentioned = sorted(
                (name for name in sources[str(output)] if name in order),
                key=lambda name: order[name],
            )
            if owner is not None:
                give(output, graph.layer_of(owner) or owner)
            elif mentioned:
                give(output, f"{graph.layer_of(mentioned[-1]) or mentioned[-1]}/{op_name.lower()}")
            else:
                give(output, op_name.lower())
        for position, index in enumerate(int(index) for index in operation.inputs):
            if index >= 0:
                role = ROLES.get(op_name, {}).get(position, f"input_{position}")
                give(index, f"{names[int(operation.outputs[0])]}/{role}")
    for index in range(len(subgraph.tensors)):
        give(index, f"unused_{index}")
    return [names[index] for index in range(len(subgraph.tensors))]


def _describe(model: schema.ModelT, request: ExportRequest) -> None:
    document = json.dumps(metadata(request.spec, request.target_cpu), ensure_ascii=False)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA_NAME, len(model.buffers)
    model.metadata = [*(model.metadata or []), entry]
    model.buffers.append(schema.BufferT(data=np.frombuffer(document.encode(), dtype=np.uint8)))
    model.description = request.spec.about.description or request.spec.name


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]  # the schema has no types
    """A buffer whose bytes begin at a multiple of ALIGNMENT in the file."""

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802 - the generated code calls it so
        vector = None
        if self.data is not None and len(self.data):
            content = bytes(self.data)
            builder.StartVector(1, len(content), ALIGNMENT)
            builder.head -= len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))


def pack(model: schema.ModelT) -> bytes:
    """Return the bytes of a file: the same model gives the same ones, and weights begin at multiples of ALIGNMENT."""
    if any(buffer.offset or buffer.size for buffer in model.buffers):
        raise ConversionError("the model is larger than a TFLite file can hold in one piece (2 GiB)")
    model.buffers = [_AlignedBuffer(data=buffer.data) for buffer in model.buffers]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())
