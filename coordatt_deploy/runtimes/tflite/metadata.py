"""Read what a TFLite file says about itself, without any runtime or converter.

A TFLite file is a FlatBuffer, a tree of tables. A table begins with the distance back to its vtable, which lists for
each field (by number) where it lies in the table, 0 if it is left out. Strings, vectors and tables are reached by the
distance from the place that refers to them. All numbers are little endian. The few fields read here (numbers as in
TFLite's schema) have not moved since the format has metadata.
"""

import json
import struct
from pathlib import Path
from typing import Final

from coordatt_deploy.errors import BundleError

METADATA_NAME: Final = "coordatt_deploy"
IDENTIFIER: Final = b"TFL3"

MODEL_BUFFERS: Final = 4
MODEL_METADATA: Final = 6
METADATA_FIELD_NAME: Final = 0
METADATA_FIELD_BUFFER: Final = 1
BUFFER_DATA: Final = 0


def read_metadata(path: Path) -> dict[str, object]:
    """Return what the exporter wrote into the file: preprocessing, labels, provenance (``artifact_specs.metadata``).

    Raises:
        BundleError: The file is missing, no TFLite file, damaged, or not written by this project.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    if content[4:8] != IDENTIFIER:
        raise BundleError(f"{path.name} is no TFLite file: it has no {IDENTIFIER.decode()} mark")
    try:
        model = _indirect(content, 0)
        entries = _tables(content, model, MODEL_METADATA)
        names = [_vector(content, entry, METADATA_FIELD_NAME).decode() for entry in entries]
        if METADATA_NAME not in names:
            raise BundleError(f"{path.name} has no metadata of coordatt-deploy; it was written by another tool")
        entry = entries[names.index(METADATA_NAME)]
        where = _field(content, entry, METADATA_FIELD_BUFFER)
        number = 0 if where is None else _uint32(content, where)
        document = json.loads(_vector(content, _tables(content, model, MODEL_BUFFERS)[number], BUFFER_DATA))
    except (struct.error, IndexError, ValueError) as error:
        raise BundleError(f"{path.name} is damaged ({type(error).__name__}: {error})") from None
    if not isinstance(document, dict):
        raise BundleError(f"{path.name} is damaged: its metadata is no JSON object")
    return document


def _uint32(content: bytes, position: int) -> int:
    (value,) = struct.unpack_from("<I", content, position)
    return int(value)


def _indirect(content: bytes, position: int) -> int:
    return position + _uint32(content, position)


def _field(content: bytes, table: int, number: int) -> int | None:
    """Where field *number* of the table at *table* lies; None if it is left out."""
    (distance,) = struct.unpack_from("<i", content, table)
    vtable = table - distance
    (size,) = struct.unpack_from("<H", content, vtable)
    slot = 4 + 2 * number
    if slot + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", content, vtable + slot)
    return table + offset if offset else None


def _vector(content: bytes, table: int, number: int) -> bytes:
    """The bytes of a string or byte vector; empty if it is left out."""
    where = _field(content, table, number)
    if where is None:
        return b""
    start = _indirect(content, where)
    end = start + 4 + _uint32(content, start)
    if end > len(content):
        raise IndexError(f"a vector ends at byte {end} of {len(content)}")
    return content[start + 4 : end]


def _tables(content: bytes, table: int, number: int) -> list[int]:
    """The positions of the tables in a vector of tables."""
    where = _field(content, table, number)
    if where is None:
        return []
    start = _indirect(content, where)
    count = _uint32(content, start)
    if start + 4 + 4 * count > len(content):
        raise IndexError(f"a vector of {count} tables does not fit into {len(content)} bytes")
    return [_indirect(content, start + 4 + 4 * index) for index in range(count)]
