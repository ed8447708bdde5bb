"""Read FlatBuffers, a tree of tables, without any package. Nothing is believed: what lies outside the file is refused.

A table begins with the distance back to its vtable, which lists for each field (by number) where it lies in the table,
0 if it is left out. Strings, vectors and tables are reached by the distance from the place that refers to them. All
numbers are little endian.
"""

import struct
from dataclasses import dataclass
from typing import Final

IDENTIFIER: Final = b"TFL3"

# TFLite's numbers of the fields that are read here; they have not moved since the format has metadata.
MODEL_CODES, MODEL_SUBGRAPHS, MODEL_BUFFERS, MODEL_METADATA, MODEL_SIGNATURES = 1, 2, 4, 6, 7
METADATA_NAME, METADATA_BUFFER = 0, 1
BUFFER_DATA, BUFFER_OFFSET, BUFFER_SIZE = 0, 1, 2
CODE_SMALL, CODE_BUILTIN = 0, 3
GRAPH_TENSORS, GRAPH_INPUTS, GRAPH_OUTPUTS, GRAPH_OPERATORS = 0, 1, 2, 3
TENSOR_SHAPE, TENSOR_TYPE, TENSOR_BUFFER, TENSOR_NAME, TENSOR_GRID, TENSOR_VARIABLE, TENSOR_SPARSITY = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
)
GRID_SCALE, GRID_ZERO_POINT, GRID_AXIS = 2, 3, 6
OPERATOR_CODE, OPERATOR_INPUTS, OPERATOR_OUTPUTS = 0, 1, 2
SIGNATURE_INPUTS, SIGNATURE_OUTPUTS, SIGNATURE_GRAPH = 0, 1, 4
MAP_TENSOR = 1


class FlatBufferError(ValueError):
    """What is wrong with the bytes."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table in a FlatBuffer.

    Attributes:
        content: The whole file.
        position: Where the table begins.
    """

    content: bytes
    position: int

    def number(self, field: int, form: str = "i", default: int = 0) -> int:
        """Return an integer; *default* if it is left out.

        Args:
            field: Its number.
            form: As ``struct`` has it: ``b``, ``i``, ``I``, ``Q``.
            default: As the schema has it.

        Raises:
            FlatBufferError: It does not lie in the file, as for all that follow.
        """
        where = self._where(field)
        return default if where is None else _number(self.content, where, form)

    def data(self, field: int) -> bytes:
        """Return a string or a vector of bytes; empty if it is left out."""
        start, count = self._vector(field, 1)
        return self.content[start : start + count]

    def length(self, field: int) -> int:
        """Return the length of a vector of any kind, of bytes at least; 0 if it is left out."""
        return self._vector(field, 1)[1]

    def numbers(self, field: int, form: str = "i") -> tuple[int, ...]:
        """Return a vector of integers; empty if it is left out."""
        size = struct.calcsize(f"<{form}")
        start, count = self._vector(field, size)
        return struct.unpack_from(f"<{count}{form}", self.content, start)

    def tables(self, field: int) -> tuple["Table", ...]:
        """Return a vector of tables; empty if it is left out."""
        start, count = self._vector(field, 4)
        return tuple(
            Table(self.content, _indirect(self.content, place)) for place in range(start, start + 4 * count, 4)
        )

    def table(self, field: int) -> "Table | None":
        """Return a table; None if it is left out."""
        where = self._where(field)
        return None if where is None else Table(self.content, _indirect(self.content, where))

    def _where(self, field: int) -> int | None:
        vtable = self.position - _number(self.content, self.position, "i")
        slot = 4 + 2 * field
        if slot + 2 > _number(self.content, vtable, "H"):
            return None
        offset = _number(self.content, vtable + slot, "H")
        return self.position + offset if offset else None

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        """Where a vector's elements of *size* bytes begin, and how many there are."""
        where = self._where(field)
        if where is None:
            return 0, 0
        start = _indirect(self.content, where)
        count = _number(self.content, start, "I")
        if start + 4 + size * count > len(self.content):
            raise FlatBufferError(f"a vector of {count} elements does not fit into {len(self.content)} bytes")
        return start + 4, count


def root(content: bytes) -> Table:
    """Return the model of a TFLite file.

    Raises:
        FlatBufferError: It has no mark of the format.
    """
    if content[4:8] != IDENTIFIER:
        raise FlatBufferError(f"it has no {IDENTIFIER.decode()} mark")
    return Table(content, _indirect(content, 0))


def _number(content: bytes, position: int, form: str) -> int:
    try:
        if position < 0:
            raise struct.error  # which would count from the end
        (value,) = struct.unpack_from(f"<{form}", content, position)
    except struct.error:
        raise FlatBufferError(f"it refers to byte {position} of {len(content)}") from None
    return int(value)


def _indirect(content: bytes, position: int) -> int:
    return position + _number(content, position, "I")
