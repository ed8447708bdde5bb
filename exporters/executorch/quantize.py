"""Put integers in the place of floats in an ExecuTorch file: in what XNNPACK computes, operator by operator.

executorch quantizes networks in torch, before they are lowered, and lowers them once more. What comes of it in the file
is a grid beside each value of XNNPACK's, int8 weights by the channel, and int32 biases: that is written here, with the
ranges that this project measured on the file itself. So all formats hold the same integers, as far as their runtimes
have them. Values keep their names, hence the layer map holds.

    in integers     convolutions, linear layers, sums, products, means, and what moves or picks values
    in floats       everything else, between two conversions inside of the same delegate; kernels outside of it
"""

import hashlib
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.errors import BundleError, ConversionError
from coordatt_deploy.exporters import EIGHT_BITS, Exported, ExportRequest
from coordatt_deploy.formats import Format, TargetCpu
from coordatt_deploy.quantization.delicate_sums import leads_to, too_wide, touching
from coordatt_deploy.quantization.ranges import Range, needed
from coordatt_deploy.quantization.recipes import Recipe, checked, kept_in_float
from coordatt_deploy.runtimes.executorch.flatbuffer_schema import Record
from coordatt_deploy.runtimes.executorch.program_file import (
    EXTERNAL_INPUT,
    EXTERNAL_OUTPUT,
    NONE,
    ProgramFile,
    calls,
    input_fields,
    inputs,
    is_on_grid,
    opened,
    outputs,
    packed,
    tensor,
)
from coordatt_deploy.runtimes.executorch.runner import start
from coordatt_deploy.runtimes.executorch.tensors import Grid, names_inside, operators, sources, value_name
from coordatt_deploy.runtimes.executorch.vocabulary import VOCABULARY

WEIGHTED: Final[Mapping[str, int]] = {"XNNConv2d": 0, "XNNDepthwiseConv2d": 3, "XNNFullyConnected": 0}  # channel axis
MOVING: Final = frozenset({
    "XNNStaticTranspose", "XNNStaticReshape", "XNNStaticSlice", "XNNCopy", "XNNMaxPooling2d",
})  # fmt: skip
JOINING: Final = frozenset({"XNNConcatenate2", "XNNConcatenate3", "XNNConcatenate4", "XNNConcatenate5"})
COMPUTING: Final = frozenset({
    *WEIGHTED, "XNNAdd", "XNNSubtract", "XNNMultiply", "XNNGlobalAvgPooling2d", "XNNAvgPooling2d", "XNNSigmoid",
    "XNNClamp", "XNNLeakyReLU", "XNNTanh",
})  # fmt: skip
# Calls of a graph that become these.
INTEGER: Final = frozenset({
    "conv2d", "linear", "addmm", "add", "sub", "mul", "mean", "avg_pool2d", "adaptive_avg_pool2d", "sigmoid", "relu",
    "relu6", "hardtanh", "clamp", "leaky_relu", "tanh", "max_pool2d", "cat",
})  # fmt: skip
# XNNPACK's kernels have these grids only.
FIXED: Final = {"XNNSigmoid": Grid(1 / 256, -128), "XNNTanh": Grid(1 / 128, 0)}
# What leads from a sum to a divisor or a logarithm, element by element.
STEPS: Final = frozenset({"XNNAdd", "XNNSubtract", "XNNMultiply", "XNNSquareRoot", "XNNSquare", "XNNAbs", "XNNMaximum",
                          "XNNDiv", "XNNStaticReshape"})  # fmt: skip
STARTS: Final = frozenset({"XNNGlobalAvgPooling2d", "XNNAvgPooling2d"})  # where such steps begin
FP32, QINT8, QCINT8, QCINT32 = 1, 3, 6, 7
# What leads from a mask to the softmax behind it.
MASKING: Final = STEPS | {"XNNStaticTranspose", "XNNCopy", "aten::where.self_out", "aten::masked_fill.Scalar_out"}
NO_HANDLE: Final = 65535
KEEP_DIMS: Final = 0x00000040
LEAST_STEP: Final = 2.0**-40


def weight_levels(target_cpu: TargetCpu | None) -> int:  # noqa: ARG001 - its kernels add in 32 bits everywhere
    """See ``Quantizer.weight_levels``."""
    return EIGHT_BITS


def integer_operators() -> frozenset[str] | None:
    """See ``Quantizer.integer_operators``."""
    return INTEGER


