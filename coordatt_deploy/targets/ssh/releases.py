"""Versions of a bundle on a machine, of which one is current.

    releases/NAME-0123456789ab/          a version: a whole bundle, nothing in it changes
    releases/NAME-0123456789ab.sha256    what its files are; there when all of them are
    current -> releases/NAME-…           the one that apps open
    history                              versions in the order in which they became current
    .lock/                               held by who changes any of it

Everything is done by the machine's shell, in an order in which a kill or a power cut at any moment leaves ``current``
on a whole version: a version gets its name when its files are there and proven, ``current`` is exchanged by one rename,
and what is removed loses its name first. ``history`` is written before ``current`` moves; what it holds behind the
current version is of a switch that did not happen.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from uuid import uuid4

from coordatt_deploy.errors import TargetError
from coordatt_deploy.plain_text import plain
from coordatt_deploy.plurals import counted
from coordatt_deploy.targets.ssh.connection import Answer, Connection, shortened
from coordatt_deploy.targets.ssh.files import STEP_S, RemoteFiles

MOST_HISTORY: Final = 100
MOST_BYTES: Final = 1 << 20  # of what a script says
HELD: Final = "held "
READY: Final = "ready"

_VERSION: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}")
_LINK: Final = re.compile(rf"releases/({_VERSION.pattern})/?")

# Each is run as: sh -c SCRIPT sh ROOT ARGUMENTS…
_STATUS: Final = r"""
cd "$1" 2>/dev/null || exit 0
if [ -L current ]; then printf 'current %s\n' "$(readlink current)"
elif [ -e current ]; then echo blocked; fi
[ -f history ] && tail -n 100 history | sed 's/^/history /'
for list in releases/*.sha256; do
  name=${list##*/} name=${name%.sha256}
  [ -d "releases/$name" ] && printf 'whole %s\n' "$name"
done
for path in releases/*/; do [ -d "$path" ] && path=${path%/} && printf 'taken %s\n' "${path##*/}"; done
exit 0
"""
# Which process a number stands for: another one may have it after a while, or after a start of the machine.
_PROCESSES: Final = r"""
begun() {
  { cat /proc/sys/kernel/random/boot_id; sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20; } 2>/dev/null | tr '\n' .
}
runs() { { kill -0 "$1" || [ -d "/proc/$1" ]; } 2>/dev/null && [ "$(begun "$1")" = "$2" ]; }
holder() { pid= start= who=; { IFS= read -r pid; IFS= read -r start; IFS= read -r who; } 2>/dev/null <"$lock/holder"; }
"""
# The lock lives as long as this script, and the script as long as the connection: its end is the end of what it reads.
# Of a lock whose script is gone (the machine lost its power) one of those who find it takes possession.
_LOCK: Final = (
    _PROCESSES
    + r"""
umask 022
lock=$1/.lock
mkdir -p "$1/releases" || exit 1
if ! mkdir "$lock" 2>/dev/null; then
  if [ ! -d "$lock" ]; then mkdir "$lock" || exit 1; fi
  holder
  if [ -n "$pid" ] && runs "$pid" "$start"; then printf 'held %s\n' "$who"; exit 0; fi
  if [ -z "$pid" ] && [ -n "$(find "$lock" -prune -mmin -1)" ]; then echo "held another command"; exit 0; fi
  find "$lock/taken" -prune -mmin +1 -exec rmdir {} \; 2>/dev/null
  mkdir "$lock/taken" 2>/dev/null || { echo "held another command"; exit 0; }
  holder
  if [ -n "$pid" ] && runs "$pid" "$start"; then rmdir "$lock/taken"; printf 'held %s\n' "$who"; exit 0; fi
fi
trap '[ "$(sed -n 4p "$lock/holder" 2>/dev/null)" = "$3" ] && rm -rf "$lock"' EXIT
trap 'exit 1' HUP INT TERM
# Through cat, as everywhere: it says why it cannot write, where printf of some shells calls it an I/O error.
printf '%s\n' "$$" "$(begun $$)" "$2" "$3" | cat >"$lock/holder.$3" && mv -f "$lock/holder.$3" "$lock/holder" ||
  { rm -rf "$lock"; exit 1; }
rmdir "$lock/taken" 2>/dev/null
# What commands that were killed left: nobody is at work on it now.
rm -f "$1"/.current.* "$1"/.history.*
for path in "$1"/releases/.incoming-* "$1"/releases/.removed-* "$1"/releases/.list-* "$1"/releases/.proof-*; do
  [ -e "$path" ] && rm -rf "$path"
done
echo ready
cat >/dev/null
"""
)
_VERIFY: Final = r"""
LC_ALL=C; export LC_ALL
cd "$1" || exit 1
printf '%s\n' "$(find . ! -type d | wc -l)" "$(find . ! -type d ! -type f | wc -l)"
sha256sum -c - 2>/dev/null
exit 0
"""
_LIST: Final = 'cat "$1/releases/$2.sha256"'
_OURS: Final = r"""
cd "$1" || exit 1
[ "$(sed -n 4p .lock/holder 2>/dev/null)" = "$2" ] || { echo "the lock there was lost" >&2; exit 1; }
"""
# ROOT TOKEN VERSION FOLDER, and the list on stdin, whose last line says that it is whole. Apps may run as other users.
_ADMIT: Final = (
    _OURS
    + r"""
