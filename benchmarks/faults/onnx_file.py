"""Edit an ONNX file."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.faults.files import Array, EditedFile, Op

KINDS = {"Conv": "conv", "Gemm": "dense", "Clip": "relu6", "Sigmoid": "sigmoid", "ReduceMean": "mean",
         "HardSwish": "hard_swish", "Concat": "concat", "Split": "split"}  # fmt: skip
NAMES = {"tanh": "Tanh", "relu": "Relu", "hard_sigmoid": "HardSigmoid", "sum": "ReduceSum", "max": "ReduceMax"}


class OnnxFile(EditedFile):
    """Weights are (O, I, H, W) or a matrix; the arm64 form works on (N, H, W, C) inside attention."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.model = onnx.load(path)
        self.constants = {item.name: item for item in self.model.graph.initializer}
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
        found = [numpy_helper.to_array(self.constants[name]).copy() for name in op.inputs[1:3]]
        return found[0], (found[1] if len(found) > 1 else None)

    def put(self, op: Op, weights: Array, bias: Array | None) -> None:
        for position, value in ((1, weights), (2, bias)):
            if value is not None:
                op.raw.input[position] = self._constant(f"{op.outputs[0]}_{position}", value)

    def _constant(self, name: str, value: Array) -> str:
        name = f"planted_{name}_{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
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

    def _before(self, op: Op, node: onnx.NodeProto) -> None:
        self.model.graph.node.insert(list(self.model.graph.node).index(op.raw), node)
        op.raw.input[0] = node.output[0]

    def _swap_outputs(self, op: Op) -> bool:
        op.raw.output[:] = reversed(op.outputs)
        return True

    def save(self) -> None:
        onnx.save(self.model, self.path)