def activations(source: Path, exported: Exported) -> tuple[str, ...]:  # noqa: ARG001 - the file knows
    """Return the names of the tensors whose ranges ``quantize`` needs: all floats that an operator makes."""
    file = opened(source.read_bytes(), source.name)
    known = sources(file)
    made = (name for item in operators(file) for name in item.outputs)
    return tuple(dict.fromkeys(name for name in made if name in known and known[name].dtype == "float32"))


def quantize(
    source: Path, exported: Exported, recipe: Recipe, ranges: Mapping[str, Range] | None, request: ExportRequest
) -> Exported:
    """Quantize the float ExecuTorch file at *source*; see ``Quantizer.quantize``.

    Raises:
        UsageError: ExecuTorch cannot express the recipe, it needs ranges, or it names unknown layers.
        ConversionError: The runtime refuses the integers.
    """
    recipe = checked(recipe, Format.EXECUTORCH)
    file = opened(source.read_bytes(), source.name)
    bounds = dict(needed(ranges, recipe))
    for spec, index in zip(exported.inputs, file.method.inputs, strict=True):
        bounds[value_name(index)] = bounds[spec.name]
    edges = [(item.inputs, item.outputs) for item in operators(file)]
    kept = kept_in_float(recipe.float_layers, exported.layers, edges) | _delicate(file) | _too_wide(file, bounds)
    for call, kind in calls(file.method):
        graph = file.graphs.get(call.delegate_index) if kind == "DelegateCall" else None
        if graph is not None:
            _Quantization(file, graph, names_inside(file, call), bounds, kept).run()
    content = packed(file)
    try:
        start(content, request.path.name).drop()
    except BundleError as error:
        raise ConversionError(f"XNNPACK does not take these integers: {error}") from error
    request.path.write_bytes(content)
    return Exported(exported.inputs, exported.outputs, exported.layers)


def _delicate(file: ProgramFile) -> set[str]:
    """Names of what leads to divisors that the network computes, and to logarithms."""
    found = list(operators(file))
    made_of = {name: list(item.inputs) for item in found if item.name in STEPS for name in item.outputs}
    made_of |= {name: [] for item in found if item.name in STARTS for name in item.outputs}
    divisors = [item.inputs[1] for item in found if item.name == "XNNDiv" and len(item.inputs) > 1]
    return leads_to([*divisors, *(item.inputs[0] for item in found if item.name == "XNNLog")], made_of)


def _too_wide(file: ProgramFile, ranges: Mapping[str, Range]) -> set[str]:
    """Names of what no grid can hold, as a mask of minus infinity makes it, and of what is made of it."""
    found = list(operators(file))
    wide = too_wide(
        {name: (bounds.low, bounds.high) for name, bounds in ranges.items()},
        [item.inputs[0] for item in found if item.name in VOCABULARY.softmaxes],
        {name: list(item.inputs) for item in found if item.name in MASKING for name in item.outputs},
    )
    return touching(wide, ((item.inputs, item.outputs) for item in found))


def grid_of(bounds: Range) -> Grid:
    """Return the grid of 256 steps that covers a range; of a value that was always 0 any."""
    if bounds.low == bounds.high == 0:
        bounds = Range(0.0, 1.0)
    scale = float(np.float32(max((bounds.high - bounds.low) / 255, LEAST_STEP)))
    return Grid(scale, int(np.clip(round(-128 - bounds.low / scale), -128, 127)))


