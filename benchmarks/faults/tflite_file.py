"""Edit a TFLite file, float or int8."""

import copy
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from benchmarks.faults.files import Array, EditedFile, Grid, Op

KINDS = {"CONV_2D": "conv", "DEPTHWISE_CONV_2D": "conv", "FULLY_CONNECTED": "dense", "LOGISTIC": "sigmoid",
         "MEAN": "mean", "PAD": "pad", "CONCATENATION": "concat", "SPLIT": "split", "SPLIT_V": "split",
         "HARD_SWISH": "hard_swish"}  # fmt: skip
NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
OTHERS = {"tanh": "TANH", "sum": "SUM", "max": "REDUCE_MAX"}
DTYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT8: np.int8,
}


class TfliteFile(EditedFile):
    """Weights are (O, H, W, I), depthwise (1, H, W, C), or a matrix (O, I)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, spatial=(1, 2))
        self.model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        self.graph = self.model.subgraphs[0]
        self.names = [tensor.name.decode() for tensor in self.graph.tensors]
        for raw in self.graph.operators:
            name = NAMES[self.model.operatorCodes[raw.opcodeIndex].builtinCode]
            inputs = [self.names[index] for index in raw.inputs if index >= 0]
            kind = KINDS.get(name, name)
            if name == "ADD" and all(self._data(index) is None for index in raw.inputs):
                kind = "add"
            self.ops.append(Op(kind, inputs, [self.names[index] for index in raw.outputs], raw))

    def _data(self, index: int) -> Array | None:
        tensor = self.graph.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        dtype = DTYPES.get(tensor.type)
        if data is None or not len(data) or dtype is None:
            return None
        return np.frombuffer(bytes(bytearray(data)), dtype).reshape(tensor.shape).copy()

    def _scale(self, index: int, rank: int) -> Array | None:
        """Step of a weight or bias, in a shape that broadcasts; None in float."""
        grid = self.graph.tensors[index].quantization
        if grid is None or grid.scale is None or not len(grid.scale):
            return None
        axis = int(grid.quantizedDimension)
        return np.asarray(grid.scale).reshape([-1 if at == axis else 1 for at in range(rank)])

    def weights(self, op: Op) -> tuple[Array, Array | None]:
        found: list[Array | None] = []
        for position in (1, 2):
            index = op.raw.inputs[position] if len(op.raw.inputs) > position else -1
            value = self._data(index) if index >= 0 else None
            scale = None if value is None else self._scale(index, value.ndim)
            found.append(value if value is None or scale is None else (value * scale).astype(np.float32))
        assert found[0] is not None
        return found[0], found[1]

    def put(self, op: Op, weights: Array, bias: Array | None) -> None:
        for position, value in ((1, weights), (2, bias)):
            if value is not None:
                self._replace(op, position, self._on_grid(op.raw.inputs[position], value))

    def _on_grid(self, index: int, value: Array) -> Array:
        dtype = DTYPES[self.graph.tensors[index].type]
        scale = self._scale(index, value.ndim)
        if scale is None:
            return value.astype(dtype)
        least = -127 if dtype is np.int8 else np.iinfo(dtype).min
        return np.clip(np.round(value / scale), least, np.iinfo(dtype).max).astype(dtype)

    def _own(self, op: Op, position: int) -> Any:
        """Give the operator a tensor of its own in place of one that others may read; return that."""
        twin = copy.deepcopy(self.graph.tensors[op.raw.inputs[position]])
        twin.name = f"planted_{len(self.graph.tensors)}".encode()
        self.graph.tensors.append(twin)
        op.raw.inputs = np.array(op.raw.inputs, np.int32)
        op.raw.inputs[position] = len(self.graph.tensors) - 1
        return twin

    def _replace(self, op: Op, position: int, value: Array) -> None:
        self._own(op, position).buffer = self._buffer(value)

    def _buffer(self, value: Array) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def axes(self, op: Op, weights: Array) -> tuple[int, int]:
        if weights.ndim == 4 and weights.shape[0] == 1:
            return 3, 3
        return 0, weights.ndim - 1

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        return tuple(map(int, self.graph.tensors[self.names.index(tensor)].shape))

    def rename(self, op: Op, kind: str) -> bool:
        if op.kind == "hard_swish" and kind == "relu":
            op.raw.opcodeIndex, op.raw.builtinOptions = self._code("RELU"), None
            return True
        if kind == "relu":
            options = op.raw.builtinOptions
            if getattr(options, "fusedActivationFunction", None) != schema.ActivationFunctionType.RELU6:
                return False
            options.fusedActivationFunction = schema.ActivationFunctionType.RELU
            return True
        if kind not in OTHERS:
            return False
        op.raw.opcodeIndex = self._code(OTHERS[kind])
        return True

    def _code(self, name: str) -> int:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
        code.version = 1
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

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

    def reduced_axis(self, op: Op) -> int | None:
        axes = self._data(op.raw.inputs[1])
        return int(axes.ravel()[0]) if axes is not None and axes.size == 1 else None

    def turn(self, op: Op, first: int, second: int) -> bool:
        shape = self.shape(op.inputs[0])
        if shape is None or shape[first] != shape[second]:
            return False
        perm = np.arange(len(shape), dtype=np.int32)
        perm[[first, second]] = second, first
        self._before(op, "TRANSPOSE", [perm], shape)
        return True

    def shorten(self, op: Op, axis: int, length: int) -> bool:
        shape = list(self.shape(op.inputs[0]) or ())
        shape[axis] = length
        self._before(op, "SLICE", [np.zeros(len(shape), np.int32), np.array(shape, np.int32)], tuple(shape))
        return True

    def _before(self, op: Op, kind: str, constants: list[Array], shape: tuple[int, ...]) -> None:
        raw = schema.OperatorT()
        raw.opcodeIndex = self._code(kind)
        source = op.raw.inputs[0]
        inputs = [source]
        for value in constants:
            tensor = schema.TensorT()
            tensor.name, tensor.shape = f"planted_{len(self.graph.tensors)}".encode(), np.array(value.shape, np.int32)
            tensor.type, tensor.buffer = schema.TensorType.INT32, self._buffer(value)
            self.graph.tensors.append(tensor)
            inputs.append(len(self.graph.tensors) - 1)
        made = self._own(op, 0)
        made.shape, made.buffer = np.array(shape, np.int32), 0
        made.shapeSignature = None
        raw.inputs, raw.outputs = np.array(inputs, np.int32), np.array([op.raw.inputs[0]], np.int32)
        self.graph.operators.insert(self.graph.operators.index(op.raw), raw)

    def grids(self, op: Op) -> list[Grid]:
        found = []
        places = [("weights", 1), ("bias", 2)] if op.kind in ("conv", "dense") else []
        for what, position in [*places, ("result", -1)]:
            if position >= len(op.raw.inputs):
                continue
            index = op.raw.outputs[0] if position < 0 else op.raw.inputs[position]
            grid = self.graph.tensors[index].quantization if index >= 0 else None
            if grid is None or grid.scale is None or not len(grid.scale):
                continue

            def put(scale: Array, zero_point: Array, *, op: Op = op, position: int = position) -> None:
                tensor = self.graph.tensors[op.raw.outputs[0]] if position < 0 else self._own(op, position)
                tensor.quantization = copy.deepcopy(tensor.quantization)
                tensor.quantization.scale = np.asarray(scale, np.float32)
                tensor.quantization.zeroPoint = np.asarray(zero_point, np.int64)

            found.append(Grid(what, np.array(grid.scale), np.array(grid.zeroPoint), put))
        return found

    def save(self) -> None:
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        self.path.write_bytes(bytes(builder.Output()))
