"""The errors a user can meet, each with its exit code.

The core raises them, the command line prints their text as it stands and exits with ``exit_code``. Each text says
what was received, what was expected and what to do next. Anything else that is raised is a bug: it becomes an
``InternalError``, whose text names the log file with the traceback.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self


class DeployError(Exception):
    """A failure that the user can understand and act on."""

    exit_code = 1


class UsageError(DeployError):
    """Bad usage or bad input: an argument, a checkpoint, a damaged bundle."""

    exit_code = 2


class BundleError(UsageError):
    """A bundle that is damaged, of another schema, or not a bundle at all."""


class MetricError(UsageError):
    """A metric of the user's own that raises, or gives what is no number."""


class MissingDependencyError(DeployError):
    """Something is not installed here; the text holds the line that installs it."""

    exit_code = 3


class TargetError(DeployError):
    """Another machine cannot be used now: it cannot be reached, lets nobody in, lacks something, or is full."""

    exit_code = 3


class ConversionError(DeployError):
    """A converter or runtime refused the model; the text names the log file with everything it said."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class RefusedOperator:
    """An operator that a format cannot have.

    Attributes:
        layer: Id of the layer that it computes.
        operator: Its name in ATen.
        reason: What the converter or the runtime makes of it.
        remedy: What to do.
        line: Of the user's code, as ``file:line (the line)``; None where it is not known.
    """

    layer: str
    operator: str
    reason: str
    remedy: str
    line: str | None = None

    def __str__(self) -> str:
        at = f" at {self.line}" if self.line else ""
        return f"{self.operator} in {self.layer}{at}: {self.reason}; {self.remedy}"


class UnsupportedOperatorsError(ConversionError):
    """One format cannot have some operators of the model; found before its converter runs.

    Attributes:
        file_format: Value of the format.
        title: The format as its makers spell it.
        refused: The operators, in execution order.
    """

    def __init__(self, file_format: str, title: str, refused: tuple[RefusedOperator, ...]) -> None:
        self.file_format, self.title, self.refused = file_format, title, refused
        super().__init__(f"{title} cannot have {'. Nor can it have '.join(map(str, refused))}")

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, tuple[RefusedOperator, ...]]]:
        return type(self), (self.file_format, self.title, self.refused)


class InferenceError(DeployError):
    """A runtime opened an artifact and could not run it on an input that it should take."""

    exit_code = 1


class WorkerDiedError(UsageError):
    """A process that worked for this one was ended: the text says what it was doing, and how it ended."""


class InternalError(DeployError):
    """A fault of this package; the text names the log file with the traceback.

    Its exit code is the system's own for such, EX_SOFTWARE of <sysexits.h>: no check failed, and the input may be good.
    """

    exit_code = 70


def error_named(name: str, default: type[DeployError]) -> type[DeployError]:
    """Return the class of error called *name*, which another process wrote down; *default* where there is none.

    A class that is made of more than a text is none of them.
    """
    found = globals().get(name)
    if isinstance(found, type) and issubclass(found, DeployError) and "__init__" not in vars(found):
        return found
    return default


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return a hint with the nearest of the *known* names, or all of them if none is near."""
    names = sorted(known)
    close = get_close_matches(name, names, n=count, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
