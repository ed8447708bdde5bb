"""What ``profile --import`` takes over: latencies that other tools measured, as far as those tell them."""

import enum
from dataclasses import dataclass
from typing import ClassVar

from coordatt_deploy.formats import Format, Precision, TargetCpu


class HeldBy(enum.StrEnum):
    """What says that an imported latency is of an artifact's bytes: their hash, their number, or a name alone."""

    HASH = "hash"
    SIZE = "size"
    NAME = "name"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFigures:
    """What a benchmark program tells of a latency; None for what it did not.

    Attributes:
        threads: Worker threads of the runtime.
        calls: How many were timed.
        mean_ms: Of the calls, as for the next seven.
        median_ms: Half of the calls took less.
        min_ms: The fastest.
        max_ms: The slowest.
        std_ms: Standard deviation.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        load_ms: Opening the file.
        first_inference_ms: The first call.
    """

    threads: int | None = None
    calls: int | None = None
    mean_ms: float
    median_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    std_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    load_ms: float | None = None
    first_inference_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedLatency(ToolFigures):
    """The latency of one artifact as another tool told it; None for what it did not tell. There are no samples.

    Attributes:
        path: In the bundle.
        format: Of the file.
        precision: That it computes in.
        target_cpu: The CPU family of its form; None where the form is the same for all.
        tool: That measured it.
        held_by: What says that it is of these bytes.
        source: Name of the file with the tool's output.
        source_sha256: Of that file.
    """

    path: str
    format: Format
    precision: Precision
    target_cpu: TargetCpu | None
    tool: str
    held_by: HeldBy
    source: str
    source_sha256: str


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What one call of ``profile --import`` took over.

    Attributes:
        place: The name that the machine got.
        imported: One for each file.
        document: Where it is kept.
    """

    VERSION: ClassVar[int] = 1

    place: str
    imported: tuple[ImportedLatency, ...]
    document: str
