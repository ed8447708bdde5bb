"""Whether one latency differs from another, and whether that can be known at all.

Other load adds time, and more to one run than to the next. So what is compared is not the median but the *fast tenth*:
the 10 % quantile of the samples less the time during which the kernel gave the core to others. It is taken per batch: a
batch is what was measured between two openings, so that batches differ by everything that one run can vary.

    L_i = log Q10(batch i)                                          Y_i the same of the yardsticks in the same rounds

    one run, taking turns    d = mean(L_bi - L_ai)                  s_d² = var(L_bi - L_ai) / n
    two runs                 d = mean(M_b) - mean(M_a)              s_d² = var(M_b) / n_b + var(M_a) / n_a
                             M_i = L_i - slope Y_i                         + (error (mean(Y_b) - mean(Y_a)))²

    s = sqrt(s_d² + floor²)        p = P(|t| > |d| / s)             b differs from a if p < 1 %

That is the method of batch means (Schmeiser, 1982) with Welch's t test; the degrees of freedom are Satterthwaite's. The
yardsticks take the speed of the machine out of d, after the idea of duet benchmarking (Bulej et al., ICPE 2020). An
artifact feels other load about as much as a yardstick does, but not exactly: hence a slope with its error. The floor is
what no run can see of itself. All three come from recordings on a busy machine; tests/data/README.md has the figures.
"""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy import statistics
from coordatt_deploy.latency import Latency, Yardstick, YardstickKind
from coordatt_deploy.profile_document import Profile
from coordatt_deploy.specs import Origin
from coordatt_deploy.statistics import Samples

FAST: Final = 0.1
SIGNIFICANCE: Final = 0.01
BATCHES: Final = 10  # of a latency that was opened fewer than FEWEST_BATCHES times
FEWEST_BATCHES: Final = 4
FEWEST_IN_BATCH: Final = 5

# The least slowdown that a comparison shall find; an interval inside it means "no difference".
MARGIN: Final = 0.10


class Design(enum.StrEnum):
    """How two latencies were measured."""

    SAME_RUN = "same run"
    TWO_RUNS = "two runs"


@dataclass(frozen=True, slots=True)
class Felt:
    """What is known of two latencies beforehand; logarithms, so 0.01 is a per cent.

    Attributes:
        floor: Standard deviation of d that their batches do not show.
        slope: How much of a change of the yardstick an artifact feels.
        error: Standard deviation of the slope between artifacts.
    """

    floor: float
    slope: float = 0.0
    error: float = 0.0


SAME_RUN: Final = Felt(floor=0.015)
# In the order of preference. Without any yardstick, the load may have changed by anything usual.
BY_YARDSTICK: Final = {
    YardstickKind.NETWORK: Felt(floor=0.01, slope=0.9, error=0.15),
    YardstickKind.NUMPY: Felt(floor=0.015, slope=0.7, error=0.25),
}
NO_YARDSTICK: Final = Felt(floor=0.05)

Yardsticks = Sequence[Yardstick]


