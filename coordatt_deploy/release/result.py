"""What ``check`` finds."""

import enum
from dataclasses import dataclass
from typing import ClassVar

from coordatt_deploy.release.budgets import BudgetKind, Undecided


class BudgetVerdict(enum.StrEnum):
    """Whether a file keeps a budget."""

    WITHIN = "within"
    EXCEEDED = "exceeded"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class BudgetResult:
    """One budget and one file.

    Attributes:
        kind: Of the budget.
        budget: Where it stands in the file of budgets: ``latency.onnx.fp32``.
        line: Of that file, from 1; 0 where it is not known.
        path: Of the file in the bundle; None where it has no such file.
        place: Where the figure is from, if not from this machine.
        limit: As written.
        found: The figure as text; None where it is not known.
        value: The same as a number: bytes, milliseconds, a count, dB, a share, percentage points.
        allowed: What the limit comes to in the same unit; None where that is not known.
        verdict: Whether the file keeps it.
        reason: Of the verdict; how to decide it where it is undecided.
    """

    kind: BudgetKind
    budget: str
    line: int
    path: str | None
    place: str | None
    limit: str
    found: str | None
    value: float | None
    allowed: float | None
    verdict: BudgetVerdict
    reason: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Whether a bundle keeps its budgets.

    Attributes:
        bundle: Its folder.
        budgets: The file of budgets.
        undecided: What those that cannot be decided count as.
        passed: Whether none is exceeded, and none is undecided where that counts as a failure.
        results: One for each budget and file that it is about.
    """

    VERSION: ClassVar[int] = 1

    bundle: str
    budgets: str
    undecided: Undecided
    passed: bool
    results: tuple[BudgetResult, ...]

    @property
    def exit_code(self) -> int:
        """0, or 1 where a budget is not kept."""
        return 0 if self.passed else 1

    def counted(self, verdict: BudgetVerdict) -> int:
        """How many budgets have that verdict."""
        return sum(item.verdict is verdict for item in self.results)
