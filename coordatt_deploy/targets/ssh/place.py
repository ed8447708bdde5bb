"""A machine that ssh reaches, as a place that commands are run at."""

import threading
import uuid
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from coordatt_deploy.errors import TargetError
from coordatt_deploy.plain_text import plain
from coordatt_deploy.progress import Stages
from coordatt_deploy.targets.places import MOST_BYTES, Delivery, Order, Place, PlaceName, Travelling, reason_in
from coordatt_deploy.targets.ssh.address import SshAddress, parse_address
from coordatt_deploy.targets.ssh.connection import Connection
from coordatt_deploy.targets.ssh.files import FoldersThere, RemoteFiles, folders_there, hashes_of, listed
from coordatt_deploy.targets.ssh.jobs import Job, persistently
from coordatt_deploy.targets.ssh.setup import TOOL, set_up

OUTPUT: Final = "output.json"

# Which of the paths given can be run, or else the one on PATH; and whether there is a Python at all.
_FIND: Final = r"""
for tool in "$@"; do if [ -x "$tool" ]; then printf '%s\0' "$tool"; exit 0; fi; done
if [ $# -gt 1 ]; then command -v coordatt-deploy 2>/dev/null | tr '\n' '\0'; fi
printf '\0'
command -v python3 >/dev/null 2>&1 && printf python3
exit 0
"""
_OLD: Final = r"""
umask 077
mkdir -p "$1" && cd "$1" || exit 1
for old in $(find . -maxdepth 1 -name 'job-*' -mtime +1 2>/dev/null); do
  kill -0 "$(cat "$old/pid" 2>/dev/null)" 2>/dev/null || rm -rf "$old"
done
mkdir -p "$2"
"""


def name_of(text: str) -> PlaceName:
    """See ``places.PlaceModule``."""
    address = parse_address(text)
    return PlaceName(str(address), address.place)


def open_place(text: str, tool: str | None, stopped: threading.Event) -> Place:
    """See ``places.PlaceModule``."""
    return SshPlace(parse_address(text), tool, stopped)


@dataclass(frozen=True, slots=True)
class SshPlace:
    """A machine that ssh reaches.

    Attributes:
        address: Of the machine.
        tool: Path of ``coordatt-deploy`` there; None for where ``doctor --setup`` put it, or for the one on PATH.
        stopped: Set when the work is to end.
    """

    address: SshAddress
    tool: str | None = None
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, order: Order, stages: Stages) -> Delivery:
        """See ``Place``."""
        with Connection(self.address, stopped=self.stopped) as connection:
            folders = persistently(connection, lambda: folders_there(connection), self.stopped)
            tool = persistently(connection, lambda: find_tool(connection, folders, self.tool), self.stopped)
            files = RemoteFiles(connection, folders)
            job = folders.cache / "jobs" / f"job-{uuid.uuid4().hex}"
            made = ["sh", "-c", _OLD, "sh", str(job.parent), job.name]
            persistently(connection, lambda: connection.check(made, "make a folder for the command"), self.stopped)
            try:
                words, names = self._delivered(order, job, files, stages)
                words += ["--json"]
                words += ["--output", OUTPUT] if order.writes else []
                with stages.stage(f"{order.command} on {self.address}"):
                    run = Job(connection, job, self.stopped)
                    try:
                        run.start([tool, order.command, *words])
                        status = run.wait()
                    except BaseException:
                        run.end()
                        raise
                    said, document = run.result(OUTPUT if order.writes else "stdout", MOST_BYTES)
                return Delivery(status, document, reason_in(said), names, files.sent_bytes)
            finally:
                self._remove(files, job)

    def set_up(self, stages: Stages) -> tuple[str, ...]:
        """See ``Place``."""
        with Connection(self.address, stopped=self.stopped) as connection:
            return set_up(connection, stages)

    def _delivered(
        self, order: Order, job: PurePosixPath, files: RemoteFiles, stages: Stages
    ) -> tuple[list[str], dict[str, str]]:
        """Bring what the command reads there; return its words as they are there, and what each path is called here."""
        words: list[str] = []
        names: dict[str, str] = {}
        for number, word in enumerate(order.words):
            if isinstance(word, str):
                words.append(word)
                continue
            # Relative, so that what is told of it is the same the next time.
            # By its name here, also where that is a link to another one: a reader goes by what it ends in (.npz).
            name = word.path.name if word.path.name not in ("", "..") else word.path.resolve().name
            path = PurePosixPath(str(number)) / name
            self._deliver(word, job / path, files, stages)
            words.append(str(path))
            names[str(path)] = str(word.path)
        return words, names

    def _deliver(self, item: Travelling, end: PurePosixPath, files: RemoteFiles, stages: Stages) -> None:
        with stages.stage(f"hash {item.path.name}"):
            local = listed(item.path, item.leave_out, follow_links=item.follow_links)
            hashes = hashes_of(local)
        by_hash = {hashes[name]: path for name, path in local.items()}
        persistently(files.connection, lambda: files.send(by_hash, stages), self.stopped)
        folder, content = (
            (end.parent, {end.name: next(iter(hashes.values()))}) if item.path.is_file() else (end, hashes)
        )
        persistently(files.connection, lambda: files.place(content, folder, linked=True), self.stopped)

    def _remove(self, files: RemoteFiles, job: PurePosixPath) -> None:
        """Remove the job's folder; the next command does so where the machine is gone."""
        try:
            files.remove(job)
        except TargetError:
            return


def find_tool(connection: Connection, folders: FoldersThere, tool: str | None) -> str:
    """Return the path of ``coordatt-deploy`` there.

    Args:
        connection: To the machine.
        folders: Where things belong there.
        tool: Where the user says that it is, which may begin with ``~/``; None for the usual places.

    Raises:
        TargetError: It is not there; what to do about it.
    """
    if tool is None:
        candidates = [str(folders.data / TOOL), ""]
    else:
        candidates = [str(folders.home / tool[2:]) if tool.startswith("~/") else tool]
    answer = connection.check(["sh", "-c", _FIND, "sh", *candidates], "look for coordatt-deploy")
    found, _, rest = answer.decode("utf-8", "surrogateescape").partition("\0")
    if found:
        return found
    if tool is not None:
        raise TargetError(f"{connection.address} has no {plain(tool)} that can be run; correct tool in the file")
    if "python3" not in rest:
        raise TargetError(
            f"{connection.address} has no python3; install Python 3.11 or later there, such as with: apt-get install"
            f" python3 python3-venv; then: coordatt-deploy doctor --setup {connection.address}"
        )
    raise TargetError(
        f"{connection.address} has no coordatt-deploy; put it there with: coordatt-deploy doctor --setup"
        f" {connection.address}"
    )
