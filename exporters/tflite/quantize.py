"""Quantize a float TFLite file through ai-edge-quantizer, with ranges that this project measures.

The quantizer's own calibration averages the extremes of the images (14 dB where plain extremes give 27), and takes
half a minute for what the file's own kernels do in three seconds. So it is given ranges, per tensor, ready to use.
Names of tensors survive, hence the layer map does.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import qtyping, quantizer, recipe_manager
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from numpy.typing import NDArray

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.errors import ConversionError
from coordatt_deploy.exporters import EIGHT_BITS, Exported, ExportRequest
from coordatt_deploy.exporters.tflite.export import pack
from coordatt_deploy.exporters.tflite.float_operators import float_operators
from coordatt_deploy.exporters.tflite.integer_maxima import take_maxima_of_integers
from coordatt_deploy.exporters.tflite.uint8_input import add_uint8_input, remove_uint8_input
from coordatt_deploy.formats import Format, IoType, TargetCpu
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.quantization.ranges import Range, needed
from coordatt_deploy.quantization.recipes import Mode, Recipe, checked, kept_in_float
from coordatt_deploy.runtimes.tflite.needs import say_versions

ALL: Final = qtyping.TFLOperationName.ALL_SUPPORTED
# Weights this small stay in float where activations do: 4 kB each, and the first layers, which they belong to, are the
# ones that rounding hurts most.
FEW_WEIGHTS: Final = 1024
# XNNPACK has no kernel for a depthwise convolution with int8 weights and float activations: it would leave the
# partition.
NOT_DYNAMIC: Final = (qtyping.TFLOperationName.DEPTHWISE_CONV_2D,)


def weight_levels(target_cpu: TargetCpu | None) -> int:  # noqa: ARG001 - its kernels add in 32 bits everywhere
    """See ``Quantizer.weight_levels``."""
    return EIGHT_BITS


def integer_operators() -> frozenset[str] | None:
    """See ``Quantizer.integer_operators``: ai-edge-quantizer takes them all."""
    return None


def activations(source: Path, exported: Exported) -> tuple[str, ...]:  # noqa: ARG001 - the file knows
    """Return the names of the tensors whose ranges ``quantize`` needs: all that an operator makes."""
    subgraph = schema.ModelT.InitFromPackedBuf(source.read_bytes(), 0).subgraphs[0]
    made = (subgraph.tensors[int(index)] for operation in subgraph.operators for index in operation.outputs)
    return tuple(tensor.name.decode() for tensor in made if tensor.type == schema.TensorType.FLOAT32)


def quantize(
    source: Path, exported: Exported, recipe: Recipe, ranges: Mapping[str, Range] | None, request: ExportRequest
) -> Exported:
    """Quantize the float TFLite file at *source*; see ``Quantizer.quantize``.

    Raises:
        UsageError: TFLite cannot express the recipe, it needs ranges, or it names unknown layers.
        ConversionError: ai-edge-quantizer refused the file.
    """
    recipe = checked(recipe, Format.TFLITE)
    content = source.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    pixels = request.spec.pixels
    if pixels:
        remove_uint8_input(model, exported.inputs[0].name)
        content = pack(model)
        model = schema.ModelT.InitFromPackedBuf(content, 0)
    kept = _kept_in_float(recipe, exported.layers, model)
    manager = _manager(
        recipe,
        [
            *kept,
            *(_pattern(name) for name in sorted(float_operators(model, ranges if recipe.needs_calibration else None))),
        ],
    )
    statistics = None
    if recipe.needs_calibration:
        statistics = {
            name: {"min": np.array([bounds.low]), "max": np.array([bounds.high])}
            for name, bounds in ((name, _alive(bounds)) for name, bounds in needed(ranges, recipe).items())
        }
        if pixels:  # a step of 1: every pixel value is exact
            statistics[exported.inputs[0].name] = {"min": np.array([0.0]), "max": np.array([255.0])}
    try:
        with _silent():
            engine = quantizer.Quantizer(content, manager.get_quantization_recipe())
            result = engine.quantize(statistics, enable_progress_bar=False, enable_progress_report=False)
    except Exception as error:  # it raises plain ValueErrors and KeyErrors
        raise ConversionError(f"ai-edge-quantizer cannot apply {recipe.name}: {error}") from error
    if result.quantized_model is None:
        raise ConversionError(f"ai-edge-quantizer gave no file for {recipe.name}; report the model to the project")
    quantized = _in_one_piece(bytes(result.quantized_model))
    if recipe.needs_calibration:
        fit_biases(quantized, model)
        take_maxima_of_integers(quantized)
    if pixels:
        add_uint8_input(quantized, exported.inputs[0].name)
    # Else a runtime that is too old opens the file: dynamic_wi8_afp32 gave 0 dB in tflite-runtime 2.14.
    say_versions(quantized)
    inputs, outputs = _interface(quantized, exported)
    request.path.write_bytes(pack(quantized))
    return Exported(inputs, outputs, exported.layers)


def _alive(bounds: Range) -> Range:
    """Return the range; of a value that was always 0 another: XNNPACK refuses the step that the quantizer gives it."""
    return replace(bounds, low=0.0, high=1.0) if bounds.low == bounds.high == 0 else bounds


def _in_one_piece(content: bytes) -> schema.ModelT:
    """Read a file whose weights lie behind the FlatBuffer, as the quantizer writes them, back into it."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1 mean that the data is where it belongs
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    return model


