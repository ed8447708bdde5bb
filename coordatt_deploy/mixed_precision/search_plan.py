"""What to search for, checked before torch is loaded."""

from dataclasses import dataclass, field
from typing import Final

from coordatt_deploy.conversion.plan import QuantizePlan
from coordatt_deploy.data.dataset import LabelsBy
from coordatt_deploy.errors import UsageError
from coordatt_deploy.evaluation.cluster_address import check_address
from coordatt_deploy.evaluation.metric_choice import check_drop, check_metric
from coordatt_deploy.mixed_precision.limits import LATENCY, SIZE, Limit, parse_limit

MAX_DROP: Final = "--max-drop"


@dataclass(frozen=True, slots=True)
class SearchImages:
    """The labelled images that a search judges by.

    Attributes:
        option: What asks for them, for messages.
        dataset: Where they are; None for the labels of the calibration data.
        labels_by: How folders become classes.
        limit: How many of these images at most.
        seed: Of the choice among more.
        workers: Processes for the images; None for what pays.
        metric: ``top-1``, ``miou``, or ``FILE.py:FUNCTION``; None for what the labels are made for.
        cluster: Address of a Dask scheduler whose workers run artifacts on them; None for this machine.
    """

    option: str = MAX_DROP
    dataset: str | None = None
    labels_by: LabelsBy | None = None
    limit: int | None = None
    seed: int = 0
    workers: int | None = None
    metric: str | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        if self.cluster is not None:
            check_address(self.cluster)
        check_metric(self.metric)
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit is {self.limit}; it must be a whole number of at least 1")


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """The fewest layers in float that a drop takes.

    Attributes:
        quantize: One static recipe, its formats and its calibration data.
        max_drop: By how much an artifact may be worse, in the metric's unit (percentage points of what is built in).
        images: What it is judged by.
    """

    quantize: QuantizePlan
    max_drop: float
    images: SearchImages = field(default_factory=SearchImages)

    def __post_init__(self) -> None:
        check_drop(self.max_drop, self.images.metric)


@dataclass(frozen=True, slots=True)
class TradeoffPlan:
    """The most accurate file that keeps limits of size and latency.

    Attributes:
        quantize: Recipes to try, formats and calibration data.
        max_size: Of the file; None for any.
        max_latency: Of one call; None for any.
        max_drop: As in ``SearchPlan``; None for any.
        images: What it is judged by.
        every_recipe: Whether each format tries those of the recipes that it can express; else it must express all.
    """

    quantize: QuantizePlan
    max_size: Limit | None = None
    max_latency: Limit | None = None
    max_drop: float | None = None
    images: SearchImages = field(default_factory=SearchImages)
    every_recipe: bool = False

    def __post_init__(self) -> None:
        if self.max_drop is not None:
            check_drop(self.max_drop, self.images.metric)
        if self.max_size is None and self.max_latency is None:
            raise ValueError("a plan without limits of size or latency is a SearchPlan")


def limits_of(max_size: str | None, max_latency: str | None) -> tuple[Limit | None, Limit | None]:
    """Read ``--max-size`` and ``--max-latency``.

    Raises:
        UsageError: One is no limit; the text says what one looks like.
    """
    return (
        None if max_size is None else parse_limit(SIZE, max_size),
        None if max_latency is None else parse_limit(LATENCY, max_latency),
    )
