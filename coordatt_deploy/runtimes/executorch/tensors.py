"""The tensors of an ExecuTorch file by name, made outputs of it, and taken over by inputs.

A value of the program is called ``value_3``, one of XNNPACK's in delegate 0 ``xnnpack_0/17``. What both know is called
as the program does.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.errors import BundleError
from coordatt_deploy.runtimes.executorch.flatbuffer_schema import Record
from coordatt_deploy.runtimes.executorch.program_file import (
    EXTERNAL_INPUT,
    EXTERNAL_OUTPUT,
    ProgramFile,
    calls,
    input_fields,
    inputs,
    is_on_grid,
    outputs,
    tensor,
)

# ExecuTorch's numbers of its types, and XNNPACK's.
DTYPES: Final = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64",
                 11: "bool"}  # fmt: skip
XNNPACK_DTYPES: Final = {1: "float32", 2: "float16", 3: "int8", 4: "uint8", 5: "int32", 6: "int8", 7: "int32",
                         12: "int32"}  # fmt: skip
NUMBERS: Final = {name: number for number, name in DTYPES.items()}
VIEW: Final = "executorch_prim::et_view.default"
_ARENA: Final = 1  # the one memory that is planned for the CPU
_ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class Grid:
    """value = scale * (integer - zero_point)."""

    scale: float
    zero_point: int

    def floats(self, integers: NumberArray) -> NDArray[np.float32]:
        """Return what integers stand for."""
        return ((integers.astype(np.float64) - self.zero_point) * self.scale).astype(np.float32)

    def integers(self, floats: NumberArray) -> NDArray[np.int8]:
        """Return the nearest integers."""
        steps = np.round(np.asarray(floats, np.float64) / self.scale) + self.zero_point
        return np.clip(steps, -128, 127).astype(np.int8)


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of a file, a kernel's or one inside a delegate.

    Attributes:
        name: ``aten::mean.out``, or XNNPACK's ``XNNConv2d``.
        inputs: Names of what it reads; first what it works on.
        outputs: Names of what it makes.
        delegate: The number of the delegate that it is inside of; None for a kernel.
        record: The table in the file.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    delegate: int | None
    record: Record


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where a tensor is: in the program, or inside of a delegate.

    Attributes:
        shape: Of the tensor.
        dtype: NumPy's name.
        delegate: The number of the delegate that it is inside of; None for one of the program.
        index: Of the value, or its id inside of the delegate.
        grid: Of integers that stand for floats.
    """

    shape: tuple[int, ...]
    dtype: str
    delegate: int | None
    index: int
    grid: Grid | None = None


def value_name(index: int) -> str:
    """Return what a value of the program is called."""
    return f"value_{index}"


def inner_name(delegate: int, identity: int) -> str:
    """Return what a value inside of a delegate is called."""
    return f"xnnpack_{delegate}/{identity}"


def is_tensor(value: Record) -> bool:
    """Whether a value of the program is a tensor."""
    return str(value.val_type) == "Tensor"


def operators(file: ProgramFile) -> Iterator[Operator]:
    """Yield the operators in execution order."""
    method = file.method
    for call, kind in calls(method):
        graph = file.graphs.get(call.delegate_index) if kind == "DelegateCall" else None
        if graph is not None:
            names = names_inside(file, call)
            for node in graph.xnodes:
                read = tuple(names[item] for item in inputs(node))
                yield Operator(node.xnode_union_type, read, tuple(names[item] for item in outputs(node)),
                               call.delegate_index, node)  # fmt: skip
        elif kind == "DelegateCall":
            tensors = [index for index in call.args if is_tensor(method.values[index])]
            yield Operator(method.delegates[call.delegate_index].id, tuple(map(value_name, tensors)), (), None, call)
        else:
            name = method.operators[call.op_index]
            read, made = _kernel_tensors(method, call)
            yield Operator(f"{name.name}.{name.overload or 'default'}", read, made, None, call)


