"""Read ``.npz`` archives that may come from anybody.

NumPy's own reader raises whatever zlib, the zip format and Python's parser raise, makes room for what a header says and
not for what is there, and gives other arrays than numbers. Here each array is held to the bytes of its entry first.
"""

import math
import struct
import tokenize
import zipfile
import zlib
from typing import IO, BinaryIO, Final

import numpy as np

from coordatt_deploy.array_types import NumberArray

MOST_BYTES: Final = 3 << 30  # of all arrays together: thousands of images of a phone's input size
BLOCK_BYTES: Final = 1 << 20
MAGIC: Final = b"\x93NUMPY"
COMPRESSIONS: Final = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
ENCRYPTED: Final = 1  # of an entry's flags
_RAISED: Final = (
    OSError, ValueError, EOFError, LookupError, RuntimeError, TypeError, SyntaxError, MemoryError, struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error,
)  # fmt: skip


class ArchiveError(ValueError):
    """Why an archive cannot be read, in one line."""


def read_npz(stream: BinaryIO) -> dict[str, NumberArray]:
    """Return the arrays of an archive by their names, in its order.

    Args:
        stream: Of the archive; it can seek.

    Raises:
        ArchiveError: It is no archive of arrays of numbers, is damaged or encrypted, or holds too much.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if total > MOST_BYTES:
                raise ArchiveError(f"it holds {total:,} bytes, {MOST_BYTES:,} at most are read")
            arrays: dict[str, NumberArray] = {}
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name in arrays:
                    raise ArchiveError(f"{name!r} stands there twice")
                arrays[name] = _entry(archive, entry)
            return arrays
    except ArchiveError:
        raise
    except _RAISED as error:
        raise ArchiveError(_line(error)) from error


def read_npy(stream: BinaryIO) -> NumberArray:
    """Return the one array of an ``.npy`` file.

    Args:
        stream: Of the file, at its beginning; it can seek.

    Raises:
        ArchiveError: It is no array of numbers, is damaged, or holds too much.
    """
    try:
        size = stream.seek(0, 2)
        stream.seek(0)
        if size > MOST_BYTES:
            raise ArchiveError(f"it holds {size:,} bytes, {MOST_BYTES:,} at most are read")
        return _array(stream, "the array", size)
    except ArchiveError:
        raise
    except _RAISED as error:
        raise ArchiveError(_line(error)) from error


def holds_one_array(stream: BinaryIO) -> bool:
    """Whether a file is an ``.npy`` under another name; the stream is back at its beginning then."""
    start = stream.read(len(MAGIC))
    stream.seek(0)
    return start == MAGIC


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NumberArray:
    if entry.flag_bits & ENCRYPTED:
        raise ArchiveError(f"{entry.filename!r} is encrypted")
    if entry.compress_type not in COMPRESSIONS:
        raise ArchiveError(f"{entry.filename!r} is compressed in a way that NumPy does not write")
    with archive.open(entry) as stream:
        return _array(stream, repr(entry.filename), entry.file_size)


def _array(stream: IO[bytes], name: str, size: int) -> NumberArray:
    """Read an array that claims to fill *size* bytes, header and all."""
    # NumPy gives these functions no types.
    version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)  # type: ignore[no-untyped-call]
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)  # type: ignore[no-untyped-call]
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ArchiveError(f"{name} is of the type {dtype}, not an array of plain numbers")
    if any(isinstance(length, bool) or length < 0 for length in shape):
        raise ArchiveError(f"{name} has the shape {shape}")
    held, needed = size - stream.tell(), math.prod(shape) * dtype.itemsize
    if held != needed:
        raise ArchiveError(f"{name} of shape {shape} needs {needed:,} bytes and has {held:,}")
    values, filled = bytearray(needed), 0
    while filled < needed:
        block = stream.read(min(needed - filled, BLOCK_BYTES))
        if not block:
            raise ArchiveError(f"{name} ends after {filled:,} of {needed:,} bytes")
        values[filled : filled + len(block)] = block
        filled += len(block)
    stream.read(1)  # the end, where an archive compares the checksum
    array = np.frombuffer(values, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _line(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{type(error).__name__}: {first}"
