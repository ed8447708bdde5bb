"""Write a Core ML ML Program (``.mlpackage``) through coremltools.

coremltools gives each operator of the program the name of the torch node that it computes, with an ending of its own
for fp16; the layer map is carried by these names and every shape is checked on the way. The package is then written by
this module, because coremltools puts random identifiers, the date and a debugging table into it: here identifiers are
the hash of what they identify, and the same graph gives the same bytes.
"""

import copy
import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import fx

from coordatt_deploy import __version__
from coordatt_deploy.artifact_specs import ModelSpec, TensorSpec, metadata
from coordatt_deploy.errors import ConversionError
from coordatt_deploy.exporters import Exported, ExportRequest
from coordatt_deploy.exporters.converter_errors import refusal
from coordatt_deploy.exporters.coreml.axes import find_orders, may_be_permuted, permutes
from coordatt_deploy.exporters.coreml.resizing import resizings
from coordatt_deploy.exporters.coreml.torch_operators import corrected
from coordatt_deploy.exporters.float32_notes import float32_notes
from coordatt_deploy.exporters.fused_layers import read_by_one
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.call_arguments import outputs as returned_nodes
from coordatt_deploy.graph.exported_program import origin_key, program, provenance
from coordatt_deploy.graph.float16_range import lost_in_float16
from coordatt_deploy.graph.graph import Graph, aten, is_tensor, layout
from coordatt_deploy.layer_map import LayerMap, Part
from coordatt_deploy.runtime_versions import RuntimeLimits, in_order
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools as ct
from coordatt_deploy.runtimes.coreml.coremltools_import import mil, mil_types, proto

# The oldest target whose operator set holds all that a float network needs and whose weights can later be compressed in
# place (constexpr operators): every iPhone since the 8 runs it. Quantized activations need iOS 17; whoever makes them
# raises the target. Of older systems iOS 15 alone has ML Programs; for a newer one nothing would be gained, as it opens
# the same file.
TARGET: Final = ct.target.iOS16
USUAL: Final = "16"  # its name
OLDEST: Final = (ct.target.iOS15, "15")

MODEL_FOLDER: Final = "com.apple.CoreML"
DATE_KEY: Final = "com.github.apple.coremltools.conversion_date"


def export(graph: Graph, request: ExportRequest) -> Exported:
    """Write *graph* as an ``.mlpackage`` folder; see ``Exporter.export``."""
    target = _target(request.limits)
    exported, _ = program(_with_products(graph))
    exported = exported.run_decompositions({})
    renamed = provenance(exported)
    in_float32 = request.float32_nodes | lost_in_float16(graph.module)
    kept = {renamed.get(node.name, node.name): node.name in in_float32 for node in graph.module.graph.nodes}
    try:
        with corrected(resizings(exported)), _numbered_behind(exported):
            converted = ct.convert(
                exported,
                convert_to="mlprogram",
                compute_precision=ct.precision.FLOAT32
                if request.precision is Precision.FP32
                else ct.transform.FP16ComputePrecision(op_selector=lambda operation: not _in_float32(operation, kept)),
                minimum_deployment_target=target,
                inputs=[_input(graph, request.spec, index) for index in range(len(graph.inputs))],
                outputs=[ct.TensorType(name, dtype=kind) for name, kind in _output_types(graph).items()],
                classifier_config=_classes(graph, request.spec),
                skip_model_load=True,
                pass_pipeline=_passes(graph),
            )
    except Exception as error:
        raise refusal(graph, Format.COREML, "coremltools", error) from error
    function = converted._mil_program.functions["main"]
    model = converted.get_spec()
    _describe(model, request, graph)
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "saved.mlpackage"
        converted.save(str(saved))
        stored = saved / "Data" / MODEL_FOLDER / "weights" / "weight.bin"
        weights = stored.read_bytes() if stored.exists() else None  # small constants are part of the specification
    write_package(Path(request.path), model.SerializeToString(deterministic=True), weights)
    inputs = tuple(TensorSpec(spec.name, spec.shape, "float32", spec.layout) for spec in graph.inputs)
    if request.spec.pixels:
        inputs = (_as_image(inputs[0]), *inputs[1:])
    layers = _layer_map(graph, function, renamed, Path(request.path), inputs)
    made = {var.name: var for operation in function.operations for var in operation.outputs}
    outputs = tuple(_output_spec(made[name]) for name in graph.outputs)
    notes = float32_notes(Format.COREML, graph, in_float32) if request.precision is Precision.FP16 else ()
    return Exported(inputs, outputs, layers, notes)


