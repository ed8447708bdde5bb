"""What a phone's accelerator takes of a file, and what it leaves to the CPU.

One that runs on this machine is asked itself. The others are not here, so they are tables with their sources, in the
folders of their formats.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from coordatt_deploy.runtimes.file_graph import FileGraph


@dataclass(frozen=True, slots=True)
class RejectedOperator:
    """An operator that an accelerator leaves to the CPU, as documents hold it.

    Attributes:
        operator: As the format names it.
        count: How many there are of it.
        reason: Why it is left to the CPU.
    """

    operator: str
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class DelegateRecord:
    """What one accelerator takes of a file, as documents hold it; see ``Delegate`` for the fields."""

    operators: int
    taken: int
    partitions: int | None
    rejected: tuple[RejectedOperator, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Delegate:
    """What one accelerator takes of a file.

    Attributes:
        name: ``xnnpack``, ``gpu`` or ``neural_engine``.
        operators: Of the file.
        taken: Of those, how many it runs.
        partitions: Stretches that it runs as one piece each; None where that is not known.
        rejected: The operators that it leaves to the CPU, with how many and why.
        source: Where this is known from.
    """

    name: str
    operators: int
    taken: int
    partitions: int | None
    rejected: tuple[tuple[str, int, str], ...]
    source: str

    def record(self) -> DelegateRecord:
        """Return it as documents hold it."""
        rejected = tuple(RejectedOperator(name, count, why) for name, count, why in self.rejected)
        return DelegateRecord(self.operators, self.taken, self.partitions, rejected, self.source)


def looked_up(name: str, graph: FileGraph, reasons: Mapping[tuple[str, str], int], source: str) -> Delegate:
    """Return what a table says of *graph*.

    Args:
        name: Of the accelerator.
        graph: Of the file.
        reasons: How many operators of a name are left to the CPU, by name and reason.
        source: Where the table is from.
    """
    rejected = tuple((operator, count, why) for (operator, why), count in reasons.items())
    taken = len(graph.nodes) - sum(reasons.values())
    return Delegate(name, len(graph.nodes), taken, None, rejected, source)
