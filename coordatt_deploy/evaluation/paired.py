"""The judge of accuracy: who is right on which image, and what the difference between two of them is worth.

Reference and artifact see the same n images, so only the images on which one is right and the other wrong tell them
apart: ``lost`` (reference right, artifact wrong) and ``gained`` (the other way round).

    difference d = (gained - lost) / n
    interval     every D that Tango's score test does not reject:
                 |gained - lost - n D| <= z sqrt(n (2 q(D) + D (1 - D)))
                 with q(D) the likeliest probability of a loss under that D: the greater root of
                 2n q^2 + (D (2n - gained + lost) - gained - lost) q - lost D (1 - D) = 0
    p            McNemar's exact test, mid-p version: how likely are splits of the gained + lost images at least as
                 uneven as this one, if each had been tossed by a fair coin; half of the split itself is counted

T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
Statistics in Medicine 17 (1998), 891-908. M. Fagerland, S. Lydersen, P. Laake, "The McNemar test for binary matched-
pairs data: mid-p and asymptotic are better than exact conditional", BMC Medical Research Methodology 13 (2013), 91.
NumPy and the standard library only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray

CONFIDENCE: Final = 0.95
Z: Final = 1.959963984540054  # the normal distribution's quantile for it
NOT_FINITE: Final = -1  # the class of logits with NaN or infinity: none


def classes_and_places(logits: NumberArray, labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the class that each row of logits names, and the place of its label among them.

    Equal logits, which int8 artifacts often give, are taken in the order of the classes, as ``argmax`` does in an app.
    Logits with NaN or plus infinity, or none that is more than minus infinity, name no class, and their label comes
    behind the last place. Minus infinity is a class that is masked.

    Args:
        logits: (N, classes).
        labels: (N,), indices of the right classes.

    Returns:
        (N,) classes and (N,) places, 0 for the first.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1])[None, :] < labels[:, None]
    places = ((logits > own) | ((logits == own) & before)).sum(axis=1)
    usable = (logits < np.inf).all(axis=1) & (logits > -np.inf).any(axis=1)
    classes = np.where(usable, np.argmax(logits, axis=1), NOT_FINITE)
    return classes.astype(np.int64), np.where(usable, places, logits.shape[1]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much more often a candidate is right than the reference, on the same images.

    Attributes:
        images: How many both were asked.
        lost: Reference right, candidate wrong.
        gained: Candidate right, reference wrong.
    """

    images: int
    lost: int
    gained: int

    def __post_init__(self) -> None:
        if not 0 <= self.lost + self.gained <= self.images or min(self.lost, self.gained) < 0 or self.images < 1:
            raise ValueError(f"{self.lost} lost and {self.gained} gained of {self.images} images cannot be")

    @classmethod
    def of(cls, reference: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> "PairedDifference":
        """Count from who is right on which image, (N,) each."""
        return cls(len(reference), int((reference & ~candidate).sum()), int((candidate & ~reference).sum()))

    @property
    def points(self) -> float:
        """Percentage points; negative where the candidate is worse."""
        return 100 * (self.gained - self.lost) / self.images

    @property
    def interval_points(self) -> tuple[float, float]:
        """The 95 % interval, in percentage points."""
        low, high = score_interval(self.gained, self.lost, self.images)
        return 100 * low, 100 * high

    @property
    def p_value(self) -> float:
        """Of McNemar's mid-p test."""
        return mid_p(self.gained, self.lost)

    def exceeds(self, max_drop: float) -> bool:
        """Whether the candidate lost more than *max_drop* percentage points; exact at the limit itself."""
        return 100 * (self.lost - self.gained) > max_drop * self.images * (1 + 1e-12)


def score_interval(gained: int, lost: int, images: int, z: float = Z) -> tuple[float, float]:
    """Return Tango's interval of the difference (gained - lost) / images, between -1 and 1."""
    estimate = (gained - lost) / images

    def score(difference: float) -> float:
        count = 2 * images
        linear = difference * (count - gained + lost) - gained - lost
        constant = -lost * difference * (1 - difference)
        root = math.sqrt(max(0.0, linear * linear - 4 * count * constant))
        probability = (root - linear) / (2 * count)
        variance = images * (2 * probability + difference * (1 - difference))
        distance = gained - lost - images * difference
        if variance <= 0:
            return 0.0 if distance == 0 else math.copysign(math.inf, distance)
        return distance / math.sqrt(variance)

    low = _crossing(lambda value: score(value) <= z, -1.0, estimate)
    high = _crossing(lambda value: score(value) < -z, estimate, 1.0)
    return low, high


def _crossing(reached: Callable[[float], bool], low: float, high: float) -> float:
    """Where *reached* turns true between *low* and *high*: the score falls as the difference grows."""
    if reached(low):
        return low
    for _ in range(60):
        middle = (low + high) / 2
        if reached(middle):
            high = middle
        else:
            low = middle
    return high


def mid_p(gained: int, lost: int) -> float:
    """Return McNemar's mid-p value; 1 where nothing tells the two apart."""
    trials, fewer = gained + lost, min(gained, lost)
    if trials == 0 or gained == lost:
        return 1.0
    scale = trials * math.log(2)
    terms = [math.exp(_log_choose(trials, count) - scale) for count in range(fewer + 1)]
    return min(1.0, 2 * (sum(terms) - terms[-1] / 2))


def _log_choose(trials: int, count: int) -> float:
    return math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
