"""Quantize a float ONNX file: QDQ through onnxruntime.quantization, or weights alone with DequantizeLinear.

QDQ writes QuantizeLinear and DequantizeLinear around float operators, which ONNX Runtime fuses into integer ones. The
ranges are measured by this project on the float file. Weights are per channel.

On x86 without VNNI, ONNX Runtime adds pairs of 8-bit products in 16 bits, where sums saturate. Weights of seven bits
cannot reach that limit, so files in the x86-64 form have them (``reduce_range``); nobody knows which x86 CPU will open
them. ARM64 adds in 32 bits and gets all eight bits.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.exporters import Exported, ExportRequest
from coordatt_deploy.layers import LayerMap, Part
from coordatt_deploy.quantization.calibration import CalibrationSet
from coordatt_deploy.quantization.ranges import Range, input_range, measure
from coordatt_deploy.quantization.recipes import IoType, Mode, Recipe, checked, tensors_of
from coordatt_deploy.specs import Format, TargetCpu, TensorSpec

# Operators with an integer kernel in ONNX Runtime's CPU provider, and those that only move data.
INTEGER: Final = (
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Sigmoid", "Clip", "Relu", "LeakyRelu", "AveragePool", "GlobalAveragePool",
    "MaxPool", "Resize", "Concat", "Split", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Pad",
)  # fmt: skip
LEVELS: Final = {True: 64, False: 127}
FEW_WEIGHTS: Final = 1024  # as in TFLite: such weights stay in float where activations do
SUFFIX: Final = "_DequantizeLinear_Output"


def reduces_range(target_cpu: TargetCpu | None) -> bool:
    """Whether a file for this CPU family gets weights of seven bits; the reason stands at the top of this module."""
    return target_cpu is TargetCpu.X86_64


def quantize(
    source: Path, exported: Exported, recipe: Recipe, calibration: CalibrationSet | None, request: ExportRequest
) -> Exported:
    """Quantize the float ONNX file at *source*; see ``Quantizer.quantize``.

    Raises:
        UsageError: ONNX cannot express the recipe, it needs calibration data, or it names unknown layers.
        ConversionError: onnxruntime.quantization refused the file.
    """
    recipe = checked(recipe, Format.ONNX)
    model = onnx.load(str(source))
    kept = tensors_of(recipe.float_layers, exported.layers)
    inputs, outputs = exported.inputs, exported.outputs
    reasons: dict[str, str] = {}
    if recipe.mode is Mode.WEIGHT_ONLY:
        _weights_only(model, kept)
        places: dict[str, Part | None] = {value: Part(value) for value in _values(model)}
    elif calibration is None:
        raise UsageError(f"{recipe.name} needs calibration data: give --calibration-data with a folder of images")
    else:
        ranges = _measure(model, exported, recipe, calibration)
        before = onnx.ModelProto()
        before.CopyFrom(model)
        model = _static(model, ranges, kept, reduce_range=reduces_range(request.target_cpu))
        if recipe.io is IoType.INT8:
            inputs, outputs = _open_ends(model, inputs), _open_ends(model, outputs)
        values = _values(model)
        places = {
            value: Part(stored if (stored := f"{value}{SUFFIX}") in values else value)
            for value in values
            if not value.endswith(SUFFIX)
        }
        reasons = _clipped(before, values, exported.layers)
    onnx.checker.check_model(model, full_check=True)
    request.path.write_bytes(model.SerializeToString(deterministic=True))
    return Exported(inputs, outputs, exported.layers.carried(places, reasons))


def _values(model: onnx.ModelProto) -> set[str]:
    made = {name for node in model.graph.node for name in node.output}
    return made | {value.name for value in model.graph.input}


def _clipped(model: onnx.ModelProto, values: set[str], layers: LayerMap) -> dict[str, str]:
    """Values that are gone because the grid behind them clips as their ReLU did, and where they are seen instead."""
    owners = {part.tensor: layer.layer_id for layer in reversed(layers.layers) for part in layer.parts}
    return {
        node.input[0]: f"->{owners[node.output[0]]}"
        for node in model.graph.node
        if node.op_type in {"Clip", "Relu"} and node.input[0] not in values and node.output[0] in owners
    }


def _static(model: onnx.ModelProto, ranges: dict[str, Range], kept: set[str], *, reduce_range: bool) -> onnx.ModelProto:
    data = {
        name: TensorData(lowest=np.float32(bounds.low), highest=np.float32(bounds.high))
        for name, bounds in ranges.items()
    }
    excluded = [node.name for node in model.graph.node if kept & set(node.output)]
    try:
        with _silent():
            engine = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=reduce_range,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, data),
                nodes_to_quantize=[],
                nodes_to_exclude=excluded,
                op_types_to_quantize=list(INTEGER),
                extra_options={"ActivationSymmetric": False},
            )
            engine.quantize_model()
            engine.model.topological_sort()
    except Exception as error:  # it raises plain ValueErrors
        raise ConversionError(f"onnxruntime.quantization cannot quantize the file: {error}") from error
    quantized: onnx.ModelProto = engine.model.model
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    return quantized


def _measure(
    model: onnx.ModelProto, exported: Exported, recipe: Recipe, calibration: CalibrationSet
) -> dict[str, Range]:
    """Run the float file on the calibration data and measure every float value in it."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    outputs = {value.name for value in shown.graph.output}
    inner = [name for node in shown.graph.node for name in node.output if name and name not in outputs]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Fused operators would hide what lies between them, and the range of a value before its clip is not needed.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs() if value.type == "tensor(float)"]
    batch = exported.inputs[0].shape[0] or 1

    def passes() -> Iterator[dict[str, NDArray[Any]]]:
        for feeds in calibration.feeds(batch):
            yield dict(zip(names, session.run(names, feeds), strict=True))

    ranges = measure(passes, recipe.ranges)
    return ranges | {spec.name: input_range(calibration.arrays[spec.name]) for spec in exported.inputs}


