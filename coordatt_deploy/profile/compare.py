"""Whether one latency differs from another, and whether that can be known at all.

Other load adds time, and more to one moment than to the next. So what is compared are not the medians but the fastest
calls, less the time during which the kernel gave the core to others. A batch is what was measured between two openings,
so that batches differ by everything that one run can vary.

    L_i = log Q10(batch i)                                          Y_i the same of the yardstick in the same rounds

    one run, taking turns    d = mean(D), s_d² = var(D) / n of the better known of two:
                             D_i = L_bi - L_ai
                             D_i = median over the rounds of batch i of log(fastest b / fastest a), of as many calls
    two runs                 d = mean(M_b) - mean(M_a),    M_i = L_i - SLOPE Y_i
                             s_d² = var(M_b) / n_b + var(M_a) / n_a + (SLOPE_ERROR (mean(Y_b) - mean(Y_a)))²

    s = sqrt(s_d² + floor²)        p = P(|t| > |d| / s)             b differs from a if p < 1 %

That is the method of batch means (Schmeiser, 1982) with Welch's t test; the degrees of freedom are Satterthwaite's. Two
calls in one round are milliseconds apart and feel the same bursts of load: on a busy machine the second D is known
twice as well as the first; where every call is noisy on its own the first is. The yardstick takes the speed of the
machine out of d, after the idea of duet benchmarking (Bulej et al., ICPE 2020). A network feels other load about as
much as the yardstick does, but not exactly: hence SLOPE and SLOPE_ERROR. The floor is what no run can see of itself;
between two runs it grows with the load, and a busy machine is slower for minutes in ways that nothing tells. So
artifacts are compared best in one run; two runs of a busy machine mostly end inconclusive. docs/measuring.md has the
rates.
"""

import enum
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.profile import statistics
from coordatt_deploy.profile.latency import Latency
from coordatt_deploy.profile.result import Profile
from coordatt_deploy.profile.statistics import Samples

FAST: Final = 0.1
SIGNIFICANCE: Final = 0.01
BATCHES: Final = 10  # of a latency that was opened fewer than FEWEST_BATCHES times
FEWEST_BATCHES: Final = 4
FEWEST_IN_BATCH: Final = 5
FEWEST_IN_ROUND: Final = 3

# The least slowdown that a comparison shall find; an interval inside it means "no difference".
MARGIN: Final = 0.10

SLOPE: Final = 0.7
SLOPE_ERROR: Final = 0.25


class Design(enum.StrEnum):
    """How two latencies were measured."""

    SAME_RUN = "same run"
    TWO_RUNS = "two runs"


# Standard deviations of logarithms, so 0.01 is a per cent. BUSY_FLOOR is added in proportion to ``_busy``: a network of
# half a millisecond was up to 30 % slower between runs of a machine whose two cores were both taken.
FLOOR: Final = 0.015
BUSY_FLOOR: Final = 0.12
FLOOR_WITHOUT_YARDSTICK: Final = 0.05


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
    yardsticks: tuple[Latency, Latency] | None = None,
    margin: float = MARGIN,
) -> Comparison:
    """Compare *b* with *a*.

    Args:
        a: The reference.
        b: The candidate.
        design: Whether the two took turns in one run, or come from two runs on the same kind of machine.
        yardsticks: For two runs: the yardstick of each. Without, only great differences can be told from a change of
            the load.
        margin: The least change that an interval inside it excludes: 0.1 for ten per cent.

    Raises:
        ValueError: There are yardsticks for one run, which needs none, or the numbers of threads of two runs differ.
    """
    if design is Design.SAME_RUN and yardsticks is not None:
        raise ValueError("artifacts that took turns in one run are their own yardstick")
    if design is Design.TWO_RUNS and a.threads != b.threads:
        raise ValueError(f"one run had {a.threads} threads, the other {b.threads}")
    found = _paired(a, b) if design is Design.SAME_RUN else _between_runs(a, b, yardsticks, FAST)
    if found is None:
        reason = "other processes disturbed too many samples to compare the rest; measure again on a quieter machine"
        return Comparison(Outcome.INCONCLUSIVE, None, None, None, reason)
    p = statistics.student_p(found.value / found.deviation, found.freedom)
    reach = statistics.student(found.freedom) * found.deviation
    ratio, low, high = (math.exp(value) for value in (found.value, found.value - reach, found.value + reach))
    text = f"ratio {ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}, p = {p:.2g}"

    def comparison(outcome: Outcome, words: str) -> Comparison:
        return Comparison(outcome, ratio, (low, high), p, f"{text}: {words}")

    if p < SIGNIFICANCE:
        outcome = Outcome.SLOWER if found.value > 0 else Outcome.FASTER
        return comparison(outcome, f"{outcome} by {abs(ratio - 1):.1%}")
    if low < 1 / (1 + margin) or high > 1 + margin:
        return comparison(Outcome.INCONCLUSIVE, f"too noisy to exclude a change of {margin:.0%}")
    medians = _medians(a, b) if design is Design.SAME_RUN else _between_runs(a, b, yardsticks, 0.5)
    if medians and abs(medians.value) > max(math.log1p(margin), 3 * medians.deviation):
        words = f"but the medians differ by {math.expm1(medians.value):+.0%}, so one of them jumps between states"
        return comparison(Outcome.INCONCLUSIVE, words)
    return comparison(Outcome.NO_DIFFERENCE, f"a change of {margin:.0%} would have shown")


