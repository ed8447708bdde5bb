# ruff: noqa: D101, D102, D103, RUF012, ARG002, S101, RUF059
"""Plant faults into the artifacts of a bundle and see whether the parity report names the layer.

    python benchmarks/planted_faults.py BUNDLE [--seeds 50]

Each seed edits one file in one place: the protobuf of an ONNX or Core ML model, the flatbuffer of a TFLite model. A
fault is *detected* when some layer is beyond tolerance, and *named* when the first one is a layer whose value comes
out of the edited operator (or, where the artifact holds no such value, out of the next one that it holds).
"""

import argparse
import copy
import shutil
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
import torch
from ai_edge_litert import schema_py_generated as schema
from onnx import numpy_helper

from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.errors import DeployError
from coordatt_deploy.graph.capture import weight
from coordatt_deploy.graph.layer_reference import ReferenceLayers
from coordatt_deploy.graph.reference import load_graph
from coordatt_deploy.layers import LayerMap
from coordatt_deploy.parity.inputs import choose_cases, localise
from coordatt_deploy.parity.layer_parity import ArtifactLayers
from coordatt_deploy.parity.outputs import TOLERANCES
from coordatt_deploy.quiet import captured
from coordatt_deploy.runtimes.mlprogram import block_of, read_model
from coordatt_deploy.specs import Artifact, Format, Precision

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Op:
    """An operator of a file: what it is called here, and the names of what it reads and makes."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    raw: Any


@dataclass
class Edited:
    """A file that is being edited; ``kinds`` maps the format's operators to the words used here."""

    path: Path
    ops: list[Op] = field(default_factory=list)

    def weights(self, op: Op) -> tuple[Array, Array | None]:
        raise NotImplementedError

    def put(self, op: Op, weights: Array, bias: Array | None) -> None:
        raise NotImplementedError


class OnnxFile(Edited):
    KINDS = {"Conv": "conv", "Gemm": "dense", "Clip": "relu6", "Sigmoid": "sigmoid", "Add": "add", "ReduceMean": "mean"}

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.model = onnx.load(path)
        self.constants = {item.name: item for item in self.model.graph.initializer}
        for node in self.model.graph.node:
            kind = self.KINDS.get(node.op_type, node.op_type)
            if kind == "add" and any(name in self.constants for name in node.input):
                kind = "Add"
            self.ops.append(Op(kind, list(node.input), list(node.output), node))

    def weights(self, op: Op) -> tuple[Array, Array | None]:
        found = [numpy_helper.to_array(self.constants[name]).copy() for name in op.inputs[1:3]]
        return found[0], (found[1] if len(found) > 1 else None)

    def put(self, op: Op, weights: Array, bias: Array | None) -> None:
        for position, value in ((1, weights), (2, bias)):
            if value is not None:
                name = f"planted_{op.outputs[0]}_{position}"
                self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
                op.raw.input[position] = name

    def out_axis(self, op: Op, weights: Array) -> int:
        transposed = any(item.name == "transB" and item.i for item in op.raw.attribute)
        return 0 if op.kind == "conv" or transposed else 1

    def rename(self, op: Op, kind: str) -> bool:
        op.raw.op_type = {"tanh": "Tanh", "relu": "Relu"}[kind]
        del op.raw.input[1:]
        return True

    def rewire(self, op: Op, position: int, name: str) -> None:
        op.raw.input[position] = name

    def shift_padding(self, op: Op) -> bool:
        for item in op.raw.attribute:
            if item.name == "pads" and list(item.ints) == [1, 1, 1, 1]:
                item.ints[:] = [2, 1, 0, 1]
                return True
        return False

    def other_axis(self, op: Op) -> bool:
        """Turn the input by 90 degrees: the mean then goes over the other axis, and its shape stays."""
        axes = [list(item.ints) for item in op.raw.attribute if item.name == "axes"]
        axes += [
            numpy_helper.to_array(self.constants[name]).tolist() for name in op.inputs[1:] if name in self.constants
        ]
        if axes not in ([[2]], [[3]], [[1]]) or not all(item.i for item in op.raw.attribute if item.name == "keepdims"):
            return False
        perm = [0, 2, 1, 3] if "arm64" in self.path.name else [0, 1, 3, 2]
        node = onnx.helper.make_node("Transpose", [op.inputs[0]], ["planted_turn"], perm=perm)
        self.model.graph.node.insert(list(self.model.graph.node).index(op.raw), node)
        op.raw.input[0] = "planted_turn"
        return True

    def save(self) -> None:
        onnx.save(self.model, self.path)