def _target(limits: RuntimeLimits) -> ct.target:
    """Return the system whose operators are used: the usual one, or the first with ML Programs where it must be.

    Raises:
        ConversionError: The system asked for is older than ML Programs.
    """
    asked = limits.of(Format.COREML)
    oldest, name = OLDEST
    if asked is not None and in_order(asked) < in_order(name):
        raise ConversionError(
            f"Core ML before iOS {name} has no ML Programs, and --min-runtime asks for iOS {asked}; give ios={name} or"
            " newer"
        )
    return oldest if asked is not None and in_order(asked) < in_order(USUAL) else TARGET


@contextmanager
def _numbered_behind(exported: torch.export.ExportedProgram) -> Iterator[None]:
    """Let coremltools number the operators that it names itself from behind the numbers of torch's on.

    It numbers them by their kind through the life of the process; here, anew for each file. Beginning at 0, the sum
    with which it ends a GroupNorm takes the name of torch's own ``add_1``, which then gets another, and the layer map
    would take one for the other.
    """
    numbers = (node.name.rpartition("_")[2] for node in exported.graph.nodes)
    first = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
    counts = ct.converters.mil.mil.Builder.name_count
    before = counts.default_factory
    counts.clear()
    counts.default_factory = lambda: first
    try:
        yield
    finally:
        counts.default_factory = before
        counts.clear()


def _in_float32(operation: mil.Operation, kept: Mapping[str, bool]) -> bool:
    """Whether an operator computes a call that keeps to float32: the one whose name it has, or begins with.

    Args:
        operation: coremltools numbers, or gives an ending to, the operators that it makes of one call.
        kept: Whether each call keeps to float32, by its name in the program.
    """
    name = str(operation.name)
    while name and name not in kept:
        name = name.rpartition("_")[0]
    return kept.get(name, False)


def _output_types(graph: Graph) -> dict[str, type[np.float32] | type[np.int32]]:
    """The type of each output: Core ML has float32 for numbers, and int32 for positions and classes."""
    nodes = zip(graph.outputs, returned_nodes(graph.module.graph), strict=True)
    return {name: np.float32 if node.meta["val"].is_floating_point() else np.int32 for name, node in nodes}


def _input(graph: Graph, model: ModelSpec, index: int) -> ct.TensorType | ct.ImageType:
    """Describe an input to coremltools: pixels as an image, everything else as an array."""
    spec = graph.inputs[index]
    if index == 0 and model.pixels:
        layout = ct.colorlayout.GRAYSCALE if model.preprocessing.colour == "GREY" else ct.colorlayout.RGB
        return ct.ImageType(spec.name, _shape(graph, spec), color_layout=layout)
    return ct.TensorType(spec.name, _shape(graph, spec), dtype=np.float32)


def _copies(graph: Graph) -> list[fx.Node]:
    """The copies by which one tensor is two outputs."""
    return list(graph.module.graph.find_nodes(op="call_function", target=aten.clone.default))


def _with_products(graph: Graph) -> Graph:
    """Write copies as products with 1: coremltools takes a copy for the tensor itself, which has one name."""
    if not _copies(graph):
        return graph
    written = replace(graph, module=copy.deepcopy(graph.module))
    for node in _copies(written):
        one = 1.0 if node.meta["val"].is_floating_point() else 1
        node.target, node.args, node.kwargs = aten.mul.Tensor, (node.args[0], one), {}
    written.module.recompile()
    return written


def _passes(graph: Graph) -> ct.PassPipeline:
    """Return the converter's own passes, without the one that drops products with 1 where they are outputs.

    Nor is a product and a sum per channel made a BatchNorm: the pass that does so leaves its epsilon at 1e-5 beside a
    variance of 1, and every value comes out 5e-6 too small.
    """
    passes = ct.PassPipeline()
    passes.remove_passes({"common::fuse_elementwise_to_batchnorm"})
    if _copies(graph):
        passes.remove_passes({"common::noop_elimination"})
    return passes


def _classes(graph: Graph, model: ModelSpec) -> ct.ClassifierConfig | None:
    """Make a classifier of what takes images and has names for its only output: Vision shows such a one by itself."""
    (node,) = (node for node in graph.module.graph.nodes if node.op == "output")
    values = [value.meta["val"] for value in node.args[0]]
    labels = model.labels
    if not model.pixels or labels is None or len(values) != 1 or tuple(values[0].shape) != (1, len(labels)):
        return None
    return ct.ClassifierConfig(list(labels))


