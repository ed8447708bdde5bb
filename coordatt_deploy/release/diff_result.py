"""What ``diff`` finds."""

import enum
from dataclasses import dataclass
from typing import ClassVar

from coordatt_deploy.host import Host


class ChangeKind(enum.StrEnum):
    """What a row is about."""

    CONTRACT = "contract"
    """What an app relies on: preprocessing, labels, inputs, outputs, the runtime that is needed."""
    FILES = "files"
    """Whether the file is in both."""
    SIZE = "size"
    OPERATORS = "operators"
    PARTITIONS = "partitions"
    PARITY = "parity"
    ACCURACY = "accuracy"
    LATENCY = "latency"


class Change(enum.StrEnum):
    """What B is against A."""

    REGRESSION = "regression"
    INCONCLUSIVE = "inconclusive"
    """It was compared, and is not known well enough; or one side alone is known."""
    IMPROVEMENT = "improvement"
    NO_DIFFERENCE = "no difference"
    CHANGED = "changed"
    """Information: neither better nor worse by itself."""
    ACCEPTED = "accepted"
    """A regression that the user accepts."""
    NOT_COMPARED = "not compared"
    """Neither side is known, or it cannot be known here."""


@dataclass(frozen=True, slots=True)
class LatencyChange:
    """The latency of B over that of A, with its evidence.

    Attributes:
        ratio: B / A; None where too little is left to say, as for the next two.
        ci95: 95 % interval, the noise floor included.
        p: Probability of at least such a ratio between equal files, corrected for the number of pairs (Holm).
        control_ratio: The same of A against a second opening of A; None for two documents, which have no control.
        control_ci95: 95 % interval of that.
        floor: What copies of A differ by beyond their scatter: a share, part of the interval.
        figure: Of the samples that was compared, the one that the control knew best.
        batches: Openings of the three files.
        seconds: That they took.
        seconds_needed: That would decide it, if noise stays as it is; None where it is decided, infinite where no time
            would.
        differences: Logarithm of B / A in each batch.
        controls: Of A / A.
    """

    ratio: float | None
    ci95: tuple[float, float] | None
    p: float | None
    control_ratio: float | None = None
    control_ci95: tuple[float, float] | None = None
    floor: float | None = None
    figure: str | None = None
    batches: int = 0
    seconds: float = 0.0
    seconds_needed: float | None = None
    differences: tuple[float, ...] = ()
    controls: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class AccuracyChange:
    """The accuracy of B less that of A.

    Attributes:
        points: Percentage points, or in the metric's own unit; negative where B is worse and higher is better.
        interval: At 95 %; None where the images do not tell.
        images: That both were asked.
        paired: Whether both are known on each image; otherwise the interval is wider, as from other images each.
        lost: Images that A has right and B has not; None where that is not known, as for the next one.
        gained: The other way round.
        images_needed: That would decide it, if the shares stay as they are; None where it is decided or not known.
    """

    points: float
    interval: tuple[float, float] | None
    images: int
    paired: bool
    lost: int | None = None
    gained: int | None = None
    images_needed: int | None = None


@dataclass(frozen=True, slots=True)
class DiffRow:
    """One thing that was compared.

    Attributes:
        kind: Of it.
        path: Of the file in B, or in A where B has none; None for the bundle as a whole.
        subject: What of the file it is: ``labels``, ``xnnpack``, ``2 threads``; empty where the kind says it.
        before: In A, as text; None where it is not known.
        after: In B.
        before_value: The same as a number: bytes, a count, dB, a share, milliseconds.
        after_value: In B.
        change: What became of it, as text; empty where before and after say it.
        verdict: What B is against A.
        reason: Of the verdict; what would decide it where it is inconclusive. Empty where the figures say it.
        latency: Evidence of a latency.
        accuracy: Evidence of an accuracy.
        label: What tells the file from the others of its bundle: ``onnx fp32 arm64``; its path where that does not.
    """

    kind: ChangeKind
    path: str | None
    subject: str
    before: str | None
    after: str | None
    verdict: Change
    before_value: float | None = None
    after_value: float | None = None
    change: str = ""
    reason: str = ""
    latency: LatencyChange | None = None
    accuracy: AccuracyChange | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class DiffSettings:
    """By what it was judged. These are the defaults of the command line, too.

    Attributes:
        min_effect: The least change of a latency that counts: 0.03 for three per cent.
        min_seconds: Time that each pair is given before it stays undecided.
        threads: Worker threads of the runtimes.
        max_size_growth: By how much a file may grow: 0.01 for one per cent.
        max_drop: By how much accuracy may fall: percentage points, or in the metric's own unit.
        accept: Kinds whose regressions are accepted.
        fail_inconclusive: Whether what is inconclusive counts as a failure.
    """

    min_effect: float = 0.03
    min_seconds: float = 60.0
    threads: int = 1
    max_size_growth: float = 0.01
    max_drop: float = 1.0
    accept: tuple[ChangeKind, ...] = ()
    fail_inconclusive: bool = False


@dataclass(frozen=True, slots=True)
class DiffResult:
    """What became of A in B.

    Attributes:
        a: Folder or file of the one before.
        b: Of the one after.
        verdict: Of all rows: a regression, else what is inconclusive, else an improvement, else no difference.
        passed: Whether the exit code is 0.
        settings: By what it was judged.
        rows: One for each thing that was compared.
        notes: What the user should know of the whole.
        host: The machine that latencies were measured on in this call, or in both documents; None without any.
    """

    VERSION: ClassVar[int] = 1

    a: str
    b: str
    verdict: Change
    passed: bool
    settings: DiffSettings
    rows: tuple[DiffRow, ...]
    notes: tuple[str, ...] = ()
    host: Host | None = None

    @property
    def exit_code(self) -> int:
        """0, or 1 for a regression, and for what is inconclusive where that counts as a failure."""
        return 0 if self.passed else 1

    def counted(self, verdict: Change) -> int:
        """How many rows have that verdict."""
        return sum(row.verdict is verdict for row in self.rows)
