"""How a bundle is changed inside its own folder, so that a whole one can be read at every moment.

    .staging-XXXXXXXX/   the bundle as it is to be, complete: nobody looks at it yet
    .journal.json        from here on that is the bundle: which files are put in their place, which removed
    …                    file by file, each by a rename; the manifest last
    (gone)               the journal, then the staging folder

Whoever finds a staging folder without a journal that nobody works on removes it: the old bundle stands. Whoever finds a
journal goes on with it, which can be done any number of times; where the folder cannot be written, a copy of what it
leads to is read instead. One process at a time writes: it holds the lock of the bundle's folder.
"""

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from coordatt_deploy.documents import DocumentError, dump, load
from coordatt_deploy.errors import BundleError
from coordatt_deploy.files import files_below, inside, read_text, sha256, write_whole
from coordatt_deploy.interruption import undisturbed
from coordatt_deploy.locks import LOCK, Lock, holder, take_lock
from coordatt_deploy.manifest import MANIFEST
from coordatt_deploy.scratch import Scratch

JOURNAL: Final = ".journal.json"
STAGING: Final = ".staging-"
NEW: Final = "new"  # the folder in the staging folder
WAIT_S: Final = 30.0  # how long a reader waits for files to be put in their place, which takes milliseconds
NOT_WRITABLE: Final = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT}

_COPIES: Final[list[Scratch]] = []  # read instead of folders that cannot be mended; they go with the process


@dataclass(frozen=True, slots=True)
class Journal:
    """What is left to do; the document ``.journal.json``.

    Attributes:
        staging: Name of the staging folder.
        moved: Paths of the files that are put in their place, relative to the bundle; the manifest is the last.
        removed: Paths of the files that are removed before.
    """

    VERSION: ClassVar[int] = 1

    staging: str
    moved: tuple[str, ...]
    removed: tuple[str, ...]


def is_own(name: str) -> bool:
    """Whether an entry at the top of a bundle's folder belongs to its writing, and not to the bundle."""
    return name == LOCK or name.startswith((STAGING, JOURNAL, f".{JOURNAL}"))


def bundle_files(root: Path) -> tuple[Path, ...]:
    """Return the files of the bundle at *root*, sorted, without those of its writing.

    Raises:
        BundleError: See ``files_below``.
    """
    return files_below(root, leave_out=is_own)


def commit(root: Path, staging: Path, copied: Collection[str]) -> None:
    """Make what stands in *staging* the bundle at *root*, of which the caller holds the lock.

    Args:
        root: The bundle's folder.
        staging: In it, with everything that the bundle is to hold in the folder ``new``.
        copied: Paths that were copied there from the bundle; those of them that are gone are removed.
    """
    new = staging / NEW
    files = {file.relative_to(new).as_posix(): file for file in files_below(new)}
    moved = [path for path, file in files.items() if path != MANIFEST and not _is_same(file, root / path)]
    journal = Journal(staging.name, (*moved, MANIFEST), tuple(path for path in copied if path not in files))
    for path in journal.moved:
        _sync(files[path])
    for folder in {parent for file in files.values() for parent in file.parents if parent.is_relative_to(staging)}:
        _sync(folder)
    with undisturbed():
        write_whole(root / JOURNAL, dump(journal), synced=True)
        _sync(root)
        _finish(root, journal)


def recover(root: Path) -> None:
    """Finish what a process that is gone began to put in its place, and remove what it began to make.

    The caller holds the lock of *root*.

    Raises:
        BundleError: The journal leads out of the bundle, or is damaged.
        OSError: The folder cannot be written.
    """
    if is_pending(root):
        files_below(root)  # or it is refused: nothing is moved through a link
        journal = _read(root)
        with undisturbed():
            _finish(root, journal)
    for staging in _stagings(root):
        shutil.rmtree(staging)
    for stale in root.glob(f".{JOURNAL}.partial-*"):
        stale.unlink(missing_ok=True)


def is_pending(root: Path) -> bool:
    """Whether a journal says that files are still to be put in their place."""
    return (root / JOURNAL).exists() or (root / JOURNAL).is_symlink()


def settled(root: Path) -> Path:
    """Return the folder where the bundle at *root* can be read: that, or a copy of what its journal leads to.

    What a killed process left is removed on the way, where this one may write.

    Raises:
        BundleError: Its journal is damaged; or it has been in writing for half a minute.
    """
    bring_back(root)
    deadline = time.monotonic() + WAIT_S
    while is_pending(root) or any(_stagings(root)):
        try:
            lock = take_lock(root)
            if lock is not None:
                with lock:
                    recover(root)
                return root
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            return _copy(root) if is_pending(root) else root
        if not is_pending(root):  # somebody is making files, and has not put any in its place yet
            return root
        if time.monotonic() > deadline:
            raise BundleError(f"{root} is being written by {holder(root)}; wait for it, or end it")
        time.sleep(0.02)
    return root


