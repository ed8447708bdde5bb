"""Places: where a whole command can be run, here, on an emulated machine, or on another one.

The commands' own JSON is the interface: at a place runs ``coordatt-deploy COMMAND … --json``, and its document comes
back. A place is written like a target, ``here``, ``qemu-arm64:cortex-a53``, or as ``SCHEME://…``. A new kind of machine
is a row of SCHEMES and a folder with a ``place`` module.
"""

import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, Final, Protocol, cast

from coordatt_deploy import targets
from coordatt_deploy.errors import TargetError, UsageError, nearest
from coordatt_deploy.plain_text import plain
from coordatt_deploy.progress import Stages
from coordatt_deploy.run_records import HERE, LONGEST_PLACE, PLACE
from coordatt_deploy.scratch import Scratch

SCHEMES: Final = {"ssh": "coordatt_deploy.targets.ssh.place"}

MOST_BYTES: Final = 64 << 20  # of a document; a profile holds every sample
MOST_SAID: Final = 1 << 16  # of what a command says on stderr
POLL_S: Final = 0.2
END_S: Final = 10.0  # that a command gets to tidy up after it was asked to end
PREFIX: Final = "Error: "  # of the line in which a command says why it failed


@dataclass(frozen=True, slots=True)
class Travelling:
    """A file or folder of this machine that a command reads; it travels to where the command runs.

    Attributes:
        path: Of it.
        follow_links: Whether links in it are followed; those of a user's own images are, those of a bundle never.
        leave_out: Names at its top that need not travel.
    """

    path: Path
    follow_links: bool = False
    leave_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """A command to run at a place.

    Attributes:
        command: Its name.
        words: Its arguments, and what it reads.
        writes: Whether it writes its document with ``--output``; else that is what it prints.
    """

    command: str
    words: tuple[str | Travelling, ...] = ()
    writes: bool = True


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a command at a place left behind.

    Attributes:
        status: Its exit code.
        document: What it wrote, as it came; None where it wrote nothing. Words of another machine.
        reason: Why it failed, in its own words; empty where it said nothing.
        names: What each path of what travelled is called here, by what it is called there.
        sent_bytes: That travelled there.
    """

    status: int
    document: bytes | None
    reason: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PlaceName:
    """A place, as it was written and as reports call it.

    Attributes:
        text: In the form that ``--target`` takes.
        name: In reports.
        origin: What the runs that it writes name as their place: ``here`` for a machine that speaks of itself.
    """

    text: str
    name: str
    origin: str = HERE


class Place(Protocol):
    """Somewhere that commands can be run."""

    def run(self, order: Order, stages: Stages) -> Delivery:
        """Run a command and return what it left behind.

        Raises:
            TargetError: It could not be run to its end; the text says why and what to do.
            MissingDependencyError: Something that is needed to get there is not installed here.
        """

    def set_up(self, stages: Stages) -> tuple[str, ...]:
        """Bring there what commands need, or find that it is there; returns what was done, a line each.

        Raises:
            TargetError: A step failed; which, why, and what to do.
            MissingDependencyError: Something that is needed for it is not installed here.
        """


class PlaceModule(Protocol):
    """What the ``place`` module of a scheme offers."""

    def name_of(self, text: str) -> PlaceName:
        """Read an address.

        Raises:
            UsageError: It is none.
        """

    def open_place(self, text: str, tool: str | None, stopped: threading.Event) -> Place:
        """Return the place at an address; nothing is connected yet.

        Args:
            text: The address.
            tool: Path of ``coordatt-deploy`` there; None for where it is found by itself.
            stopped: Set when the work is to end.
        """


def is_elsewhere(text: str) -> bool:
    """Whether *text* is written like an address: what runs there runs a command of its own."""
    return "://" in text


def is_name(text: str) -> bool:
    """Whether another machine may be called *text* in reports, where it is not taken for one that is here."""
    known = text == HERE or text.startswith(tuple(targets.TARGETS))
    return PLACE.fullmatch(text) is not None and len(text) <= LONGEST_PLACE and not known


def name_of(text: str) -> PlaceName:
    """Read ``here``, ``qemu-arm64[:cpu]`` or an address.

    Raises:
        UsageError: It is none of these.
    """
    if text == HERE:
        return PlaceName(HERE, HERE)
    if is_elsewhere(text):
        found = _module(text).name_of(text)
        name = found.name[:LONGEST_PLACE]
        if not is_name(name):
            raise UsageError(
                f"{text} would be called {name!r} in reports, which is no name for another machine; give it one in a"
                f' file: [hosts.board] address = "{text}", and --targets FILE'
            )
        return PlaceName(found.text, name, found.origin)
    target = str(targets.parse(text))
    return PlaceName(target, target, target)


def open_place(text: str, *, tool: str | None = None, stopped: threading.Event | None = None) -> Place:
    """Return the place of this name; see ``name_of``.

    Args:
        text: As it was written.
        tool: Path of ``coordatt-deploy`` there; None for where it is found by itself.
        stopped: Set, from any thread, when the work is to end.

    Raises:
        UsageError: It names no place.
    """
    name, event = name_of(text), stopped or threading.Event()
    if is_elsewhere(name.text):
        return _module(name.text).open_place(name.text, tool, event)
    return LocalPlace(None if name.text == HERE else name.text, event)


def _module(text: str) -> PlaceModule:
    scheme = text.partition("://")[0]
    if scheme not in SCHEMES:
        raise UsageError(f"no place is reached by {plain(scheme)!r}; {nearest(scheme, SCHEMES)}")
    return cast("PlaceModule", import_module(SCHEMES[scheme]))


def _here(word: str | Travelling) -> str:
    return word if isinstance(word, str) else str(word.path)


def reason_in(said: str) -> str:
    """Return why a command failed, out of what it said on stderr; empty where it did not say."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    return plain((errors or lines or [""])[-1])[:600]


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """This machine, or one that is emulated on it: the command runs in a process of its own.

    Attributes:
        target: The emulated machine; None for this one.
        stopped: Set when the work is to end.
    """

    target: str | None
    stopped: threading.Event

    def run(self, order: Order, stages: Stages) -> Delivery:
        """See ``Place``."""
        with Scratch() as folder:
            words = [sys.executable, "-Pm", "coordatt_deploy", order.command, *map(_here, order.words), "--json"]
            words += [] if self.target is None else ["--target", self.target]
            written = folder / ("output.json" if order.writes else "stdout")
            words += ["--output", str(written)] if order.writes else []
            with (
                stages.stage(f"{order.command} on {self.target or 'this machine'}"),
                (folder / "stdout").open("wb") as out,
                (folder / "stderr").open("wb") as said,
            ):
                status = self._run(words, out, said)
            text = (folder / "stderr").read_bytes()[-MOST_SAID:].decode("utf-8", "replace")
            document = written.read_bytes() if written.exists() else None
        return Delivery(status, document or None, reason_in(text))

    def set_up(self, stages: Stages) -> tuple[str, ...]:
        """See ``Place``."""
        if self.target is None:
            raise UsageError("this machine is what runs the command; name a target that is to be set up")
        status = targets.setup(self.target, stages.progress)
        return (f"{status.name} is {status.state} at {status.path}",)

    def _run(self, words: list[str], out: IO[bytes], said: IO[bytes]) -> int:
        process = subprocess.Popen(  # noqa: S603 - this program itself
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=said, start_new_session=True
        )  # fmt: skip
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(POLL_S)
                if self.stopped.is_set():
                    raise TargetError("it was ended with the rest")
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
            return
        process.kill()
        process.wait()
