"""How long work tells how far it is. The core speaks to this protocol; only the command line draws bars."""

import enum
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Protocol


class Verbosity(enum.IntEnum):
    """How much is said of the work while it goes on."""

    QUIET = 0
    USUAL = 1
    VERBOSE = 2


# Set by ``--quiet`` and ``--verbose`` of the command line.
VERBOSITY: Final[ContextVar[Verbosity]] = ContextVar("verbosity", default=Verbosity.USUAL)


class Progress(Protocol):
    """Something that shows the progress of named stages."""

    def start(self, stage: str, total: int | None) -> int:
        """Begin a stage of *total* steps (None: unknown); returns its handle."""

    def advance(self, handle: int) -> None:
        """One step is done."""

    def finish(self, handle: int) -> None:
        """The stage is done."""

    def note(self, text: str) -> None:
        """Say something that the user should know before the work goes on."""


class Silent:
    """Shows nothing."""

    def start(self, stage: str, total: int | None) -> int:  # noqa: ARG002
        """See ``Progress``."""
        return 0

    def advance(self, handle: int) -> None:
        """See ``Progress``."""

    def finish(self, handle: int) -> None:
        """See ``Progress``."""

    def note(self, text: str) -> None:
        """See ``Progress``."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step that was taken, and the seconds it took."""

    name: str
    seconds: float


@dataclass
class Stages:
    """Keeps the time that each stage took, and shows it."""

    progress: Progress = field(default_factory=Silent)
    taken: list[Stage] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Say something that the user should know before the work goes on."""
        self.progress.note(text)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Time a stage; the value is called once per step."""
        handle = self.progress.start(name, total)
        begun = time.monotonic()
        try:
            yield lambda: self.progress.advance(handle)
        finally:
            self.progress.finish(handle)
        self.taken.append(Stage(name, round(time.monotonic() - begun, 3)))
