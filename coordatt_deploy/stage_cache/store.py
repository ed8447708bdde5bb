"""The folder that results of stages are kept in, each with the hash of every byte.

    stages/DIGEST/entry.json     stage, name, the parts of the key, and each file with its size and hash
    stages/DIGEST/result.json    what the stage said of its files
    stages/DIGEST/files/         the files, by their paths in a bundle

An entry is written beside the others and renamed when it is whole; two processes that make the same keep whichever
comes first. It is checked as it is copied out, and what is not as it was written is removed and made anew. Nothing in
it is run or unpickled, links are not followed, and only files that the stage writes are taken. Nobody else may write
to the folder: it is the user's own, mode 0700.

A cache makes things faster and nothing else: where it cannot be read or written, all is made as if there were none.
"""

import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from coordatt_deploy.documents import DocumentError, dump, from_json, load, object_of, parse, write
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.files import files_below, inside, open_regular, remove, size_bytes
from coordatt_deploy.interruption import undisturbed
from coordatt_deploy.locks import Lock, take_lock
from coordatt_deploy.logs import cache_folder
from coordatt_deploy.stage_cache.keys import StageKey, own_source

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PLACE: Final = "COORDATT_DEPLOY_CACHE"
SIZE: Final = "COORDATT_DEPLOY_CACHE_SIZE"
STAGES: Final = "stages"
MOST_BYTES: Final = 2 * 10**9  # a build of the default in every format takes 12 MB
UNITS: Final = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
MOST_FILES: Final = 4096  # of an entry; ours have a few
MOST_LISTED: Final = 1 << 20  # bytes of entry.json: that of so many files
MOST_SAID: Final = 64 << 20  # bytes of result.json; the verdicts on a network of a thousand layers are 1 MB
ENTRY: Final = "entry.json"
RESULT: Final = "result.json"
FILES: Final = "files"
NEW: Final = ".new-"
GONE: Final = ".gone-"
DIGEST: Final = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file of an entry: its path in the entry's folder, its size and its hash."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What ``entry.json`` holds.

    Attributes:
        stage: Of the key, as the next two.
        name: What was made.
        parts: What it was made of.
        files: Every other file of the entry.
        made: When, in seconds since 1970.
    """

    VERSION: ClassVar[int] = 1

    stage: str
    name: str
    parts: Mapping[str, str]
    files: tuple[KeptFile, ...]
    made: float

    @property
    def key(self) -> StageKey:
        """What its result follows from."""
        return StageKey(self.stage, self.name, self.parts)


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """How full a cache is.

    Attributes:
        folder: Where it is.
        entries: Results that it holds.
        bytes: That they take.
        most_bytes: That they may take; those unused for longest go first.
        problem: Why it is not used; None where it is.
    """

    folder: str
    entries: int
    bytes: int
    most_bytes: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class StageCache:
    """A folder of results.

    Attributes:
        folder: Made when something is kept.
        most_bytes: That all entries together may have.
    """

    folder: Path
    most_bytes: int = MOST_BYTES

    def take(
        self,
        key: StageKey,
        root: Path,
        places: Sequence[str],
        kind: type[T],
        accept: Callable[[T], bool] = lambda _: True,
    ) -> T | None:
        """Put the files of a result where they belong, and return what the stage said of them; None where it must run.

        Args:
            key: What the result follows from.
            root: Of the bundle.
            places: Files and folders below *root* that the stage writes; what is there goes.
            kind: Of what the stage said.
            accept: Whether that is said of the files that are there now.
        """
        folder = self.folder / key.digest
        if self.problem() is not None or not folder.is_dir():
            return None
        try:
            for place in places:
                remove(root / place)
            result = _taken(folder, key, root, places, kind)
            if not accept(result):
                raise BundleError(f"{folder} says of other files what it says")
            os.utime(folder / ENTRY)  # what was used last goes last
        except (BundleError, DocumentError, OSError, UnicodeDecodeError):  # damaged, or just removed by another process
            for place in places:
                remove(root / place)
            _discard(folder)
            return None
        return result

    def keep(self, key: StageKey, root: Path, places: Sequence[str], result: "DataclassInstance") -> bool:
        """Keep the result of a stage; returns whether it was kept. Another process may have been faster.

        Args:
            key: What the result follows from.
            root: Of the bundle.
            places: Files and folders below *root* that the stage wrote.
            result: What it said of them.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.problem() is not None:
                return False
            self._remove_stale()
            total = sum(size_bytes(root / place) for place in places)
            if total > self.most_bytes:
                return False
            self._write(key, root, places, result)
            self._shrink()
        except (OSError, BundleError):  # the disk is full, say: what was made is in the bundle all the same
            return False
        return True

    def latest(self, key: StageKey) -> StageKey | None:
        """Return the key of the last result of the same stage and name, to say what differs; None without any."""
        best: Entry | None = None
        for folder in self._entries():
            with suppress(BundleError, DocumentError, OSError, UnicodeDecodeError):
                entry = _listed(folder)
                if (entry.stage, entry.name) == (key.stage, key.name) and (best is None or entry.made > best.made):
                    best = entry
        return None if best is None else best.key

    def status(self) -> CacheStatus:
        """Say how full it is."""
        sizes = [_size(folder) for folder in self._entries()]
        return CacheStatus(str(self.folder), len(sizes), sum(sizes), self.most_bytes, self.problem())

    def empty(self) -> CacheStatus:
        """Remove everything, and return what it held."""
        before = self.status()
        if before.problem is None:
            for folder in self._entries():
                _discard(folder)
            with suppress(OSError):
                self._remove_stale()
        return before

    def problem(self) -> str | None:
        """Why nothing is taken from the folder: somebody else may have put it there. None where it is safe."""
        try:
            there = self.folder.lstat()
        except OSError:
            return None
        if self.folder.is_symlink() or not self.folder.is_dir():
            return "it is no folder of its own"
        if sys.platform != "win32" and there.st_uid != os.getuid():
            return "it belongs to another user"
        if sys.platform != "win32" and there.st_mode & 0o022:
            return f"others may write to it; run: chmod 700 {self.folder}"
        return None

    def _entries(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if DIGEST.fullmatch(path.name) and path.is_dir())
        except OSError:
            return []

    def _write(self, key: StageKey, root: Path, places: Sequence[str], result: "DataclassInstance") -> None:
        new, lock = _new_folder(self.folder)
        try:
            kept = []
            for place in places:
                path = root / place
                for file in files_below(path) if path.is_dir() else (path,):
                    relative = file.relative_to(root).as_posix()
                    target = new / FILES / relative
                    target.parent.mkdir(parents=True, exist_ok=True)
                    kept.append(_copied(file, target, f"{FILES}/{relative}"))
            said = new / RESULT
            said.write_text(write(object_of(result), indent=None), encoding="utf-8")
            kept.append(KeptFile(RESULT, said.stat().st_size, hashlib.sha256(said.read_bytes()).hexdigest()))
            entry = Entry(key.stage, key.name, key.parts, tuple(kept), time.time())
            (new / ENTRY).write_text(dump(entry, indent=None), encoding="utf-8")
            with suppress(OSError):  # it is there: another process was faster
                new.rename(self.folder / key.digest)
        finally:
            with undisturbed():
                shutil.rmtree(new, ignore_errors=True)
                lock.release()

    def _shrink(self) -> None:
        """Remove what was not used for longest until the rest has room."""
        known = []
        for folder in self._entries():
            with suppress(OSError):  # one that another process is just removing
                known.append(((folder / ENTRY).stat().st_mtime, folder, _size(folder)))
        total = sum(size for _, _, size in known)
        for _, folder, size in sorted(known):
            if total <= self.most_bytes:
                return
            _discard(folder)
            total -= size

    def _remove_stale(self) -> None:
        """Remove what processes that were killed left half written or half removed."""
        for path in self.folder.iterdir():
            if path.name.startswith((NEW, GONE)):
                with suppress(OSError):
                    lock = take_lock(path)
                    if lock is not None:
                        with lock:
                            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class CachedStage:
    """A stage whose result may be there already.

    Attributes:
        cache: Where it is looked for, and kept.
        key: What it follows from.
        places: Files and folders that it writes, relative to the bundle.
    """

    cache: StageCache
    key: StageKey
    places: tuple[str, ...] = ()

    def take(self, root: Path, kind: type[T], accept: Callable[[T], bool] = lambda _: True) -> T | None:
        """See ``StageCache.take``."""
        return self.cache.take(self.key, root, self.places, kind, accept)

    def keep(self, root: Path, result: "DataclassInstance") -> None:
        """See ``StageCache.keep``. Nothing is kept where this package's source was changed since the key was made."""
        if self.key.parts.get("coordatt-deploy") == own_source.__wrapped__():
            self.cache.keep(self.key, root, self.places, result)

    def told(self, *, reused: bool) -> str:
        """Say of the result, for people, that it is reused or why it is made; the latter before it is kept."""
        if reused:
            return f"{self.key.name}: reused, made before of the same {', '.join(self.key.parts)}"
        return f"{self.key.name}: made anew, {self._why()}"

    def _why(self) -> str:
        latest = self.cache.latest(self.key)
        if latest is None:
            return "nothing like it was made before"
        return f"other than the last time: {', '.join(latest.differing(self.key)) or 'nothing'}"


