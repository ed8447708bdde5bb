"""Edit an ONNX file."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.faults.files import Array, EditedFile, Grid, Op

KINDS = {"Conv": "conv", "Gemm": "dense", "Clip": "relu6", "Sigmoid": "sigmoid", "ReduceMean": "mean",
         "HardSwish": "hard_swish", "Concat": "concat", "Split": "split"}  # fmt: skip
NAMES = {"tanh": "Tanh", "relu": "Relu", "hard_sigmoid": "HardSigmoid", "sum": "ReduceSum", "max": "ReduceMax"}


class OnnxFile(EditedFile):
    """Weights are (O, I, H, W) or a matrix; the arm64 form works on (N, H, W, C) inside attention."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.model = onnx.load(path)
        self.constants = {item.name: item for item in self.model.graph.initializer}
        self.dequantizers = {
            node.output[0]: node for node in self.model.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in self.constants
        }  # fmt: skip
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        self.shapes = {
            item.name: tuple(dim.dim_value for dim in item.type.tensor_type.shape.dim)
            for item in [*inferred.value_info, *inferred.input, *inferred.output]
        }
        for node in self.model.graph.node:
            kind = KINDS.get(node.op_type, node.op_type)
            if kind == "Add" and not any(name in self.constants for name in node.input):
                kind = "add"
            self.ops.append(Op(kind, list(node.input), list(node.output), node))

    def weights(self, op: Op) -> tuple[Array, Array | None]:
        found = [self._value(name) for name in op.inputs[1:3]]
        return found[0], (found[1] if len(found) > 1 else None)

    def _array(self, name: str) -> Array:
        return numpy_helper.to_array(self.constants[name]).copy()

    def _value(self, name: str) -> Array:
        """Return a constant, dequantized where it lies behind a DequantizeLinear."""
        if name in self.constants:
            return self._array(name)
        stored, scale, zero_point = self._behind(self.dequantizers[name])
        return ((stored.astype(np.float64) - zero_point) * scale).astype(np.float32)

    def _behind(self, node: onnx.NodeProto) -> tuple[Array, Array, Array]:
        """Return stored integers, and scale and zero point in a shape that broadcasts."""
        stored = self._array(node.input[0])
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        along = [-1 if at == axis else 1 for at in range(stored.ndim)]
        scale = self._array(node.input[1])
        zero_point = self._array(node.input[2]).astype(np.int64) if len(node.input) > 2 else np.zeros_like(scale)
        return stored, *(value.reshape(along) if value.size > 1 else value for value in (scale, zero_point))

    def put(self, op: Op, weights: Array, bias: Array | None) -> None:
        for position, value in ((1, weights), (2, bias)):
            if value is None:
                continue
            label = f"{op.outputs[0]}_{position}"
            if op.inputs[position] in self.constants:
                op.raw.input[position] = self._constant(label, value.astype(self._array(op.inputs[position]).dtype))
                continue
            node = self._own(op, position)
            stored, scale, zero_point = self._behind(node)
            limits = np.iinfo(stored.dtype)
            steps = np.clip(np.round(value / scale) + zero_point, limits.min, limits.max)
            node.input[0] = self._constant(label, steps.astype(stored.dtype))

    def _own(self, op: Op, position: int) -> onnx.NodeProto:
        """Give the operator a DequantizeLinear of its own."""
        shared = self.dequantizers[op.inputs[position]]
        twin = onnx.NodeProto()
        twin.CopyFrom(shared)
        twin.name = twin.output[0] = f"planted_{op.outputs[0]}_{position}"
        op.raw.input[position] = twin.output[0]
        where = list(self.model.graph.node).index(shared)
        self.model.graph.node.insert(where, twin)
        return self.model.graph.node[where]

    def grids(self, op: Op) -> list[Grid]:
        found = []
        places = [("weights", 1), ("bias", 2)] if op.kind in ("conv", "dense") else []
        for what, position in places:
            if position < len(op.inputs) and op.inputs[position] in self.dequantizers:
                node = self.dequantizers[op.inputs[position]]

                def put(scale: Array, zero_point: Array, *, position: int = position) -> None:
                    own = self._own(op, position)
                    own.input[1] = self._constant("scale", scale.astype(np.float32))
                    if len(own.input) > 2:
                        own.input[2] = self._constant("zero", zero_point.astype(self._array(own.input[2]).dtype))

                zero = self._array(node.input[2]) if len(node.input) > 2 else np.zeros(1, np.int8)
                found.append(Grid(what, self._array(node.input[1]), zero, put))
        for quantizer in [node for node in self.model.graph.node if node.op_type == "QuantizeLinear"]:
            if quantizer.input[0] in op.outputs:
                pair = [quantizer, *(n for n in self.model.graph.node if n.op_type == "DequantizeLinear"
                                     and n.input[0] == quantizer.output[0])]  # fmt: skip

                def put_both(scale: Array, zero_point: Array, *, pair: list[onnx.NodeProto] = pair) -> None:
                    kind = self._array(pair[0].input[2]).dtype
                    names = (
                        self._constant("scale", scale.astype(np.float32)),
                        self._constant("zero", zero_point.astype(kind)),
                    )
                    for node in pair:
                        node.input[1], node.input[2] = names

                found.append(Grid("result", self._array(quantizer.input[1]),
                                  self._array(quantizer.input[2]).astype(np.int64), put_both))  # fmt: skip
        return found

    def _constant(self, name: str, value: Array) -> str:
        name = f"planted_{name}_{len(self.model.graph.initializer)}"
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        self.model.graph.initializer.append(self.constants[name])
        return name

    def axes(self, op: Op, weights: Array) -> tuple[int, int]:
        if op.kind == "dense":
            transposed = any(item.name == "transB" and item.i for item in op.raw.attribute)
            return (0, 1) if transposed else (1, 0)
        return (0, 0) if weights.shape[1] == 1 else (0, 1)

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        return self.shapes.get(tensor)

    def rename(self, op: Op, kind: str) -> bool:
        op.raw.op_type = NAMES[kind]
        if kind not in ("sum", "max"):
            del op.raw.input[1:]
        elif any(item.name == "axes" for item in op.raw.attribute):
            return False
        return True

    def rewire(self, op: Op, position: int, name: str) -> None:
        op.raw.input[position] = name

    def shift_padding(self, op: Op) -> bool:
        for item in op.raw.attribute:
            if item.name == "pads" and list(item.ints) == [1, 1, 1, 1]:
                item.ints[:] = [2, 1, 0, 1]
                return True
        return False

    def reduced_axis(self, op: Op) -> int | None:
        axes = [list(item.ints) for item in op.raw.attribute if item.name == "axes"]
        axes += [numpy_helper.to_array(self.constants[n]).tolist() for n in op.inputs[1:] if n in self.constants]
        return int(axes[0][0]) if len(axes) == 1 and len(axes[0]) == 1 else None

    def turn(self, op: Op, first: int, second: int) -> bool:
        shape = self.shape(op.inputs[0])
        if not shape or shape[first] != shape[second]:
            return False
        perm = list(range(len(shape)))
        perm[first], perm[second] = second, first
        self._before(op, helper.make_node("Transpose", [op.inputs[0]], ["planted_turn"], perm=perm))
        return True

    def shorten(self, op: Op, axis: int, length: int) -> bool:
        ends = [self._constant(name, np.array([value])) for name, value in (("a", 0), ("b", length), ("c", axis))]
        self._before(op, helper.make_node("Slice", [op.inputs[0], *ends], ["planted_slice"]))
        return True

    def fix_window(self, op: Op, axis: int, length: int) -> bool:
        if axis < 2 or len(self.shape(op.inputs[0]) or ()) != 4:
            return False
        op.raw.op_type = "AveragePool"
        del op.raw.input[1:], op.raw.attribute[:]
        op.raw.attribute.append(helper.make_attribute("kernel_shape", [length if at == axis else 1 for at in (2, 3)]))
        return True

    def _before(self, op: Op, node: onnx.NodeProto) -> None:
        self.model.graph.node.insert(list(self.model.graph.node).index(op.raw), node)
        op.raw.input[0] = node.output[0]

    def _swap_outputs(self, op: Op) -> bool:
        op.raw.output[:] = reversed(op.outputs)
        return True

    def save(self) -> None:
        onnx.save(self.model, self.path)
