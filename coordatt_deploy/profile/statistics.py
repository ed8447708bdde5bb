"""Statistics of latencies: pure functions over samples, without a clock.

Samples are wall times of single inferences in nanoseconds, in the order in which they were taken, as an array
``(rounds, samples per round)``. Between two rounds of one artifact the other artifacts have their turn. Noise on a real
machine comes in bursts, so neighbouring samples resemble each other and nothing here treats them as independent.

    quantile   type 7 of Hyndman & Fan, Sample quantiles in statistical packages (1996): linear between order statistics
    interval   percentiles of the circular block bootstrap (Politis & Romano, 1992) over rounds, in blocks of
               floor(sqrt(rounds)) neighbours: longer than the usual cube root, for load changes slowly; their distances
               to the estimate, as logarithms, stretched by t / 1.96, t of Student's distribution with (number of blocks
               - 1) degrees of freedom, since a handful of blocks knows its own spread no better. On the scale of
               logarithms no end of it is negative, and a ratio and its inverse have the same interval
    drift      median of the last third of the rounds / median of the first third, and whether the medians of the rounds
               have a trend at all (Mann 1945, Kendall 1975)
    modes      peaks of a Gaussian kernel density of log(samples) (Silverman, Density estimation, 1986, eq. 3.31)
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Samples = NDArray[np.float64]

RESAMPLES: Final = 2000
MOST_LEVELS: Final = 4000
CONFIDENCE: Final = 0.95

# Fewer samples than this give no interval worth printing: 20 is the least for which a p95 lies inside the sample.
FEWEST_SAMPLES: Final = 20

# A mode is a peak that holds a tenth of the samples and is parted from the next by a valley half as deep as the lower.
MODE_SHARE: Final = 0.1
MODE_VALLEY: Final = 0.5


def by_round(samples: ArrayLike, per_round: int | None = None) -> Samples:
    """Return *samples* as ``(rounds, per_round)``, without the incomplete round that an interruption leaves.

    Args:
        samples: Nanoseconds, in order; one axis, or two if they are in rounds already.
        per_round: Length of a round. For one axis and None: about twenty rounds.

    Raises:
        ValueError: There are none, or one is not a positive finite number.
    """
    array = np.asarray(samples, np.float64)
    if array.size == 0:
        raise ValueError("no samples")
    if not np.isfinite(array).all() or (array <= 0).any():
        raise ValueError("a latency is a positive finite number of nanoseconds")
    if array.ndim == 2:
        return array
    if array.ndim != 1:
        raise ValueError(f"samples have one axis, or two for rounds; got {array.ndim}")
    length = min(per_round or max(1, array.size // 20), array.size)
    return array[: array.size // length * length].reshape(-1, length)


def quantile(samples: ArrayLike, q: float) -> float:
    """Return the *q* quantile (0 to 1), in nanoseconds."""
    return float(np.quantile(by_round(samples), q))


def median(samples: ArrayLike) -> float:
    """Return the median, in nanoseconds."""
    return quantile(samples, 0.5)


def interquartile_range(samples: ArrayLike) -> float:
    """Return the distance between the quartiles, in nanoseconds."""
    low, high = np.quantile(by_round(samples), (0.25, 0.75))
    return float(high - low)


def resampled_weights(rounds: int, seed: int = 0) -> NDArray[np.float64]:
    """Return how often each round occurs in each resample ``(RESAMPLES, rounds)`` of the circular block bootstrap.

    A resample is made of runs of neighbouring rounds; the last round is followed by the first.
    """
    length = block_length(rounds)
    starts = np.random.default_rng(seed).integers(0, rounds, (RESAMPLES, math.ceil(rounds / length)))
    index = ((starts[:, :, None] + np.arange(length)) % rounds).reshape(RESAMPLES, -1)[:, :rounds]
    cells = index + rounds * np.arange(RESAMPLES)[:, None]
    return np.bincount(cells.ravel(), minlength=RESAMPLES * rounds).reshape(RESAMPLES, rounds).astype(np.float64)


def resampled_quantiles(rounds: Samples, weights: NDArray[np.float64], q: float) -> NDArray[np.float64]:
    """Return the *q* quantile of each resample, by the inverse of its distribution function.

    Nothing is sorted per resample: how many samples of a round are at most x, times how often the round occurs, gives
    the resample's distribution function at x.

    Args:
        rounds: ``(rounds, samples per round)``; NaN does not count.
        weights: ``(resamples, rounds)``, from ``resampled_weights``.
        q: 0 to 1.

    Returns:
        ``(resamples,)``; NaN where no sample that counts is in the resample.
    """
    kept = np.isfinite(rounds)
    grid = np.unique(rounds[kept])
    if len(grid) > MOST_LEVELS:
        grid = np.unique(np.quantile(grid, np.linspace(0, 1, MOST_LEVELS), method="nearest"))
    level = np.minimum(np.searchsorted(grid, rounds), len(grid) - 1)
    counts = np.zeros((len(rounds), len(grid)))
    row = np.broadcast_to(np.arange(len(rounds))[:, None], rounds.shape)
    np.add.at(counts, (row[kept], level[kept]), 1)
    below = weights @ counts.cumsum(axis=1)
    total = below[:, -1:]
    found = grid[np.argmax(below >= q * total - 1e-9, axis=1)]
    return np.where(total[:, 0] > 0, found, np.nan)


def block_length(rounds: int) -> int:
    """Return how many neighbouring rounds make a block of the bootstrap."""
    return math.isqrt(rounds)


def student(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's distribution (Abramowitz & Stegun 26.7.5).

    It is 3.1 % short at two degrees of freedom, for which fewer count as well, and closer at more.
    """
    z, v = 1.959964, max(freedom, 2.0)
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + terms[0] / v + terms[1] / v**2 + terms[2] / v**3


