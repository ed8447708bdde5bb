"""Temporary folders of this process: one prefix, one home, and an end even after a kill.

Each is locked as long as its process lives (see ``locks``); whoever runs next removes those that nobody holds.
"""

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from coordatt_deploy.interruption import undisturbed
from coordatt_deploy.locks import Lock, take_lock

PREFIX: Final = "coordatt-deploy-scratch-"


class Scratch:
    """A temporary folder. Use as a context manager, or ``remove`` it; it goes with the process at the latest.

    Attributes:
        folder: Its path.
    """

    def __init__(self) -> None:
        """Make it in the system's temporary folder."""
        lock = None
        while lock is None:  # one that is not locked yet may be taken for a dead process's, and removed
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            with suppress(FileNotFoundError):
                lock = take_lock(self.folder)
        self._remove = weakref.finalize(self, _remove, self.folder, lock, os.getpid())

    def remove(self) -> None:
        """Remove it with everything in it."""
        self._remove()

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _remove(folder: Path, lock: Lock, owner: int) -> None:
    if os.getpid() == owner:  # and not in a fork
        with undisturbed():
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()


def remove_stale_scratch() -> None:
    """Remove the temporary folders of this user that processes left when they were killed."""
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            with suppress(OSError):
                if folder.is_symlink() or (hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()):
                    continue
                lock = take_lock(folder)
                if lock is not None:
                    with lock:
                        shutil.rmtree(folder, ignore_errors=True)
