"""Time per operator: what a runtime's profiler tells, or pieces of the file that are timed each by itself.

A part is what was timed as one. It belongs to one tensor of the layer map: the one that it makes, or else the next that
is computed from what it makes, so that what only moves data counts with the layer that it is moved for.
"""

import enum
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.format_modules import Role, load
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes.file_graph import Node

if sys.platform != "win32":
    import resource


class Method(enum.StrEnum):
    """How operators were timed.

    Attributes:
        PROFILER: By the runtime's own profiler, in the whole file; a part is an operator.
        SUBMODELS: Each layer's operators as a file of their own, one after the other, fed with what they get in the
            whole file; a part is a layer.
    """

    PROFILER = "profiler"
    SUBMODELS = "submodels"


@dataclass(frozen=True, slots=True)
class TimedPart:
    """What was timed as one.

    Attributes:
        name: The runtime's name of the operator, or what its first operator makes.
        operators: As the format names them, in execution order.
        tensor: The tensor of the layer map that it belongs to; None where none is made from it or before it.
        samples_ns: Of each run.
        lost: Of each run, whether the calling thread lost its core in it; empty if that is not known.
    """

    name: str
    operators: tuple[str, ...]
    tensor: str | None
    samples_ns: tuple[int, ...]
    lost: tuple[bool, ...] = ()


class OperatorClock(Protocol):
    """A file whose operators are timed. Use as a context manager."""

    @property
    def method(self) -> Method:
        """How."""

    def run(self) -> None:
        """Time every part once."""

    def parts(self) -> tuple[TimedPart, ...]:
        """End the measurement and return what all rounds gave, in execution order."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class OperatorTimer(Protocol):
    """What ``runtimes/<format>/operator_clock.py`` offers."""

    def open_clock(
        self, path: Path, artifact: Artifact, tensors: frozenset[str], feeds: Mapping[str, NumberArray], threads: int
    ) -> OperatorClock:
        """Open the file at *path* so that its operators can be timed.

        Args:
            path: The artifact on disk.
            artifact: Its description.
            tensors: Of the layer map.
            feeds: One array per input, in the artifact's own dtype and layout.
            threads: Worker threads of the runtime.

        Raises:
            MissingDependencyError: What is needed to edit or to read the format is not installed.
            BundleError: The file cannot be opened.
            UsageError: The runtime tells no time per operator.
        """


def operator_timer(file_format: Format) -> OperatorTimer:
    """Return the module that times the operators of artifacts of *file_format*.

    Raises:
        MissingDependencyError: A package it needs is not installed.
    """
    return cast("OperatorTimer", load(file_format, Role.OPERATOR_CLOCK))


@dataclass(slots=True)
class Piece:
    """Operators of a file that are timed as a file of their own.

    Attributes:
        name: Of what the first of them makes.
        operators: As the format names them.
        tensor: As in ``TimedPart``, like the last two.
        alone: Whether the runtime computes in the calling thread alone; see ``timed``.
    """

    name: str
    operators: tuple[str, ...]
    tensor: str | None
    alone: bool
    samples: list[int] = field(default_factory=list)
    lost: list[bool] = field(default_factory=list)

    def time(self, call: Callable[[], object]) -> None:
        """Time one call."""
        taken, lost = timed(call, alone=self.alone)
        self.samples.append(taken)
        self.lost.append(lost)

    def part(self) -> TimedPart:
        """Return what was timed."""
        return TimedPart(self.name, self.operators, self.tensor, tuple(self.samples), tuple(self.lost))


def timed(call: Callable[[], object], *, alone: bool) -> tuple[int, bool]:
    """Return how long a call took, in nanoseconds, and whether other processes took a part of that.

    Of a thread that works alone the time on its core is known, so that it is told where the core was taken away: on a
    busy machine that happens in every call of a few milliseconds.
    """
    before, on_core, start = preempted(), time.thread_time_ns(), time.perf_counter_ns()
    call()
    taken = time.perf_counter_ns() - start
    used, lost = time.thread_time_ns() - on_core, preempted() != before
    return (min(taken, used), False) if lost and alone else (taken, lost)


def preempted() -> int:
    """Return how often the kernel gave this thread's core to another process so far; 0 where it does not tell."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw if sys.platform == "linux" else 0


def owners(
    nodes: Sequence[Node], known: Mapping[str, str], follows: Callable[[Node], bool] = lambda _node: True
) -> tuple[str | None, ...]:
    """Return for each operator the tensor that it is counted with.

    That is the owner of what it makes, else that of the first operator that reads what it makes; behind the last known
    tensor it is that of what it reads. None where the operator is connected with none.

    Args:
        nodes: In execution order.
        known: Tensors whose owner is known: those of the layer map are their own.
        follows: Whether an operator that makes none of them may be counted with its neighbours; any may by default.
    """
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.inputs:
            readers.setdefault(name, []).append(index)
    found: list[str | None] = [None] * len(nodes)
    for index in reversed(range(len(nodes))):
        made = nodes[index].outputs
        own = [known[name] for name in made if name in known]
        later = [found[reader] for name in made for reader in readers.get(name, ()) if reader > index]
        candidates = (*own, *later) if follows(nodes[index]) else own
        found[index] = next((owner for owner in candidates if owner is not None), None)
    makers = {name: index for index, node in enumerate(nodes) for name in node.outputs}
    for index, node in enumerate(nodes):
        if found[index] is None and follows(node):
            earlier = [known.get(name) or (found[makers[name]] if name in makers else None) for name in node.inputs]
            found[index] = next((owner for owner in earlier if owner is not None), None)
    return tuple(found)


def owned_tensors(nodes: Sequence[Node], tensors: frozenset[str]) -> dict[str, str]:
    """Return, for each tensor that an operator makes, that of the layer map that it is counted with; see ``owners``."""
    found = owners(nodes, {name: name for name in tensors})
    return {
        name: name if name in tensors else owner
        for node, owner in zip(nodes, found, strict=True)
        if owner is not None
        for name in node.outputs
    }