def _as_image(spec: TensorSpec) -> TensorSpec:
    """What an app hands over: rows of RGB or grey pixels of 8 bits."""
    batch, channels, height, width = spec.shape
    return TensorSpec(spec.name, (batch, height, width, channels), "uint8", "NHWC")


def _shape(graph: Graph, spec: TensorSpec) -> tuple[int, ...] | ct.Shape:
    """The input's shape for coremltools, with a range on each dynamic axis."""
    example = graph.example[[item.name for item in graph.inputs].index(spec.name)].shape
    if None not in spec.shape:
        return tuple(example)
    return ct.Shape([
        _range(graph, axis, now) if size is None else size
        for axis, (size, now) in enumerate(zip(spec.shape, example, strict=True))
    ])  # fmt: skip


def _range(graph: Graph, axis: int, now: int) -> ct.RangeDim:
    """The bounds of a dynamic axis; the default is what the network was captured with, of a batch the smallest."""
    bounds = graph.batch if axis == 0 else graph.dynamic
    assert bounds is not None  # noqa: S101 - a size is unknown where it is dynamic
    default = bounds.minimum if axis == 0 else now
    return ct.RangeDim(lower_bound=bounds.minimum, upper_bound=bounds.maximum, default=default)


def _output_spec(var: mil.Var) -> TensorSpec:
    shape = _sizes(var)
    return TensorSpec(var.name, shape, np.dtype(mil_types.nptype_from_builtin(var.dtype)).name, layout(len(shape)))


def _sizes(var: mil.Var) -> tuple[int | None, ...]:
    return tuple(int(size) if isinstance(size, (int, np.integer)) else None for size in var.shape)


def _layer_map(
    graph: Graph, function: mil.Function, renamed: Mapping[str, str], path: Path, inputs: tuple[TensorSpec, ...]
) -> LayerMap:
    """Carry the graph's map to the tensors of the program, by name; in which order of axes, by their values."""
    tensors = (operation.outputs for operation in function.operations if not _has_no_tensor(operation))
    shapes = {var.name: _sizes(var) for outputs in tensors for var in outputs}
    (output,) = (node for node in graph.module.graph.nodes if node.op == "output")
    outputs = {node.name: name for node, name in zip(output.args[0], graph.outputs, strict=True)}
    places: dict[str, Part | None] = {}
    called: dict[str, str] = {}  # by node the tensor that has its name, and maybe another order of axes
    for node in filter(is_tensor, graph.module.graph.nodes):
        names = _candidates(node, renamed, outputs)
        found = next((name for name in names if _fits(node, shapes.get(name))), None)
        places[node.name] = None if found is None else Part(found)
        tensor = found or next((name for name in names if name in shapes), None)
        if (
            tensor is not None
            and node.op == "call_function"
            and may_be_permuted(node.meta["val"].shape, shapes[tensor])
        ):
            called[node.name] = tensor
    if called and permutes(graph):
        for name, axes in find_orders(graph, path, inputs, called).items():
            places[name] = Part(called[name], axes)
    reasons = {name: _reason(graph, name, places) for name, part in places.items() if part is None}
    return graph.layers.carried(places, reasons)


def _has_no_tensor(operation: mil.Operation) -> bool:
    """Whether it makes no tensor: a classifier's last operator, the list of names that it takes, a constant.

    A constant is stored once for each place where it is used, so that its name is none of the file's.
    """
    return operation.op_type in ("classify", "const") or any(isinstance(var, mil.ListVar) for var in operation.outputs)


def _candidates(node: fx.Node, renamed: Mapping[str, str], outputs: Mapping[str, str]) -> list[str]:
    """Names that coremltools may have given to the node's value, the surest first."""
    key = origin_key(node)
    stem, _, index = key.partition("[")
    name = renamed.get(key, node.name)
    if index:  # a part of a split: named after the whole, and numbered
        whole, number = renamed.get(stem, stem), index.rstrip("]")
        names = [f"{whole}_cast_fp16_{number}", f"{whole}_{number}"]
    else:  # a division by a constant becomes a multiplication
        names = [f"{name}_cast_fp16", name, f"_inversed_{name}_cast_fp16", f"_inversed_{name}"]
        names += [f"{name}_0_cast_fp16", f"{name}_0"]  # numbered where a constant has the name
    if node.name not in outputs:
        return names
    # In fp16 an output is a copy in float32; what else reads the value reads the original.
    read_inside = any(user.op != "output" for user in node.users)
    return [*names, outputs[node.name]] if read_inside else [outputs[node.name], *names]


