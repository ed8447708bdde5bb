"""What a difference of two scores is worth, whatever is scored: the paired jackknife over images.

Reference and artifact see the same n images. Their scores are computed again without each of G groups of images, and
how much the difference d changes says how much it depends on the images that happened to be asked:

    d(g)       difference of the two scores over all images but group g
    variance   (G - 1) / G * sum over g of (d(g) - mean of d(g))²
    interval   d ± t(97.5 %, G - 1) * sqrt(variance)

With G = n and a score that is a mean over images this is Student's interval of the paired differences. Scores that are
no means, such as mIoU or mAP, need the jackknife; where every group costs a computation over all images, there are few
groups, drawn at random. Where no group changes anything there is no interval: nothing was seen of how images differ.

J. Tukey, "Bias and confidence in not quite large samples", Annals of Mathematical Statistics 29 (1958), 614; B. Efron,
R. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 11; J. Shao, D. Tu, "The Jackknife and Bootstrap"
(1995), section 2.3 (groups). Student's distribution: M. Abramowitz, I. Stegun, "Handbook of Mathematical Functions",
26.7.3, 26.7.4 and 26.7.8. NumPy and the standard library only.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
GROUPS: Final = 20  # Student's quantile is then 2.09 instead of 1.96: more groups would cost more than they tell
SMALLEST: Final = 1e-12  # of the scores: what changes less is rounding


@dataclass(frozen=True, slots=True)
class ScoreDifference:
    """How much greater a candidate's score is than the reference's, on the same images.

    Attributes:
        value: In the unit of the score.
        interval: At 95 %; None where no group of images changes it, or there is one alone.
        greater: Images that the candidate scores higher on; None where images have no score of their own.
        lower: The other way round.
    """

    value: float
    interval: tuple[float, float] | None
    greater: int | None = None
    lower: int | None = None

    def exceeds(self, max_drop: float, *, higher_is_better: bool) -> bool:
        """Whether the candidate is worse by more than *max_drop*."""
        drop = -self.value if higher_is_better else self.value
        return drop > max_drop * (1 + 1e-12)


def difference(
    reference: float, candidate: float, without: NDArray[np.float64], *, per_image: NDArray[np.float64] | None = None
) -> ScoreDifference:
    """Return the difference of two scores and what it is worth.

    Args:
        reference: Its score over all images.
        candidate: The same.
        without: (2, G) scores of both, in that order, without each group.
        per_image: (N,) differences of the images' own scores, where they have any.
    """
    value = candidate - reference
    spread = jackknife_deviation(without[1] - without[0])
    noise = SMALLEST * max(abs(reference), abs(candidate))
    interval = None
    if spread is not None and spread > noise:
        reach = student(without.shape[1] - 1) * spread
        interval = value - reach, value + reach
    greater = lower = None
    if per_image is not None:
        greater, lower = int((per_image > 0).sum()), int((per_image < 0).sum())
    return ScoreDifference(value, interval, greater, lower)


def jackknife_deviation(without: NDArray[np.float64]) -> float | None:
    """Return the standard deviation of a figure from its values without each group, (G,); None for too few groups."""
    groups = len(without)
    if groups < 2 or not np.isfinite(without).all():
        return None
    return math.sqrt((groups - 1) / groups * float(np.square(without - without.mean()).sum()))


def groups_of(images: int, most: int = GROUPS) -> tuple[NDArray[np.int64], ...]:
    """Return the rows of each group: *most* of them, or as many as there are images, drawn at random once for all."""
    order = np.random.default_rng(0).permutation(images).astype(np.int64)
    return tuple(np.sort(part) for part in np.array_split(order, min(most, images)))


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's distribution with *freedom* degrees of freedom, at least one."""
    low, high = 1.9, 13.0  # of one degree of freedom it is 12.7, of infinitely many 1.96
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < CONFIDENCE else (low, middle)
    return high


MANY: Final = 2000  # degrees of freedom from which on the normal distribution's fourth digit is Student's


def _within(t: float, freedom: int) -> float:
    """P(|T| < t), a finite sum of powers of the angle's cosine."""
    if freedom > MANY:
        return math.erf(t / math.sqrt(2) * (1 - 1 / (4 * freedom)) / math.sqrt(1 + t * t / (2 * freedom)))
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    total, term = 0.0, cosine if odd else 1.0
    for power in range(2 + odd, freedom + 1, 2):
        total += term
        term *= (power - 1) / power * cosine * cosine
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total
