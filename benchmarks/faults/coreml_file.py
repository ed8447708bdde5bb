"""Edit a Core ML package: the protobuf of its program, and the weights beside it."""

import copy
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.files import Array, EditedFile, Grid, Op
from coordatt_deploy.runtimes.coreml.evaluator.package import block_of, read_model

KINDS = {"conv": "conv", "linear": "dense", "clip": "relu6", "relu6": "relu6", "sigmoid": "sigmoid", "add": "add",
         "reduce_mean": "mean", "concat": "concat", "split": "split"}  # fmt: skip
NAMES = {"tanh": "tanh", "relu": "relu", "sum": "reduce_sum", "max": "reduce_max"}
DTYPES = {10: np.float16, 11: np.float32, 21: np.int8, 31: np.uint8}
COMPRESSED = "constexpr_affine_dequantize"


class CoremlFile(EditedFile):
    """Weights are (O, I, H, W) or a matrix (O, I); those of int8 packages are dequantized by an operator."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.model, self.folder = read_model(path)
        self.block = block_of(self.model)
        self.blob = self.folder / "weights" / "weight.bin"
        self.bytes = bytearray(self.blob.read_bytes())
        self.constants: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._index()
        for raw in self.block.operations:
            if raw.type == "const" or raw.type.startswith("constexpr"):
                continue
            keys = sorted(
                raw.inputs, key=lambda key: (key not in ("x", "input"), key != "y", key)
            )  # a map has no order
            inputs = [item.name for key in keys for item in raw.inputs[key].arguments if item.name]
            kind = KINDS.get(raw.type, raw.type)
            if kind == "add" and any(name in self.constants for name in inputs):
                kind = "Add"
            self.ops.append(Op(kind, inputs, [item.name for item in raw.outputs], raw))

    def _index(self) -> None:
        stored = [raw for raw in self.block.operations if raw.type == "const" or raw.type.startswith("constexpr")]
        self.constants = {raw.outputs[0].name: raw for raw in stored}
        self.shapes = {
            item.name: tuple(int(dim.constant.size) for dim in item.type.tensorType.dimensions)
            for raw in self.block.operations
            for item in raw.outputs
        }

    def _array(self, name: str) -> tuple[Array, Callable[[Array], None]]:
        """Return a constant, dequantized, and what writes it back."""
        raw = self.constants[name]
        if raw.type == "const":
            return self._value(raw.attributes["val"])
        if raw.type != COMPRESSED:
            raise NotImplementedError(f"weights behind {raw.type}")
        stored, write = self._part(raw, "quantized_data")
        scale, zero_point = (self._along(raw, key, stored.ndim) for key in ("scale", "zero_point"))

        def quantize(new: Array) -> None:
            write(np.clip(np.round(new / scale) + zero_point, -127, 127).astype(stored.dtype))

        return ((stored - zero_point) * scale).astype(np.float32), quantize

    def _part(self, raw: Any, key: str) -> tuple[Array, Callable[[Array], None]]:
        if key in raw.attributes:
            return self._value(raw.attributes[key])
        return self._array(raw.inputs[key].arguments[0].name)

    def _along(self, raw: Any, key: str, rank: int) -> Array:
        value = np.asarray(self._part(raw, key)[0], np.float64)
        axis = int(np.ravel(self._part(raw, "axis")[0])[0]) % rank
        return value.reshape([-1 if at == axis and value.size > 1 else 1 for at in range(rank)])

    def _value(self, value: Any) -> tuple[Array, Callable[[Array], None]]:
        shape = [dim.constant.size for dim in value.type.tensorType.dimensions]
        dtype = DTYPES.get(value.type.tensorType.dataType, np.int32)
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
        self.block.operations.insert(list(self.block.operations).index(self.constants[name]), twin)
        self._index()
        op.raw.inputs[key].arguments[0].name = twin.outputs[0].name
        return str(twin.outputs[0].name)

    def weights(self, op: Op) -> tuple[Array, Array | None]:
        found = self._array(op.raw.inputs["weight"].arguments[0].name)[0]
        return found, self._array(op.raw.inputs["bias"].arguments[0].name)[0] if "bias" in op.raw.inputs else None

    def put(self, op: Op, weights: Array, bias: Array | None) -> None:
        self._array(op.raw.inputs["weight"].arguments[0].name)[1](weights)
        if bias is not None:
            self._array(op.raw.inputs["bias"].arguments[0].name)[1](bias)

    def axes(self, op: Op, weights: Array) -> tuple[int, int]:
        return (0, 0) if weights.ndim == 4 and weights.shape[1] == 1 else (0, 1)

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        return self.shapes.get(tensor)

    def rename(self, op: Op, kind: str) -> bool:
        if kind not in NAMES:
            return False
        op.raw.type = NAMES[kind]
        for key in ("alpha", "beta"):
            op.raw.inputs.pop(key, None)
        return True

    def rewire(self, op: Op, position: int, name: str) -> None:
        op.raw.inputs["xy"[position] if "y" in op.raw.inputs else "x"].arguments[0].name = name

    def shift_padding(self, op: Op) -> bool:
        if op.kind != "conv" or self._array(op.raw.inputs["pad"].arguments[0].name)[0].tolist() != [1, 1, 1, 1]:
            return False
        self._array(self._own(op, "pad"))[1](np.array([2, 0, 1, 1]))
        return True

    def reduced_axis(self, op: Op) -> int | None:
        axes = self._array(op.raw.inputs["axes"].arguments[0].name)[0]
        return int(axes[0]) % 4 if axes.size == 1 else None

    def turn(self, op: Op, first: int, second: int) -> bool:
        shape = self.shape(op.inputs[0])
        if shape is None or shape[first] != shape[second]:
            return False
        perm = list(range(len(shape)))
        perm[first], perm[second] = second, first
        self._before(op, "transpose", {"perm": perm}, shape)
        return True

    def shorten(self, op: Op, axis: int, length: int) -> bool:
        shape = list(self.shape(op.inputs[0]) or ())
        shape[axis] = length
        sizes = [size or -1 for size in shape]  # -1 is all there is
        self._before(op, "slice_by_size", {"begin": [0] * len(shape), "size": sizes}, tuple(shape))
        return True

    def _before(self, op: Op, kind: str, constants: dict[str, list[int]], shape: tuple[int, ...]) -> None:
        integers = next(
            raw for raw in self.constants.values()
            if raw.type == "const" and raw.attributes["val"].immediateValue.tensor.WhichOneof("value") == "ints"
            and len(raw.attributes["val"].type.tensorType.dimensions) == 1
        )  # fmt: skip
        source = next(raw for raw in self.block.operations if op.inputs[0] in [item.name for item in raw.outputs])
        made = copy.deepcopy(source)
        made.type = kind
        made.ClearField("inputs")
        made.ClearField("attributes")
        while len(made.outputs) > 1:
            made.outputs.pop()
        made.inputs["x"].arguments.add().name = op.inputs[0]
        made.outputs[0].name = f"planted_{op.outputs[0]}"
        for dim, size in zip(made.outputs[0].type.tensorType.dimensions, shape, strict=True):
            if size:
                dim.constant.size = size
            else:
                dim.unknown.variadic = False
        where = list(self.block.operations).index(op.raw)
        for key, values in constants.items():
            twin = copy.deepcopy(integers)
            twin.outputs[0].name = f"planted_{key}_{op.outputs[0]}"
            for typed in (twin.outputs[0].type, twin.attributes["val"].type):
                typed.tensorType.dimensions[0].constant.size = len(values)
            twin.attributes["val"].immediateValue.tensor.ints.values[:] = values
            made.inputs[key].arguments.add().name = twin.outputs[0].name
            self.block.operations.insert(where, twin)
            where += 1
        self.block.operations.insert(where, made)
        raw = next(raw for raw in self.block.operations if [item.name for item in raw.outputs] == op.outputs)
        raw.inputs["x"].arguments[0].name = made.outputs[0].name

    def _swap_outputs(self, op: Op) -> bool:
        op.raw.outputs[0].name, op.raw.outputs[1].name = op.outputs[1], op.outputs[0]
        return True

    def grids(self, op: Op) -> list[Grid]:
        found = []
        sources = []
        if op.kind in ("conv", "dense"):
            sources.append(("weights", self.constants[op.raw.inputs["weight"].arguments[0].name]))
        sources += [("result", raw) for raw in self.block.operations if raw.type == "quantize"
                    and raw.inputs["input"].arguments[0].name in op.outputs]  # fmt: skip
        for what, raw in sources:
            if what == "weights" and raw.type != COMPRESSED:
                continue
            (scale, put_scale), (zero_point, put_zero) = self._part(raw, "scale"), (np.zeros(0), None)
            if "zero_point" in raw.attributes or "zero_point" in raw.inputs:
                zero_point, put_zero = self._part(raw, "zero_point")

            def put(new: Array, zero: Array, *, scale: Any = put_scale, point: Any = put_zero) -> None:
                scale(new)
                if point is not None:
                    point(zero)

            found.append(Grid(what, scale, zero_point, put))
        return found

    def save(self) -> None:
        self.blob.write_bytes(self.bytes)
        (self.folder / "model.mlmodel").write_bytes(self.model.SerializeToString())
