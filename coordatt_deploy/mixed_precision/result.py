"""What ranking layers and searching for the fewest in float found, as documents hold it. Needs no framework."""

import enum
from dataclasses import dataclass
from typing import ClassVar

from coordatt_deploy.evaluation.result import MetricRecord
from coordatt_deploy.formats import Format, TargetCpu
from coordatt_deploy.manifest import CalibrationRecord
from coordatt_deploy.run_records import NotRun


@dataclass(frozen=True, slots=True)
class LayerCostRecord:
    """What quantizing one layer alone costs.

    Attributes:
        name: The layer.
        layers: Layer ids that keep it in float.
        operator: Of its first node, e.g. ``conv2d``.
        sqnr_db: At the outputs, simulated; infinite where nothing changes.
        share: Of the noise that all layers bring, each alone; NaN where it was not worked out.
        agreement: Share of the cases whose first class stays; None for outputs without classes.
        verified_db: The same SQNR, of a real artifact with this layer in int8 and the others in float; None where it
            was not measured.
    """

    name: str
    layers: tuple[str, ...]
    operator: str
    sqnr_db: float
    share: float
    agreement: float | None
    verified_db: float | None


@dataclass(frozen=True, slots=True)
class FormatSensitivity:
    """The ranking for one format.

    Attributes:
        format: Of the artifact.
        target_cpu: The CPU family of its form; None where the form is the same for all.
        predicted_sqnr_db: With every layer in int8, if their errors are independent of one another.
        layers: The costliest first.
        warning: How artifacts were judged where this CPU makes something else of them; None where it does not.
    """

    format: Format
    target_cpu: TargetCpu | None
    predicted_sqnr_db: float
    layers: tuple[LayerCostRecord, ...]
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The document ``reports/sensitivity.json``.

    Attributes:
        recipe: That layers were ranked for.
        calibration: The data.
        cases: How many of them were simulated.
        results: One for each format.
        command: As the user typed it; empty where no command line made it.
    """

    VERSION: ClassVar[int] = 1

    recipe: str
    calibration: CalibrationRecord
    cases: int
    results: tuple[FormatSensitivity, ...]
    command: str = ""


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One artifact of a search.

    Attributes:
        kept: Names of the layers in float.
        points: How much more than the float64 reference it scores, in the metric's unit.
        whole: Whether it was made the whole way, its weights rounded on data around the layers in float.
        lost: Images that the reference has right, or better, and it has not; None where images have no score of
            their own.
        gained: The other way round.
    """

    kept: tuple[str, ...]
    points: float
    whole: bool
    lost: int | None
    gained: int | None


class LimitVerdict(enum.StrEnum):
    """What a file is against the limits: their weakest point."""

    KEEPS = "keeps"
    UNDECIDED = "undecided"
    EXCEEDS = "exceeds"


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """One file that was weighed: what it is worth, what it takes, and what that is against the limits.

    Attributes:
        name: Of its recipe, or the precision of a float file that the bundle has already.
        path: The file's in the bundle, where it is or would be.
        recipe: Name of the recipe; None for a float file.
        kept: Names of the layers in float, besides those of the recipe.
        size_bytes: Of the file.
        points: How much more than the float64 reference it scores, in the metric's unit.
        interval_points: Of that, low and high; None where no image tells the two apart.
        lost: Images that the reference has right, or better, and it has not; None where images have no score.
        gained: The other way round.
        latency_ms: Median; None where it was not timed, as for the next three.
        latency_interval_ms: 95 % interval of the median.
        latency_ratio: To the float file, in turns with it.
        ratio_interval: 95 % interval of that.
        verdict: Against the limits.
        reasons: What it exceeds, or what cannot be decided; a sentence each.
        pareto: Whether no other is at least as accurate, small and fast, and better in one of them.
        chosen: Whether it is the one.
    """

    name: str
    path: str
    recipe: str | None
    kept: tuple[str, ...]
    size_bytes: int
    points: float
    interval_points: tuple[float, float] | None
    lost: int | None = None
    gained: int | None = None
    latency_ms: float | None = None
    latency_interval_ms: tuple[float, float] | None = None
    latency_ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None
    verdict: LimitVerdict = LimitVerdict.KEEPS
    reasons: tuple[str, ...] = ()
    pareto: bool = False
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class FormatSearch:
    """How the search ended for one format.

    Attributes:
        format: Of the artifact.
        target_cpu: The CPU family of its form; None where the form is the same for all.
        path: Of the artifact in the bundle; None where the drop does not hold.
        reached: Whether it holds.
        kept: Names of the layers that stay in float.
        layers: How many could have been kept.
        difference_points: Of the last attempt.
        interval_points: Of that, low and high; None where no image tells the two apart.
        recipe_file: What replays it, relative to the bundle; None where nothing was found.
        attempts: In their order.
        warning: How artifacts were judged where this CPU makes something else of them; None where it does not.
        candidates: Files that were weighed by size and latency; empty for a search by the drop alone.
        nearest: Path of the one that comes nearest to limits that none keeps; None where one does.
        refused: Files that could not be made, and why.
    """

    format: Format
    target_cpu: TargetCpu | None
    path: str | None
    reached: bool
    kept: tuple[str, ...]
    layers: int
    difference_points: float
    interval_points: tuple[float, float] | None
    recipe_file: str | None
    attempts: tuple[AttemptRecord, ...]
    warning: str | None = None
    candidates: tuple[CandidateRecord, ...] = ()
    nearest: str | None = None
    refused: tuple[NotRun, ...] = ()


@dataclass(frozen=True, slots=True)
class SearchDataset:
    """The labelled images of a search."""

    source: str
    images: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The document ``reports/search.json``.

    Attributes:
        reached: Whether the limits hold in every format.
        max_drop_points: By how much an artifact may be worse, in the metric's unit (percentage points, or its own);
            None for any.
        recipe: That was asked for; ``any`` for every one that a format has.
        dataset: The images.
        results: One for each format.
        command: As the user typed it; empty where no command line made it.
        metric: What was scored; None in documents of earlier versions, whose metric is top-1.
        max_size: The limit as it was written; None for any size.
        max_latency: The same of a call's latency.
        skipped: Formats that could not be searched here, and why.
    """

    VERSION: ClassVar[int] = 1

    reached: bool
    max_drop_points: float | None
    recipe: str
    dataset: SearchDataset
    results: tuple[FormatSearch, ...]
    command: str = ""
    metric: MetricRecord | None = None
    max_size: str | None = None
    max_latency: str | None = None
    skipped: tuple[NotRun, ...] = ()