def bring_back(root: Path) -> None:
    """Move back a bundle that earlier versions, when they were killed, left beside its place; remove their leftovers.

    They renamed it to ``.NAME.old-XXXXXXXX/bundle`` while ``.NAME.partial-XXXXXXXX`` took its place.
    """
    place = root.resolve()
    pattern = re.compile(rf"\.{re.escape(place.name)}\.(old|partial)-[a-z0-9_]{{8}}")
    with suppress(OSError):
        found = [path for path in place.parent.iterdir() if pattern.fullmatch(path.name) and not path.is_symlink()]
        for path in sorted(found, key=lambda path: path.lstat().st_mtime, reverse=True):  # the latest first
            old = path / "bundle"
            if ".old-" in path.name and not place.exists() and (old / MANIFEST).is_file():
                old.rename(place)
            if (place / MANIFEST).exists() or ".partial-" in path.name:
                shutil.rmtree(path, ignore_errors=True)


def wait_for_lock(path: Path, seconds: float) -> Lock | None:
    """Return the lock of *path*, or None where somebody still holds it after *seconds*."""
    deadline = time.monotonic() + seconds
    while True:
        lock = take_lock(path)
        if lock is not None or time.monotonic() > deadline:
            return lock
        time.sleep(0.02)


def _finish(root: Path, journal: Journal) -> None:
    """Do what is left of *journal*; what was done already is passed over."""
    new = root / journal.staging / NEW
    touched = {root}
    for path in journal.removed:
        (root / path).unlink(missing_ok=True)
        touched |= _remove_empty(root, (root / path).parent)
    for path in journal.moved:
        source, target = new / path, root / path
        if not target.parent.exists():  # all of a folder that the bundle did not have
            folder = target.parent
            while not folder.parent.exists():
                folder = folder.parent
            (new / folder.relative_to(root)).rename(folder)
            touched.add(folder.parent)
        elif source.exists():
            source.replace(target)
            touched.add(target.parent)
        elif not target.exists():
            raise BundleError(f"{root} is damaged: {JOURNAL} names {path!r}, which is nowhere; build it again")
    for folder in touched:
        if folder.exists():  # or a later file was the last in it
            _sync(folder)
    (root / JOURNAL).unlink()
    _sync(root)
    shutil.rmtree(root / journal.staging, ignore_errors=True)


def _remove_empty(root: Path, folder: Path) -> set[Path]:
    """Remove *folder* and those above it where nothing is left in them; return where the rest is."""
    while folder != root:
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            break
        folder = folder.parent
    return {folder}


def _copy(root: Path) -> Path:
    """Copy what the journal of *root* leads to; the folder has the same name."""
    scratch = Scratch()
    _COPIES.append(scratch)
    copy = scratch.folder / root.resolve().name
    files_below(root)  # or it is refused
    journal = _read(root)
    gone = set(journal.removed)
    sources = {file.relative_to(root).as_posix(): file for file in bundle_files(root)}
    sources |= {path: new for path in journal.moved if (new := root / journal.staging / NEW / path).exists()}
    for path, source in sources.items():
        if path not in gone:
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy / path)
    return copy


def _read(root: Path) -> Journal:
    """Read the journal, which may come from anybody as well.

    Raises:
        BundleError: It is damaged, or names something that is not in this bundle.
    """
    try:
        journal = load(Journal, read_text(root / JOURNAL))
    except (OSError, UnicodeDecodeError, DocumentError) as error:
        raise BundleError(f"{root}: {JOURNAL} cannot be read: {error}") from None
    staging = root / journal.staging
    if not re.fullmatch(rf"{re.escape(STAGING)}[A-Za-z0-9_]{{8}}", journal.staging):
        raise BundleError(f"{root}: {JOURNAL} names {journal.staging!r} as its staging folder; it is refused")
    if journal.moved[-1:] != (MANIFEST,):
        raise BundleError(f"{root}: {JOURNAL} does not end with {MANIFEST}; it is refused")
    for path in (*journal.moved, *journal.removed):
        inside(root, path, JOURNAL)
        if staging.exists():
            inside(staging / NEW, path, JOURNAL)
        if is_own(path.partition("/")[0]):
            raise BundleError(f"{root}: {JOURNAL} names {path!r}, which is no file of the bundle; it is refused")
    return journal


def _stagings(root: Path) -> Iterator[Path]:
    with suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith(STAGING) and entry.is_dir(follow_symlinks=False):
                yield root / entry.name


def _is_same(new: Path, old: Path) -> bool:
    try:
        there = old.lstat()
    except OSError:
        return False
    return stat.S_ISREG(there.st_mode) and there.st_size == new.stat().st_size and sha256(new) == sha256(old)


def _sync(path: Path) -> None:
    """Have a file or folder written to the disk itself; some systems cannot do so with folders."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # Windows
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # nothing that can be synced there
            raise
    finally:
        os.close(descriptor)
