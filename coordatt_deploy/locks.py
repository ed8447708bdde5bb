"""Locks on folders and files that end with the process that holds them, however it ends.

The kernel keeps them (``flock``), on the folder or file itself: nothing is written, and nothing is left over. Where it
has none (Windows, some network file systems) a file with the holder's machine and process id stands for the lock; after
a kill it counts as long as that process may still be alive.
"""

import errno
import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

if sys.platform != "win32":
    import fcntl

LOCK: Final = ".lock"
"""The file that stands for a lock where the kernel has none."""

_NONE_HERE: Final = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL}


class Lock:
    """A lock that is held. Use as a context manager, or ``release`` it; the end of the process does so too."""

    def __init__(self, descriptor: int | None, file: Path | None = None) -> None:
        """Wrap a locked descriptor, or the file that stands for it."""
        self._descriptor, self._file = descriptor, file

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def take_lock(path: Path) -> Lock | None:
    """Return the lock of a file or folder; None where another process, or another part of this one, holds it.

    Raises:
        OSError: *path* is not there or not readable; or the kernel has no locks there and no file can be written.
    """
    if sys.platform == "win32":
        return _take_file(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = path.stat()
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NONE_HERE:
            return _take_file(path)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    if not os.path.samestat(os.fstat(descriptor), there):  # removed and made anew in between
        os.close(descriptor)
        return None
    return Lock(descriptor)


def _take_file(path: Path) -> Lock | None:
    file = path / LOCK if path.is_dir() else path.with_name(f".{path.name}{LOCK}")
    for _ in range(2):
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            owner = _owner(file)
            if owner is not None and not is_alive(owner):
                file.unlink(missing_ok=True)
                continue
            return None
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"{platform.node()} {os.getpid()}\n")
        return Lock(None, file)
    return None


def _owner(file: Path) -> int | None:
    """The process that a lock's file names; None where it runs on another machine, or is not written down yet."""
    with suppress(OSError, ValueError):
        machine, _, process = file.read_text(encoding="utf-8").strip().rpartition(" ")
        if machine == platform.node():
            return int(process)
    return None


def holder(path: Path) -> str:
    """Say which process holds the lock of *path*, as far as the system tells: ``process 4711 (… quantize net)``."""
    process = _owner(path / LOCK) or _holder(path)
    if process is None:
        return "another process"
    said = ""
    with suppress(OSError):
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
        said = f" ({' '.join(words).strip()[-80:]})"
    return f"process {process}{said}"


def _holder(path: Path) -> int | None:
    """Look into Linux's table of locks: ``1: FLOCK ADVISORY WRITE 4711 08:01:131 0 EOF``."""
    with suppress(OSError):
        there = path.stat()
        place = f"{os.major(there.st_dev):02x}:{os.minor(there.st_dev):02x}:{there.st_ino}"
        table = Path("/proc/locks").read_text(encoding="ascii")
        found = re.search(rf"FLOCK\s+ADVISORY\s+WRITE\s+(\d+)\s+{place}\s", table)
        return int(found[1]) if found else None
    return None


def is_alive(process: int) -> bool:
    """Whether a process of this machine runs; True where that cannot be asked."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    with suppress(OSError, IndexError):  # one that has ended, and that nobody has asked for its exit status
        return (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
            != "Z"
        )
    return True
