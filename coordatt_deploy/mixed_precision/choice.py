"""Which of several files keeps its limits and is the most accurate; which are worth a look; which comes nearest.

keeps       every limit holds; of a latency, its whole 95 % interval is within
undecided   an interval holds the limit, or there is none: a figure that is not known is not a promise
exceeds     a limit is broken
the one     of those that keep: the most accurate; of several with the same score the smallest (the fastest, where
            only the latency is limited). A file that scores less is never taken for its size: with few images every
            interval reaches 0, and the user set the limits, not a tolerance
Pareto      no other is at least as good in accuracy, size and latency and better in one
nearest     the least excess, figure / limit, of its worst limit
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from coordatt_deploy.mixed_precision.limits import Limit
from coordatt_deploy.mixed_precision.result import CandidateRecord, LimitVerdict
from coordatt_deploy.quantization.sensitivity import LayerCost

LEAST_DROP: Final = 0.01  # points; what an excess over a drop of 0 is measured by


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of a file.

    Attributes:
        size: The most bytes; None for any.
        size_text: As it was written.
        latency: Of one call; None for any.
        max_drop: In the metric's unit; None for any.
        higher_is_better: Whether a drop is a lower score.
    """

    size: float | None = None
    size_text: str = ""
    latency: Limit | None = None
    max_drop: float | None = None
    higher_is_better: bool = True

    def gain(self, item: CandidateRecord) -> float:
        """Return how much better than the reference a file is, whichever way the metric counts."""
        return item.points if self.higher_is_better else -item.points


def weighed(item: CandidateRecord, limits: Limits) -> CandidateRecord:
    """Return *item* with what it is against the limits."""
    told = [entry for entry in (_size(item, limits), _drop(item, limits)) if entry is not None]
    if not told or item.latency_ms is not None:  # a file that is too large anyhow need not have been timed
        latency = _latency(item, limits)
        told += [] if latency is None else [latency]
    worst = LimitVerdict.KEEPS
    for verdict, _ in told:
        worst = verdict if verdict is LimitVerdict.EXCEEDS or worst is LimitVerdict.KEEPS else worst
    return replace(item, verdict=worst, reasons=tuple(text for _, text in told))


Found = tuple[LimitVerdict, str]


def _size(item: CandidateRecord, limits: Limits) -> Found | None:
    if limits.size is None or item.size_bytes <= limits.size:
        return None
    return (
        LimitVerdict.EXCEEDS,
        f"{item.size_bytes:,} bytes are {item.size_bytes / limits.size:.2f} × {limits.size_text}",
    )


def _drop(item: CandidateRecord, limits: Limits) -> Found | None:
    if limits.max_drop is None or -limits.gain(item) <= limits.max_drop * (1 + 1e-12):
        return None
    return LimitVerdict.EXCEEDS, f"it loses {-limits.gain(item):.4g}, more than {limits.max_drop:g}"


def _latency(item: CandidateRecord, limits: Limits) -> Found | None:
    limit = limits.latency
    if limit is None:
        return None
    if limit.relative:
        value, ends, unit = item.latency_ratio, item.ratio_interval, "x"
    else:
        value, ends, unit = item.latency_ms, item.latency_interval_ms, " ms"
    if value is None or ends is None:
        return LimitVerdict.UNDECIDED, "its latency is not known: other processes disturbed too much of the measurement"
    low, high = ends
    if high <= limit.value:
        return None
    interval = f"{value:.3f}{unit}, 95 % interval {low:.3f} to {high:.3f}"
    if low > limit.value:
        return LimitVerdict.EXCEEDS, f"its latency is {interval}, above {limit.text}"
    return (
        LimitVerdict.UNDECIDED,
        f"its latency is {interval}, which holds {limit.text}; a quieter machine may decide it",
    )


def pareto(items: Sequence[CandidateRecord], limits: Limits) -> frozenset[int]:
    """Return the indices of the files that no other one beats; one that was not timed is never the faster."""

    def figures(item: CandidateRecord) -> tuple[float, ...]:
        known = item.latency_ratio if item.latency_ratio is not None else item.latency_ms
        return -limits.gain(item), float(item.size_bytes), math.inf if known is None else known

    every = [figures(item) for item in items]

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(
            other != mine and all(theirs <= own for theirs, own in zip(other, mine, strict=True)) for other in every
        )

    return frozenset(index for index, mine in enumerate(every) if not beaten(mine))


def choose(items: Sequence[CandidateRecord], limits: Limits) -> int | None:
    """Return the index of the file that keeps the limits and is the most accurate; None where none keeps them.

    Args:
        items: Weighed.
        limits: What they were weighed against.
    """
    keeping = [index for index, item in enumerate(items) if item.verdict is LimitVerdict.KEEPS]
    if not keeping:
        return None

    def order(index: int) -> tuple[float, ...]:
        item = items[index]
        latency = item.latency_ratio if item.latency_ratio is not None else math.inf
        smaller, faster = float(item.size_bytes), latency
        by_latency = limits.size is None and limits.latency is not None
        return (-limits.gain(item), *((faster, smaller) if by_latency else (smaller, faster)))

    return min(keeping, key=order)


def nearest(items: Sequence[CandidateRecord], limits: Limits) -> int | None:
    """Return the index of the file that comes nearest to limits that none keeps; None where there is no file."""
    return min(
        range(len(items)), key=lambda index: (_excess(items[index], limits), -limits.gain(items[index])), default=None
    )


def fill(costs: Sequence[LayerCost], bytes_of: Mapping[str, int], room: float) -> list[LayerCost]:
    """Return the layers to put back into float, as long as they fit into *room*.

    The most noise for a byte comes first, or the most noise, whichever takes more of it away.

    Args:
        costs: Layers that may be kept; never all of them are.
        bytes_of: What each adds to the file, by name.
        room: Bytes that the limit leaves.
    """
    by_byte = sorted(costs, key=lambda cost: cost.share / max(bytes_of[cost.name], 1), reverse=True)
    by_noise = sorted(costs, key=lambda cost: cost.share, reverse=True)  # a great one may need the room of many small
    found = [_filled(order, bytes_of, room) for order in (by_byte, by_noise)]
    return max(found, key=lambda kept: sum(cost.share for cost in kept))


def _filled(order: Sequence[LayerCost], bytes_of: Mapping[str, int], room: float) -> list[LayerCost]:
    kept: list[LayerCost] = []
    for cost in order:
        if len(kept) < len(order) - 1 and cost.share > 0 and bytes_of[cost.name] <= room:
            kept.append(cost)
            room -= bytes_of[cost.name]
    return kept


def _excess(item: CandidateRecord, limits: Limits) -> float:
    """Figure over limit, of the worst limit."""
    parts = [1.0]
    if limits.size is not None:
        parts.append(item.size_bytes / limits.size)
    if limits.max_drop is not None:
        parts.append(-limits.gain(item) / max(limits.max_drop, LEAST_DROP))
    if limits.latency is not None:
        value, ends = (
            (item.latency_ratio, item.ratio_interval)
            if limits.latency.relative
            else (item.latency_ms, item.latency_interval_ms)
        )
        reach = ends[1] if ends is not None else math.inf
        parts.append((reach if value is not None else math.inf) / limits.latency.value)
    return max(parts)