def student_p(t: float, freedom: float) -> float:
    """Return P(|T| > |t|) of Student's distribution, by Wallace's normal approximation (1959)."""
    if math.isinf(freedom):
        return math.erfc(abs(t) / math.sqrt(2))
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return math.erfc(z / math.sqrt(2))


def interval_of(estimate: float, resampled: NDArray[np.float64], rounds: int) -> tuple[float, float]:
    """Return the 95 % interval of a positive *estimate* from the same figure of the resamples, which are as well."""
    low, high = np.log(np.quantile(resampled, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)) / estimate)
    stretch = student(math.ceil(rounds / block_length(rounds)) - 1) / 1.959964
    return float(estimate * math.exp(min(0.0, low) * stretch)), float(estimate * math.exp(max(0.0, high) * stretch))


def median_interval(samples: ArrayLike, per_round: int | None = None) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median, in nanoseconds."""
    rounds = by_round(samples, per_round)
    if len(rounds) == 1:
        rounds = rounds.reshape(-1, 1)
    resampled = resampled_quantiles(rounds, resampled_weights(len(rounds)), 0.5)
    return interval_of(median(rounds), resampled, len(rounds))


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratio of two medians with its 95 % interval."""

    value: float
    low: float
    high: float


def median_ratio(a: ArrayLike, b: ArrayLike) -> Ratio:
    """Return median(a) / median(b) of two artifacts that took turns: round i of one goes with round i of the other.

    A burst of noise or a change of the frequency hits both sides of a round, hence they are resampled together.
    """
    rounds_a, rounds_b = by_round(a), by_round(b)
    count = min(len(rounds_a), len(rounds_b))
    rounds_a, rounds_b = rounds_a[:count], rounds_b[:count]
    weights = resampled_weights(count)
    value = median(rounds_a) / median(rounds_b)
    resampled = resampled_quantiles(rounds_a, weights, 0.5) / resampled_quantiles(rounds_b, weights, 0.5)
    return Ratio(value, *interval_of(value, resampled, count))


