"""Whether file b is slower than file a, where a was opened twice: what its two copies differ by is the noise floor.

A batch is one opening of the three, a, a' and b, which took turns in rounds of shuffled order. Of each batch a figure
of each is taken, and of n batches

    D_i = log b - (log a + log a') / 2         b against the mean of the copies
    C_i = log a' - log a                       the control: the same file against itself
    d, s_d and c, s_c                          trimmed means over the batches and their standard errors
    s² = s_d² + max(0, c² - s_c²)              the second term: what copies differ by beyond what their scatter explains
    interval  exp(d ± t s)                     t: 97.5 % of Student's distribution with h - 1 degrees of freedom
    p         P(|T| > |d| / s)

A fifth of the batches is trimmed at each end (Yuen, "The two-sample trimmed t for unequal population variances",
Biometrika 61, 1974; h batches are left, the variance is that of the winsorized sample): another process that takes a
core for some seconds makes single batches wild. Batches are seconds apart and opened anew, in each order of the three
equally often, so that they, not samples, are what is independent.

The figure is the fastest of a round, the fast tenth of a batch, or its median, whichever the control knows best: other
load adds time, but to which of them depends on the machine. As only the control is asked, the choice knows nothing of
b.

Measuring ends when the interval is narrow enough to decide, which says nothing of the side that d lies on, or when b is
beyond the least effect at a level that stands for all the looks together (``LOOK_SIGNIFICANCE``).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.profile import statistics
from coordatt_deploy.profile.statistics import Samples

TRIMMED: Final = 0.2  # of the batches, at each end
ORDERS: Final = 6  # in which three files can be opened
FEWEST_BATCHES: Final = ORDERS  # four are left then, and three degrees of freedom
FIRST_LOOK: Final = 2 * ORDERS  # then after every ORDERS batches, when each order was had equally often
LOOK_SIGNIFICANCE: Final = 0.001  # of one look: 50 of them stay below 5 %
FAST: Final = 0.1
MEDIAN: Final = "median"
FEWEST_IN_ROUND: Final = 3  # samples that other processes left alone


@dataclass(frozen=True, slots=True)
class Batch:
    """One opening of a, a' and b.

    Attributes:
        differences: D by the name of the figure, NaN where too little is known.
        controls: C.
        median_ms: Of all samples of a, a' and b.
    """

    differences: Mapping[str, float]
    controls: Mapping[str, float]
    median_ms: tuple[float, float, float]


def batch_of(a: Samples, again: Samples, b: Samples) -> Batch:
    """Return what one opening says.

    Args:
        a: Samples less what was lost to other processes ``(rounds, samples per round)``, in nanoseconds; NaN where that
            is not known.
        again: The same of the second copy, in the same rounds.
        b: Of the other file.
    """
    differences, controls = {}, {}
    count = min(side.shape[1] for side in (a, again, b))  # the best of more samples is better by luck
    rounds = [_fastest(side[:, :count]) for side in (a, again, b)]
    differences["fastest of a round"] = _middle(rounds[2] - (rounds[0] + rounds[1]) / 2)
    controls["fastest of a round"] = _middle(rounds[1] - rounds[0])
    for name, share in (("fast tenth", FAST), (MEDIAN, 0.5)):
        levels = [_level(side, share) for side in (a, again, b)]
        differences[name] = levels[2] - (levels[0] + levels[1]) / 2
        controls[name] = levels[1] - levels[0]
    medians = [math.exp(_level(side, 0.5)) / 1e6 for side in (a, again, b)]
    return Batch(differences, controls, (medians[0], medians[1], medians[2]))


def _fastest(side: Samples) -> NDArray[np.float64]:
    """Return the logarithm of the fastest sample of each round; NaN where too few are known."""
    known = np.isfinite(side)
    least = np.where(known, side, np.inf).min(axis=1)
    logs: NDArray[np.float64] = np.log(np.where(known.sum(axis=1) >= FEWEST_IN_ROUND, least, np.nan))
    return logs


def _middle(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def _level(side: Samples, share: float) -> float:
    known = np.sort(side[np.isfinite(side)])
    if len(known) < FEWEST_IN_ROUND:
        return math.nan
    # Type 7 as everywhere; np.quantile takes ten times as long on so few samples.
    below, part = divmod(share * (len(known) - 1), 1)
    low, high = known[int(below)], known[math.ceil(below + part)]
    return math.log(low + part * (high - low))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio, and what is known of it.

    Attributes:
        value: Its logarithm.
        error: Standard error of that.
        freedom: Degrees of freedom of the error.
    """

    value: float
    error: float
    freedom: float

    @property
    def ratio(self) -> float:
        """The ratio itself."""
        return math.exp(self.value)

    @property
    def reach(self) -> float:
        """Half the width of the 95 % interval of the logarithm."""
        return statistics.student(self.freedom) * self.error

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % interval of the ratio."""
        return math.exp(self.value - self.reach), math.exp(self.value + self.reach)

    @property
    def p(self) -> float:
        """Probability of at least such a ratio where there is no difference."""
        return self.p_beyond(0.0)

    def p_beyond(self, margin: float) -> float:
        """Probability of a logarithm at least so far from zero where the true one is *margin* away from it."""
        distance = abs(self.value) - margin
        if distance <= 0:
            return 1.0
        return statistics.student_p(distance / self.error, self.freedom) if self.error else 0.0


@dataclass(frozen=True, slots=True)
class Paired:
    """What the batches say of b against a.

    Attributes:
        difference: b / a, with the floor.
        control: a' / a: the same file against itself.
        floor: Standard deviation that copies differ by beyond their scatter; a logarithm.
        figure: That was compared.
        medians: b / a by the medians, floor included, whatever figure was compared; None where too little is known.
        differences: D of each batch that counts.
        controls: C of each batch that counts.
    """

    difference: Estimate
    control: Estimate
    floor: float
    figure: str
    medians: Estimate | None
    differences: tuple[float, ...]
    controls: tuple[float, ...]


def paired(batches: Sequence[Batch]) -> Paired | None:
    """Return what *batches* say; None where other processes left too few of them."""
    found: dict[str, Paired] = {}
    for figure in batches[0].differences if batches else ():
        rows = [(item.differences[figure], item.controls[figure]) for item in batches]
        known = np.array([row for row in rows if all(map(math.isfinite, row))])
        if len(known) >= FEWEST_BATCHES:
            found[figure] = _by_figure(figure, known[:, 0], known[:, 1])
    if not found:
        return None
    best = min(found.values(), key=lambda item: item.control.error)
    return replace(best, medians=found[MEDIAN].difference if MEDIAN in found else None)


def _by_figure(figure: str, differences: NDArray[np.float64], controls: NDArray[np.float64]) -> Paired:
    own, control = trimmed(differences), trimmed(controls)
    floor = math.sqrt(max(0.0, control.value**2 - control.error**2))
    error = math.hypot(own.error, floor)
    # The floor is taken as known: it adds variance, but no uncertainty of the variance (Satterthwaite).
    freedom = own.freedom * (error / own.error) ** 4 if own.error else math.inf
    of_batches = (tuple(float(value) for value in values) for values in (differences, controls))
    return Paired(Estimate(own.value, error, freedom), control, floor, figure, None, *of_batches)


def trimmed(values: NDArray[np.float64]) -> Estimate:
    """Return the trimmed mean, its standard error and the degrees of freedom (Yuen, 1974).

    Args:
        values: ``(n,)``, at least three.
    """
    ordered, count = np.sort(values), len(values)
    cut = int(TRIMMED * count)
    left = count - 2 * cut
    winsorized = ordered.clip(ordered[cut], ordered[count - cut - 1])
    squares = float(np.square(winsorized - winsorized.mean()).sum())
    error = math.sqrt(squares / (left * (left - 1)))
    return Estimate(float(ordered[cut : count - cut].mean()), error, left - 1.0)


def settled(batches: Sequence[Batch], min_effect: float) -> bool:
    """Whether measuring may end: it is a time to look, and what is known decides.

    Args:
        batches: So far.
        min_effect: The least effect that counts: 0.03 for three per cent.
    """
    if len(batches) < FIRST_LOOK or len(batches) % ORDERS:
        return False
    known, margin = paired(batches), math.log1p(min_effect)
    if known is None:
        return False
    return known.difference.reach <= margin / 2 or known.difference.p_beyond(margin) < LOOK_SIGNIFICANCE


def collect(batches: Iterator[tuple[Batch, float]], min_effect: float, min_seconds: float) -> tuple[list[Batch], float]:
    """Take batches until they decide, or until the time is used up; at least ``FEWEST_BATCHES``.

    Args:
        batches: Each with the seconds that have passed when it ended. An end of them ends it as well.
        min_effect: The least effect that counts.
        min_seconds: Time that is given to a pair before it stays undecided.

    Returns:
        The batches, and the seconds that they took.
    """
    taken: list[Batch] = []
    seconds = 0.0
    for batch, seconds in batches:
        taken.append(batch)
        if settled(taken, min_effect) or (len(taken) >= FEWEST_BATCHES and seconds >= min_seconds):
            break
    return taken, seconds


def seconds_needed(known: Paired, seconds: float, min_effect: float) -> float:
    """Return how long it would take to decide, if noise stays as it is; infinity where no time decides.

    The width of an interval falls with the square root of the time. Of a ratio within the least effect the interval
    must come to lie within it, of one beyond it must leave 1 out. The floor does not fall.

    Args:
        known: So far.
        seconds: That it took.
        min_effect: The least effect that counts.
    """
    margin, found = math.log1p(min_effect), abs(known.difference.value)
    wanted = margin - found if found < margin else found
    quantile = statistics.student(known.difference.freedom)
    room = wanted**2 - (quantile * known.floor) ** 2
    scatter = quantile**2 * (known.difference.error**2 - known.floor**2)
    # Within a tenth of the least effect at its very edge the estimate itself wanders: no time can be promised.
    if room <= 0 or abs(found - margin) < 0.1 * margin:
        return math.inf
    return seconds * max(1.0, scatter / room)


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """Return p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, highest = [1.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return tuple(adjusted)
