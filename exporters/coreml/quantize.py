"""Compress a Core ML ML Program through coremltools.optimize: int8 weights, palettes, and int8 activations.

coremltools measures activations by running the model, which needs a Mac. Its graph passes only want the ranges, so
they get those that this project measured on the saved program, with the ML Program evaluator or Core ML itself. Each
convolution, linear layer, sum and pool then stands between a pair of ``quantize`` and ``dequantize`` (iOS 17). Names of
tensors survive, hence the layer map does; but for what moves elements, which coremltools puts between the two.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.exporters import EIGHT_BITS, Exported, ExportRequest
from coordatt_deploy.exporters.coreml.export import DATE_KEY, MODEL_FOLDER, write_package
from coordatt_deploy.formats import Format, TargetCpu
from coordatt_deploy.layer_map import LayerMap, Part
from coordatt_deploy.quantization.delicate_sums import too_wide, touching
from coordatt_deploy.quantization.ranges import Range, needed
from coordatt_deploy.quantization.recipes import Mode, Recipe, checked, kept_in_float
from coordatt_deploy.runtime_versions import in_order
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools as ct
from coordatt_deploy.runtimes.coreml.coremltools_import import proto
from coordatt_deploy.runtimes.coreml.evaluator.package import CLASSIFY, block_of

# Weights up to this size stay as they are: coremltools' own threshold; small ones save nothing and cost most accuracy.
FLOATS: Final = frozenset({proto.MIL_pb2.FLOAT16, proto.MIL_pb2.FLOAT32})
FEW_WEIGHTS: Final = 2048
WEIGHTED: Final = frozenset({"conv", "conv_transpose", "linear", "matmul", "gather", "prelu"})
# What leads from a mask to the softmax behind it.
MASKING: Final = frozenset(
    {"add", "sub", "mul", "real_div", "select", "reshape", "transpose", "expand_dims", "squeeze"}
)
LEAST_STEP: Final = 2.0**-18  # float16 holds four bits of it; nothing in a network that computes in float16 is finer
IOS_17: Final = 8  # specification version: the first with quantize and dequantize
# The first iOS that has what a recipe writes.
FIRST_SYSTEM: Final = {
    Mode.STATIC: ("quantize and dequantize operators", "17"),
    Mode.WEIGHT_ONLY: ("compressed constants (constexpr operators)", "16"),
    Mode.PALETTIZED: ("compressed constants (constexpr operators)", "16"),
}
# What coremltools' passes put between quantize and dequantize, as a graph calls it.
INTEGER: Final = frozenset({"conv2d", "linear", "add", "avg_pool2d", "max_pool2d"})


# What gives a multiple of its value for a multiple of its input, where that is positive.
HOMOGENEOUS: Final = frozenset({
    "relu", "leaky_relu", "identity", "reshape", "transpose", "squeeze", "expand_dims", "slice_by_index", "max_pool",
    "avg_pool", "reduce_mean", "reduce_max",
})  # fmt: skip


def weight_levels(target_cpu: TargetCpu | None) -> int:  # noqa: ARG001 - one package serves every CPU
    """See ``Quantizer.weight_levels``."""
    return EIGHT_BITS


def integer_operators() -> frozenset[str] | None:
    """See ``Quantizer.integer_operators``."""
    return INTEGER


def activations(source: Path, exported: Exported) -> tuple[str, ...]:
    """Return the names of the tensors whose ranges ``quantize`` needs."""
    with _opened(source) as model:
        block = block_of(model.get_spec())
        made = {output.name for operation in block.operations if operation.type != CLASSIFY
                for output in operation.outputs}  # fmt: skip
        constants = {output.name for operation in block.operations if _is_constant(operation)
                     for output in operation.outputs}  # fmt: skip
        outputs = {spec.name for spec in exported.outputs}
        return tuple(sorted(made - constants - outputs))


def quantize(
    source: Path, exported: Exported, recipe: Recipe, ranges: Mapping[str, Range] | None, request: ExportRequest
) -> Exported:
    """Quantize the package at *source*; see ``Quantizer.quantize``.

    Raises:
        UsageError: Core ML cannot express the recipe, it needs ranges, or it names unknown layers.
        ConversionError: coremltools refused the package.
    """
    recipe = checked(recipe, Format.COREML)
    what, system = FIRST_SYSTEM[recipe.mode]
    asked = request.limits.of(Format.COREML)
    if asked is not None and in_order(asked) < in_order(system):
        raise ConversionError(
            f"{recipe.name} needs {what}, which Core ML has from iOS {system} on, and --min-runtime asks for iOS"
            f" {asked}; give --min-runtime ios={system}, or ship the float file"
        )
    with _opened(source) as model, _silent():
        floats = block_of(model.get_spec())
        kept = kept_in_float(recipe.float_layers, exported.layers, _edges(floats))
        ct.converters.mil.mil.Builder.name_count.clear()
        try:
            if recipe.mode is Mode.STATIC:
                model = _with_activations(
                    model,
                    needed(ranges, recipe),
                    kept | _of_integers(floats) | _too_wide(floats, needed(ranges, recipe)),
                )
            model = _with_weights(model, recipe, kept)
        except Exception as error:
            raise ConversionError(f"coremltools cannot apply {recipe.name}: {error}") from error
        _write(model, recipe, request)
        written = block_of(model.get_spec())
        layers = _carried(exported.layers, _rescaled(written), _renamed(floats, written))
    return Exported(exported.inputs, exported.outputs, layers)


def _of_integers(block: proto.MIL_pb2.Block) -> set[str]:
    """Names of the tensors that hold sizes, positions, or yes and no: what makes them is not put on a grid."""
    return {
        output.name
        for operation in block.operations
        for output in operation.outputs
        if output.type.tensorType.dataType not in FLOATS
    }


def _too_wide(block: proto.MIL_pb2.Block, ranges: Mapping[str, Range]) -> set[str]:
    """Names of what no grid can hold, as a mask of minus infinity makes it, and of what is made of it."""
    edges = _edges(block)
    wide = too_wide(
        {name: (bounds.low, bounds.high) for name, bounds in ranges.items()},
        [operation.inputs["x"].arguments[0].name for operation in block.operations if operation.type == "softmax"],
        {
            name: reads
            for operation, (reads, makes) in zip(block.operations, edges, strict=True)
            if operation.type in MASKING
            for name in makes
        },
    )
    return touching(wide, edges)


def _rescaled(block: proto.MIL_pb2.Block) -> dict[str, float]:
    """Return the tensors that are another multiple of the layer's value than before, with the factor between.

    So that int8 sums stay int8, coremltools lets the first ``dequantize`` before an ``add`` give whole steps, not
    floats, changes the second to match, and takes the factor back in the ``quantize`` behind; what stands between the
    two, a ReLU, has the factor as well.
    """
    constants = {operation.outputs[0].name: operation for operation in block.operations if operation.type == "const"}
    made_by = {output.name: operation for operation in block.operations for output in operation.outputs}

    def scale(operation: proto.MIL_pb2.Operation) -> float | None:
        return _scalar(constants.get(operation.inputs["scale"].arguments[0].name))

    found: dict[str, float] = {}
    for operation in block.operations:
        if operation.type in HOMOGENEOUS and operation.inputs["x"].arguments[0].name in found:
            found[operation.outputs[0].name] = found[operation.inputs["x"].arguments[0].name]
        if operation.type != "add":
            continue
        after = made_by.get(operation.inputs["x"].arguments[0].name)
        if after is None or after.type != "dequantize":
            continue
        before = made_by.get(after.inputs["input"].arguments[0].name)
        if before is None or before.type != "quantize":
            continue
        given, stored = scale(after), scale(before)
        if given and stored:  # what was stored may itself be a sum of whole steps
            factor = given / stored * found.get(before.inputs["input"].arguments[0].name, 1.0)
            if factor != 1.0:
                found[operation.outputs[0].name] = factor
    return found


def _renamed(before: proto.MIL_pb2.Block, after: proto.MIL_pb2.Block) -> dict[str, str | None]:
    """Return what holds the values of the tensors that are gone: the ``dequantize`` behind the operation that moved.

    None where nothing does: of two such operations in a row the first one's value is there in whole steps alone.
    """
    made = {output.name: operation for operation in after.operations for output in operation.outputs}
    readers = {binding.name: operation for operation in after.operations
               for argument in operation.inputs.values() for binding in argument.arguments}  # fmt: skip

    def origin(name: str) -> str:
        """The tensor of the float program that a tensor in whole steps stands for."""
        while name in made and made[name].type in ("quantize", "dequantize"):
            name = made[name].inputs["input"].arguments[0].name
        return stands_for.get(name, name)

    stands_for: dict[str, str] = {}
    found: dict[str, str | None] = {}
    moved = [operation for operation in after.operations if "x" in operation.inputs]
    for operation in before.operations:
        name = operation.outputs[0].name if operation.outputs else ""
        if not name or name in made or "x" not in operation.inputs:
            continue
        source = operation.inputs["x"].arguments[0].name
        for other in moved:
            output = other.outputs[0].name
            if (
                other.type == operation.type
                and output not in stands_for
                and origin(other.inputs["x"].arguments[0].name) == source
            ):
                stands_for[output] = name
                behind = readers.get(output)
                found[name] = behind.outputs[0].name if behind is not None and behind.type == "dequantize" else None
                break
    return found


def _carried(layers: LayerMap, factors: Mapping[str, float], renamed: Mapping[str, str | None]) -> LayerMap:
    places: dict[str, Part | None] = {}
    for name in {part.tensor for layer in layers.layers for part in layer.parts}:
        now = renamed.get(name, name)
        places[name] = None if now is None else Part(now, factor=factors.get(now, 1.0))
    return layers.carried(places)


def _with_activations(model: ct.models.MLModel, ranges: Mapping[str, Range], kept: set[str]) -> ct.models.MLModel:
    """Insert quantize and dequantize, as ``linear_quantize_activations`` does, with the ranges given."""
    # private parts of coremltools: a version that moves them stops this recipe alone
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil.passes.graph_pass import PassOption
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
    from coremltools.models.utils import _apply_graph_pass

    config = _config(ct.optimize.coreml.OpLinearQuantizerConfig(mode="linear", dtype="int8"), kept)
    statistics = {name: _wide_enough(bounds) for name, bounds in ranges.items()}
    passes = []
    for name in ("compression::insert_prefix_quantize_dequantize_pair",
                 "compression::insert_suffix_quantize_dequantize_pair"):  # fmt: skip
        graph_pass = PASS_REGISTRY[name]
        graph_pass.set_options([PassOption("config", config), PassOption("activation_stats", statistics)])
        passes.append(graph_pass)
    passes.append(PASS_REGISTRY["common::dequantize_quantize_pair_elimination"])
    return _apply_graph_pass(model, passes, spec_version=IOS_17, pymil_load_func=load, skip_model_load=True)


def _wide_enough(bounds: Range) -> dict[str, float]:
    """Return the range as coremltools takes it; steps are stored in float16, where tiny ones would become 0."""
    return {"rmin": bounds.low, "rmax": max(bounds.high, bounds.low + 255 * LEAST_STEP)}


def _with_weights(model: ct.models.MLModel, recipe: Recipe, kept: set[str]) -> ct.models.MLModel:
    optimize = ct.optimize.coreml
    if recipe.mode is Mode.PALETTIZED:
        chosen = optimize.OpPalettizerConfig(mode="kmeans", nbits=int(recipe.weights), weight_threshold=FEW_WEIGHTS)
        return optimize.palettize_weights(model, _config(chosen, _weights_of(model, kept)))
    chosen = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=FEW_WEIGHTS)
    return optimize.linear_quantize_weights(model, _config(chosen, _weights_of(model, kept)))


_OperatorConfig: TypeAlias = ct.optimize.coreml.OpLinearQuantizerConfig | ct.optimize.coreml.OpPalettizerConfig


def _config(chosen: _OperatorConfig, kept: set[str]) -> ct.optimize.coreml.OptimizationConfig:
    return ct.optimize.coreml.OptimizationConfig(
        global_config=chosen, op_name_configs=dict.fromkeys(sorted(kept)) or None
    )


def _weights_of(model: ct.models.MLModel, kept: set[str]) -> set[str]:
    """Names of the constants that stay in float: those of what makes the tensors *kept*, and those that are no weights.

    A mask of minus infinity that is added would be stored in steps of 1e36.
    """
    block = block_of(model.get_spec())
    constants = {output.name for operation in block.operations if _is_constant(operation)
                 for output in operation.outputs}  # fmt: skip
    return {
        binding.name
        for operation in block.operations
        if operation.type not in WEIGHTED or kept & {output.name for output in operation.outputs}
        for argument in operation.inputs.values()
        for binding in argument.arguments
        if binding.name in constants
    }


def _edges(block: proto.MIL_pb2.Block) -> list[tuple[list[str], list[str]]]:
    """Names of the tensors that each operation reads and makes."""
    return [
        (
            [binding.name for argument in operation.inputs.values() for binding in argument.arguments],
            [output.name for output in operation.outputs],
        )
        for operation in block.operations
    ]


def _is_constant(operation: proto.MIL_pb2.Operation) -> bool:
    return bool(operation.type == "const" or operation.type.startswith("constexpr_"))


@contextmanager
def _opened(source: Path) -> Iterator[ct.models.MLModel]:
    """Open a copy: coremltools' package reader rewrites the manifest of what it opens."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "float.mlpackage"
        shutil.copytree(source, copy)
        file = copy / "Data" / MODEL_FOLDER / "model.mlmodel"
        spec = proto.Model_pb2.Model.FromString(file.read_bytes())
        _name_relu6(block_of(spec))
        file.write_bytes(spec.SerializeToString(deterministic=True))
        yield ct.models.MLModel(str(copy), skip_model_load=True)


