"""Files on another machine, known by their hash: only what is missing there travels, and nothing half is kept.

The machine needs a POSIX shell, ``tar`` and ``sha256sum``, no Python. Its store is one folder of files that are named
after their sha256; folders are put together from it. What arrives is checked there before it gets its name, and what
lies there is checked before it is used.
"""

import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from coordatt_deploy.errors import TargetError, UsageError
from coordatt_deploy.files import files_below, sha256
from coordatt_deploy.plain_text import plain
from coordatt_deploy.plurals import counted
from coordatt_deploy.progress import Stages
from coordatt_deploy.targets.ssh.connection import Connection

NEEDED: Final = ("sha256sum", "tar", "xargs", "df")
BATCH_BYTES: Final = 8 << 20  # so much is sent at a time, and is lost at most when the connection is
ALONE_BYTES: Final = 1 << 20  # larger ones are sent by themselves
BATCH_FILES: Final = 2000
SPARE_BYTES: Final = 4 << 20  # that a transfer leaves free
SLOWEST: Final = 20_000.0  # bytes a second: a line that is slower counts as broken
STEP_S: Final = 600.0  # for one script there, on a slow card as well

_HASH: Final = re.compile(r"[0-9a-f]{64}")

# Each script is run as: sh -c SCRIPT sh STORE ARGUMENTS…
_FOLDERS: Final = r"""
umask 077
printf '%s\0' "$HOME" "${XDG_CACHE_HOME:-$HOME/.cache}" "${XDG_DATA_HOME:-$HOME/.local/share}" "$(uname -sm)"
for tool in "$@"; do command -v "$tool" >/dev/null 2>&1 && printf '%s\0' "$tool"; done
exit 0
"""
_KNOWN: Final = r"""
umask 077
mkdir -p "$1" && cd "$1" || exit 1
find . -name '.incoming-*' -mtime +0 -exec rm -rf {} + 2>/dev/null
df -Pk . | tail -n 1
while IFS= read -r name; do [ -f "$name" ] && printf '%s\n' "$name"; done | xargs sha256sum -- /dev/null
"""
# Unpack beside the store, check, rename; a file that is not what its name says is the end of it.
_RECEIVE: Final = r"""
umask 077
new=$1/.incoming-$$
mkdir "$new" || exit 1
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
if [ -n "$2" ]; then cat >"$new/$2" || exit 1; else tar -xf - -C "$new" || exit 1; fi
cd "$new" || exit 1
for name in *; do printf '%s  %s\n' "$name" "$name"; done | sha256sum -c - >/dev/null || exit 1
chmod a-w -- * && mv -f -- * ..
"""
# STORE FOLDER HOW COUNT: a list of fewer lines than COUNT was cut off with the connection, and makes no folder.
_PLACE: Final = r"""
umask 077
store=$1 end=$2 how=$3 placed=0
new=$end.partial-$$
mkdir -p "$new" || exit 1
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
while IFS= read -r line; do
  placed=$((placed + 1))
  path=$new/${line#* }
  mkdir -p "${path%/*}" || exit 1
  if [ "$how" = link ] && ln "$store/${line%% *}" "$path" 2>/dev/null; then continue; fi
  cp "$store/${line%% *}" "$path" && chmod u+w "$path" || exit 1
done
[ "$placed" -eq "$4" ] || { echo "the list of its $4 files was cut off behind $placed" >&2; exit 1; }
rm -rf "$end" && { mv -T "$new" "$end" 2>/dev/null || { [ ! -e "$end" ] && mv "$new" "$end"; }; }
"""
_REMOVE: Final = 'rm -rf -- "$1"'


@dataclass(frozen=True, slots=True)
class FoldersThere:
    """What a machine has, as far as a shell tells.

    Attributes:
        home: Of the user there.
        cache: Where what can be made again is kept.
        data: Where the tool itself is kept.
        system: E.g. ``Linux aarch64``.
        missing: What it lacks of the commands that it needs.
    """

    home: PurePosixPath
    cache: PurePosixPath
    data: PurePosixPath
    system: str
    missing: tuple[str, ...]

    @property
    def store(self) -> PurePosixPath:
        """Of files by their hash."""
        return self.cache / "store"


@dataclass(frozen=True, slots=True)
class Sent:
    """What travelled.

    Attributes:
        files: How many.
        bytes: Of them all.
        known: How many were there already.
    """

    files: int
    bytes: int
    known: int


