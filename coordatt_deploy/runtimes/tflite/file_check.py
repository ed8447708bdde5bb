"""Check what LiteRT trusts in a TFLite file, before it sees the file.

LiteRT verifies that the FlatBuffer's tables lie in the file, and then believes its numbers: an index beyond the
tensors, an input left out that a kernel reads, a value that nothing computes, and its kernels read memory that is not
theirs.
Shapes that only a kernel can judge are left to ``runtimes.first_run``.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from coordatt_deploy.errors import BundleError
from coordatt_deploy.runtimes.tflite import flatbuffer
from coordatt_deploy.runtimes.tflite.flatbuffer import FlatBufferError, Table

LEFT_OUT: Final = -1  # an index that stands for no tensor
# TFLite's numbers of its types, with the bits of a value; strings and sparse tensors have sizes of their own.
BITS: Final = {
    0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 8: 64, 9: 8, 10: 64, 11: 128, 12: 64, 15: 32, 16: 16, 17: 4, 18: 16,
    19: 2, 20: 4, 21: 8, 22: 8,
}  # fmt: skip
LARGEST_TENSOR: Final = 1 << 31  # bytes: LiteRT's kernels count in 32 bits
CODES_OF_ONE_BYTE: Final = 127  # from here on the code stands in a second field
# Operators of which inputs may be left out, and which; None for any (recurrent ones, and those of other makers).
MAY_LACK: Final[dict[int, frozenset[int] | None]] = {
    3: frozenset({2}), 4: frozenset({2}), 9: frozenset({2}), 67: frozenset({3}), 132: frozenset({2}),
    141: frozenset({3}), **dict.fromkeys((16, 24, 27, 32, 35, 44, 46, 52)),
}  # fmt: skip


class _DamageError(ValueError):
    """What is wrong, and where."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor as far as it is checked; ``given`` where no operator has to compute it."""

    shape: tuple[int, ...]
    given: bool


def check_file(content: bytes, name: str) -> None:
    """Refuse a file that LiteRT would read beyond.

    Args:
        content: Of the file.
        name: Of the file, for the error.

    Raises:
        BundleError: The text says what is wrong and where.
    """
    try:
        model = flatbuffer.root(content)
        codes = [_code(code) for code in model.tables(flatbuffer.MODEL_CODES)]
        buffers = [_size(buffer, len(content)) for buffer in model.tables(flatbuffer.MODEL_BUFFERS)]
        graphs = model.tables(flatbuffer.MODEL_SUBGRAPHS)
        if not graphs:
            raise _DamageError("it has no subgraph")
        counts = [_check_graph(graph, codes, buffers) for graph in graphs]
        for signature in model.tables(flatbuffer.MODEL_SIGNATURES):
            at = signature.number(flatbuffer.SIGNATURE_GRAPH, "I")
            _check_index(at, len(graphs), "a signature", "subgraph")
            for field in (flatbuffer.SIGNATURE_INPUTS, flatbuffer.SIGNATURE_OUTPUTS):
                for entry in signature.tables(field):
                    _check_index(entry.number(flatbuffer.MAP_TENSOR, "I"), counts[at], "a signature", "tensor")
    except (FlatBufferError, _DamageError) as error:
        raise BundleError(f"LiteRT cannot open {name}: {error}; build the bundle again") from None


def _code(code: Table) -> int:
    return max(code.number(flatbuffer.CODE_SMALL, "b"), code.number(flatbuffer.CODE_BUILTIN))


def _size(buffer: Table, file_bytes: int) -> int:
    """Bytes of a buffer, which lies in the table or, in large files, behind it."""
    start, size = buffer.number(flatbuffer.BUFFER_OFFSET, "Q"), buffer.number(flatbuffer.BUFFER_SIZE, "Q")
    if start > 1:  # 0 and 1 say that there is none
        if start + size > file_bytes:
            raise _DamageError(f"a buffer of {size} bytes at byte {start} lies outside its {file_bytes} bytes")
        return size
    return buffer.length(flatbuffer.BUFFER_DATA)


