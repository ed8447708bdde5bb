"""Where a command keeps the runs that it made: in a bundle's ``reports/``, beside earlier ones, or in a file apart."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from coordatt_deploy.bundle import REPORTS, Bundle
from coordatt_deploy.errors import UsageError
from coordatt_deploy.files import write_whole

D = TypeVar("D")


def report_name(stem: str, target: str | None, suffix: str = "json") -> str:
    """Return the name of a file in ``reports/``: ``parity.json``, or ``parity-qemu-arm64-cortex-a53.json``.

    Args:
        stem: What it is.
        target: Where files were run; None for this machine.
        suffix: Of the file.
    """
    return f"{stem}.{suffix}" if target is None else f"{stem}-{target.replace(':', '-')}.{suffix}"


@dataclass(frozen=True, slots=True)
class ReportFile:
    """A document of runs.

    Attributes:
        bundle: What the runs are of.
        name: Of the file in ``reports/``.
        output: A file of the user's instead; it holds this call's runs alone. For bundles that can only be read.
    """

    bundle: Bundle
    name: str
    output: Path | None = None

    def check(self) -> None:
        """Refuse before the work what could not be kept after it.

        Raises:
            UsageError: The place cannot be written.
        """
        if self.output is not None:
            check_folder(self.output)
            return
        folder = self.bundle.root / REPORTS
        place = folder if folder.exists() else self.bundle.root
        if self.bundle.read_only or not os.access(place, os.W_OK):
            raise UsageError(f"no report can be kept in {folder}, which can only be read; name a file with --output")

    def earlier(self, read: Callable[[str], D], none: D) -> D:
        """Return what is there to be added to; *none* where nothing is, or nothing that could be gone on with."""
        if self.output is not None:
            return none
        try:
            return read((self.bundle.root / REPORTS / self.name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return none

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Keep other processes from ``reports/`` from ``earlier`` to ``write``.

        Raises:
            BundleError: The bundle is no longer what it was when it was opened, or another process does not let go.
        """
        if self.output is None:
            with self.bundle.reporting():
                yield
        else:
            self.bundle.check_unchanged()
            yield

    def write(self, text: str) -> None:
        """Write the document as a whole or not at all.

        Raises:
            UsageError: The user's file cannot be written.
            BundleError: The bundle's cannot.
        """
        if self.output is None:
            self.bundle.write_report(self.name, text)
        else:
            write_text(self.output, text)


def check_folder(path: Path) -> None:
    """Refuse a file of the user's that cannot be written.

    Raises:
        UsageError: Its folder does not exist or cannot be written, or it is a folder itself.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise UsageError(f"{path} cannot be written: it is a folder; name a file")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written: {path.parent} can only be read; name another place")


def write_text(path: Path, text: str) -> Path:
    """Write *text* to a file of the user's.

    Raises:
        UsageError: It cannot be written there.
    """
    check_folder(path)
    try:
        return write_whole(path, text)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