def folders_there(connection: Connection) -> FoldersThere:
    """Ask a machine where things belong.

    Raises:
        TargetError: It cannot be reached, or lacks a command that it needs.
    """
    answer = connection.check(["sh", "-c", _FOLDERS, "sh", *NEEDED], "say where its home folder is")
    home, cache, data, system, *found = (answer.decode("utf-8", "surrogateescape").split("\0") + [""] * 5)[:-1]
    for path in (home, cache, data):
        if not path.startswith("/") or "\n" in path:
            raise TargetError(f"{connection.address} names no folder of its user: {plain(path)!r}; set HOME there")
    missing = tuple(name for name in NEEDED if name not in found)
    if missing:
        raise TargetError(
            f"{connection.address} lacks {', '.join(missing)}; install coreutils, findutils and tar there (BusyBox has"
            " them all)"
        )
    ours = "coordatt-deploy"
    return FoldersThere(PurePosixPath(home), PurePosixPath(cache) / ours, PurePosixPath(data) / ours, system, missing)


def listed(root: Path, leave_out: Sequence[str] = (), *, follow_links: bool = False) -> dict[str, Path]:
    """Return the files of a folder by their path in it, or a single file by its name.

    Args:
        root: The folder or file.
        leave_out: Names at its top that stay here.
        follow_links: Whether links in it are followed; else they are refused.

    Raises:
        BundleError: Something in it is neither a regular file nor a folder.
        UsageError: It is not there, or a name in it cannot travel.
    """
    if not root.exists():
        raise UsageError(f"{root} is not there; name a file or folder")
    if root.is_file():
        found = {root.name: root}
    elif follow_links:
        found = {path.relative_to(root).as_posix(): path for path in _behind_links(root)}
    else:
        found = {path.relative_to(root).as_posix(): path for path in files_below(root, lambda name: name in leave_out)}
    for name in found:
        if "\n" in name:
            raise UsageError(f"{plain(name)!r} in {root} has a line break in its name; give it another")
    return found


def _behind_links(root: Path) -> Iterator[Path]:
    """The files of a folder of the user's own, as ``data.images.find_images`` meets them: each folder once.

    Raises:
        UsageError: What is no file, such as a link that leads nowhere, would be missing there and is counted here.
    """
    visited = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = Path(folder).resolve()
        if real in visited:  # a link to another one, or to one above
            folders.clear()
            continue
        visited.add(real)
        for name in names:
            path = Path(folder, name)
            if path.is_file():
                yield path
            elif not name.startswith("."):
                raise UsageError(
                    f"{plain(str(path))} is no file or a link that leads nowhere, and cannot travel; remove it"
                )