def _name_relu6(block: proto.MIL_pb2.Block) -> None:
    """Call a clip to [0, 6] what it is: only then does coremltools take it with the convolution before it.

    Else the convolution's own output is quantized, over a range of which the clip throws most away.
    """
    constants = {operation.outputs[0].name: operation for operation in block.operations if operation.type == "const"}
    for operation in block.operations:
        if operation.type == "clip":
            bounds = [_scalar(constants.get(operation.inputs[name].arguments[0].name)) for name in ("alpha", "beta")]
            if bounds == [0.0, 6.0]:
                operation.type = "relu6"
                del operation.inputs["alpha"], operation.inputs["beta"]


def _scalar(constant: proto.MIL_pb2.Operation | None) -> float | None:
    if constant is None:
        return None
    value = constant.attributes["val"].immediateValue.tensor
    if value.WhichOneof("value") == "floats":
        return float(value.floats.values[0])
    if value.WhichOneof("value") == "bytes" and len(value.bytes.values) == 2:
        return float(np.frombuffer(value.bytes.values, np.float16)[0])
    return None


def _write(model: ct.models.MLModel, recipe: Recipe, request: ExportRequest) -> None:
    spec = model.get_spec()
    described = spec.description.metadata
    described.userDefined.pop(DATE_KEY, None)
    described.userDefined["recipe"] = recipe.name
    described.userDefined["float_layers"] = json.dumps(list(recipe.float_layers))
    if not request.spec.about.description:
        described.shortDescription = f"{described.shortDescription}, {recipe.name}"
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "saved.mlpackage"
        model.save(str(saved))
        stored = saved / "Data" / MODEL_FOLDER / "weights" / "weight.bin"
        weights = stored.read_bytes() if stored.exists() else None
    write_package(request.path, spec.SerializeToString(deterministic=True), weights)


@contextmanager
def _silent() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