class TfliteFile(Edited):
    KINDS = {"CONV_2D": "conv", "DEPTHWISE_CONV_2D": "conv", "FULLY_CONNECTED": "dense", "LOGISTIC": "sigmoid",
             "MEAN": "mean", "PAD": "pad"}  # fmt: skip
    NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        self.graph = self.model.subgraphs[0]
        self.names = [tensor.name.decode() for tensor in self.graph.tensors]
        for raw in self.graph.operators:
            name = self.NAMES[self.model.operatorCodes[raw.opcodeIndex].builtinCode]
            inputs = [self.names[index] for index in raw.inputs if index >= 0]
            kind = self.KINDS.get(name, name)
            if name == "ADD" and all(self._data(index) is None for index in raw.inputs):
                kind = "add"
            self.ops.append(Op(kind, inputs, [self.names[index] for index in raw.outputs], raw))

    def _data(self, index: int) -> Array | None:
        tensor = self.graph.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        if data is None or not len(data):
            return None
        dtype = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.INT32: np.int32}.get(tensor.type)
        return None if dtype is None else np.frombuffer(bytes(bytearray(data)), dtype).reshape(tensor.shape).copy()

    def weights(self, op: Op) -> tuple[Array, Array | None]:
        found = self._data(op.raw.inputs[1])
        assert found is not None
        has_bias = len(op.raw.inputs) > 2 and op.raw.inputs[2] >= 0
        return found, self._data(op.raw.inputs[2]) if has_bias else None

    def _replace(self, op: Op, position: int, value: Array) -> None:
        twin = copy.copy(self.graph.tensors[op.raw.inputs[position]])
        twin.name = f"planted_{len(self.graph.tensors)}".encode()
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        twin.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(twin)
        op.raw.inputs = np.array(op.raw.inputs, np.int32)
        op.raw.inputs[position] = len(self.graph.tensors) - 1

    def put(self, op: Op, weights: Array, bias: Array | None) -> None:
        self._replace(op, 1, weights)
        if bias is not None:
            self._replace(op, 2, bias)

    def out_axis(self, op: Op, weights: Array) -> int:
        return weights.ndim - 1 if weights.ndim == 4 and weights.shape[0] == 1 else 0

    def rename(self, op: Op, kind: str) -> bool:
        if kind == "relu":
            op.raw.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU
            return True
        code = copy.copy(self.model.operatorCodes[op.raw.opcodeIndex])
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.TANH
        self.model.operatorCodes.append(code)
        op.raw.opcodeIndex = len(self.model.operatorCodes) - 1
        return True

    def bounded(self, op: Op) -> bool:
        options = op.raw.builtinOptions
        return getattr(options, "fusedActivationFunction", None) == schema.ActivationFunctionType.RELU6

    def rewire(self, op: Op, position: int, name: str) -> None:
        op.raw.inputs = np.array(op.raw.inputs, np.int32)
        op.raw.inputs[position] = self.names.index(name)

    def shift_padding(self, op: Op) -> bool:
        if op.kind != "pad":
            return False
        pads = self._data(op.raw.inputs[1])
        assert pads is not None
        pads[1] = pads[1] + [1, -1]
        if pads.min() < 0:
            return False
        self._replace(op, 1, pads)
        return True

    def other_axis(self, op: Op) -> bool:
        axes = self._data(op.raw.inputs[1])
        if axes is None or axes.ravel().tolist() not in ([1], [2]):
            return False
        self._replace(op, 1, 3 - axes)
        return True

    def save(self) -> None:
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        self.path.write_bytes(bytes(builder.Output()))