def _weights_only(model: onnx.ModelProto, kept: set[str]) -> None:
    """Store the weights of convolutions and matrix products as int8, per output channel, behind a DequantizeLinear."""
    axes: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in {"Conv", "Gemm", "MatMul"} and not kept & set(node.output):
            turned = any(item.name == "transB" and item.i for item in node.attribute)
            axes[node.input[1]] = 0 if node.op_type == "Conv" or turned else 1
    added = []
    for tensor in list(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if tensor.name not in axes or values.dtype != np.float32 or values.size < FEW_WEIGHTS:
            continue
        axis = axes[tensor.name]
        others = tuple(other for other in range(values.ndim) if other != axis)
        scale = (np.abs(values).max(axis=others) / np.float32(127)).astype(np.float32)
        scale[scale == 0] = 1.0
        shape = [-1 if other == axis else 1 for other in range(values.ndim)]
        steps = np.clip(np.round(values / scale.reshape(shape)), -127, 127).astype(np.int8)
        model.graph.initializer.remove(tensor)
        names = [f"{tensor.name}_{part}" for part in ("quantized", "scale")]
        model.graph.initializer.extend(
            numpy_helper.from_array(array, name) for array, name in zip((steps, scale), names, strict=True)
        )
        added.append(helper.make_node("DequantizeLinear", names, [tensor.name], f"{tensor.name}/dequantize", axis=axis))
    nodes = [*added, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _open_ends(model: onnx.ModelProto, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Take the QuantizeLinear behind each input, or the DequantizeLinear before each output, off the graph."""
    return tuple(_open_end(model, spec) for spec in specs)


def _open_end(model: onnx.ModelProto, spec: TensorSpec) -> TensorSpec:
    graph = model.graph
    is_input = any(value.name == spec.name for value in graph.input)
    if is_input:
        found = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == spec.name]
    else:
        found = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0] == spec.name]
    if len(found) != 1:
        raise ConversionError(f"{spec.name} is computed in float here; leave its type at fp32 (_iofp32)")
    (node,) = found
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inner = node.output[0] if is_input else node.input[0]
    for other in graph.node:
        for names in (other.input, other.output):
            for place, name in enumerate(names):
                if name == inner:
                    names[place] = spec.name
    graph.node.remove(node)
    for value in [*graph.input, *graph.output]:
        if value.name == spec.name:
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    return replace(spec, dtype="int8", scale=float(constants[node.input[1]]), zero_point=int(constants[node.input[2]]))


@contextmanager
def _silent() -> Iterator[None]:
    """The quantizer logs a warning for every tensor it leaves alone."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
