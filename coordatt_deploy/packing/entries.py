"""The directory of a ``.zip`` file that may come from anybody, held to what an archive of a bundle looks like.

All of it is checked before a byte is unpacked: names, kinds, sizes, ratios, and that no two entries share bytes. What
the directory claims of a size is a bound: no more than that is ever read.
"""

import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final

from coordatt_deploy.errors import BundleError
from coordatt_deploy.files import DEEPEST, KINDS
from coordatt_deploy.plain_text import UNPRINTABLE

MOST_FILES: Final = 20_000  # a bundle has some dozens, and an image per golden input
MOST_FILE_BYTES: Final = (1 << 32) - 2  # beyond it the format writes sizes in another way
MOST_BYTES: Final = (1 << 32) - 2  # of all files together; a network for a phone has some hundred million
MOST_RATIO: Final = 100  # weights and images give 1.1 to 2, JSON 20; 1,000 is the most that deflate can do
SMALL_BYTES: Final = 1 << 20  # what is not larger may have any ratio
MOST_NAME_BYTES: Final = 1024  # of a path; the systems that we run on take 4,096, and 255 of one step
MOST_STEP_BYTES: Final = 255

_END: Final = struct.Struct("<4s4H2LH")  # end of central directory
_LOCAL: Final = struct.Struct("<4s5H3L2H")  # local file header
_ENTRY_BYTES: Final = 46  # of a central directory header, before its name
_ZIP64: Final = b"PK\x06\x07"
_ENCRYPTED: Final = 1
_METHODS: Final = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_WINDOWS: Final = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # devices there, whatever the suffix


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in an archive.

    Attributes:
        path: Relative to the bundle.
        bytes: Size that its directory claims; no more is read.
        info: What Python's reader knows of it.
    """

    path: str
    bytes: int
    info: zipfile.ZipInfo


class DamagedEntryError(BundleError):
    """A file in an archive that cannot be unpacked as a whole.

    Attributes:
        path: Of the file.
    """

    def __init__(self, path: str, reason: str) -> None:
        """Keep the path."""
        self.path = path
        super().__init__(f"{path} {reason}")


@contextmanager
def opened(stream: BinaryIO) -> Iterator[tuple[zipfile.ZipFile, Mapping[str, Entry]]]:
    """Open an archive and give its files by their paths, in its order; folders are left out.

    Raises:
        BundleError: It is no ``.zip``, or one that no bundle is packed in; the text says what is wrong with it.
    """
    _check_end(stream)
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise BundleError(f"it is a damaged .zip file ({error})") from None
    with archive:
        yield archive, _entries(stream, archive)


def blocks(archive: zipfile.ZipFile, entry: Entry, size: int = 1 << 20) -> Iterator[bytes]:
    """Yield a file's bytes, exactly as many as its directory claims.

    Raises:
        DamagedEntryError: There are fewer, or its checksum is another.
    """
    left = entry.bytes
    try:
        with archive.open(entry.info) as stream:
            while block := stream.read(size):
                left -= len(block)
                yield block
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error):
        raise DamagedEntryError(entry.path, "is damaged") from None
    if left:
        raise DamagedEntryError(entry.path, f"ends {left:,} bytes too early")


def why_no_path(path: str) -> str | None:
    """Return why *path* cannot be a file's in an archive; None if it can.

    One rule for every system: what is a path here and a drive, a device or two names in one elsewhere is none.
    """
    if not path or len(path.encode("utf-8", "surrogatepass")) > MOST_NAME_BYTES:
        return f"is empty or longer than {MOST_NAME_BYTES:,} bytes"
    if UNPRINTABLE.search(path):
        return "holds a control character"
    if path.startswith("/") or "\\" in path or ":" in path:
        return "is absolute, or holds a backslash or a colon"
    steps = path.split("/")
    if len(steps) > DEEPEST:
        return f"has more than {DEEPEST} folders in one another"
    for step in steps:
        if step in {"", ".", ".."}:
            return "climbs, or has an empty step"
        if len(step.encode()) > MOST_STEP_BYTES:
            return f"has a name longer than {MOST_STEP_BYTES} bytes"
        if step[-1] in ". " or _WINDOWS.fullmatch(step):
            return f"holds {step!r}, which is another name on Windows"
    return None


def check_paths(paths: list[str]) -> None:
    """Refuse paths that are none, or of which two are the same file on some system.

    Raises:
        BundleError: The text names one.
    """
    spelled: dict[str, str] = {}
    for path in paths:
        reason = why_no_path(path)
        if reason is not None:
            raise BundleError(f"the name {path[:200]!r} {reason}; it is refused")
    for path in paths:
        for length in range(1, path.count("/") + 2):
            place = "/".join(path.split("/")[:length])
            other = spelled.setdefault(unicodedata.normalize("NFC", place).casefold(), place)
            if other != place:
                raise BundleError(f"{other!r} and {place!r} are one file on some systems; it is refused")
    counts = Counter(paths)
    both = sorted(counts.keys() & {path[:at] for path in counts for at in _slashes(path)})
    if both:
        raise BundleError(f"{both[0]!r} is a file and a folder; it is refused")
    path, count = counts.most_common(1)[0] if counts else ("", 1)
    if count > 1:
        raise BundleError(f"{path!r} stands there {count:,} times; it is refused")


def _slashes(path: str) -> Iterator[int]:
    return (at for at, letter in enumerate(path) if letter == "/")


def _check_end(stream: BinaryIO) -> None:
    """Bound what the reader takes into memory before it takes it: the directory stands at the end and says its size."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - _END.size - 20))
    tail = stream.read(_END.size + 20)
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\x05\x06"):
        raise BundleError("it is no .zip file, or one that is cut off or has something behind its end")
    if tail.startswith(_ZIP64):
        raise BundleError("it is a .zip file in the form for more than 4 GB, which no bundle needs")
    _, disk, start_disk, here, total, length, offset, comment = _END.unpack(tail[-_END.size :])
    if disk or start_disk or comment or here != total:
        raise BundleError("it is a .zip file of several parts, or one with a comment")
    if total > MOST_FILES:
        raise BundleError(f"it holds {total:,} files, {MOST_FILES:,} at most are unpacked")
    if length > MOST_FILES * (_ENTRY_BYTES + MOST_STEP_BYTES) or offset + length != size - _END.size:
        raise BundleError("it is a .zip file whose directory is not where it says, or larger than any of ours")