def _paired(a: Latency, b: Latency) -> Difference | None:
    """Return d of one run, by the better known of its two estimates; None where too few batches can be used."""
    count = min(_batch_count(a), len(a.rounds), len(b.rounds))
    rounds = zip(a.undisturbed, b.undisturbed, strict=False)
    ratios = np.array([_fastest_ratio(_known(one), _known(other)) for one, other in rounds])
    batches = [_known(batch) for batch in np.array_split(ratios, count)]
    by_round = _with_floor([np.array([np.median(batch) for batch in batches if len(batch)])], FLOOR)
    by_batch = _with_floor([_known(_levels(b, count, FAST) - _levels(a, count, FAST))], FLOOR)
    found = [estimate for estimate in (by_round, by_batch) if estimate is not None]
    return min(found, key=lambda estimate: estimate.deviation, default=None)


def _fastest_ratio(a: Samples, b: Samples) -> float:
    """Return log(fastest b / fastest a) over as many calls of each: the best of more calls is better by luck."""
    count = min(len(a), len(b))
    return math.log(b[:count].min() / a[:count].min()) if count >= FEWEST_IN_ROUND else math.nan


def _medians(a: Latency, b: Latency) -> Difference | None:
    """Return the difference of the medians in one run; None where too few batches can be used."""
    count = _batch_count(a)
    return _with_floor([_known(_levels(b, count, 0.5) - _levels(a, count, 0.5))], FLOOR)


def _between_runs(a: Latency, b: Latency, yardsticks: tuple[Latency, Latency] | None, q: float) -> Difference | None:
    """Return d of two runs; None where too few batches can be used."""
    levels_a, levels_b = _levels(a, _batch_count(a), q), _levels(b, _batch_count(b), q)
    floor = FLOOR + BUSY_FLOOR * max(_busy(a), _busy(b))
    if yardsticks is None:
        return _with_floor([_known(levels_a), _known(levels_b)], max(floor, FLOOR_WITHOUT_YARDSTICK))
    speed_a, speed_b = (_levels(own, len(of), q) for own, of in zip(yardsticks, (levels_a, levels_b), strict=True))
    parts = [_known(levels_a - SLOPE * speed_a), _known(levels_b - SLOPE * speed_b)]
    shift = float(np.nanmean(speed_b) - np.nanmean(speed_a)) if all(map(len, parts)) else 0.0
    return _with_floor(parts, math.hypot(floor, SLOPE_ERROR * shift))


def _busy(latency: Latency) -> float:
    """How much of the core that it ran on others wanted, from 0 to 1."""
    evidence = latency.evidence
    excess = 0.0
    if evidence.other_cores is not None and evidence.idle_cores is not None:
        excess = min(max(evidence.other_cores - evidence.idle_cores, 0.0), 1.0)
    return max(excess, latency.preempted or 0.0)


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


def compare_profiles(a: Profile, b: Profile, *, margin: float = MARGIN) -> tuple[PairComparison, ...]:
    """Compare profile *b* with profile *a*, for each path and number of threads that both hold as measured.

    *margin* is that of ``compare_latencies``. Latencies of unlike machines are inconclusive. A yardstick counts only if
    it ran on the same NumPy.
    """
    before = {(item.path, item.latency.threads): item for item in a.results if item.origin is Origin.MEASURED}
    same_numpy = a.host.versions.get("numpy") == b.host.versions.get("numpy")
    found = []
    for item in b.results:
        old = before.get((item.path, item.latency.threads))
        if old is None or item.origin is not Origin.MEASURED:
            continue
        threads = item.latency.threads
        if a.host.same_machine(b.host):
            own = (a.yardsticks.get(threads), b.yardsticks.get(threads))
            yardsticks = (own[0], own[1]) if same_numpy and own[0] and own[1] else None
            comparison = compare_latencies(
                old.latency, item.latency, design=Design.TWO_RUNS, yardsticks=yardsticks, margin=margin
            )
        else:
            reason = f"measured on unlike machines: {a.host.cpu} ({a.host.cores} cores), {b.host.cpu} ({b.host.cores})"
            comparison = Comparison(Outcome.INCONCLUSIVE, None, None, None, reason)
        found.append(PairComparison(item.path, threads, comparison))
    return tuple(found)