class Outcome(enum.StrEnum):
    """What b is against a."""

    FASTER = "faster"
    SLOWER = "slower"
    NO_DIFFERENCE = "no difference"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict on b against a, with its evidence.

    Attributes:
        outcome: What b is against a.
        ratio: b / a; None where too little is left to say.
        ci95: 95 % interval of the ratio, the floor included.
        p: Probability of at least such a ratio between equal artifacts.
        reason: The verdict in words.
    """

    outcome: Outcome
    ratio: float | None
    ci95: tuple[float, float] | None
    p: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Difference:
    """d, its standard deviation and degrees of freedom; logarithms."""

    value: float
    deviation: float
    freedom: float


def compare_latencies(
    a: Latency,
    b: Latency,
    *,
    design: Design = Design.SAME_RUN,
    yardsticks: tuple[Yardsticks, Yardsticks] = ((), ()),
) -> Comparison:
    """Compare *b* with *a*.

    Args:
        a: The reference.
        b: The candidate.
        design: Whether the two took turns in one run, or come from two runs on the same kind of machine.
        yardsticks: For two runs: those of each. Without one that both have, only great differences can be told from a
            change of the load.

    Raises:
        ValueError: There are yardsticks for one run, which needs none, or the numbers of threads of two runs differ.
    """
    if design is Design.SAME_RUN and any(yardsticks):
        raise ValueError("artifacts that took turns in one run are their own yardstick")
    if design is Design.TWO_RUNS and a.threads != b.threads:
        raise ValueError(f"one run had {a.threads} threads, the other {b.threads}")
    found = _difference(a, b, design, yardsticks, FAST)
    if found is None:
        reason = "other processes disturbed too many samples to compare the rest; measure again on a quieter machine"
        return Comparison(Outcome.INCONCLUSIVE, None, None, None, reason)
    p = statistics.student_p(found.value / found.deviation, found.freedom)
    reach = statistics.student(found.freedom) * found.deviation
    ratio, low, high = (math.exp(value) for value in (found.value, found.value - reach, found.value + reach))
    text = f"ratio {ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}, p = {p:.2g}"

    def concluded(outcome: Outcome, words: str) -> Comparison:
        return Comparison(outcome, ratio, (low, high), p, f"{text}: {words}")

    if p < SIGNIFICANCE:
        outcome = Outcome.SLOWER if found.value > 0 else Outcome.FASTER
        return concluded(outcome, f"{outcome} by {abs(ratio - 1):.1%}")
    if low < 1 / (1 + MARGIN) or high > 1 + MARGIN:
        return concluded(Outcome.INCONCLUSIVE, f"too noisy to exclude a change of {MARGIN:.0%}")
    medians = _difference(a, b, design, yardsticks, 0.5)
    if medians and abs(medians.value) > max(math.log1p(MARGIN), 3 * medians.deviation):
        words = f"but the medians differ by {math.expm1(medians.value):+.0%}, so one of them jumps between states"
        return concluded(Outcome.INCONCLUSIVE, words)
    return concluded(Outcome.NO_DIFFERENCE, f"a change of {MARGIN:.0%} would have shown")


def _difference(
    a: Latency, b: Latency, design: Design, yardsticks: tuple[Yardsticks, Yardsticks], q: float
) -> Difference | None:
    """Return d, or None where too few batches can be used."""
    if design is Design.SAME_RUN:
        count = _batch_count(a)
        paired = _levels(b, count, q) - _levels(a, count, q)
        return _with_floor([_known(paired)], SAME_RUN.floor)
    levels_a, levels_b = _levels(a, _batch_count(a), q), _levels(b, _batch_count(b), q)
    felt, common = _common(*yardsticks)
    if not common:
        return _with_floor([_known(levels_a), _known(levels_b)], felt.floor)
    speeds = [
        np.mean([_levels(pair[side].latency, len(levels), q) for pair in common], axis=0)
        for side, levels in enumerate((levels_a, levels_b))
    ]
    parts = [_known(levels_a - felt.slope * speeds[0]), _known(levels_b - felt.slope * speeds[1])]
    shift = float(np.nanmean(speeds[1]) - np.nanmean(speeds[0])) if all(map(len, parts)) else 0.0
    return _with_floor(parts, math.hypot(felt.floor, felt.error * shift))


def _common(a: Yardsticks, b: Yardsticks) -> tuple[Felt, list[tuple[Yardstick, Yardstick]]]:
    """Return the pairs of the best kind of yardstick that both runs have, on the same software."""
    for kind, felt in BY_YARDSTICK.items():
        others = {own.software: own for own in b if own.kind is kind}
        pairs = [(own, others[own.software]) for own in a if own.kind is kind and own.software in others]
        if pairs:
            return felt, pairs
    return NO_YARDSTICK, []


def _with_floor(parts: list[NDArray[np.float64]], floor: float) -> Difference | None:
    """Return mean(last) - mean(first of two), or the mean of the only part."""
    if any(len(part) < FEWEST_BATCHES for part in parts):
        return None
    variances = [float(part.var(ddof=1)) / len(part) for part in parts]
    value = float(parts[-1].mean()) - (float(parts[0].mean()) if len(parts) > 1 else 0.0)
    variance = sum(variances) + floor**2
    # The floor is taken as known: it adds variance, but no uncertainty of the variance.
    uncertainty = sum(own**2 / (len(part) - 1) for own, part in zip(variances, parts, strict=True))
    return Difference(value, math.sqrt(variance), variance**2 / uncertainty if uncertainty else math.inf)


def _batch_count(latency: Latency) -> int:
    return latency.openings if latency.openings >= FEWEST_BATCHES else min(BATCHES, len(latency.rounds))


def _levels(latency: Latency, count: int, q: float) -> NDArray[np.float64]:
    """Return log Q of each batch ``(count,)``; NaN where too little of it is known."""
    batches = np.array_split(latency.undisturbed, count)
    return np.array([_level(batch, q) for batch in batches])


def _level(batch: Samples, q: float) -> float:
    known = np.sort(_known(batch))
    if len(known) < FEWEST_IN_BATCH:
        return math.nan
    # Type 7 as everywhere; np.quantile takes ten times as long on so few samples.
    below, part = divmod(q * (len(known) - 1), 1)
    low, high = known[int(below)], known[math.ceil(below + part)]
    return math.log(low + part * (high - low))


def _known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.extract(np.isfinite(values), values)


@dataclass(frozen=True, slots=True)
class PairComparison:
    """One artifact with one number of threads in two profiles."""

    path: str
    threads: int
    comparison: Comparison


def compare_profiles(a: Profile, b: Profile) -> tuple[PairComparison, ...]:
    """Compare profile *b* with profile *a*, for each path and number of threads that both hold as measured.

    Latencies of unlike machines are inconclusive.
    """
    before = {(item.path, item.latency.threads): item for item in a.results if item.origin is Origin.MEASURED}
    found = []
    for item in b.results:
        old = before.get((item.path, item.latency.threads))
        if old is None or item.origin is not Origin.MEASURED:
            continue
        threads = item.latency.threads
        if a.host.same_machine(b.host):
            yardsticks = a.yardsticks.get(threads, ()), b.yardsticks.get(threads, ())
            comparison = compare_latencies(old.latency, item.latency, design=Design.TWO_RUNS, yardsticks=yardsticks)
        else:
            reason = f"measured on unlike machines: {a.host.cpu} ({a.host.cores} cores), {b.host.cpu} ({b.host.cores})"
            comparison = Comparison(Outcome.INCONCLUSIVE, None, None, None, reason)
        found.append(PairComparison(item.path, threads, comparison))
    return tuple(found)