def default_cache() -> StageCache:
    """Return the user's cache, where and as large as the environment says.

    Raises:
        UsageError: The size is no size.
    """
    place = os.environ.get(PLACE)
    return StageCache((Path(place) if place else cache_folder()).absolute() / STAGES, _most_bytes())


def _most_bytes() -> int:
    said = os.environ.get(SIZE, "").strip()
    if not said:
        return MOST_BYTES
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", said)
    if found is None or found[2] not in UNITS:
        raise UsageError(f"{SIZE} is {said!r}; write a size with its unit ({', '.join(UNITS)}): 500 MB")
    return int(float(found[1]) * UNITS[found[2]])


def _taken(folder: Path, key: StageKey, root: Path, places: Sequence[str], kind: type[T]) -> T:
    entry = _listed(folder)
    if entry.key.digest != key.digest:
        raise BundleError(f"{folder} holds something else than its name says")
    said = b""
    for file in entry.files:
        source = inside(folder, file.path, ENTRY)
        if file.path == RESULT and file.bytes <= MOST_SAID:
            said = b"".join(_checked(source, file))
            continue
        relative = file.path.removeprefix(f"{FILES}/")
        if relative == file.path or not any(relative == place or relative.startswith(f"{place}/") for place in places):
            raise BundleError(f"{folder} holds {file.path}, which is none of the stage's files")
        target = inside(root, relative, ENTRY)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            stream.writelines(_checked(source, file))
    lost = [place for place in places if not (root / place).exists()]
    if lost:
        raise BundleError(f"{folder} lacks {lost[0]}")
    return from_json(kind, parse(said.decode("utf-8")))


