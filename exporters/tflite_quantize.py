"""Quantize a float TFLite file through ai-edge-quantizer, with ranges that this project measures.

The quantizer's own calibration averages the extremes of the images (14 dB where plain extremes give 27), and takes
half a minute for what the file's own kernels do in three seconds. So it is given ranges, per tensor, ready to use.
Names of tensors survive, hence the layer map does.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_quantizer import qtyping, quantizer, recipe_manager
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from numpy.typing import NDArray

from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.exporters import Exported, ExportRequest
from coordatt_deploy.exporters.tflite import pack
from coordatt_deploy.layers import LayerMap
from coordatt_deploy.quantization.calibration import CalibrationSet
from coordatt_deploy.quantization.ranges import Range, input_range, measure
from coordatt_deploy.quantization.recipes import IoType, Mode, Recipe, checked, tensors_of
from coordatt_deploy.specs import Format, TensorSpec
from coordatt_deploy.tensors import axes_to

ALL: Final = qtyping.TFLOperationName.ALL_SUPPORTED
SIGNATURE: Final = "serving_default"
# Weights this small stay in float where activations do: 4 kB each, and the first layers, which they belong to, are the
# ones that rounding hurts most.
FEW_WEIGHTS: Final = 1024
# XNNPACK has no kernel for a depthwise convolution with int8 weights and float activations: it would leave the
# partition.
NOT_DYNAMIC: Final = (qtyping.TFLOperationName.DEPTHWISE_CONV_2D,)


def quantize(
    source: Path, exported: Exported, recipe: Recipe, calibration: CalibrationSet | None, request: ExportRequest
) -> Exported:
    """Quantize the float TFLite file at *source*; see ``Quantizer.quantize``.

    Raises:
        UsageError: TFLite cannot express the recipe, it needs calibration data, or it names unknown layers.
        ConversionError: ai-edge-quantizer refused the file.
    """
    recipe = checked(recipe, Format.TFLITE)
    if recipe.needs_calibration and calibration is None:
        raise UsageError(f"{recipe.name} needs calibration data: give --calibration-data with a folder of images")
    content = source.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    manager = _manager(recipe, _kept_in_float(recipe, exported.layers, model))
    result: dict[str, dict[str, NDArray[Any]]] | None = None
    if recipe.needs_calibration and calibration is not None:
        ranges = _measure(content, model, exported, recipe, calibration)
        result = {name: {"min": np.array([r.low]), "max": np.array([r.high])} for name, r in ranges.items()}
    try:
        with _silent():
            engine = quantizer.Quantizer(content, manager.get_quantization_recipe())
            written = engine.quantize(result, enable_progress_bar=False, enable_progress_report=False).quantized_model
    except Exception as error:  # it raises plain ValueErrors and KeyErrors
        raise ConversionError(f"ai-edge-quantizer cannot apply {recipe.name}: {error}") from error
    if written is None:
        raise ConversionError(f"ai-edge-quantizer gave no file for {recipe.name}; report the model to the project")
    quantized = _in_one_piece(bytes(written))
    inputs, outputs = _interface(quantized, exported)
    request.path.write_bytes(pack(quantized))
    return Exported(inputs, outputs, exported.layers)


def _in_one_piece(content: bytes) -> Any:
    """Read a file whose weights lie behind the FlatBuffer, as the quantizer writes them, back into it."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1 mean that the data is where it belongs
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    return model


def _manager(recipe: Recipe, kept: list[str]) -> Any:
    manager = recipe_manager.RecipeManager()
    if recipe.mode is Mode.STATIC:
        manager.add_static_config(".*", ALL, activation_num_bits=8, weight_num_bits=8)
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


def _kept_in_float(recipe: Recipe, layers: LayerMap, model: Any) -> list[str]:
    """Patterns that match the operators of the layers that stay in float, and no others."""
    made = {
        model.subgraphs[0].tensors[int(index)].name.decode()
        for operation in model.subgraphs[0].operators
        for index in operation.outputs
    }
    tensors = tensors_of(recipe.float_layers, layers) & made
    # The quantizer searches the pattern in the names of an operator's outputs, each with a semicolon behind it.
    return [f"^{_escaped(name)};?$" for name in sorted(tensors)]


def _escaped(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_/:;" else f"\\{letter}" for letter in name)


def _measure(
    content: bytes, model: Any, exported: Exported, recipe: Recipe, calibration: CalibrationSet
) -> dict[str, Range]:
    """Run the float file on the calibration data and measure every tensor that an operator makes, and the inputs."""
    interpreter = Interpreter(
        model_content=content,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner(SIGNATURE)
    subgraph = model.subgraphs[0]
    indices = sorted({int(i) for operation in subgraph.operators for i in operation.outputs} | set(subgraph.inputs))
    names = {int(i): subgraph.tensors[i].name.decode() for i in indices if subgraph.tensors[i].type == 0}
    batch = exported.inputs[0].shape[0] or 1

    def passes() -> Iterator[dict[str, NDArray[Any]]]:
        for feeds in calibration.feeds(batch):
            runner(**{spec.name: _moved(feeds[spec.name], spec) for spec in exported.inputs})
            yield {name: interpreter.get_tensor(index) for index, name in names.items()}

    ranges = measure(passes, recipe.ranges)
    tensors = {entry.name.decode(): names[int(entry.tensorIndex)] for entry in model.signatureDefs[0].inputs}
    for spec in exported.inputs:
        ranges[tensors[spec.name]] = input_range(calibration.arrays[spec.name])
    return ranges


def _moved(value: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    return np.ascontiguousarray(np.transpose(value, axes_to(spec.layout, value.ndim)))


def _interface(model: Any, exported: Exported) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    (signature,) = model.signatureDefs
    tensors = model.subgraphs[0].tensors
    found = {entry.name.decode(): tensors[entry.tensorIndex] for entry in [*signature.inputs, *signature.outputs]}

    def described(spec: TensorSpec) -> TensorSpec:
        tensor = found[spec.name]
        if tensor.type == schema.TensorType.FLOAT32:
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