def _kernel_tensors(method: Record, call: Record) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of what a kernel reads and makes; what it makes stands at the end of its arguments."""
    made = listed(method, call.args[-1]) if call.args else []
    read = [index for argument in call.args for index in listed(method, argument)]
    return tuple(value_name(index) for index in read if index not in made), tuple(map(value_name, made))


def listed(method: Record, index: int) -> list[int]:
    """Return the tensors that a value of the program is, or that a list of tensors holds."""
    value = method.values[index]
    if value.val_type in ("TensorList", "OptionalTensorList"):
        return [item for item in value.val.items if item >= 0]
    return [index] if is_tensor(value) else []


def names_inside(file: ProgramFile, call: Record) -> dict[int, str]:
    """Return what the values of a delegate are called, by id."""
    found = {}
    for value in file.graphs[call.delegate_index].xvalues:
        inner = tensor(value)
        outside = inner.flags & (EXTERNAL_INPUT | EXTERNAL_OUTPUT)
        found[inner.id_out] = (
            value_name(call.args[inner.external_id]) if outside else inner_name(call.delegate_index, inner.id_out)
        )
    return found


def sources(file: ProgramFile) -> dict[str, TensorSource]:
    """Return every tensor of a file by its name; constants are not among them."""
    method = file.method
    found = {
        value_name(index): TensorSource(
            tuple(value.val.sizes), DTYPES.get(value.val.scalar_type, "float32"), None, index
        )
        for index, value in enumerate(method.values)
        if is_tensor(value)
    }
    for call, kind in calls(method):
        graph = file.graphs.get(call.delegate_index) if kind == "DelegateCall" else None
        for value in () if graph is None else graph.xvalues:
            inner = tensor(value)
            if inner.constant_buffer_idx:
                continue
            name, grid = names_inside(file, call)[inner.id_out], grid_of(value)
            dtype = XNNPACK_DTYPES.get(inner.datatype, "float32")
            if name in found:
                outer = found[name]
                found[name] = TensorSource(outer.shape, outer.dtype, None, outer.index, outer.grid or grid)
            else:
                found[name] = TensorSource(tuple(inner.dims), dtype, call.delegate_index, inner.id_out, grid)
    return found


def grid_of(value: Record) -> Grid | None:
    """Return the grid of one of XNNPACK's values that has one for the whole tensor."""
    if not is_on_grid(value) or value.xvalue_union.quant_params_type != "PerTensorQuant":
        return None
    step = value.xvalue_union.quant_params
    return Grid(step.scale, step.zero_point)


def tap(file: ProgramFile, names: Iterable[str]) -> dict[str, int]:
    """Make tensors outputs of the file, in place.

    Returns:
        For each the number of the output.

    Raises:
        BundleError: The file has no such tensor.
    """
    method, known = file.method, sources(file)
    wanted = list(dict.fromkeys(names))
    lost = [name for name in wanted if name not in known]
    if lost:
        raise BundleError(f"{file.name} has no tensor {', '.join(lost[:3])}; the layer map belongs to another file")
    for name in wanted:
        source = known[name]
        index = source.index if source.delegate is None else _let_out(file, source)
        if index not in method.outputs:
            method.outputs.append(index)
        known[name] = TensorSource(source.shape, source.dtype, None, index, source.grid)
    plan_apart(method)
    return {name: method.outputs.index(known[name].index) for name in wanted}