class CoremlFile(Edited):
    KINDS = {"conv": "conv", "linear": "dense", "clip": "relu6", "relu6": "relu6", "sigmoid": "sigmoid", "add": "add",
             "reduce_mean": "mean"}  # fmt: skip

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.model, self.folder = read_model(path)
        self.block = block_of(self.model)
        self.blob = self.folder / "weights" / "weight.bin"
        self.bytes = bytearray(self.blob.read_bytes())
        self.constants = {raw.outputs[0].name: raw for raw in self.block.operations if raw.type == "const"}
        for raw in self.block.operations:
            if raw.type == "const":
                continue
            keys = sorted(raw.inputs, key=lambda key: (key != "x", key != "y", key))  # a protobuf map has no order
            inputs = [item.name for key in keys for item in raw.inputs[key].arguments if item.name]
            kind = self.KINDS.get(raw.type, raw.type)
            if kind == "add" and any(name in self.constants for name in inputs):
                kind = "Add"
            self.ops.append(Op(kind, inputs, [item.name for item in raw.outputs], raw))

    def _array(self, name: str) -> tuple[Array, Callable[[Array], None]]:
        value = self.constants[name].attributes["val"]
        shape = [dim.constant.size for dim in value.type.tensorType.dimensions]
        dtype = {10: np.float16, 11: np.float32}.get(value.type.tensorType.dataType, np.int32)
        if value.WhichOneof("value") == "blobFileValue":
            _, _, size, at = struct.unpack_from("<IIQQ", self.bytes, value.blobFileValue.offset)
            found = np.frombuffer(bytes(self.bytes[at : at + size]), dtype).reshape(shape).copy()

            def write(new: Array) -> None:
                self.bytes[at : at + size] = np.ascontiguousarray(new, dtype).tobytes()

            return found, write
        tensor = value.immediateValue.tensor
        which = tensor.WhichOneof("value")
        values = getattr(tensor, which).values
        found = np.frombuffer(values, dtype) if which == "bytes" else np.array(list(values), dtype)

        def assign(new: Array) -> None:
            if which == "bytes":
                tensor.bytes.values = np.ascontiguousarray(new, dtype).tobytes()
            else:
                getattr(tensor, which).values[:] = [item.item() for item in np.ravel(new).astype(dtype)]

        return found.reshape(shape).copy(), assign

    def _own(self, op: Op, key: str) -> str:
        """Give the operator a constant of its own in place of a shared one."""
        name = str(op.raw.inputs[key].arguments[0].name)
        twin = copy.deepcopy(self.constants[name])
        twin.outputs[0].name = f"planted_{key}_{op.outputs[0]}"
        where = list(self.block.operations).index(self.constants[name])
        self.block.operations.insert(where, twin)
        self.constants = {raw.outputs[0].name: raw for raw in self.block.operations if raw.type == "const"}
        op.raw.inputs[key].arguments[0].name = twin.outputs[0].name
        return str(twin.outputs[0].name)

    def weights(self, op: Op) -> tuple[Array, Array | None]:
        found = self._array(op.raw.inputs["weight"].arguments[0].name)[0]
        return found, self._array(op.raw.inputs["bias"].arguments[0].name)[0] if "bias" in op.raw.inputs else None

    def put(self, op: Op, weights: Array, bias: Array | None) -> None:
        self._array(op.raw.inputs["weight"].arguments[0].name)[1](weights)
        if bias is not None:
            self._array(op.raw.inputs["bias"].arguments[0].name)[1](bias)

    def out_axis(self, op: Op, weights: Array) -> int:
        return 0

    def rename(self, op: Op, kind: str) -> bool:
        op.raw.type = kind
        for key in ("alpha", "beta"):
            op.raw.inputs.pop(key, None)
        return True

    def rewire(self, op: Op, position: int, name: str) -> None:
        first, second = (op.raw.inputs[key].arguments[0] for key in "xy")
        (first, second)[position].name = (second, first)[position].name

    def shift_padding(self, op: Op) -> bool:
        if op.kind != "conv" or self._array(op.raw.inputs["pad"].arguments[0].name)[0].tolist() != [1, 1, 1, 1]:
            return False
        self._array(self._own(op, "pad"))[1](np.array([2, 0, 1, 1]))
        return True

    def other_axis(self, op: Op) -> bool:
        axes = self._array(op.raw.inputs["axes"].arguments[0].name)[0]
        if [int(axis) % 4 for axis in axes] not in ([2], [3]):
            return False
        name = self._own(op, "axes")
        twin = copy.deepcopy(self.constants[name])
        twin.outputs[0].name = f"planted_perm_{op.outputs[0]}"
        for kind in (twin.outputs[0].type, twin.attributes["val"].type):
            kind.tensorType.dimensions[0].constant.size = 4
        twin.attributes["val"].immediateValue.tensor.ints.values[:] = [0, 1, 3, 2]
        (source,) = [raw for raw in self.block.operations if op.inputs[0] in [item.name for item in raw.outputs]]
        turn = copy.deepcopy(source)
        turn.type = "transpose"
        turn.ClearField("inputs")
        turn.ClearField("attributes")
        turn.inputs["x"].arguments.add().name = op.inputs[0]
        turn.inputs["perm"].arguments.add().name = twin.outputs[0].name
        turn.outputs[0].name = f"planted_turn_{op.outputs[0]}"
        where = list(self.block.operations).index(op.raw)
        self.block.operations.insert(where, turn)
        self.block.operations.insert(where, twin)
        raw = next(raw for raw in self.block.operations if [item.name for item in raw.outputs] == op.outputs)
        raw.inputs["x"].arguments[0].name = turn.outputs[0].name
        return True

    def save(self) -> None:
        self.blob.write_bytes(self.bytes)
        (self.folder / "model.mlmodel").write_bytes(self.model.SerializeToString())


