"""Edit an ExecuTorch file, float or int8: what XNNPACK computes in it."""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.files import Array, EditedFile, Grid, Op
from coordatt_deploy.runtimes.executorch.flatbuffer_schema import Record
from coordatt_deploy.runtimes.executorch.program_file import calls, input_fields, is_on_grid, opened, packed, tensor
from coordatt_deploy.runtimes.executorch.tensors import XNNPACK_DTYPES, names_inside, operators, sources

KINDS = {"XNNConv2d": "conv", "XNNDepthwiseConv2d": "conv", "XNNFullyConnected": "dense", "XNNSigmoid": "sigmoid",
         "XNNAvgPooling2d": "mean", "XNNGlobalAvgPooling2d": "mean", "XNNStaticConstantPad": "pad",
         "XNNHardswish": "hard_swish", "XNNConcatenate2": "concat"}  # fmt: skip
PLACES = {"weights": "filter_id", "bias": "bias_id", "result": "output_id"}
NO_HANDLE = 65535


class ExecutorchFile(EditedFile):
    """Weights are (O, H, W, I), depthwise (1, H, W, C), or a matrix (O, I)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, spatial=(1, 2))
        self.file = opened(path.read_bytes(), path.name)
        self.known = sources(self.file)
        self.names = {call.delegate_index: names_inside(self.file, call)
                      for call, kind in calls(self.file.method) if kind == "DelegateCall"}  # fmt: skip
        for item in operators(self.file):
            if item.delegate is None:
                continue
            kind = KINDS.get(item.name, item.name)
            if item.name == "XNNAdd" and all(name in self.known for name in item.inputs):
                kind = "add"
            self.ops.append(Op(kind, list(item.inputs), list(item.outputs), (item.delegate, item.record)))

    def _value(self, op: Op, identity: int) -> Record:
        delegate, _ = op.raw
        return next(item for item in self.file.graphs[delegate].xvalues if tensor(item).id_out == identity)

    def _data(self, op: Op, what: str) -> tuple[Array, Array | None] | None:
        """Values of a weight or bias as they are stored, and their steps in a shape that broadcasts."""
        delegate, node = op.raw
        identity = getattr(node.xnode_union, PLACES[what])
        if identity == 0xFFFFFFFF:
            return None
        value, graph = self._value(op, identity), self.file.graphs[delegate]
        inner = tensor(value)
        data = self.file.data(graph, inner.constant_buffer_idx)
        stored = np.frombuffer(data, XNNPACK_DTYPES[inner.datatype]).reshape(inner.dims).copy()
        if not is_on_grid(value):
            return stored, None
        grid = value.xvalue_union.quant_params
        steps = np.frombuffer(self.file.data(graph, grid.scale_buffer_idx), np.float32)
        return stored, steps.reshape([-1 if axis == grid.channel_dim else 1 for axis in range(stored.ndim)])

    def weights(self, op: Op) -> tuple[Array, Array | None]:
        found = [self._data(op, what) for what in ("weights", "bias")]
        values = [None if item is None else (item[0] if item[1] is None else (item[0] * item[1]).astype(np.float32))
                  for item in found]  # fmt: skip
        assert values[0] is not None
        return values[0], values[1]

    def put(self, op: Op, weights: Array, bias: Array | None) -> None:
        for what, value in (("weights", weights), ("bias", bias)):
            held = self._data(op, what)
            if value is None or held is None:
                continue
            stored, steps = held
            if steps is not None:
                limits = np.iinfo(stored.dtype)
                least = -127 if stored.dtype == np.int8 else limits.min
                value = np.clip(np.round(value / steps), least, limits.max)
            own = tensor(self._own(op, PLACES[what]))
            own.constant_buffer_idx = self._added(op, value.astype(stored.dtype))

    def _own(self, op: Op, name: str) -> Record:
        """Give the operator a value of its own in place of one that others may read; return that."""
        delegate, node = op.raw
        graph = self.file.graphs[delegate]
        twin = copy.deepcopy(self._value(op, getattr(node.xnode_union, name)))
        tensor(twin).id_out = 1 + max(tensor(item).id_out for item in graph.xvalues)
        graph.xvalues.append(twin)
        setattr(node.xnode_union, name, tensor(twin).id_out)
        return twin

    def _added(self, op: Op, value: Array) -> int:
        graph = self.file.graphs[op.raw[0]]
        return self.file.add_data(graph, f"planted_{len(graph.constant_data)}", np.ascontiguousarray(value).tobytes())

    def axes(self, op: Op, weights: Array) -> tuple[int, int]:
        return (3, 3) if weights.ndim == 4 and weights.shape[0] == 1 else (0, weights.ndim - 1)

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        return self.known[tensor].shape if tensor in self.known else None

    def rename(self, op: Op, kind: str) -> bool:
        _, node = op.raw
        if kind == "relu" and op.kind == "hard_swish":
            node.xnode_union_type = "XNNClamp"
            node.output_min_max = Record(table="OutputMinMax", output_min=0.0, output_max=float("inf"))
            return True
        if kind == "relu" and node.output_min_max is not None and node.output_min_max.output_max == 6.0:
            node.output_min_max.output_max = float("inf")
            return True
        if kind == "tanh":
            node.xnode_union_type = "XNNTanh"
            return True
        return False

    def rewire(self, op: Op, position: int, name: str) -> None:
        delegate, node = op.raw
        identity = next(key for key, value in self.names[delegate].items() if value == name)
        setattr(node.xnode_union, input_fields(node)[position], identity)

    def shift_padding(self, op: Op) -> bool:
        layer = op.raw[1].xnode_union
        if op.kind != "conv" or not (layer.kernel_height == layer.kernel_width == 3) or not layer.padding_right:
            return False
        layer.padding_left, layer.padding_right = layer.padding_left + 1, layer.padding_right - 1
        return True

    def reduced_axis(self, op: Op) -> int | None:
        pool, (_, height, width, _) = op.raw[1].xnode_union, self.shape(op.inputs[0]) or (0, 0, 0, 0)
        if op.raw[1].xnode_union_type != "XNNAvgPooling2d":
            return None
        return {(1, width): 2, (height, 1): 1}.get((pool.pooling_height, pool.pooling_width))

    def turn(self, op: Op, first: int, second: int) -> bool:
        shape = self.shape(op.inputs[0])
        if shape is None or len(shape) != 4 or shape[first] != shape[second]:
            return False
        order = list(range(len(shape)))
        order[first], order[second] = second, first
        self._before(op, "XNNStaticTranspose", "perm", order, list(shape))
        return True

    def shorten(self, op: Op, axis: int, length: int) -> bool:
        shape = list(self.shape(op.inputs[0]) or ())
        shape[axis] = length
        pool = op.raw[1].xnode_union
        setattr(pool, "pooling_height" if axis == 1 else "pooling_width", length)
        setattr(pool, "stride_height" if axis == 1 else "stride_width", length)
        self._before(op, "XNNStaticSlice", "sizes", shape, shape, offsets=[0] * len(shape))
        return True

    def _before(self, op: Op, kind: str, field: str, numbers: list[int], shape: list[int], **others: Any) -> None:
        delegate, node = op.raw
        name = input_fields(node)[0]
        source = getattr(node.xnode_union, name)
        made = tensor(self._own(op, name))
        made.dims, made.flags, made.external_id = shape, 0, 0xFFFFFFFF
        union = Record(table=kind, num_dims=len(shape), input_id=source, output_id=made.id_out, flags=0,
                       **{field: numbers}, **others)  # fmt: skip
        new = Record(
            table="XNode", xnode_union=union, xnode_union_type=kind, debug_handle=NO_HANDLE, output_min_max=None
        )
        nodes = self.file.graphs[delegate].xnodes
        nodes.insert(next(index for index, item in enumerate(nodes) if item is node), new)

    def grids(self, op: Op) -> list[Grid]:
        found = []
        delegate, node = op.raw
        graph = self.file.graphs[delegate]
        for what in ("weights", "bias", "result") if op.kind in ("conv", "dense") else ("result",):
            identity = getattr(node.xnode_union, PLACES[what], 0xFFFFFFFF)
            value = None if identity == 0xFFFFFFFF else self._value(op, identity)
            if value is None or not is_on_grid(value):
                continue
            steps = value.xvalue_union.quant_params
            by_channel = value.xvalue_union.quant_params_type == "PerChannelQuant"
            scale = (np.frombuffer(self.file.data(graph, steps.scale_buffer_idx), np.float32).copy() if by_channel
                     else np.array([steps.scale], np.float32))  # fmt: skip

            def put(scale: Array, zero_point: Array, *, what: str = what, by_channel: bool = by_channel) -> None:
                own = self._value(op, node.xnode_union.output_id) if what == "result" else self._own(op, PLACES[what])
                grid = own.xvalue_union.quant_params
                if by_channel:
                    grid.scale_buffer_idx = self._added(op, np.asarray(scale, np.float32))
                else:
                    grid.scale, grid.zero_point = float(scale[0]), int(zero_point[0])

            zero = np.zeros(scale.size, np.int64) if by_channel else np.array([steps.zero_point])
            found.append(Grid(what, scale, zero, put))
        return found

    def save(self) -> None:
        self.path.write_bytes(packed(self.file))