def _check_graph(graph: Table, codes: Sequence[int], buffers: Sequence[int]) -> int:
    """Check one subgraph and return how many tensors it has."""
    tensors = [_tensor(at, table, buffers) for at, table in enumerate(graph.tables(flatbuffer.GRAPH_TENSORS))]
    inputs, outputs = graph.numbers(flatbuffer.GRAPH_INPUTS), graph.numbers(flatbuffer.GRAPH_OUTPUTS)
    _check_indices(inputs, tensors, "the graph takes")
    _check_indices(outputs, tensors, "the graph gives")
    known = {*inputs, *(at for at, tensor in enumerate(tensors) if tensor.given)}
    for at, operator in enumerate(graph.tables(flatbuffer.GRAPH_OPERATORS)):
        index = operator.number(flatbuffer.OPERATOR_CODE, "I")
        _check_index(index, len(codes), f"operator {at}", "operator code")
        where = f"operator {at} (code {codes[index]})"
        read = operator.numbers(flatbuffer.OPERATOR_INPUTS)
        optional = MAY_LACK.get(codes[index], frozenset())
        for position, tensor in enumerate(read):
            if tensor == LEFT_OUT and (optional is None or position in optional):
                continue
            if tensor == LEFT_OUT:
                raise _DamageError(f"{where} lacks input {position}, which it needs")
            _check_index(tensor, len(tensors), where, "tensor")
            if tensor not in known:
                raise _DamageError(f"{where} reads tensor {tensor}, which nothing before it computes")
        made = operator.numbers(flatbuffer.OPERATOR_OUTPUTS)
        _check_indices(made, tensors, f"{where} gives")
        known.update(made)
    missing = [tensor for tensor in outputs if tensor not in known]
    if missing:
        raise _DamageError(f"its output, tensor {missing[0]}, is computed by nothing")
    return len(tensors)


def _tensor(at: int, table: Table, buffers: Sequence[int]) -> _Tensor:
    where = f"tensor {at}"
    buffer = table.number(flatbuffer.TENSOR_BUFFER, "I")
    _check_index(buffer, len(buffers), where, "buffer")
    shape = table.numbers(flatbuffer.TENSOR_SHAPE)
    bits = BITS.get(table.number(flatbuffer.TENSOR_TYPE, "b"))
    sparse = table.table(flatbuffer.TENSOR_SPARSITY) is not None
    if any(size < 0 for size in shape):
        raise _DamageError(f"{where} has the shape {_written(shape)}")
    needed = 0 if bits is None else -(-math.prod(shape) * bits // 8)
    if needed >= LARGEST_TENSOR:
        raise _DamageError(f"{where} of shape {_written(shape)} has {needed:,} bytes, beyond what a tensor can have")
    held = buffers[buffer]
    if held and bits is not None and not sparse and held != needed:
        raise _DamageError(f"{where} of shape {_written(shape)} has {needed:,} bytes, its buffer {held:,}")
    _check_grid(table.table(flatbuffer.TENSOR_GRID), shape, where)
    empty = bits is not None and not needed  # nothing is read of it
    return _Tensor(shape, bool(held) or empty or bool(table.number(flatbuffer.TENSOR_VARIABLE, "b")))


def _check_grid(grid: Table | None, shape: Sequence[int], where: str) -> None:
    """Hold the lengths of scales and zero points to one another and to the tensor's axis."""
    if grid is None:
        return
    scales = grid.numbers(flatbuffer.GRID_SCALE)  # floats of 32 bits, of which only the number matters
    zeros = grid.numbers(flatbuffer.GRID_ZERO_POINT, "q")
    axis = grid.number(flatbuffer.GRID_AXIS)
    if len(zeros) not in (len(scales), 0, 1) or (zeros and not scales):
        raise _DamageError(f"{where} has {len(scales)} scales and {len(zeros)} zero points")
    if len(scales) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scales)):
        raise _DamageError(f"{where} of shape {_written(shape)} has {len(scales)} scales along axis {axis}")


def _check_indices(indices: Iterable[int], tensors: Sequence[_Tensor], where: str) -> None:
    for index in indices:
        _check_index(index, len(tensors), where, "tensor")


def _check_index(index: int, count: int, where: str, what: str) -> None:
    if not 0 <= index < count:
        raise _DamageError(f"{where} names {what} {index}, of {count}")


def _written(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"