FILES: Mapping[Format, Any] = {Format.ONNX: OnnxFile, Format.TFLITE: TfliteFile, Format.COREML: CoremlFile}


@dataclass
class Place:
    """Where a fault may go: the edited file, its map, the artifact, and the BatchNorms of the captured graph."""

    file: Any
    layers: LayerMap
    artifact: Artifact
    norms: Mapping[str, tuple[Array, Array]]
    random: np.random.Generator

    def choose(self, *kinds: str) -> Iterator[Op]:
        """Give the operators of these kinds in random order."""
        found = [op for op in self.file.ops if op.kind in kinds]
        yield from (found[index] for index in self.random.permutation(len(found)))

    def maker(self, tensor: str) -> Op | None:
        """Return the convolution that makes a tensor, through operators that only move or bound it."""
        made_by = {name: op for op in self.file.ops for name in op.outputs}
        op = made_by.get(tensor)
        while op is not None and op.kind not in ("conv", "dense"):
            op = made_by.get(op.inputs[0]) if op.inputs else None
        return op

    def weighted(self) -> Iterator[tuple[Op, Array, Array | None]]:
        for op in self.choose("conv", "dense"):
            yield op, *self.file.weights(op)


Planter = Callable[[Place], list[Op]]


def weight_changed(place: Place) -> list[Op]:
    op, weights, bias = next(place.weighted())
    used = np.flatnonzero(weights)  # zeros may be padding that nothing reads
    weights.ravel()[place.random.choice(used)] += 0.1 * np.abs(weights).max()
    place.file.put(op, weights, None)
    return [op]


def bias_dropped(place: Place) -> list[Op]:
    for op, weights, bias in place.weighted():
        if bias is not None and np.abs(bias).max() > 1e-4:
            place.file.put(op, weights, 0 * bias)
            return [op]
    return []


def channels_rolled(place: Place) -> list[Op]:
    for op, weights, bias in place.weighted():
        axis = place.file.out_axis(op, weights)
        if weights.shape[axis] > 1:
            place.file.put(op, np.roll(weights, 1, axis), None if bias is None else np.roll(bias, 1))
            return [op]
    return []


def kernel_transposed(place: Place) -> list[Op]:
    for op, weights, _ in place.weighted():
        axes = [axis for axis, size in enumerate(weights.shape) if size == 3]
        if weights.ndim == 4 and len(axes) >= 2:
            spatial = axes[-2:] if place.artifact.format is not Format.TFLITE else [1, 2]
            place.file.put(op, np.swapaxes(weights, *spatial), None)
            return [op]
    return []


