"""Progress, plain lines and the next step on the terminal."""

import io
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.plain_text import plain
from coordatt_deploy.profile.result import ProfileResult
from coordatt_deploy.progress import VERBOSITY, Stages, Verbosity
from coordatt_deploy.report.terminal.tables import broken
from coordatt_deploy.runtimes.host_effects import FAMILIES
from coordatt_deploy.streams import print_anywhere

WIDTH_WHEN_PIPED = 160
SILENCE_S: Final = 10.0  # longest silence of a stage that counts its steps


class _Bars:
    """``progress.Progress`` drawn with rich."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars

    def start(self, stage: str, total: int | None) -> int:
        return int(self.bars.add_task(plain(stage), total=total))

    def advance(self, handle: int) -> None:
        self.bars.advance(handle)  # type: ignore[arg-type]

    def finish(self, handle: int) -> None:
        task = self.bars.tasks[handle]
        self.bars.update(handle, total=task.total or 1, completed=task.total or 1)  # type: ignore[arg-type]

    def note(self, text: str) -> None:
        self.bars.console.print(line(text, style="yellow"))


class Lines:
    """``progress.Progress`` as plain lines: what begins, how far it is every ten seconds, and how long it took.

    For CI logs and pipes, where a bar shows nothing until it is over.
    """

    def __init__(self, stream: TextIO, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._verbose, self._clock = stream, verbose, clock
        self._begun = self._told = clock()
        self._stages: list[tuple[str, int | None, float]] = []
        self._done: list[int] = []

    def start(self, stage: str, total: int | None) -> int:
        """See ``progress.Progress``."""
        self._stages.append((plain(stage), total, self._clock()))
        self._done.append(0)
        self._say(plain(stage))
        return len(self._stages) - 1

    def advance(self, handle: int) -> None:
        """See ``progress.Progress``."""
        self._done[handle] += 1
        if self._clock() - self._told >= SILENCE_S:
            name, total, _ = self._stages[handle]
            of = "" if total is None else f" of {total}"
            self._say(f"{name}: {self._done[handle]}{of}")

    def finish(self, handle: int) -> None:
        """See ``progress.Progress``."""
        name, _, begun = self._stages[handle]
        if self._verbose:
            self._say(f"{name}: done in {self._clock() - begun:.1f} s")

    def note(self, text: str) -> None:
        """See ``progress.Progress``."""
        self._say(f"note: {plain(text)}")

    def _say(self, text: str) -> None:
        self._told = self._clock()
        minutes, seconds = divmod(int(self._told - self._begun), 60)
        self._stream.write(f"{minutes}:{seconds:02d} {text}\n")
        self._stream.flush()


@contextmanager
def bars() -> Iterator[Stages]:
    """Show the stages on stderr while the block runs: bars on a terminal, plain lines elsewhere, nothing if quiet.

    They have a descriptor of their own: stages redirect stderr itself to keep converters off the screen.
    """
    verbosity = VERBOSITY.get()
    if verbosity is Verbosity.QUIET:
        yield Stages()
        return
    with os.fdopen(os.dup(2), "w") as stream:
        print_anywhere(stream)
        console = Console(file=stream, stderr=True)
        verbose = verbosity is Verbosity.VERBOSE
        if verbose or not console.is_terminal:
            yield Stages(Lines(stream, verbose=verbose))
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield Stages(_Bars(progress))


_RECORDING: Final[ContextVar[Console | None]] = ContextVar("_RECORDING", default=None)


@contextmanager
def recorded(width: int) -> Iterator[Console]:
    """Give a console of so many columns that keeps what is shown in the block, where nothing is printed."""
    console = Console(file=io.StringIO(), record=True, width=width, force_terminal=True, force_jupyter=False)
    token = _RECORDING.set(console)
    try:
        yield console
    finally:
        _RECORDING.reset(token)


def new_console() -> Console:
    """Return stdout; where it is no terminal as wide as ``COLUMNS`` says, or wide."""
    if (recording := _RECORDING.get()) is not None:
        return recording
    console = Console()
    if console.is_terminal or os.environ.get("COLUMNS", "").isdecimal():
        return console
    return Console(width=WIDTH_WHEN_PIPED)


def line(text: str, style: str = "") -> Text:
    """Return a text to print as it stands: no markup in it is obeyed, and no control character reaches the terminal."""
    return Text(plain(text), style=style)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text as it stands, in lines that break between words, or behind the dots of a longer name."""
    lines = broken(plain(text), console.width)
    console.print(Text("\n".join(lines), style=style, no_wrap=True))


def show_next(*steps: tuple[str, str]) -> None:
    """Say what to type next: pairs of a command line and what it is for. Nothing if quiet."""
    if VERBOSITY.get() is Verbosity.QUIET or not steps:
        return
    console = new_console()
    console.print(line("next:", style="dim"))
    longest = max(len(command) for command, _ in steps)
    for command, purpose in steps:
        # a terminal wraps it as one line, which can be copied as one
        fits = longest + len(purpose) + 6 <= console.width
        text = f"  {command:{longest}}  # {purpose}" if fits else f"  {command}"
        console.print(line(text), soft_wrap=True)


def bundle_command(command: str, bundle: Path, *options: str) -> str:
    """Return ``coordatt-deploy parity 'my bundle' --layers``: a command line that can be typed as it stands."""
    return " ".join(["coordatt-deploy", command, shlex.quote(str(bundle)), *map(shlex.quote, options)])


def size(count: int) -> str:
    """``1.9 MB``."""
    if count < 100:
        return f"{count} B"
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def count(value: int) -> str:
    """``3,950,648``."""
    return f"{value:,}"


def label(artifact: Artifact) -> Text:
    """``onnx fp32 arm64``: what tells an artifact from the others of its bundle."""
    parts = (artifact.format.value, artifact.recipe or artifact.precision.value, artifact.target_cpu)
    return line(" ".join(part for part in parts if part))


def fed(profile: ProfileResult) -> str:
    """``one image of 96x96``, ``image 1x3x96x96 and prior 1x8x20x20``: what was timed, above all of a dynamic size."""
    shapes = list(profile.inputs.values())
    if not shapes:  # a report of an older version
        return "one image"
    if len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][0] == 1:
        return f"one image of {shapes[0][2]}x{shapes[0][3]}"
    if len(shapes) == 1 and len(shapes[0]) == 4:
        return f"a batch of {shapes[0][0]} images of {shapes[0][2]}x{shapes[0][3]} together"
    return " and ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in profile.inputs.items())


def host_line(profile: ProfileResult) -> str:
    """Say what a profile was taken on, and what its figures do not say."""
    host = profile.host
    text = f"latency: {fed(profile)} on {host.cpu}, {host.os}; the evaluator's time says nothing about a phone"
    cpus = {item.target_cpu for item in profile.results} - {None, FAMILIES.get(host.architecture)}
    if cpus:
        names = " and ".join(sorted(filter(None, cpus)))
        text += f"; the {names} form is made for another CPU than this one and is slower here"
    return text