def _fits(node: fx.Node, shape: tuple[int | None, ...] | None) -> bool:
    """Whether a tensor of *shape* can hold the node's value: the same name with another shape is another value.

    Between two permutations that cancel, coremltools computes in the order of axes before them, under the old names.
    """
    if shape is None:
        return False
    wanted = node.meta["val"].shape
    return len(wanted) == len(shape) and all(
        have is None or (isinstance(want, int) and have == want) for have, want in zip(shape, wanted, strict=True)
    )


def _reason(graph: Graph, name: str, places: Mapping[str, Part | None]) -> str:
    """Why a value is gone: it was fused into the one that is made from it alone, or coremltools dropped it."""
    layer = read_by_one(graph, next(node for node in graph.module.graph.nodes if node.name == name), places)
    return f"->{layer}" if layer else "coremltools merged it with others; the program has no such tensor"


def _describe(model: proto.Model_pb2.Model, request: ExportRequest, graph: Graph) -> None:
    """Fill in what Xcode shows and what a program can read; no date and no path."""
    spec, description = request.spec, model.description.metadata
    values = metadata(spec, request.target_cpu) | {
        "precision": request.precision.value,
        "torch": torch.__version__,
        "coremltools": ct.__version__,
    }
    description.shortDescription = spec.about.description or _summary(spec, request.precision)
    description.author = spec.about.author or f"coordatt-deploy {__version__}"
    description.license = spec.about.license or "The licence of the weights applies; the file does not state it."
    description.versionString = spec.source_sha256[:12] or __version__
    del description.userDefined[DATE_KEY]
    for key, value in values.items():
        description.userDefined[key] = value if isinstance(value, str) else json.dumps(value)
    for feature, tensor in zip(model.description.input, graph.inputs, strict=True):
        image = feature.type.WhichOneof("Type") == "imageType"
        kind = "grey" if spec.preprocessing.colour == "GREY" else "RGB"
        what = f"{kind} image, resized" if image else f"float32, {tensor.layout}, preprocessed"
        feature.shortDescription = f"{what} as the key preprocessing says"
    for feature in model.description.output:
        feature.shortDescription = _of_output(feature, spec)


def _of_output(feature: proto.Model_pb2.FeatureDescription, spec: ModelSpec) -> str:
    feature_type = feature.type.WhichOneof("Type")
    if feature_type == "stringType":
        return "the class of the greatest value"
    if feature_type == "dictionaryType":
        return "the value of each class"
    return "float32, one value per class, before softmax" if spec.labels else "float32"


def _summary(spec: ModelSpec, precision: Precision) -> str:
    classes = f", {len(spec.labels)} classes" if spec.labels else ""
    attention = f" with {spec.attention} attention" if spec.attention else ""
    return f"{spec.name}{attention}{classes}, {precision.value}"


def write_package(path: Path, model: bytes, weights: bytes | None) -> None:
    """Write a package whose bytes follow from its content alone.

    Args:
        path: The folder to make; it does not exist yet.
        model: The serialised specification.
        weights: The weight file that the specification refers to; None if it refers to none.
    """
    items = [("model.mlmodel", "CoreML Model Specification", model)]
    if weights is not None:
        items.append(("weights", "CoreML Model Weights", weights))
    # the hash of the content, in the form of the random UUID that coremltools takes
    identifiers = [str(uuid.UUID(bytes=hashlib.sha256(name.encode() + data).digest()[:16])) for name, _, data in items]
    entries = {
        identifier: {"author": MODEL_FOLDER, "description": text, "name": name, "path": f"{MODEL_FOLDER}/{name}"}
        for identifier, (name, text, _) in zip(identifiers, items, strict=True)
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": identifiers[0]}
    folder = path / "Data" / MODEL_FOLDER
    folder.mkdir(parents=True)
    (folder / "model.mlmodel").write_bytes(model)
    if weights is not None:
        (folder / "weights").mkdir()
        (folder / "weights" / "weight.bin").write_bytes(weights)
    # the form that Core ML's package reader writes when it opens a package: opening changes nothing
    (path / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")
