"""Quantize a float ONNX file: QDQ through onnxruntime.quantization, or weights alone with DequantizeLinear.

QDQ writes QuantizeLinear and DequantizeLinear around float operators, which ONNX Runtime fuses into integer ones. The
ranges are measured by this project on the float file. Weights are per channel.

The x86-64 form gets weights of seven bits (``reduce_range``); ``weight_levels`` says why.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.errors import ConversionError
from coordatt_deploy.exporters import EIGHT_BITS, Exported, ExportRequest
from coordatt_deploy.exporters.onnx.ir_version import lower_ir
from coordatt_deploy.exporters.onnx.opset import in_opset
from coordatt_deploy.formats import Format, IoType, TargetCpu
from coordatt_deploy.layer_map import LayerMap, Part
from coordatt_deploy.quantization.delicate_sums import leads_to, too_wide, touching
from coordatt_deploy.quantization.ranges import Range, needed
from coordatt_deploy.quantization.recipes import Mode, Recipe, checked, kept_in_float
from coordatt_deploy.runtimes.onnx.saturation import SEVEN_BITS

# Operators with an integer kernel in ONNX Runtime's CPU provider, each with the calls of a graph that become it; those
# that only move data stand for none.
INTEGER: Final[Mapping[str, tuple[str, ...]]] = {
    "Conv": ("conv2d",),
    "Gemm": ("linear", "addmm"),
    "MatMul": ("matmul", "mm", "bmm"),
    "Add": ("add",),
    "Mul": ("mul",),
    "Sigmoid": ("sigmoid",),
    "Clip": ("relu6", "hardtanh", "clamp"),
    "Relu": ("relu",),
    "LeakyRelu": ("leaky_relu",),
    "AveragePool": ("avg_pool2d",),
    "GlobalAveragePool": ("adaptive_avg_pool2d",),
    "MaxPool": ("max_pool2d",),
    "Resize": ("upsample_nearest2d",),
    "Concat": ("cat",),
    **dict.fromkeys(("Split", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Pad"), ()),
}
# What leads from a sum to a divisor or a logarithm, element by element, of those with an integer kernel.
STEPS: Final = frozenset({"Add", "Mul", "Reshape"})
STARTS: Final = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool", "AveragePool"})  # where such steps begin
# What leads from a mask to the softmax behind it.
MASKING: Final = STEPS | {"Sub", "Div", "Where", "Transpose", "Unsqueeze", "Squeeze", "Flatten"}
FEW_WEIGHTS: Final = 1024  # as in TFLite: such weights stay in float where activations do
SUFFIX: Final = "_DequantizeLinear_Output"


def weight_levels(target_cpu: TargetCpu | None) -> int:
    """See ``Quantizer.weight_levels``: 64 where products of two bytes are added in 16 bits.

    That is x86 without VNNI (``runtimes.onnx.saturation``), and nobody knows which x86 CPU will open a file in the
    x86-64 form. ARM64 adds in 32 bits and gets all eight bits.
    """
    return SEVEN_BITS if target_cpu is TargetCpu.X86_64 else EIGHT_BITS


def integer_operators() -> frozenset[str] | None:
    """See ``Quantizer.integer_operators``."""
    return frozenset(chain.from_iterable(INTEGER.values()))


def activations(source: Path, exported: Exported) -> tuple[str, ...]:
    """Return the names of the tensors whose ranges ``quantize`` needs: every float value that a node makes."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
    types = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.value_info, *model.graph.output]}
    made = (name for node in model.graph.node for name in node.output)
    outputs = {spec.name for spec in exported.outputs}
    return tuple(name for name in made if types.get(name) == onnx.TensorProto.FLOAT or name in outputs)


def quantize(
    source: Path, exported: Exported, recipe: Recipe, ranges: Mapping[str, Range] | None, request: ExportRequest
) -> Exported:
    """Quantize the float ONNX file at *source*; see ``Quantizer.quantize``.

    Raises:
        UsageError: ONNX cannot express the recipe, it needs ranges, or it names unknown layers.
        ConversionError: onnxruntime.quantization refused the file.
    """
    recipe = checked(recipe, Format.ONNX)
    model = in_opset(onnx.load(str(source)), request)
    kept = kept_in_float(recipe.float_layers, exported.layers, [(node.input, node.output) for node in model.graph.node])
    inputs, outputs = exported.inputs, exported.outputs
    reasons: dict[str, str] = {}
    if recipe.mode is Mode.WEIGHT_ONLY:
        _weights_only(model, kept)
        places: dict[str, Part | None] = {value: Part(value) for value in _values(model)}
    else:
        before = onnx.ModelProto()
        before.CopyFrom(model)
        reduce_range = weight_levels(request.target_cpu) < EIGHT_BITS
        model = _static(model, needed(ranges, recipe), kept, reduce_range=reduce_range)
        if recipe.io is IoType.INT8:
            inputs, outputs = _open_ends(model, inputs), _open_ends(model, outputs)
        values = _values(model)
        places = {
            value: Part(stored if (stored := f"{value}{SUFFIX}") in values else value)
            for value in values
            if not value.endswith(SUFFIX)
        }
        reasons = _clipped(before, values, exported.layers)
    lower_ir(model)
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


def _static(
    model: onnx.ModelProto, ranges: Mapping[str, Range], kept: set[str], *, reduce_range: bool
) -> onnx.ModelProto:
    data = {
        name: TensorData(lowest=np.float32(bounds.low), highest=np.float32(bounds.high))
        for name, bounds in ranges.items()
    }
    spared = kept | _delicate(model) | _too_wide(model, ranges)
    excluded = [node.name for node in model.graph.node if spared & set(node.output)]
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


def _delicate(model: onnx.ModelProto) -> set[str]:
    """Names of what leads to divisors that the network computes, and to logarithms."""
    made_of = {name: list(node.input) for node in model.graph.node if node.op_type in STEPS for name in node.output}
    made_of |= {name: [] for node in model.graph.node if node.op_type in STARTS for name in node.output}
    divisors = [node.input[1] for node in model.graph.node if node.op_type == "Div"]
    return leads_to([*divisors, *(node.input[0] for node in model.graph.node if node.op_type == "Log")], made_of)


def _too_wide(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> set[str]:
    """Names of what no grid can hold, as a mask of minus infinity makes it, and of what is made of it."""
    nodes = model.graph.node
    wide = too_wide(
        {name: (bounds.low, bounds.high) for name, bounds in ranges.items()},
        [node.input[0] for node in nodes if node.op_type in {"Softmax", "LogSoftmax"}],
        {name: list(node.input) for node in nodes if node.op_type in MASKING for name in node.output},
    )
    return touching(wide, ((node.input, node.output) for node in nodes))


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