list=releases/.list-$2
cat >"$list" || exit 1
[ "$(tail -n 1 "$list")" = end ] || { echo "the list was cut off" >&2; exit 1; }
sed '$d' "$list" >"$list.sha256" && rm -f "$list" || exit 1
[ ! -e "releases/$3" ] || { echo "releases/$3 is there already" >&2; exit 1; }
chmod -R a+rX "releases/$4" || exit 1
mv "releases/$4" "releases/$3" && mv -f "$list.sha256" "releases/$3.sha256"
"""
)
# ROOT TOKEN VERSION HISTORY…; -T: not into the folder that current leads to. Where mv has no such option, Python.
_SWITCH: Final = (
    _OURS
    + r"""
token=$2 version=$3
shift 3
[ -d "releases/$version" ] && [ -f "releases/$version.sha256" ] || { echo "releases/$version is gone" >&2; exit 1; }
printf '%s\n' "$@" | cat >".history.$token" && mv -f ".history.$token" history || exit 1
ln -s "releases/$version" ".current.$token" || exit 1
sync
mv -fT ".current.$token" current 2>/dev/null ||
  python3 -c 'import os, sys; os.replace(*sys.argv[1:])' ".current.$token" current 2>/dev/null
if [ "$(readlink current)" != "releases/$version" ]; then
  rm -f ".current.$token"
  echo "neither mv -T nor python3 is there to exchange a link in one step" >&2; exit 1
fi
sync
"""
)
# ROOT TOKEN STORE KEPT…
_PRUNE: Final = (
    _OURS
    + r"""
token=$2 store=$3
shift 3
kept=" $* "
cd releases || exit 1
for path in *; do
  name=${path%.sha256}
  case $kept in *" $name "*) continue ;; esac
  case $name in *[!A-Za-z0-9._-]*) continue ;; esac
  [ -f "$name.sha256" ] && mv -f "$name.sha256" ".removed-$token-$name.sha256"
  [ -d "$name" ] && mv "$name" ".removed-$token-$name"
done
for path in ".removed-$token-"*; do
  [ -d "$path" ] && rm -rf "$path"
done
for list in ".removed-$token-"*.sha256; do
  [ -f "$list" ] || continue
  while IFS=' ' read -r value _; do
    [ "$(stat -c %h "$store/$value" 2>/dev/null)" = 1 ] && rm -f "$store/$value"
  done <"$list"
  rm -f "$list"
done
exit 0
"""
)
_SET_ASIDE: Final = (
    _OURS
    + r"""