# What a layer reads, its weight and its bias.
_Layer = tuple[schema.TensorT, schema.TensorT, schema.TensorT]


def fit_biases(quantized: schema.ModelT, original: schema.ModelT) -> None:
    """Give a channel with next to no weights a step at which its bias fits into 32 bits.

    A bias is stored in steps of (input's step) * (weight's step). Where training has let a channel's weights vanish but
    not its bias, the quantizer cuts the bias off at 2^31 of them; that alone took a network from 54 dB to -2 dB.
    """
    graph, floats = quantized.subgraphs[0], _by_name(original)
    layers: dict[int, list[_Layer]] = {}
    for operation in graph.operators:
        if len(operation.inputs) == 3 and operation.inputs[2] >= 0:
            source, weight, bias = (graph.tensors[index] for index in operation.inputs)
            is_integer = weight.type == schema.TensorType.INT8 and bias.type in _INTEGERS
            if is_integer and source.quantization is not None and bias.name in floats:
                layers.setdefault(weight.buffer, []).append((source, weight, bias))
    for users in layers.values():
        values = [_numbers(original, floats[bias.name]) for _, _, bias in users]
        step = np.array(users[0][1].quantization.scale, np.float64)
        least = np.max([np.abs(value) / (2**30 * source.quantization.scale[0])
                        for value, (source, _, _) in zip(values, users, strict=True)], axis=0)  # fmt: skip
        if step.size == 1:  # one step for all channels
            least = least.max(keepdims=True)
        if np.any(least > step):
            _rescale(quantized, users, values, step, np.maximum(least, step))


def _rescale(
    quantized: schema.ModelT,
    users: Sequence[_Layer],
    biases: Sequence[NDArray[np.float64]],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
) -> None:
    """Write the steps *after* in place of *before*, and the integers that go with them."""
    weight = users[0][1]
    kernel = _numbers(quantized, weight)
    along = [-1 if axis == weight.quantization.quantizedDimension else 1 for axis in range(kernel.ndim)]
    _put(quantized, weight, np.round(kernel * (before / after).reshape(along)))
    for (source, tensor, bias), value in zip(users, biases, strict=True):
        tensor.quantization.scale = after.astype(np.float32)
        bias.quantization.scale = (after * source.quantization.scale[0]).astype(np.float32)
        _put(quantized, bias, np.round(value / (after * source.quantization.scale[0])))