def drift(samples: ArrayLike) -> float:
    """Return the relative change from the first third of the rounds to the last; 0.0 without a trend (p > 1 %)."""
    medians = np.median(by_round(samples), axis=1)
    count = len(medians)
    if count < 6 or trend_p(medians) > 0.01:
        return 0.0
    third = count // 3
    return float(np.median(medians[-third:]) / np.median(medians[:third]) - 1)


def step(samples: ArrayLike) -> int | None:
    """Return the round from which on the level is another one and stays there; None where it is constant or slides.

    The split that leaves the least absolute deviation from the medians of its two parts counts as a step if it leaves
    less than a third: a straight slope leaves half, a clean step nothing.
    """
    medians = np.median(by_round(samples), axis=1)
    splits = range(3, len(medians) - 2)

    def deviation(values: NDArray[np.float64]) -> float:
        return float(np.abs(values - np.median(values)).sum())

    whole = deviation(medians)
    left = {split: deviation(medians[:split]) + deviation(medians[split:]) for split in splits}
    best = min(left, key=left.__getitem__, default=None)
    return best if best is not None and left[best] < whole / 3 else None


def trend_p(values: NDArray[np.float64]) -> float:
    """Return the p-value of Mann and Kendall's test against a trend, by its normal approximation with ties."""
    count = len(values)
    score = float(sum(np.sign(values[i + 1 :] - values[i]).sum() for i in range(count - 1)))
    _, ties = np.unique(values, return_counts=True)
    variance = (count * (count - 1) * (2 * count + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18
    if variance == 0:
        return 1.0
    return math.erfc(max(0.0, abs(score) - 1) / math.sqrt(2 * variance))


def modes(samples: ArrayLike) -> tuple[float, ...]:
    """Return the modes in nanoseconds, fastest first: one as a rule, two where it jumps between two states.

    Fewer than ``FEWEST_SAMPLES`` have one, their median: three samples that lie apart are no three states.
    """
    logs = np.log(by_round(samples).ravel())
    if len(logs) < FEWEST_SAMPLES:
        return (median(samples),)
    low, high = np.quantile(logs, (0.25, 0.75))
    # A hundredth: clocks and caches jitter by that much, and peaks closer than that are none of the user's business.
    width = max(0.9 * min(float(logs.std()), float(high - low) / 1.34 or math.inf) * len(logs) ** -0.2, 0.01)
    grid = np.linspace(logs.min() - 3 * width, logs.max() + 3 * width, 512)
    density = np.exp(-0.5 * ((grid[:, None] - logs) / width) ** 2).sum(axis=1)
    peaks = [i for i in range(1, len(grid) - 1) if density[i - 1] < density[i] >= density[i + 1]]
    while True:
        # Join the two neighbours that are parted least, until what is left is parted well and holds enough.
        cuts = [left + int(density[left:right].argmin()) for left, right in pairwise(peaks)]
        if not cuts:
            break
        edges = [-math.inf, *(float(grid[cut]) for cut in cuts), math.inf]
        shares = np.histogram(logs, edges)[0] / len(logs)
        depths = [density[c] / min(density[p], density[q]) for p, c, q in zip(peaks, cuts, peaks[1:], strict=False)]
        small = int(np.argmin(shares))
        shallow = int(np.argmax(depths))
        if shares[small] < MODE_SHARE:
            del peaks[small]
        elif depths[shallow] > MODE_VALLEY:
            del peaks[shallow if density[peaks[shallow]] < density[peaks[shallow + 1]] else shallow + 1]
        else:
            break
    edges = [-math.inf, *(float(grid[cut]) for cut in cuts), math.inf]
    parts = (logs[(logs > low) & (logs <= high)] for low, high in pairwise(edges))
    return tuple(float(np.exp(np.median(part))) for part in parts)
