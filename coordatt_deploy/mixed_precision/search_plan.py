"""What to search for, checked before torch is loaded."""

from dataclasses import dataclass

from coordatt_deploy.conversion.plan import QuantizePlan
from coordatt_deploy.data.dataset import LabelsBy
from coordatt_deploy.errors import UsageError
from coordatt_deploy.evaluation.metric_choice import check_drop, check_metric


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What to search for.

    Attributes:
        quantize: One static recipe, its formats and its calibration data.
        max_drop: By how much an artifact may be worse, in the metric's unit (percentage points of what is built in).
        dataset: Labelled images for the search; None for the labels of the calibration data.
        labels_by: How folders become classes.
        limit: How many of these images at most.
        workers: Processes for the images; None for what pays.
        metric: ``top-1``, ``miou``, or ``FILE.py:FUNCTION``; None for what the labels are made for.
    """

    quantize: QuantizePlan
    max_drop: float
    dataset: str | None = None
    labels_by: LabelsBy | None = None
    limit: int | None = None
    workers: int | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        check_metric(self.metric)
        check_drop(self.max_drop, self.metric)
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit is {self.limit}; it must be a whole number of at least 1")
