"""Read and write FlatBuffers by their schema, in the language that executorch ships its schemas in.

executorch itself goes through JSON and a compiler for it, which prints six places of a float behind the point, and
loads torch and all its exporters for that. Tables become records here, with an attribute for each field of the schema.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import flatbuffers
from flatbuffers import number_types
from flatbuffers.table import Table

_NUMBERS: Final[Mapping[str, tuple[str, str]]] = {  # struct's letter, and what a builder calls it
    "bool": ("?", "Bool"), "byte": ("b", "Int8"), "ubyte": ("B", "Uint8"), "short": ("h", "Int16"),
    "ushort": ("H", "Uint16"), "int": ("i", "Int32"), "uint": ("I", "Uint32"), "uint32": ("I", "Uint32"),
    "long": ("q", "Int64"), "int64": ("q", "Int64"), "uint64": ("Q", "Uint64"), "float": ("f", "Float32"),
    "double": ("d", "Float64"),
}  # fmt: skip
_DECLARATION: Final = re.compile(r"\b(table|union|enum)\s+(\w+)\s*(?::\s*(\w+)\s*)?\{(.*?)\}", re.DOTALL)
_FIELD: Final = re.compile(r"(\w+)\s*:\s*(\[?)\s*(\w+)\s*\]?\s*(?:=\s*\w+\s*)?(\(.*?\))?\s*;")
_MEMBER: Final = re.compile(r"(\w+)\s*(?::\s*(\w+))?\s*,?")
_ROOT: Final = re.compile(r"root_type\s+(\w+)")
_IDENTIFIER: Final = re.compile(r'file_identifier\s+"(\w{4})"')
_COMMENT: Final = re.compile(r"//[^\n]*")
ALIGNED: Final = re.compile(r"force_align:\s*(\d+)")
DEPTH: Final = 16  # tables inside tables; the schemas have seven


class SchemaError(ValueError):
    """What is wrong with the bytes."""


class Record(SimpleNamespace):
    """A table, with an attribute for each field that the schema has; ``table`` is its name.

    A vector that is left out is the empty tuple, what else is left out is None, and a number 0.
    """


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a table: its place in the vtable, its type, and whether there are many of it."""

    name: str
    slot: int
    kind: str
    many: bool
    align: int
    deprecated: bool


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of a schema.

    Attributes:
        root: Name of the outermost table.
        identifier: The mark of such files.
        tables: Fields by the name of the table.
        unions: By the name of the union, its members: the name of each and of its table.
        enums: By the name of the enumeration, the type of its numbers.
    """

    root: str
    identifier: bytes
    tables: dict[str, list[_Field]] = field(default_factory=dict)
    unions: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    enums: dict[str, str] = field(default_factory=dict)

    def number(self, kind: str) -> tuple[str, str] | None:
        """Return how numbers of a type are written; None for strings, tables and unions."""
        return _NUMBERS.get(self.enums.get(kind, kind))


@cache
def schema(path: Path) -> Schema:
    """Return the schema in the file at *path*, with the files beside it that it includes."""
    text = _COMMENT.sub("", path.read_text(encoding="utf-8"))
    for name in re.findall(r'include\s+"([\w.]+)"', text):
        text += _COMMENT.sub("", path.with_name(name).read_text(encoding="utf-8"))
    root, identifier = _ROOT.search(text), _IDENTIFIER.search(text)
    assert root is not None  # noqa: S101 - a schema has one
    assert identifier is not None  # noqa: S101
    found = Schema(root[1], identifier[1].encode())
    bodies = _DECLARATION.findall(text)
    for what, name, base, body in bodies:
        if what == "enum":
            found.enums[name] = base
        elif what == "union":
            found.unions[name] = [(member, table or member) for member, table in _MEMBER.findall(body)]
    for what, name, _, body in bodies:
        if what == "table":
            found.tables[name] = _fields(body, found)
    return found


def _fields(body: str, found: Schema) -> list[_Field]:
    fields, slot = list[_Field](), 0
    for name, many, kind, attributes in _FIELD.findall(body):
        slot += kind in found.unions  # the member's number comes first
        align = ALIGNED.search(attributes)
        fields.append(_Field(name, slot, kind, bool(many), int(align[1]) if align else 1, "deprecated" in attributes))
        slot += 1
    return fields


def read(content: bytes, by: Schema) -> Record:
    """Return what is in a FlatBuffer.

    Raises:
        SchemaError: It has not the mark of the schema, or refers to bytes that it does not have.
    """
    if content[4:8] != by.identifier:
        raise SchemaError(f"it has no {by.identifier.decode()} mark")
    try:
        (start,) = struct.unpack_from("<I", content)
        return _Reader(content, by).table(by.root, start)
    except (struct.error, IndexError, ValueError, TypeError, OverflowError) as error:
        raise SchemaError(f"it is damaged: {error}") from None


class _Reader:
    """Reads one buffer; no more tables than there can be in it."""

    def __init__(self, content: bytes, by: Schema) -> None:
        self.content, self.by, self.left = content, by, len(content)

    def table(self, name: str, start: int, depth: int = 0) -> Record:
        self.left -= 4  # bytes that a table has at least
        if depth > DEPTH or self.left < 0:
            raise SchemaError("its tables lead into one another")
        _check(start, self.content)
        found = Table(self.content, start)
        record = Record(table=name)
        for item in self.by.tables[name]:
            if not item.deprecated:
                offset = found.Offset(4 + 2 * item.slot)
                setattr(record, item.name, self._value(found, item, offset, depth))
                if item.kind in self.by.unions:
                    setattr(record, f"{item.name}_type", self._member(found, item))
        return record

    def _member(self, found: Table, item: _Field) -> str | None:
        offset = found.Offset(2 + 2 * item.slot)
        number = self.content[offset + found.Pos] if offset else 0
        return self.by.unions[item.kind][number - 1][0] if number else None

    def _value(self, found: Table, item: _Field, offset: int, depth: int) -> object:
        number = self.by.number(item.kind)
        if not offset:
            if item.many:
                return ()
            return struct.unpack(f"<{number[0]}", bytes(struct.calcsize(f"<{number[0]}")))[0] if number else None
        place = found.Pos + offset
        if not item.many:
            if number:
                return struct.unpack_from(f"<{number[0]}", self.content, place)[0]
            target = place + struct.unpack_from("<I", self.content, place)[0]
            return self._one(item.kind, target, found, item, depth)
        start = place + struct.unpack_from("<I", self.content, place)[0]
        (count,) = struct.unpack_from("<I", self.content, start)
        size = struct.calcsize(f"<{number[0]}") if number else 4
        _check(start + 4 + count * size, self.content)
        if item.kind == "ubyte":
            return self.content[start + 4 : start + 4 + count]
        if number:
            return list(struct.unpack_from(f"<{count}{number[0]}", self.content, start + 4))
        places = range(start + 4, start + 4 + 4 * count, 4)
        return [
            self._one(item.kind, at + struct.unpack_from("<I", self.content, at)[0], found, item, depth)
            for at in places
        ]

    def _one(self, kind: str, target: int, found: Table, item: _Field, depth: int) -> object:
        if kind == "string":
            (count,) = struct.unpack_from("<I", self.content, target)
            _check(target + 4 + count, self.content)
            return self.content[target + 4 : target + 4 + count].decode()
        if kind in self.by.unions:
            number = self._member(found, item)
            return None if number is None else self.table(dict(self.by.unions[kind])[number], target, depth + 1)
        return self.table(kind, target, depth + 1)


def _check(end: int, content: bytes) -> None:
    if not 0 <= end <= len(content):
        raise SchemaError(f"it refers to byte {end} of {len(content)}")


def write(record: Record, by: Schema) -> bytes:
    """Return the FlatBuffer of a record; the same record gives the same bytes."""
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(_packed(builder, record, by), file_identifier=by.identifier)
    return bytes(builder.Output())


def _packed(builder: flatbuffers.Builder, record: Record, by: Schema) -> int:
    fields = [item for item in by.tables[record.table] if not item.deprecated]
    inner: dict[str, int] = {}
    for item in fields:
        value = getattr(record, item.name)
        if value is None or value == ():
            continue
        if item.many:
            inner[item.name] = _vector(builder, value, item, by)
        elif item.kind == "string":
            inner[item.name] = builder.CreateString(value)
        elif by.number(item.kind) is None:
            inner[item.name] = _packed(builder, value, by)
    builder.StartObject(1 + max((item.slot for item in by.tables[record.table]), default=-1))
    for item in fields:
        if item.name in inner:
            if item.kind in by.unions:
                names = [member for member, _ in by.unions[item.kind]]
                builder.PrependUint8Slot(item.slot - 1, 1 + names.index(getattr(record, f"{item.name}_type")), 0)
            builder.PrependUOffsetTRelativeSlot(item.slot, inner[item.name], 0)
        elif not item.many and (number := by.number(item.kind)) is not None:
            getattr(builder, f"Prepend{number[1]}Slot")(item.slot, getattr(record, item.name), 0)
    return int(builder.EndObject())


def _vector(builder: flatbuffers.Builder, values: Sequence[Record] | bytes, item: _Field, by: Schema) -> int:
    if isinstance(values, bytes):
        builder.StartVector(1, len(values), item.align)
        builder.head -= len(values)
        builder.Bytes[builder.head : builder.head + len(values)] = values
        return int(builder.EndVector())
    number = by.number(item.kind)
    if number is None:
        made = [builder.CreateString(value) if item.kind == "string" else _packed(builder, value, by)
                for value in values]  # fmt: skip
        builder.StartVector(4, len(made), 4)
        for offset in reversed(made):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())
    size = struct.calcsize(f"<{number[0]}")
    builder.StartVector(size, len(values), size)
    flags = getattr(number_types, f"{number[1]}Flags")
    for value in reversed(values):
        builder.Prepend(flags, value)
    return int(builder.EndVector())
