"""What to search for, checked before torch is loaded."""

import math
from dataclasses import dataclass

from coordatt_deploy.conversion.plan import QuantizePlan
from coordatt_deploy.data.dataset import LabelsBy
from coordatt_deploy.errors import UsageError


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What to search for.

    Attributes:
        quantize: One static recipe, its formats and its calibration data.
        max_drop: Percentage points of top-1 that may be lost.
        dataset: Labelled images for the search; None for the labels of the calibration data.
        labels_by: How folders become classes.
        limit: How many of these images at most.
        workers: Processes for the images; None for what pays.
    """

    quantize: QuantizePlan
    max_drop: float
    dataset: str | None = None
    labels_by: LabelsBy | None = None
    limit: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_drop) and 0 <= self.max_drop <= 100):
            raise UsageError(f"--max-drop is {self.max_drop}; give percentage points from 0 to 100, such as 0.5")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit is {self.limit}; it must be a whole number of at least 1")