def _entries(stream: BinaryIO, archive: zipfile.ZipFile) -> Mapping[str, Entry]:
    listed = archive.infolist()
    if len(listed) > MOST_FILES:
        raise BundleError(f"it holds {len(listed):,} files, {MOST_FILES:,} at most are unpacked")
    for info in listed:
        _check_kind(info)
    check_paths([info.filename.removesuffix("/") if info.is_dir() else info.filename for info in _leaves(listed)])
    total = sum(info.file_size for info in listed)
    if total > MOST_BYTES:
        raise BundleError(f"it holds {total:,} bytes, {MOST_BYTES:,} at most are unpacked")
    _check_apart(stream, archive, listed)
    return {info.filename: Entry(info.filename, info.file_size, info) for info in listed if not info.is_dir()}


def _leaves(listed: list[zipfile.ZipInfo]) -> Iterator[zipfile.ZipInfo]:
    """All files, and the folders that nothing else in the archive is in: those stand in their files' paths."""
    names = {info.filename for info in listed}
    above = {name[: at + 1] for name in names for at in _slashes(name) if at + 1 < len(name)}
    return (info for info in listed if info.filename not in above)


def _check_kind(info: zipfile.ZipInfo) -> None:
    name = info.filename[:200]
    if info.orig_filename != info.filename:
        raise BundleError(f"the name {info.orig_filename[:200]!r} is read as another one, {name!r}; it is refused")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        what = KINDS.get(kind, "a device")
        raise BundleError(
            f"{name!r} is {what}; an archive holds regular files and folders, nothing else: it is refused"
        )
    if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
        raise BundleError(f"{name!r} is encrypted, or compressed in another way than deflate; it is refused")
    if info.is_dir() and info.file_size:
        raise BundleError(f"{name!r} is a folder that holds bytes; it is refused")
    if info.file_size > MOST_FILE_BYTES:
        raise BundleError(f"{name!r} claims {info.file_size:,} bytes, {MOST_FILE_BYTES:,} at most are unpacked")
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        raise BundleError(f"{name!r} claims {info.file_size:,} bytes and holds {info.compress_size:,}; it is refused")
    if info.file_size > SMALL_BYTES and info.file_size > MOST_RATIO * info.compress_size:
        raise BundleError(
            f"{name!r} would grow from {info.compress_size:,} to {info.file_size:,} bytes, {MOST_RATIO} times is the"
            " most that is unpacked"
        )


def _check_apart(stream: BinaryIO, archive: zipfile.ZipFile, listed: list[zipfile.ZipInfo]) -> None:
    """Refuse entries that share bytes: of a few megabytes, each unpacked a thousand times, a bomb is made."""
    end, before = 0, ""
    for info in sorted(listed, key=lambda info: info.header_offset):
        stream.seek(info.header_offset)
        header = stream.read(_LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
            raise DamagedEntryError(info.filename, "is damaged")
        name, extra = _LOCAL.unpack(header)[-2:]
        if info.header_offset < end:
            raise BundleError(f"{before!r} and {info.filename!r} share bytes of the archive; it is refused")
        before, end = info.filename, info.header_offset + _LOCAL.size + name + extra + info.compress_size
    if end > archive.start_dir:
        raise BundleError(f"{before!r} reaches into the archive's directory; it is refused")