def layout_mixed_up(place: Place) -> list[Op]:
    """Weights that another layout's order was read into."""
    for op, weights, _ in place.weighted():
        tflite = place.artifact.format is Format.TFLITE  # (O, H, W, I), depthwise (1, H, W, C); else (O, I, H, W)
        depthwise = weights.ndim == 4 and weights.shape[0 if tflite else 1] == 1
        if weights.ndim == 4 and weights.shape[2] == 3:
            order = (
                ((3, 1, 2, 0) if tflite else (2, 3, 0, 1)) if depthwise else ((0, 3, 1, 2) if tflite else (0, 2, 3, 1))
            )
        elif weights.ndim == 2 and min(weights.shape) > 1:
            order = (1, 0)
        else:
            continue
        place.file.put(op, np.transpose(weights, order).reshape(weights.shape), None)
        return [op]
    return []


def gates_swapped(place: Place) -> list[Op]:
    blocks = [i.layer_id.removesuffix(".conv2") for i in place.layers.layers if i.layer_id.endswith(".conv2")]
    for index in place.random.permutation(len(blocks)):
        found = []
        for leaf in (".conv2", ".conv3"):
            layer = place.layers.resolved(blocks[index] + leaf)
            if layer is not None and (op := place.maker(layer.parts[0].tensor)) is not None:
                found.append(op)
        if len(found) == 2 and all(op.kind in ("conv", "dense") for op in found):
            (first, second), values = found, [place.file.weights(op) for op in found]
            if values[0][0].shape == values[1][0].shape:
                place.file.put(first, *values[1])
                place.file.put(second, *values[0])
                return found
    return []


def wrong_axis(place: Place) -> list[Op]:
    return next(([op] for op in place.choose("mean") if place.file.other_axis(op)), [])


def wrong_epsilon(place: Place) -> list[Op]:
    """A BatchNorm folded with eps = 1e-3 where it is 1e-5."""
    names = list(place.norms)
    for index in place.random.permutation(len(names)):
        layer = place.layers.resolved(names[index])
        variance, shift = place.norms[names[index]]
        if layer is None:
            continue
        op = place.maker(layer.parts[0].tensor)
        if op is None:
            continue
        weights, bias = place.file.weights(op)
        axis = place.file.out_axis(op, weights)
        if weights.shape[axis] != variance.size or bias is None:
            continue
        ratio = np.sqrt((variance + 1e-5) / (variance + 1e-3))
        factor = np.asarray(layer.parts[0].factor)
        shape = [-1 if at == axis else 1 for at in range(weights.ndim)]
        changed = (weights * ratio.reshape(shape)).astype(weights.dtype)
        if np.abs(ratio - 1).max() < (0.02 if weights.dtype == np.float16 else 1e-3):  # below float16 itself
            continue
        place.file.put(op, changed, ((bias - shift * factor) * ratio + shift * factor).astype(bias.dtype))
        return [op]
    return []


def bound_dropped(place: Place) -> list[Op]:
    if place.artifact.format is Format.TFLITE:
        found = [op for op in place.file.ops if op.kind == "conv" and place.file.bounded(op)]
    else:
        found = [op for op in place.file.ops if op.kind == "relu6"]
    op = found[place.random.integers(len(found))]
    place.file.rename(op, "relu")
    return [op]


def overflow(place: Place) -> list[Op]:
    op, weights, _ = next(place.weighted())
    limit = float(np.finfo(weights.dtype).max)
    with np.errstate(over="ignore"):
        scaled = np.clip(weights.astype(np.float64) * limit, -limit, limit).astype(weights.dtype)
    place.file.put(op, scaled, None)
    return [op]


def padding_shifted(place: Place) -> list[Op]:
    return next(([op] for op in place.choose("conv", "pad") if place.file.shift_padding(op)), [])


def sigmoid_replaced(place: Place) -> list[Op]:
    op = next(place.choose("sigmoid"))
    place.file.rename(op, "tanh")
    return [op]


def residual_dropped(place: Place) -> list[Op]:
    op = next(place.choose("add"))
    place.file.rewire(op, 0, op.inputs[1])
    return [op]