def _listed(folder: Path) -> Entry:
    """Read ``entry.json``."""
    with open_regular(folder / ENTRY) as stream:
        text = stream.read(MOST_LISTED + 1)
    if len(text) > MOST_LISTED:
        raise BundleError(f"{folder / ENTRY} is larger than any of ours")
    entry = load(Entry, text.decode("utf-8"))
    if len(entry.files) > MOST_FILES:
        raise BundleError(f"{folder / ENTRY} lists more files than any of ours")
    return entry


def _checked(path: Path, file: KeptFile) -> Iterator[bytes]:
    """Yield the contents of a file; raise where it is not as large as it was, or not what it was."""
    digest, left = hashlib.sha256(), file.bytes
    with open_regular(path) as stream:
        while block := stream.read(min(1 << 20, left + 1)):
            left -= len(block)
            if left < 0:
                break
            digest.update(block)
            yield block
    if left or digest.hexdigest() != file.sha256:
        raise BundleError(f"{path} is not what was written")


def _copied(file: Path, target: Path, name: str) -> KeptFile:
    """Copy a file and return what is known of the copy."""
    digest, size = hashlib.sha256(), 0
    with open_regular(file) as stream, target.open("xb") as copy:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += copy.write(block)
    return KeptFile(name, size, digest.hexdigest())


def _new_folder(folder: Path) -> tuple[Path, Lock]:
    """Make a folder for an entry that is being written, locked, so that nobody takes it for a dead process's."""
    while True:
        new = Path(tempfile.mkdtemp(dir=folder, prefix=NEW))
        with suppress(FileNotFoundError):
            lock = take_lock(new)
            if lock is not None:
                return new, lock


def _discard(folder: Path) -> None:
    """Remove an entry, at once for all who look for it."""
    with suppress(OSError):
        gone = folder.with_name(f"{GONE}{folder.name[:16]}-{os.getpid()}-{time.monotonic_ns()}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _size(folder: Path) -> int:
    total, waiting = 0, [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total
