"""Files of a bundle: paths that stay inside, hashes, sizes, and writing as a whole or not at all.

A bundle may come from anybody. It holds regular files and folders, nothing else: a link leads out of it, and a pipe
keeps its reader waiting.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from coordatt_deploy.errors import BundleError
from coordatt_deploy.locks import take_lock

MOST_ENTRIES: Final = 100_000  # files and folders; ours have some dozens, and hundreds of images where a user adds some
DEEPEST: Final = 32  # folders in one another; ours go to six, in a Core ML package
KINDS: Final = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
}
_PART: Final = ".partial-"  # between a file's name and eight letters, while it is written
NOT_REGULAR: Final = {errno.ELOOP, errno.EMLINK, errno.ENXIO}  # what opening a link or a socket ends with


def inside(root: Path, relative: str, document: str = "manifest.json") -> Path:
    """Return ``root / relative``, which *document* names.

    Raises:
        BundleError: The path is absolute, climbs out, or a link leads out of the folder.
    """
    pure = PurePosixPath(relative)
    path = root / pure
    climbs = pure.is_absolute() or ".." in pure.parts or "\\" in relative or ":" in relative or not pure.parts
    try:
        stays = not climbs and path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, no name for a file at all
        raise BundleError(f"{document} names {relative!r}, which is no path: {error}; it is refused") from None
    if not stays:
        raise BundleError(f"{document} names {relative!r}, which lies outside the bundle; the bundle is refused")
    return path


def files_below(root: Path, leave_out: Callable[[str], bool] = lambda _: False) -> tuple[Path, ...]:
    """Return all files in *root* and below, sorted. *root* itself may be reached through a link.

    Args:
        root: The folder.
        leave_out: Says of the name of a regular file or folder at the top whether it is passed over.

    Raises:
        BundleError: An entry is neither a regular file nor a folder, or there are more, or deeper, than in any bundle.
    """
    return tuple(sorted(_files_below(root, leave_out)))


def _files_below(root: Path, leave_out: Callable[[str], bool]) -> Iterator[Path]:
    waiting, count = [(root, 1)], 0
    while waiting:
        folder, depth = waiting.pop()
        with suppress(FileNotFoundError) if depth > 1 else nullcontext(), os.scandir(folder) as entries:
            for entry in entries:
                path, count = folder / entry.name, count + 1
                if count > MOST_ENTRIES:
                    raise BundleError(f"{root} holds more than {MOST_ENTRIES:,} files and folders; it is refused")
                try:
                    mode = entry.stat(follow_symlinks=False).st_mode
                except FileNotFoundError:  # a report that another command is just replacing
                    continue
                if depth == 1 and (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) and leave_out(entry.name):
                    continue
                if stat.S_ISDIR(mode):
                    if depth == DEEPEST:
                        raise BundleError(f"{root} holds folders more than {DEEPEST} deep; it is refused")
                    waiting.append((path, depth + 1))
                elif stat.S_ISREG(mode):
                    yield path
                else:
                    raise _refused(path.relative_to(root).as_posix(), mode)


def _refused(name: str, mode: int) -> BundleError:
    what = KINDS.get(stat.S_IFMT(mode), "a device")
    return BundleError(f"{name!r} is {what}; a bundle holds regular files and folders, nothing else: it is refused")


def open_regular(path: Path, *, follow_link: bool = False) -> BinaryIO:
    """Open a file for reading; what is not a regular file is refused at once, whatever was there a moment ago.

    Args:
        path: Of the file.
        follow_link: Whether *path* may be a link to one; a user's own files may.

    Raises:
        BundleError: It is a link, a pipe, a folder or a device.
        OSError: It is not there, or not readable.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    flags |= 0 if follow_link else getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno not in NOT_REGULAR:
            raise
        raise _refused(path.name, path.lstat().st_mode) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _refused(path.name, mode)
    return os.fdopen(descriptor, "rb")


def read_text(path: Path) -> str:
    """Return a regular file's UTF-8 text.

    Raises:
        BundleError: See ``open_regular``.
        OSError: Likewise.
        UnicodeDecodeError: It is not UTF-8.
    """
    with open_regular(path) as stream:
        return stream.read().decode("utf-8")


def make_folder(folder: Path) -> Path:
    """Make *folder* where it is not there yet, and return it.

    Raises:
        BundleError: A link or a file has its name.
    """
    try:
        folder.mkdir()
    except FileExistsError:
        mode = folder.lstat().st_mode
        if not stat.S_ISDIR(mode):
            raise _refused(folder.name, mode) from None
    return folder


def sha256(path: Path) -> str:
    """Hash a file, or a package: its sorted relative paths and their contents.

    Raises:
        BundleError: It, or something in the package, is neither a regular file nor a folder.
    """
    if stat.S_ISDIR(path.lstat().st_mode):
        return package_sha256({PurePosixPath(file.relative_to(path)): sha256(file) for file in files_below(path)})
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def package_sha256(hashes: Mapping[PurePosixPath, str]) -> str:
    """Hash a package by the hashes of its files."""
    digest = hashlib.sha256()
    for path in sorted(hashes):
        digest.update(os.fsencode(f"{path}\n{hashes[path]}\n"))
    return digest.hexdigest()


def size_bytes(path: Path) -> int:
    """Size on disk of a file, or of all files of a package."""
    return (
        sum(item.stat().st_size for item in path.rglob("*") if item.is_file()) if path.is_dir() else path.stat().st_size
    )


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, text: str, *, synced: bool = False) -> Path:
    r"""Write a text file so that a reader sees the old one or the new one, never a half.

    Args:
        path: Of the file.
        text: What UTF-8 has no form for, halves of a pair in names from outside, is written as ``\udc80``.
        synced: Whether it is on the disk itself before it takes its place.
    """
    data = text.encode("utf-8", errors="backslashreplace")
    with whole_file(path, synced=synced) as stream:
        stream.write(data)
    return path


@contextmanager
def whole_file(path: Path, *, synced: bool = False) -> Iterator[BinaryIO]:
    """Give a stream to write; what it holds becomes the file at *path* when the block ends well, else it vanishes.

    Args:
        path: Of the file; one that is there is replaced.
        synced: Whether it is on the disk itself before it takes its place.
    """
    remove_stale_parts(path.parent, path.name)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{_PART}")
    part = Path(name)
    try:
        with take_lock(part) or nullcontext():
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                if synced:
                    os.fsync(descriptor)
            part.chmod(0o644)
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_stale_parts(folder: Path, name: str = "*") -> None:
    """Remove what ``write_whole`` of processes that were killed left in *folder*, for the file *name* or any."""
    pattern = re.compile(rf"\.{'.+' if name == '*' else re.escape(name)}{re.escape(_PART)}[a-z0-9_]{{8}}")
    found: list[Path] = []
    with suppress(OSError):  # a folder may be writable and not readable
        found += [path for path in folder.iterdir() if pattern.fullmatch(path.name)]
    for part in found:
        with suppress(OSError):
            lock = take_lock(part)
            if lock is not None:
                with lock:
                    part.unlink()