def cut(file: ProgramFile, names: Iterable[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Make tensors outputs, and let whatever reads them read a new input, in place.

    Returns:
        For each that something reads the number of its input, and for each the number of its output.

    Raises:
        BundleError: The file has no such tensor.
    """
    method, known = file.method, sources(file)
    wanted = list(dict.fromkeys(names))
    read = {name for operator in operators(file) for name in operator.inputs}
    given: dict[str, int] = {}
    for name in wanted:
        source = known.get(name)
        if source is None or name not in read:
            continue
        index = _new_value(method, source)
        method.inputs.append(index)
        given[name] = len(method.inputs) - 1
        if source.delegate is None:
            _let_program_read(file, source.index, index)
        else:
            _let_delegate_read(file, source, index)
    return given, tap(file, wanted)


def _let_out(file: ProgramFile, source: TensorSource) -> int:
    """Make a value inside of a delegate an output of it; the number of the program's new value."""
    assert source.delegate is not None  # noqa: S101 - the caller asks for those inside alone
    graph, call = file.graphs[source.delegate], _call(file.method, source.delegate)
    value = tensor(next(item for item in graph.xvalues if tensor(item).id_out == source.index))
    value.flags |= EXTERNAL_OUTPUT
    value.external_id = graph.num_externs
    graph.num_externs += 1
    graph.output_ids.append(source.index)
    call.args.append(_new_value(file.method, source))
    return int(call.args[-1])


def _let_delegate_read(file: ProgramFile, source: TensorSource, index: int) -> None:
    assert source.delegate is not None  # noqa: S101 - the caller asks for those inside alone
    graph, call = file.graphs[source.delegate], _call(file.method, source.delegate)
    old = next(item for item in graph.xvalues if tensor(item).id_out == source.index)
    _stand_in(graph, call, old, index)


def _stand_in(graph: Record, call: Record, old: Record, index: int) -> None:
    """Give a delegate another input, which its operators read instead of one of its values."""
    new, inner = copy(old), copy(tensor(old))
    if is_on_grid(old):
        new.xvalue_union = copy(old.xvalue_union)
        new.xvalue_union.tensor_value = inner
    else:
        new.xvalue_union = inner
    inner.id_out = 1 + max(tensor(item).id_out for item in graph.xvalues)
    inner.flags, inner.external_id = EXTERNAL_INPUT, graph.num_externs
    graph.num_externs += 1
    graph.xvalues.append(new)
    graph.input_ids.append(inner.id_out)
    call.args.append(index)
    for node in graph.xnodes:
        for name in input_fields(node):
            if getattr(node.xnode_union, name) == tensor(old).id_out:
                setattr(node.xnode_union, name, inner.id_out)


def _let_program_read(file: ProgramFile, old: int, new: int) -> None:
    """Let kernels and delegates read another value of the program."""
    method = file.method
    for call, kind in calls(method):
        graph = file.graphs.get(call.delegate_index) if kind == "DelegateCall" else None
        if graph is not None:
            for value in list(graph.xvalues):
                inner = tensor(value)
                if inner.flags & EXTERNAL_INPUT and call.args[inner.external_id] == old:
                    call.args[inner.external_id] = new
                elif (
                    inner.flags & EXTERNAL_OUTPUT
                    and call.args[inner.external_id] == old
                    and any(inner.id_out in inputs(node) for node in graph.xnodes)  # it is read inside as well
                ):
                    _stand_in(graph, call, value, new)
        elif kind == "KernelCall":
            _, made = _kernel_tensors(method, call)
            kept = {int(name.rpartition("_")[2]) for name in made}
            if old in kept:
                continue
            call.args = [new if index == old else index for index in call.args]
            for index in call.args:
                if method.values[index].val_type in ("TensorList", "OptionalTensorList"):
                    items = method.values[index].val.items
                    method.values[index].val.items = [new if item == old else item for item in items]


def _call(method: Record, delegate: int) -> Record:
    return next(call for call, kind in calls(method) if kind == "DelegateCall" and call.delegate_index == delegate)


def _new_value(method: Record, source: TensorSource) -> int:
    value = Record(
        table="Tensor",
        scalar_type=NUMBERS[source.dtype],
        storage_offset=0,
        sizes=list(source.shape),
        dim_order=bytes(range(len(source.shape))),
        requires_grad=False,
        data_buffer_idx=0,
        allocation_info=Record(table="AllocationDetails", memory_id=_ARENA, memory_offset_low=0, memory_offset_high=0),
        layout=0,
        shape_dynamism=0,
        extra_tensor_info=None,
    )
    method.values.append(Record(table="EValue", val=value, val_type="Tensor"))
    return len(method.values) - 1


def plan_apart(method: Record) -> None:
    """Give every tensor memory of its own: those that are looked at would be overwritten by later ones."""
    shared = {
        call.args[-1]: call.args[0] for call, kind in calls(method) if kind == "KernelCall" and _is_view(method, call)
    }
    places: dict[int, int] = {}
    end = 0
    for index, value in enumerate(method.values):
        if is_tensor(value) and value.val.allocation_info is not None and index not in shared:
            places[index] = end
            size = math.prod(value.val.sizes) * np.dtype(DTYPES[value.val.scalar_type]).itemsize
            end += size + -size % _ALIGNMENT
    for index, base in shared.items():
        while base in shared:
            base = shared[base]
        if base in places:
            places[index] = places[base]
    for index, place in places.items():
        low, high = struct.unpack("<II", struct.pack("<Q", place))
        details = Record(table="AllocationDetails", memory_id=_ARENA, memory_offset_low=low, memory_offset_high=high)
        method.values[index].val.allocation_info = details
    sizes = method.non_const_buffer_sizes
    method.non_const_buffer_sizes = [*sizes[:_ARENA], max(end, _ALIGNMENT), *sizes[_ARENA + 1 :]]


def _is_view(method: Record, call: Record) -> bool:
    name = method.operators[call.op_index]
    return f"{name.name}.{name.overload}" == VIEW


def constants(file: ProgramFile) -> Mapping[str, tuple[tuple[int, ...], str, int]]:
    """Return shape, type and bytes of every constant by its name."""
    found: dict[str, tuple[tuple[int, ...], str, int]] = {}
    for delegate, graph in file.graphs.items():
        for value in graph.xvalues:
            inner = tensor(value)
            if inner.constant_buffer_idx:
                size = graph.constant_data[inner.constant_buffer_idx].size
                dtype = XNNPACK_DTYPES.get(inner.datatype, "float32")
                found[inner_name(delegate, inner.id_out)] = (tuple(inner.dims), dtype, size)
    for index, value in enumerate(file.method.values):
        if is_tensor(value) and value.val.data_buffer_idx and value.val.allocation_info is None:
            dtype = DTYPES.get(value.val.scalar_type, "float32")
            size = math.prod(value.val.sizes) * np.dtype(dtype).itemsize
            found[value_name(index)] = (tuple(value.val.sizes), dtype, size)
    return found