_INTEGERS: Final = {schema.TensorType.INT32: np.int32, schema.TensorType.INT64: np.int64}
_TYPES: Final = {schema.TensorType.INT8: np.int8, schema.TensorType.FLOAT32: np.float32, **_INTEGERS}


def _by_name(model: schema.ModelT) -> dict[bytes, schema.TensorT]:
    return {tensor.name: tensor for tensor in model.subgraphs[0].tensors}


def _numbers(model: schema.ModelT, tensor: schema.TensorT) -> NDArray[np.float64]:
    content = np.asarray(model.buffers[tensor.buffer].data, np.uint8).tobytes()
    return np.frombuffer(content, _TYPES[tensor.type]).astype(np.float64).reshape(tensor.shape)


def _put(model: schema.ModelT, tensor: schema.TensorT, values: NDArray[np.float64]) -> None:
    model.buffers[tensor.buffer].data = np.frombuffer(values.astype(_TYPES[tensor.type]).tobytes(), np.uint8)


def _manager(recipe: Recipe, kept: list[str]) -> recipe_manager.RecipeManager:
    manager = recipe_manager.RecipeManager()
    if recipe.mode is Mode.STATIC:
        bits = 16 if recipe.activations == "int16" else 8
        manager.add_static_config(".*", ALL, activation_num_bits=bits, weight_num_bits=8)
        if recipe.io is IoType.FP32:
            for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
                manager.add_quantization_config(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    elif recipe.weights == "fp16":
        manager.add_weight_only_config(".*", ALL, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    else:
        dynamic = recipe.mode is Mode.DYNAMIC
        weights = qtyping.TensorQuantizationConfig(
            num_bits=8, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE
        )
        precision = qtyping.ComputePrecision.INTEGER if dynamic else qtyping.ComputePrecision.FLOAT
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=weights,
            compute_precision=precision,
            explicit_dequantize=not dynamic,
            min_weight_elements=FEW_WEIGHTS,
        )
        manager.add_quantization_config(".*", ALL, config)
        for operator in NOT_DYNAMIC if dynamic else ():
            manager.add_quantization_config(".*", operator, algorithm_key=AlgorithmName.NO_QUANTIZE)
    for pattern in kept:
        manager.add_quantization_config(pattern, ALL, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return manager


def _kept_in_float(recipe: Recipe, layers: LayerMap, model: schema.ModelT) -> list[str]:
    """Patterns that match the operators of the layers that stay in float, and no others."""
    graph = model.subgraphs[0]  # others are bodies of composite operators
    names = [tensor.name.decode() for tensor in graph.tensors]
    operations = [
        ([names[index] for index in operation.inputs if index >= 0], [names[index] for index in operation.outputs])
        for operation in graph.operators
    ]
    made = {name for _, results in operations for name in results}
    tensors = kept_in_float(recipe.float_layers, layers, operations) & made
    # The quantizer searches the pattern in the names of an operator's outputs, each with a semicolon behind it.
    return [_pattern(name) for name in sorted(tensors)]


def _pattern(name: str) -> str:
    return f"^{_escaped(name)};?$"


def _escaped(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_/:;" else f"\\{letter}" for letter in name)


def _interface(model: schema.ModelT, exported: Exported) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    (signature,) = model.signatureDefs
    tensors = model.subgraphs[0].tensors
    found = {entry.name.decode(): tensors[entry.tensorIndex] for entry in [*signature.inputs, *signature.outputs]}

    def described(spec: TensorSpec) -> TensorSpec:
        tensor = found[spec.name]
        if tensor.type != schema.TensorType.INT8:
            return spec
        (scale,), (zero_point,) = tensor.quantization.scale, tensor.quantization.zeroPoint
        return replace(spec, dtype="int8", scale=float(scale), zero_point=int(zero_point))

    return tuple(map(described, exported.inputs)), tuple(map(described, exported.outputs))


@contextmanager
def _silent() -> Iterator[None]:
    """The quantizer logs a warning for every tensor it leaves alone."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
