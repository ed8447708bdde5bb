"""Records of runs: what ``reports/*.json`` accumulate, each with all that is needed to compare and merge them.

A run is one artifact, judged or measured once. It says what it covered, on which inputs, where and with which versions,
and which bytes it looked at, so that a reader can tell what a report does not know. A later run takes the place of an
earlier one only where it answers the same question.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar

from coordatt_deploy.host import tool_versions

HERE: Final = "here"
GOLDEN: Final = "golden"
HELD_OUT: Final = "calibration data set aside"


@dataclass(frozen=True, slots=True)
class RunInputs:
    """What a run was fed with.

    Attributes:
        source: ``golden``, what was set aside of the calibration data, a dataset's name, or the user's own path.
        count: How many inputs.
        names: Theirs; empty where there are too many to list.
    """

    source: str
    count: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Covered:
    """What a run looked at.

    Attributes:
        outputs: How many outputs of the artifact.
        layers: How many layers were judged.
        layers_of: How many layers the model has; 0 where layers were not asked for.
    """

    outputs: int = 0
    layers: int = 0
    layers_of: int = 0


@dataclass(frozen=True, slots=True)
class NotRun:
    """An artifact that a place cannot run, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One call of a command; its runs share this.

    Attributes:
        time: When it ended, ISO 8601 in UTC.
        place: ``here``, or the target that files were run on.
        tool_versions: Of everything that had a hand in it.
    """

    time: str
    place: str = HERE
    tool_versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One artifact in one call of a command.

    Attributes:
        kind: ``parity``, ``latency``, ``accuracy`` or ``instructions``; of another metric than top-1, what names it.
        artifact: Its path in the bundle; ``reference`` for the float64 network itself.
        sha256: Of the artifact when it was looked at; None for the reference.
        place: ``here``, or the target that it was run on.
        inputs: What it was fed with.
        covered: What was looked at.
        tool_versions: Of everything that had a hand in it.
        time: When the command ended, ISO 8601 in UTC; runs of one call share it. None in reports of older versions.
    """

    kind: str
    artifact: str
    sha256: str | None
    place: str
    inputs: RunInputs
    covered: Covered
    tool_versions: dict[str, str]
    time: str | None


R = TypeVar("R", bound=RunRecord)


def begin_session(place: str | None) -> Session:
    """Return what the runs of this call share.

    Args:
        place: The target; None for this machine.
    """
    return Session(time=datetime.now(UTC).isoformat(timespec="milliseconds"), place=place or HERE,
                   tool_versions=tool_versions())  # fmt: skip


def accumulated(old: Sequence[R], new: Sequence[R]) -> tuple[R, ...]:
    """Return all runs, the new ones in the place of those that answered the same question."""
    answered = {_question(run) for run in new}
    return (*(run for run in old if _question(run) not in answered), *new)


def latest(runs: Sequence[R], place: str = HERE) -> tuple[R, ...]:
    """Return the last run of each artifact at *place* that covered most of it, in the order of the runs."""
    best: dict[str, R] = {}
    for run in runs:
        known = best.get(run.artifact)
        if run.place == place and (known is None or _breadth(run) >= _breadth(known)):
            best[run.artifact] = run
    return tuple(run for run in runs if best.get(run.artifact) is run)


def _question(run: RunRecord) -> tuple[str, str, str, str, bool]:
    return run.kind, run.artifact, run.place, run.inputs.source, run.covered.layers_of > 0


def _breadth(run: RunRecord) -> tuple[bool, bool]:
    return run.covered.layers_of > 0, run.inputs.source in (GOLDEN, HELD_OUT)
