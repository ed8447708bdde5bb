"""What is said of where the time of a file goes, on the terminal, the page and in Markdown."""

from collections import Counter
from collections.abc import Iterator
from math import isinf

from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.operator_result import LayerError, LayerTime, OperatorProfile
from coordatt_deploy.runtimes.operator_times import Method

NO_LAYER = "no layer"
DISTURBED = 1.2  # rows over file: an operator of the profiler's is a part of the file, and adds nothing to it
APART = 2.0  # the same of pieces, of which each is called, and waits for threads, by itself
NAMES = 3  # operators that a row names; it counts the others


def summary(item: OperatorProfile) -> str:
    """``5.10 ms with 1 thread; 97 % of it lies in layers, 21 % in attention blocks``."""
    attention = "" if item.attention is None else f", {item.attention:.0%} in attention blocks"
    threads = counted(item.threads, "thread")
    return f"{item.whole_ms:.3g} ms with {threads}; {item.explained:.0%} of it lies in layers{attention}"


def remarks(item: OperatorProfile) -> Iterator[str]:
    """Say how it was timed, what was taken off, and what the rows do not tell."""
    sums = f"{item.rows_ms:.3g} ms, {item.rows_ms / item.whole_ms:.2f} of the file's {item.whole_ms:.3g} ms"
    parts = sum(len(row.timed) for row in item.rows)
    if item.method == Method.PROFILER:
        yield f"{item.runtime}'s own profiler timed {counted(parts, 'operator')}; they sum to {sums}"
        if item.rows_ms > DISTURBED * item.whole_ms:
            yield (
                "other processes took the core from long operators, which the profiler counts; repeat it on a quiet"
                " machine"
            )
    else:
        yield (
            f"{item.runtime} tells no time per operator: {counted(parts, 'piece')}, a layer each, were timed as files"
            f" of their own, fed with what they get in the whole; they sum to {sums}"
        )
        if item.rows_ms > APART * item.whole_ms:
            yield "far more than the file: shares tell little; measure with one thread on a quiet machine"
    if item.overhead_ms:
        yield (
            f"{item.overhead_ms * 1e3:.2g} µs were taken off each of them, which timing it takes; before, they summed"
            f" to {item.timed_ms:.3g} ms"
        )
    if item.attention is None:
        yield "the bundle does not say which layers are attention"
    if not item.judged:
        yield "errors are not known: no parity run judged the layers of these bytes"


def operators(row: LayerTime) -> str:
    """``2 Conv, Mul``: the operators of a row, the most frequent first."""
    counts = Counter(name for part in row.timed for name in part.operators).most_common()
    told = [name if count == 1 else f"{count} {name}" for name, count in counts]
    return ", ".join(told[:NAMES]) + (f" and {len(told) - NAMES} more" if len(told) > NAMES else "")


def layer(row: LayerTime) -> str:
    """The layer, and how many others are computed with it."""
    name = row.layer or NO_LAYER
    return f"{name} (with {counted(len(row.fused), 'other')})" if row.fused else name


def error(found: LayerError | None) -> tuple[str, str]:
    """Return the SQNR of a layer's value, and whether the layer is right."""
    if found is None:
        return "–", "not judged"
    decibel = "–" if found.sqnr_db is None else "exact" if isinf(found.sqnr_db) else f"{found.sqnr_db:.1f} dB"
    if found.passed is None:
        return decibel, "not judged"
    times = "" if found.excess is None else f", {found.excess:.2g} × allowed"
    if not found.passed:
        return decibel, f"wrong{times}"
    return decibel, f"inherits{times}" if found.inherits else f"right{times}"


def is_wrong(row: LayerTime) -> bool:
    """Whether the layer itself is beyond tolerance."""
    return row.error is not None and row.error.passed is False
