"""Records of runs: what ``reports/*.json`` accumulate, each with all that is needed to compare and merge them.

A run is one artifact, judged or measured once. It says what it covered, on which inputs, where and with which versions,
and which bytes it looked at, so that a reader can tell what a report does not know. A later run takes the place of an
earlier one only where it answers the same question: on fewer inputs, without the layers, by tolerances of the user's
own, or on a machine that cannot run the file, it stands beside it. Runs of other bytes of the same file go as soon as
there is one of those that it has now.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar

from coordatt_deploy.host import describe, tool_versions

HERE: Final = "here"
PLACE: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")  # how another machine is called
LONGEST_PLACE: Final = 60
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
        machine: That the command ran on: its processor and architecture.
        command: As the user typed it; empty where no command line made it.
    """

    time: str
    place: str = HERE
    tool_versions: dict[str, str] = field(default_factory=dict)
    machine: str | None = None
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One artifact in one call of a command.

    Attributes:
        kind: ``parity``, ``latency``, ``operators``, ``sustained``, ``imported``, ``accuracy`` or ``instructions``; of
            another metric than top-1, what names it.
        artifact: Its path in the bundle; ``reference`` for the float64 network itself.
        sha256: Of the artifact when it was looked at; None for the reference.
        place: ``here``, or the target that it was run on.
        inputs: What it was fed with.
        covered: What was looked at.
        tool_versions: Of everything that had a hand in it.
        time: When the command ended, ISO 8601 in UTC; runs of one call share it. None in reports of older versions.
        machine: That the command ran on: its processor and architecture. None in reports of older versions.
        command: As the user typed it; empty where no command line made it, and in reports of older versions.
    """

    kind: str
    artifact: str
    sha256: str | None
    place: str
    inputs: RunInputs
    covered: Covered
    tool_versions: dict[str, str]
    time: str | None
    machine: str | None = None
    command: str = ""

    @property
    def answered(self) -> bool:
        """Whether the artifact could be run."""
        return True

    @property
    def variant(self) -> str:
        """What sets the run apart from others of its kind beside inputs and layers; empty as a rule."""
        return ""


R = TypeVar("R", bound=RunRecord)


def begin_session(place: str | None, command: str = "") -> Session:
    """Return what the runs of this call share.

    Args:
        place: The target; None for this machine.
        command: As the user typed it.
    """
    host = describe()
    return Session(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        place=place or HERE,
        tool_versions=tool_versions(),
        machine=f"{host.cpu} ({host.architecture})",
        command=command,
    )


def accumulated(old: Sequence[R], new: Sequence[R]) -> tuple[R, ...]:
    """Return all runs: the new ones in the place of those that answered the same question, and of those of other bytes.

    One that judged layers takes the place of one that judged outputs alone as well. A new run that could not be run
    answers nothing, and takes no place.
    """
    answers = {question for run in new if run.answered for question in _answered(run)}
    bytes_now = {run.artifact: run.sha256 for run in new if run.answered and run.sha256 is not None}
    kept = [
        run for run in old if _question(run) not in answers and bytes_now.get(run.artifact, run.sha256) == run.sha256
    ]
    known = {question for run in kept if run.answered for question in _answered(run)}
    told = [run for run in new if run.answered or _question(run) not in known]
    asked_again = {_question(run) for run in told if not run.answered}
    return (*(run for run in kept if _question(run) not in asked_again), *told)


def latest(runs: Sequence[R], place: str = HERE, hashes: Mapping[str, str] | None = None) -> tuple[R, ...]:
    """Return the run of each artifact at *place* that says most of it, in the order of the runs.

    That is one of the bytes that the file has now, in which the file was run, that judged layers, on the inputs that
    the bundle brings, by the built-in tolerances; the last of several.

    Args:
        runs: Of any places.
        place: ``here``, or the target.
        hashes: sha256 of each file now, by path; None where that is not known.
    """
    best: dict[str, R] = {}
    for run in runs:
        known = best.get(run.artifact)
        if run.place == place and (known is None or _breadth(run, hashes) >= _breadth(known, hashes)):
            best[run.artifact] = run
    return tuple(run for run in runs if best.get(run.artifact) is run)


def is_current(run: RunRecord, hashes: Mapping[str, str] | None) -> bool:
    """Whether the run is of the bytes that its file has now; True where that is not known."""
    return hashes is None or run.sha256 is None or hashes.get(run.artifact) == run.sha256


def _question(run: RunRecord) -> tuple[str, str, str, str, int, bool, str]:
    asked = run.kind, run.artifact, run.place
    return (*asked, run.inputs.source, run.inputs.count, run.covered.layers_of > 0, run.variant)


def _answered(run: RunRecord) -> set[tuple[str, str, str, str, int, bool, str]]:
    """The questions that a run answers: with layers also those of its outputs."""
    own = _question(run)
    return {own, (*own[:5], False, own[6])}


def is_part_of(run: RunRecord, other: RunRecord) -> bool:
    """Whether *other* answers all that *run* does."""
    return _question(run) in _answered(other)


def _breadth(run: RunRecord, hashes: Mapping[str, str] | None) -> tuple[bool, bool, bool, bool, bool]:
    return (
        is_current(run, hashes),
        run.answered,
        not run.variant,
        run.inputs.source in (GOLDEN, HELD_OUT),
        run.covered.layers > 0,
    )