FAULTS: Mapping[str, Planter] = {
    "weight changed by 10 % of the greatest": weight_changed,
    "bias dropped": bias_dropped,
    "channels rolled by one": channels_rolled,
    "kernel transposed": kernel_transposed,
    "layout mixed up": layout_mixed_up,
    "gates h and w swapped": gates_swapped,
    "mean over the wrong axis": wrong_axis,
    "BatchNorm folded with the wrong eps": wrong_epsilon,
    "ReLU6 became ReLU": bound_dropped,
    "overflow": overflow,
    "padding shifted by one": padding_shifted,
    "sigmoid became tanh": sigmoid_replaced,
    "residual dropped": residual_dropped,
}


@dataclass(frozen=True)
class Outcome:
    """What became of one planted fault; ``planted`` is empty where the file has no place for it."""

    fault: str
    seed: int
    planted: tuple[str, ...]
    detected: bool
    named: bool
    said: str


class Bench:
    """One bundle, its reference run once, faults planted into copies of its artifacts."""

    def __init__(self, root: Path, cases: int = 2) -> None:
        torch.set_num_threads(1)
        self.bundle = open_bundle(root)
        self.reference = _Remembered(load_graph(root / "reference"))
        inputs = self.bundle.golden("inputs")
        chosen = choose_cases([case.name for case in self.bundle.manifest.golden])
        images = [i for i in chosen if self.bundle.manifest.golden[i].image][:1]
        noise = [i for i in chosen if self.bundle.manifest.golden[i].name.startswith("noise")][:1]
        picked = [*images, *noise, *chosen][:cases]
        self.cases = [{name: values[index] for name, values in inputs.items()} for index in picked]

    def judge(self, bundle: Bundle, artifact: Artifact) -> ArtifactLayers:
        tolerance = TOLERANCES[artifact.format, artifact.precision]
        return localise(bundle, artifact, self.cases, self.reference, tolerance, limit_db=tolerance.min_sqnr_db)

    def plant(self, artifact: Artifact, fault: str | Planter, seed: int) -> Outcome:
        """Edit a copy of *artifact* and judge it; the same fault and seed give the same edit."""
        planter = FAULTS[fault] if isinstance(fault, str) else fault
        fault = fault if isinstance(fault, str) else fault.__name__
        with tempfile.TemporaryDirectory() as folder:
            bundle = Bundle(Path(folder), self.bundle.manifest)
            for relative in (artifact.path, artifact.layers):
                source, target = self.bundle.path(relative), Path(folder) / relative
                target.parent.mkdir(exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
            layers = bundle.layers(artifact)
            file = FILES[artifact.format](bundle.path(artifact.path))
            before = [copy.copy(op) for op in file.ops]
            random = np.random.default_rng([seed, *fault.encode()])
            planted = planter(Place(file, layers, artifact, self.norms(), random))
            if not planted:
                return Outcome(fault, seed, (), False, False, "no place")
            file.save()
            expected = _expected(before, planted, layers)
            with captured(Path(folder) / "log"):
                try:
                    found = self.judge(bundle, artifact)
                except DeployError as error:
                    return Outcome(fault, seed, expected, True, False, f"cannot be run: {error}")
        first = found.first_diverging_layer
        return Outcome(fault, seed, expected, found.passed is not True, first in expected, found.sentence())

    def scaled(self, artifact: Artifact, change: float, seed: int) -> Outcome:
        """Plant a fault that multiplies all weights of a layer by 1 + *change*."""

        def scale(place: Place) -> list[Op]:
            op, weights, _ = next(place.weighted())
            place.file.put(op, (weights * (1 + change)).astype(weights.dtype), None)
            return [op]

        return self.plant(artifact, scale, seed)

    def norms(self) -> Mapping[str, tuple[Array, Array]]:
        return _norms(self.reference)


class _Remembered(ReferenceLayers):
    """Values of the reference, computed once: the same inputs come again with each fault."""

    def __init__(self, graph: Any) -> None:
        super().__init__(graph)
        self.values: dict[Any, Any] = {}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.values:
            self.values[key] = make()
        return self.values[key]

    def reference(self, feeds: Any) -> Any:
        return self._once(("exact", id(feeds)), lambda: super(_Remembered, self).reference(feeds))

    def accumulated(self, feeds: Any, precision: Precision, reference: Any) -> Any:
        key = ("whole", id(feeds), precision)
        return self._once(key, lambda: super(_Remembered, self).accumulated(feeds, precision, reference))

    def local(self, feeds: Any, precision: Precision, reference: Any, cuts: frozenset[str]) -> Any:
        key = ("local", id(feeds), precision, cuts)
        return self._once(key, lambda: super(_Remembered, self).local(feeds, precision, reference, cuts))

    def probe(self, feeds: Any, reference: Any, stirred: frozenset[str], seed: int) -> Any:
        key = ("probe", id(feeds), stirred, seed)
        return self._once(key, lambda: super(_Remembered, self).probe(feeds, reference, stirred, seed))

    def probed(self, feeds: Any, precision: Precision, probe: Any, cuts: frozenset[str]) -> Any:
        key = ("probed", id(feeds), precision, id(probe), cuts)
        return self._once(key, lambda: super(_Remembered, self).probed(feeds, precision, probe, cuts))


@cache
def _norms(reference: ReferenceLayers) -> Mapping[str, tuple[Array, Array]]:
    """Return running variance and shift of every BatchNorm of the captured graph, by layer id."""
    graph, found = reference.graph, {}
    nodes = {node.name: node for node in graph.module.graph.nodes}
    for layer, name in reference.nodes.items():
        node = nodes[name]
        if node.target is torch.ops.aten.batch_norm.default:
            shift, variance = weight(graph.module, node.args[2]), weight(graph.module, node.args[4])
            if shift is not None and variance is not None:
                found[layer] = (variance.numpy(), shift.numpy())
    return found


def _expected(ops: Sequence[Op], planted: Sequence[Op], layers: LayerMap) -> tuple[str, ...]:
    """Return the layers whose value comes out of the planted operators, or out of the next that the map knows."""
    mapped: dict[str, list[str]] = {}
    for layer in layers.layers:
        holder = layers.resolved(layer.layer_id)
        for part in holder.parts if holder is not None else ():
            mapped.setdefault(part.tensor, []).append(layer.layer_id)
    found: list[str] = []
    open_ends = [name for op in planted for name in op.outputs]
    while open_ends:
        name = open_ends.pop()
        if name in mapped:
            found += mapped[name]
        else:
            open_ends += [output for op in ops if name in op.inputs for output in op.outputs]
    return tuple(dict.fromkeys(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seeds", type=int, default=50, help="faults per artifact")
    parser.add_argument("--format", action="append", type=Format)
    arguments = parser.parse_args()
    bench = Bench(arguments.bundle)
    print("| artifact | fault | planted | detected | named |\n|---|---|--:|--:|--:|")
    missed = []
    for artifact in bench.bundle.manifest.artifacts:
        if artifact.precision is Precision.INT8 or (arguments.format and artifact.format not in arguments.format):
            continue
        counts: Counter[tuple[str, str]] = Counter()
        for seed in range(arguments.seeds):
            outcome = bench.plant(artifact, list(FAULTS)[seed % len(FAULTS)], seed)
            counts[outcome.fault, "planted"] += bool(outcome.planted)
            counts[outcome.fault, "detected"] += outcome.detected
            counts[outcome.fault, "named"] += outcome.named
            if outcome.planted and not (outcome.detected and outcome.named):
                missed.append(f"{artifact.path}, seed {seed}, {outcome.fault} at {outcome.planted[:4]}: {outcome.said}")
        for fault in FAULTS:
            figures = " | ".join(str(counts[fault, key]) for key in ("planted", "detected", "named"))
            print(f"| {Path(artifact.path).name} | {fault} | {figures} |")
        print(
            f"| {Path(artifact.path).name} | smallest change of a layer's weights that is seen, median | | | "
            f"{bench.judge(bench.bundle, artifact).smallest_weight_change:.1e} |"
        )
        totals = [sum(counts[fault, key] for fault in FAULTS) for key in ("planted", "detected", "named")]
        print(f"| {Path(artifact.path).name} | **all** | {' | '.join(map(str, totals))} |", flush=True)
    print("\n".join(["", *missed]))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