@dataclass(slots=True)
class _Quantization:
    """One delegate on its way.

    Attributes:
        file: That it is in.
        graph: Of the delegate.
        names: Of its values, by id.
        bounds: Of all values, by name.
        kept: Names of values that stay in float.
        grids: Of values that are made in integers, by id.
        floats: For values that are made in integers and read in float the id of the floats.
        integers: For a value and a grid the id of its integers, where that is not the value's own.
        nodes: Of the delegate as it will be.
    """

    file: ProgramFile
    graph: Record
    names: Mapping[int, str]
    bounds: Mapping[str, Range]
    kept: set[str]
    grids: dict[int, Grid] = field(default_factory=dict)
    floats: dict[int, int] = field(default_factory=dict)
    integers: dict[tuple[int, Grid], int] = field(default_factory=dict)
    nodes: list[Record] = field(default_factory=list)
    values: dict[int, Record] = field(default_factory=dict)

    def run(self) -> None:
        """Edit the graph."""
        self.values = {tensor(value).id_out: value for value in self.graph.xvalues}
        nodes = list(self.graph.xnodes)
        readers: dict[int, list[Record]] = {}
        for node in nodes:
            for item in self._data(node):
                readers.setdefault(item, []).append(node)
        chosen = self._chosen(nodes, readers)
        wanted = self._wanted(nodes, readers, chosen)
        for node in nodes:
            if id(node) in chosen:
                self._compute_in_integers(node, wanted)
            else:
                self._compute_in_floats(node)
        self.graph.xnodes = self.nodes
        self._drop_unused()

    def _drop_unused(self) -> None:
        """Leave the floats out that integers have taken the place of."""
        read = {item for node in self.nodes for item in inputs(node)}
        ends = EXTERNAL_INPUT | EXTERNAL_OUTPUT
        made = {item for node in self.nodes for item in outputs(node)}
        values = [value for value in self.graph.xvalues
                  if tensor(value).id_out in read | made or tensor(value).flags & ends]  # fmt: skip
        places = {0: 0}  # the first entry stands for none
        for value in values:
            inner = tensor(value)
            inner.constant_buffer_idx = places.setdefault(inner.constant_buffer_idx, len(places))
            steps = value.xvalue_union.quant_params if is_on_grid(value) else value
            if hasattr(steps, "scale_buffer_idx"):
                steps.scale_buffer_idx = places.setdefault(steps.scale_buffer_idx, len(places))
        self.graph.xvalues = values
        self.graph.constant_data = [self.graph.constant_data[index] for index in places]

    def _data(self, node: Record) -> list[int]:
        """Ids of what an operator reads that is computed."""
        return [item for item in inputs(node) if not tensor(self.values[item]).constant_buffer_idx]

    def _chosen(self, nodes: list[Record], readers: Mapping[int, list[Record]]) -> set[int]:
        """The identities of the operators that compute in integers."""
        chosen: set[int] = set()
        made: set[int] = set()  # ids of what is made in integers
        for node in nodes:
            kind, read = node.xnode_union_type, self._data(node)
            can = not self.kept & {self.names[item] for item in outputs(node)}
            can = can and all(tensor(self.values[item]).datatype == FP32 for item in (*read, *outputs(node)))
            if kind in MOVING:
                from_outside = bool(tensor(self.values[read[0]]).flags & EXTERNAL_INPUT) if read else False
                follows = [reader for item in outputs(node) for reader in readers.get(item, [])]
                soon = any(reader.xnode_union_type in COMPUTING for reader in follows)
                can = can and bool(read) and (read[0] in made or (from_outside and soon))
            elif kind in JOINING:
                can = can and len(read) == len(inputs(node)) and any(item in made for item in read)
            elif kind == "XNNAvgPooling2d":
                can = can and self._as_means(node) is not None
            else:
                can = can and kind in COMPUTING and bool(read) and self._has_plain_weights(node)
            if can and all(self.names[item] in self.bounds for item in (*read, *outputs(node))):
                chosen.add(id(node))
                made.update(outputs(node))
        return chosen

    def _has_plain_weights(self, node: Record) -> bool:
        """Whether a layer's weights, which become integers, are floats in the file."""
        fixed = [item for item in inputs(node) if item not in self._data(node)]
        first = input_fields(node)[:1]
        weighted = node.xnode_union_type in WEIGHTED
        return all(tensor(self.values[item]).datatype == FP32 for item in fixed) and (
            not weighted or not tensor(self.values[getattr(node.xnode_union, first[0])]).constant_buffer_idx
        )

    def _wanted(self, nodes: list[Record], readers: Mapping[int, list[Record]], chosen: set[int]) -> dict[int, Grid]:
        """For each value that is made in integers its grid.

        What is joined is on one grid; whatever is read by nothing else is made on it at once. A clamp's range is that
        of what it reads, of which it throws the rest away.
        """
        grids: dict[int, Grid] = {}
        for node in reversed(nodes):
            if id(node) not in chosen:
                continue
            kind, (result, *_) = node.xnode_union_type, outputs(node)
            grids.setdefault(result, FIXED.get(kind) or grid_of(self.bounds[self.names[result]]))
            if kind in JOINING or kind == "XNNClamp":
                for item in self._data(node):
                    if len(readers.get(item, [])) == 1 and not tensor(self.values[item]).flags & EXTERNAL_OUTPUT:
                        grids.setdefault(item, grids[result])
        return grids

    def _compute_in_integers(self, node: Record, wanted: Mapping[int, Grid]) -> None:
        kind, (result, *_) = node.xnode_union_type, outputs(node)
        node = copy(node)
        node.xnode_union = copy(node.xnode_union)
        read = self._data(node)
        grid = self._grid_of_read(read[0]) if kind in MOVING else FIXED.get(kind) or wanted[result]
        for name in input_fields(node):
            item = getattr(node.xnode_union, name)
            if item in read:
                asked = grid if kind in JOINING else self._grid_of_read(item)
                setattr(node.xnode_union, name, self._as_integers(item, asked))
            elif name not in ("filter_id", "bias_id"):
                setattr(node.xnode_union, name, self._constant(item))
        if kind in WEIGHTED:
            self._weights(node, self._grid_of_read(read[0]))
        made = self._made_on(result, grid)
        if kind == "XNNAvgPooling2d":
            self._write_means(node, made, grid)
        else:
            node.xnode_union.output_id = made
            self.nodes.append(node)
        if tensor(self.values[result]).flags & EXTERNAL_OUTPUT:
            self._convert(made, result)

    def _made_on(self, result: int, grid: Grid) -> int:
        """Put a value on a grid; where it leaves the delegate as floats, a new one beside it."""
        self.grids[result] = grid
        if tensor(self.values[result]).flags & EXTERNAL_OUTPUT:
            made = self._new(tensor(self.values[result]).dims, grid)
            self.integers[result, grid] = made
            self.floats[result] = result
            return made
        self._put_on(result, grid)
        return result

    def _grid_of_read(self, item: int) -> Grid:
        return self.grids.get(item) or grid_of(self.bounds[self.names[item]])

    def _as_integers(self, item: int, grid: Grid) -> int:
        """The id of a value's integers on a grid; converted where there are none yet."""
        own = self.grids.get(item)
        if own == grid and (item, grid) not in self.integers:
            return item
        if (item, grid) not in self.integers:
            source = item if own is None else self.integers.get((item, own), item)
            self.integers[item, grid] = self._new(tensor(self.values[item]).dims, grid)
            self._convert(source, self.integers[item, grid])
        return self.integers[item, grid]

    def _compute_in_floats(self, node: Record) -> None:
        node = copy(node)
        node.xnode_union = copy(node.xnode_union)
        read = self._data(node)
        for name in input_fields(node):
            item = getattr(node.xnode_union, name)
            if item in read and item in self.grids:
                setattr(node.xnode_union, name, self._as_floats(item))
        self.nodes.append(node)

    def _as_floats(self, item: int) -> int:
        if item not in self.floats:
            self.floats[item] = self._new(tensor(self.values[item]).dims, None)
            self._convert(item, self.floats[item])
        return self.floats[item]

    def _convert(self, source: int, target: int) -> None:
        self._add("XNNConvert", "_XNNNode1x1", input_id=source, output_id=target, flags=0)

    def _add(self, kind: str, table: str, **fields: object) -> None:
        union = Record(table=table, **fields)
        self.nodes.append(
            Record(table="XNode", xnode_union=union, xnode_union_type=kind, debug_handle=NO_HANDLE, output_min_max=None)
        )

    def _new(self, dims: list[int], grid: Grid | None) -> int:
        """Add a value; its id."""
        identity = 1 + max(self.values)
        inner = Record(table="XNNTensorValue", datatype=FP32, num_dims=len(dims), dims=list(dims),
                       constant_buffer_idx=0, external_id=NONE, flags=0, id_out=identity)  # fmt: skip
        value = Record(table="XValue", xvalue_union=inner, xvalue_union_type="XNNTensorValue")
        self.graph.xvalues.append(value)
        self.values[identity] = value
        if grid is not None:
            self._put_on(identity, grid)
        return identity

    def _put_on(self, item: int, grid: Grid) -> None:
        step = Record(table="PerTensorQuant", scale=grid.scale, zero_point=grid.zero_point)
        self._on_steps(item, QINT8, "PerTensorQuant", step)

    def _on_steps(self, item: int, datatype: int, kind: str, steps: Record) -> None:
        value = self.values[item]
        inner = tensor(value)
        inner.datatype = datatype
        value.xvalue_union = Record(
            table="XNNQuantizedTensorValue", tensor_value=inner, quant_params=steps, quant_params_type=kind
        )
        value.xvalue_union_type = "XNNQuantizedTensorValue"

    def _floats_of(self, item: int) -> NDArray[np.float32]:
        inner = tensor(self.values[item])
        data = self.file.data(self.graph, inner.constant_buffer_idx)
        return np.frombuffer(data, np.float32).reshape(inner.dims)

    def _constant(self, item: int) -> int:
        """The id of a constant that is added or multiplied, in integers; the floats stay for whoever reads those."""
        values = self._floats_of(item)
        grid = grid_of(Range(float(values.min()), float(values.max())))
        identity = self._new(tensor(self.values[item]).dims, grid)
        self._store(identity, grid.integers(values))
        return identity

    def _store(self, item: int, values: NDArray[np.int8] | NDArray[np.int32]) -> None:
        tensor(self.values[item]).constant_buffer_idx = self._data_index("", values.tobytes())

    def _data_index(self, prefix: str, data: bytes) -> int:
        key = prefix + hashlib.sha256(data).hexdigest()
        return self.file.add_data(self.graph, key, data)

    def _weights(self, node: Record, grid: Grid) -> None:
        """Give a layer int8 weights by the channel, and a bias in steps of (input's step) * (weight's step)."""
        layer, axis = node.xnode_union, WEIGHTED[node.xnode_union_type]
        kernel = self._floats_of(layer.filter_id).astype(np.float64)
        others = tuple(other for other in range(kernel.ndim) if other != axis)
        steps = np.abs(kernel).max(axis=others) / EIGHT_BITS
        bias = None if layer.bias_id == NONE else self._floats_of(layer.bias_id).astype(np.float64)
        if bias is not None:  # of a channel whose weights have vanished a bias must fit into 32 bits
            steps = np.maximum(steps, np.abs(bias) / (2.0**30 * grid.scale))
        steps = np.where(steps > 0, steps, 1.0).astype(np.float32)
        along = [-1 if other == axis else 1 for other in range(kernel.ndim)]
        integers = np.clip(np.round(kernel / steps.astype(np.float64).reshape(along)), -EIGHT_BITS, EIGHT_BITS)
        layer.filter_id = self._by_channel(layer.filter_id, integers.astype(np.int8), steps, axis, QCINT8)
        if bias is not None:
            units = (steps.astype(np.float64) * grid.scale).astype(np.float32)
            rounded = np.round(bias / units.astype(np.float64)).astype(np.int32)
            layer.bias_id = self._by_channel(layer.bias_id, rounded, units, 0, QCINT32)

    def _by_channel(
        self,
        item: int,
        integers: NDArray[np.int8] | NDArray[np.int32],
        steps: NDArray[np.float32],
        axis: int,
        kind: int,
    ) -> int:
        identity = self._new(tensor(self.values[item]).dims, None)
        self._store(identity, integers)
        index = self._data_index("scale_", steps.tobytes())
        grid = Record(
            table="PerChannelQuant", scale=[], channel_dim=axis, scale_buffer_idx=index, num_scales=steps.size
        )
        self._on_steps(identity, kind, "PerChannelQuant", grid)
        return identity

    def _as_means(self, node: Record) -> tuple[list[int], list[int]] | None:
        """How a pool is a mean over the second and third axis of a reshaped map; None where it is none.

        XNNPACK averages windows of floats alone, and takes means of integers over these two axes.

        Returns:
            The shape of the map, and that of the means.
        """
        pool = node.xnode_union
        batch, height, width, channels = tensor(self.values[pool.input_id]).dims
        window = (pool.pooling_height, pool.pooling_width)
        if pool.padding_top or pool.padding_left or pool.padding_bottom or pool.padding_right:
            return None
        if window == (height, width):
            return [batch, height, width, channels], [batch, 1, 1, channels]
        if window == (1, width):
            return [batch * height, width, 1, channels], [batch * height, 1, 1, channels]
        if window == (height, 1):
            return [batch, height, 1, width * channels], [batch, 1, 1, width * channels]
        return None

    def _write_means(self, node: Record, result: int, grid: Grid) -> None:
        found = self._as_means(node)
        assert found is not None  # noqa: S101 - else it is computed in float
        whole, means = found
        source, own = node.xnode_union.input_id, list(tensor(self.values[node.xnode_union.input_id]).dims)
        last = list(tensor(self.values[result]).dims)
        if whole != own:
            step = self.values[source].xvalue_union.quant_params
            source = self._reshaped(source, self._new(whole, Grid(step.scale, step.zero_point)), whole)
        target = result if means == last else self._new(means, grid)
        self._add("XNNGlobalAvgPooling2d", "_XNNNode1x1", input_id=source, output_id=target, flags=KEEP_DIMS)
        if target != result:
            self._reshaped(target, result, last)

    def _reshaped(self, source: int, target: int, shape: list[int]) -> int:
        self._add("XNNStaticReshape", "XNNStaticReshape", num_dims=len(shape), new_shape=list(shape), input_id=source,
                  output_id=target, flags=0)  # fmt: skip
        return target