cd releases || exit 1
rm -f "$3.sha256"
mv "$3" ".removed-$2-$3"
rm -rf ".removed-$2-$3"
"""
)


@dataclass(frozen=True, slots=True)
class ReleasesThere:
    """What a machine has of versions.

    Attributes:
        current: The version that ``current`` leads to; None where there is no such link.
        history: Versions in the order in which they became current; the last is the current one.
        whole: Versions that were proven when they came.
        taken: All names of folders that are there.
        blocked: Why ``current`` cannot be exchanged; None where it can.
    """

    current: str | None = None
    history: tuple[str, ...] = ()
    whole: frozenset[str] = frozenset()
    taken: frozenset[str] = frozenset()
    blocked: str | None = None

    @property
    def before(self) -> str | None:
        """The version to go back to; None where there is none."""
        earlier = [version for version in self.history[:-1] if version != self.current and version in self.whole]
        return earlier[-1] if earlier else None

    def with_current(self, version: str) -> tuple[str, ...]:
        """The history when *version* becomes current."""
        return (*self.history, version)[-MOST_HISTORY:]

    def back_to(self, version: str) -> tuple[str, ...]:
        """The history when the machine goes back to *version*, which is in it."""
        last = max(at for at, name in enumerate(self.history) if name == version)
        return self.history[: last + 1]

    def kept(self, version: str, count: int) -> tuple[str, ...]:
        """*version*, when it is current, and the last ones before it, *count* together."""
        return tuple(dict.fromkeys((version, *reversed(self.history))))[:count]


class Releases:
    """The versions below one folder of a machine.

    Attributes:
        connection: To the machine.
        root: The folder, absolute.
    """

    def __init__(self, connection: Connection, root: PurePosixPath) -> None:
        """Keep both; nothing is done yet."""
        self.connection, self.root = connection, root

    def status(self) -> ReleasesThere:
        """Look what is there; nothing is written.

        Raises:
            TargetError: The machine cannot be reached.
        """
        answer = self._script(_STATUS, "list its releases").stdout.decode("utf-8", "replace")
        found: dict[str, list[str]] = {"current": [], "history": [], "whole": [], "taken": []}
        blocked = None
        for line in answer.splitlines():
            key, _, value = line.partition(" ")
            if key == "blocked":
                blocked = f"{self.root}/current is no link; move it away"
            elif key == "current" and _LINK.fullmatch(value) is None:
                blocked = f"{self.root}/current leads to {shortened(value)!r}, which is no release; move it away"
            elif key in found:
                name = value.removeprefix("releases/").rstrip("/") if key == "current" else value
                if _VERSION.fullmatch(name):
                    found[key].append(name)
        current = found["current"][0] if found["current"] else None
        history = found["history"]
        if current is None:
            history = []
        elif current in history:
            del history[len(history) - history[::-1].index(current) :]
        else:
            history.append(current)
        return ReleasesThere(
            current, tuple(history[-MOST_HISTORY:]), frozenset(found["whole"]), frozenset(found["taken"]), blocked
        )

    @contextmanager
    def locked(self, who: str) -> Iterator[str]:
        """Keep others from the folder, as long as the connection lasts; give the token that the changes ask for.

        Args:
            who: What others are told of who holds it.

        Raises:
            TargetError: Another holds it; who, if that is known. Or the folder cannot be made.
        """
        token = uuid4().hex
        argv = ["sh", "-c", _LOCK, "sh", str(self.root), plain(who), token]
        with self.connection.held(argv) as said:
            if said.startswith(HELD):
                raise TargetError(
                    f"{self.root} is being changed by {shortened(said.removeprefix(HELD))}; run this again when that"
                    " has ended"
                )
            if said != READY:
                raise TargetError(f"{self.root} cannot be locked: {shortened(said) or 'the shell there said nothing'}")
            yield token

    def incoming(self, token: str) -> PurePosixPath:
        """A folder for a version that is not proven yet; the next who takes the lock removes it."""
        return self.root / "releases" / f".incoming-{token}"

    def folder(self, version: str) -> PurePosixPath:
        """Where a version lies."""
        return self.root / "releases" / version

    def why_not_whole(self, folder: PurePosixPath, hashes: Mapping[str, str]) -> str | None:
        """Hash a folder there: what is wrong with it, or None where it holds these files and nothing else.

        Args:
            folder: Absolute.
            hashes: sha256 of each file by its path.
        """
        answer = self._script(_VERIFY, "hash what arrived", stdin=_lines(hashes), root=folder)
        files, others, *lines = [*answer.stdout.decode("utf-8", "replace").splitlines(), "", ""]
        failed = [line.removesuffix(": FAILED") for line in lines if line.endswith(": FAILED")]
        if failed:
            return f"{shortened(failed[0])} is not what was sent"
        if [files.strip(), others.strip()] != [str(len(hashes)), "0"]:
            return f"it holds {shortened(files.strip())} files, expected {len(hashes)}"
        whole = sum(line.endswith(": OK") for line in lines)
        return None if whole == len(hashes) else f"of {counted(len(hashes), 'file')} {whole} are there"

    def hashes(self, version: str) -> dict[str, str]:
        """The sha256 of each file of a version, as it was when it came.

        Raises:
            TargetError: The list is gone or damaged.
        """
        answer = self._script(_LIST, f"read the list of {version}", version)
        lines = answer.stdout.decode("utf-8", "replace").splitlines()
        parts = [line.partition("  ") for line in lines]
        found = {path: value for value, _, path in parts if re.fullmatch(r"[0-9a-f]{64}", value)}
        if not found:
            raise TargetError(f"{self.root}/releases/{version}.sha256 is damaged; deploy that version again")
        return found

    def admit(self, token: str, version: str, hashes: Mapping[str, str]) -> None:
        """Give what was brought into ``incoming`` its name, now that it is proven."""
        stdin = _lines(hashes) + b"end\n"
        self._script(_ADMIT, f"admit {version}", token, version, self.incoming(token).name, stdin=stdin)

    def switch(self, token: str, version: str, history: Sequence[str]) -> None:
        """Let ``current`` lead to *version*, in one step."""
        self._script(_SWITCH, f"switch to {version}", token, version, *history)

    def set_aside(self, token: str, version: str) -> None:
        """Remove a version that is damaged and not current."""
        self._script(_SET_ASIDE, f"remove {version}", token, version)

    def prune(self, token: str, files: RemoteFiles, kept: Sequence[str]) -> None:
        """Remove all versions but these, and what only those used of the store."""
        self._script(_PRUNE, "remove old versions", token, str(files.folders.store), *kept)

    def _script(
        self, script: str, what: str, *arguments: str, stdin: bytes | None = None, root: PurePosixPath | None = None
    ) -> Answer:
        argv = ["sh", "-c", script, "sh", str(root or self.root), *arguments]
        answer = self.connection.run(argv, stdin=stdin, timeout_s=STEP_S, most_bytes=MOST_BYTES * 16)
        if answer.status:
            raise TargetError(f"{self.connection.address} cannot {what}: {answer.reason}")
        return answer


def _lines(hashes: Mapping[str, str]) -> bytes:
    return "".join(f"{value}  {path}\n" for path, value in hashes.items()).encode()
