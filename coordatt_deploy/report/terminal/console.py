"""Tables and progress bars on the terminal."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.plain_text import plain
from coordatt_deploy.profile.result import ProfileResult
from coordatt_deploy.progress import Stages
from coordatt_deploy.runtimes.host_effects import FAMILIES

WIDTH_WHEN_PIPED = 160


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


@contextmanager
def bars() -> Iterator[Stages]:
    """Show the stages on stderr while the block runs.

    The bars have a descriptor of their own: stages redirect stderr itself to keep converters off the screen.
    """
    with os.fdopen(os.dup(2), "w") as stream:
        console = Console(file=stream, stderr=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            yield Stages(_Bars(progress))


def new_console() -> Console:
    """Return stdout; wide where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_WHEN_PIPED)


def line(text: str, style: str = "") -> Text:
    """Return a text to print as it stands: no markup in it is obeyed, and no control character reaches the terminal."""
    return Text(plain(text), style=style)


class PlainTable(Table):
    """A table whose cells are printed as they stand; see ``line``."""

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        """See ``Table``."""
        shown = (line(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, style=style, end_section=end_section)


def new_table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table; columns named in *right* are aligned there."""
    table = PlainTable(title=line(title), title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(line(column), justify="right" if column in right else "left", overflow="fold")
    return table


def size(count: int) -> str:
    """``1.9 MB``."""
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def count(value: int) -> str:
    """``3,950,648``."""
    return f"{value:,}"


def label(artifact: Artifact) -> Text:
    """``onnx fp32 arm64``: what tells an artifact from the others of its bundle."""
    parts = (artifact.format.value, artifact.recipe or artifact.precision.value, artifact.target_cpu)
    return line(" ".join(part for part in parts if part))


def host_line(profile: ProfileResult) -> str:
    """Say what a profile was taken on, and what its figures do not say."""
    host = profile.host
    text = f"latency: one image on {host.cpu}, {host.os}; the evaluator's time says nothing about a phone"
    cpus = {item.target_cpu for item in profile.results} - {None, FAMILIES.get(host.architecture)}
    if cpus:
        names = " and ".join(sorted(filter(None, cpus)))
        text += f"; the {names} form is made for another CPU than this one and is slower here"
    return text