def hashes_of(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the sha256 of each file, by its path."""
    return {name: sha256(path.resolve()) for name, path in files.items()}


class RemoteFiles:
    """The store of a machine.

    Attributes:
        connection: To the machine.
        folders: Where things belong there.
        sent_bytes: That arrived there so far, over all connections.
    """

    def __init__(self, connection: Connection, folders: FoldersThere | None = None) -> None:
        """Ask the machine for its folders where they are not known.

        Raises:
            TargetError: It cannot be reached, or lacks a command that it needs.
        """
        self.connection = connection
        self.folders = folders or folders_there(connection)
        self.sent_bytes = 0

    def send(self, files: Mapping[str, Path], stages: Stages | None = None) -> Sent:
        """Bring files into the store there, those that it lacks.

        What arrived is kept when the connection is lost in the midst; called again it goes on from there.

        Args:
            files: By their sha256.
            stages: Shows the progress.

        Raises:
            TargetError: The machine cannot be reached, or has no room; how much is needed, and what is free.
            LostConnectionError: The connection was cut.
        """
        known, free = self._look(files)
        waiting = sorted(set(files) - known)
        sizes = {name: files[name].stat().st_size for name in waiting}
        total = sum(sizes.values())
        sent = Sent(len(waiting), total, len(files) - len(waiting))
        if not waiting:
            return sent
        self._check_room(total, free)
        where = f"{counted(len(waiting), 'file')} ({total:,} bytes) to {self.connection.address}"
        with (stages or Stages()).stage(f"send {where}", len(waiting)) as step:
            for batch in _batches(sizes):
                size = sum(sizes[name] for name in batch)
                self._receive(batch, files, size, total)
                self.sent_bytes += size
                for _ in batch:
                    step()
        return sent

    def place(self, files: Mapping[str, str], folder: PurePosixPath, *, linked: bool = False) -> None:
        """Put a folder together from the store: the whole of it appears at once, in the place of one that was there.

        Args:
            files: sha256 by path in the folder; the store has them all.
            folder: Absolute.
            linked: Whether files may be links to the store's, which can only be read; else they are copies.

        Raises:
            TargetError: It cannot be made there, such as for want of room.
        """
        for name, value in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\n" in name or not path.parts or not _HASH.fullmatch(value):
                raise UsageError(f"{plain(name)!r} is no path inside a folder; it is refused")
        lines = "".join(f"{value} {name}\n" for name, value in files.items())
        how = "link" if linked else "copy"
        command = ["sh", "-c", _PLACE, "sh", str(self.folders.store), str(folder), how, str(len(files))]
        answer = self.connection.run(command, stdin=_bytes(lines), timeout_s=STEP_S)
        if answer.status:
            raise TargetError(f"{self.connection.address} cannot put {plain(str(folder))} together: {answer.reason}")

    def remove(self, folder: PurePosixPath) -> None:
        """Remove a folder of ours there with all that is in it.

        Raises:
            TargetError: The machine is gone.
        """
        self.connection.run(["sh", "-c", _REMOVE, "sh", str(folder)], timeout_s=STEP_S, last=True)

    def read(self, path: PurePosixPath, most_bytes: int) -> bytes:
        """Return what a file there holds.

        Raises:
            TargetError: It is not there, or greater than *most_bytes*.
        """
        return self.connection.check(
            ["cat", "--", str(path)], f"read {path.name}", timeout_s=STEP_S, most_bytes=most_bytes
        )

    def _look(self, files: Mapping[str, Path]) -> tuple[set[str], int | None]:
        """Those that the store has, whole; and the bytes that are free there, None where it does not say."""
        lines = "".join(f"{name}\n" for name in files)
        answer = self.connection.check(
            ["sh", "-c", _KNOWN, "sh", str(self.folders.store)],
            "look into its store",
            stdin=lines.encode(),
            timeout_s=STEP_S,
            most_bytes=10_000 + 200 * len(files),
        )
        found = re.findall(rb"^([0-9a-f]{64})  ([0-9a-f]{64})$", answer, re.MULTILINE)
        # Device, and then in KiB: all, used, free.
        disk = re.match(rb".*?\s\d+\s+\d+\s+(\d{1,18})\s", answer)
        free = None if disk is None else int(disk[1]) * 1024
        return {name.decode() for value, name in found if value == name} & set(files), free

    def _check_room(self, total: int, free: int | None) -> None:
        if free is not None and free < total + SPARE_BYTES:
            raise self._full(total, free)

    def _full(self, total: int, free: int | None) -> TargetError:
        has = "" if free is None else f", and {free:,} are free"
        return TargetError(
            f"{self.connection.address} has no room at {plain(str(self.folders.store))}: {total:,} bytes are to be"
            f" sent{has}; free some there, or set XDG_CACHE_HOME there to another disk. Nothing half was left"
        )

    def _receive(self, batch: Sequence[str], files: Mapping[str, Path], size: int, total: int) -> None:
        alone = batch[0] if len(batch) == 1 else ""
        answer = self.connection.run(
            ["sh", "-c", _RECEIVE, "sh", str(self.folders.store), alone],
            stdin=files[alone] if alone else _packed(batch, files),
            timeout_s=STEP_S + size / SLOWEST,
        )
        if answer.status:
            if "No space left" in answer.stderr or "quota exceeded" in answer.stderr:
                raise self._full(total, None)
            raise TargetError(f"{self.connection.address} did not take what was sent: {answer.reason}")


def _batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Split files into what travels at a time: large ones alone, small ones together."""
    batch: list[str] = []
    held = 0
    for name, size in sizes.items():
        if size > ALONE_BYTES:
            yield [name]
            continue
        if batch and (held + size > BATCH_BYTES or len(batch) == BATCH_FILES):
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += size
    if batch:
        yield batch


def _packed(batch: Sequence[str], files: Mapping[str, Path]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in batch:
            data = files[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
