"""Whether a series changed its level, and where: a test that noise which resembles its past does not fool.

The series is one figure a window, in order: the median latency of each few seconds. Neighbouring windows resemble each
other, nobody knows how much, and some are far off. So it is done on ranks, which bound what a burst weighs (Pettitt, A
non-parametric approach to the change-point problem, 1979), and the threshold comes from the series itself:

    Z(k) = (sum of the ranks of the first k windows, less its expectation) / sqrt(k (n - k) / n)
    M    = max |Z(k)| over k, with at least ``SHORTEST`` windows on either side

M is compared with that of resamples that have no change: the ranks less the mean of the part that they are in, drawn as
runs of neighbours (circular block bootstrap, Politis & Romano 1992; of residuals, as Antoch & Huskova do for change
points). So they keep the correlation of the series, and its spread without the change. A change lies where |Z| is
greatest. Each part is tested again (binary segmentation, Vostrikova 1981), then levels that differ by less than
``SMALLEST`` are joined. A burst in the midst gives two changes, and the last level is that of the first. A slope gives
steps; the first and the last level are what it led from and to.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coordatt_deploy.profile import statistics

Series = NDArray[np.float64]

# A level is at least so many windows long: fewer are a burst as likely as a level.
SHORTEST: Final = 8

# Neighbouring levels that differ by less are one. It is what diff calls a regression from (--min-effect), and keeps
# noise of long memory, which the test alone takes for a change more often than in one of twenty series, from counting.
SMALLEST: Final = 0.03

RESAMPLES: Final = 400
SIGNIFICANCE: Final = 0.05


def change_points(values: ArrayLike, seed: int = 0) -> tuple[int, ...]:
    """Return where a new level begins, by index; empty where the level is constant as far as one can tell.

    Args:
        values: ``(windows,)``, positive.
        seed: Of the resamples.
    """
    series = np.asarray(values, np.float64)
    found = sorted(_changes(series, 0, np.random.default_rng(seed)))
    while found:
        levels = [float(np.median(part)) for part in np.split(series, found)]
        sizes = [abs(math.log(after / before)) for before, after in pairwise(levels)]
        least = int(np.argmin(sizes))
        if sizes[least] >= math.log(1 + SMALLEST):
            break
        del found[least]
    return tuple(found)


def _changes(series: Series, start: int, rng: np.random.Generator) -> Iterator[int]:
    if len(series) < 2 * SHORTEST:
        return
    ranks = _ranks(series)
    scores = _scores(ranks)
    split = int(np.argmax(scores)) + SHORTEST
    if float(scores.max()) <= _threshold(ranks, split, rng):
        return
    yield start + split
    yield from _changes(series[:split], start, rng)
    yield from _changes(series[split:], start + split, rng)


def _ranks(series: Series) -> Series:
    """The mid-ranks of the values, less their mean."""
    _, place, count = np.unique(series, return_inverse=True, return_counts=True)
    ranks: Series = (np.cumsum(count) - (count - 1) / 2)[place]
    ranks -= ranks.mean()
    return ranks


def _scores(series: Series) -> Series:
    """``|Z(k)|`` along the last axis, for each split that leaves ``SHORTEST`` windows on either side."""
    count = series.shape[-1]
    place = np.arange(1, count, dtype=np.float64)
    sums = np.cumsum(series - series.mean(axis=-1, keepdims=True), axis=-1)[..., :-1]
    scores: Series = np.abs(sums) / np.sqrt(place * (count - place) / count)
    return scores[..., SHORTEST - 1 : count - SHORTEST]


def _threshold(ranks: Series, split: int, rng: np.random.Generator) -> float:
    """What M exceeds in one of twenty series of such noise without a change at *split*."""
    parts = ranks[:split], ranks[split:]
    rest = np.concatenate([part - part.mean() for part in parts])
    count, length = len(rest), statistics.block_length(len(rest))
    starts = rng.integers(0, count, (RESAMPLES, math.ceil(count / length)))
    index = ((starts[:, :, None] + np.arange(length)) % count).reshape(RESAMPLES, -1)[:, :count]
    return float(np.quantile(_scores(rest[index]).max(axis=1), 1 - SIGNIFICANCE))


@dataclass(frozen=True, slots=True)
class Change:
    """A level over an earlier one, with the 95 % interval of that ratio."""

    ratio: float
    low: float
    high: float


def change(before: ArrayLike, after: ArrayLike, seed: int = 0) -> Change:
    """Return median(after) / median(before) of two stretches of a series.

    Either is resampled by the circular block bootstrap of ``statistics``; the interval is stretched as there, by
    Student's quantile for the blocks of the shorter one.
    """
    first, last = np.asarray(before, np.float64), np.asarray(after, np.float64)
    ratio = float(np.median(last) / np.median(first))
    logs = np.log(_medians(last, seed + 1) / _medians(first, seed)) - math.log(ratio)
    low, high = np.quantile(logs, ((1 - statistics.CONFIDENCE) / 2, (1 + statistics.CONFIDENCE) / 2))
    shorter = min(len(first), len(last))
    blocks = math.ceil(shorter / statistics.block_length(shorter))
    stretch = statistics.student(blocks - 1) / statistics.student(math.inf)
    return Change(ratio, ratio * math.exp(min(0.0, low) * stretch), ratio * math.exp(max(0.0, high) * stretch))


def _medians(values: Series, seed: int) -> Series:
    """The median of each resample."""
    weights = statistics.resampled_weights(len(values), seed)
    return statistics.resampled_quantiles(values.reshape(-1, 1), weights, 0.5)
