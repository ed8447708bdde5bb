"""Time two files against each other, with a control: the first is opened twice (``paired`` says what follows)."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from statistics import median
from typing import Final

from coordatt_deploy.errors import UsageError
from coordatt_deploy.profile.latency import SAMPLES_PER_ROUND, Measurement, ProfileSettings
from coordatt_deploy.profile.paired import FIRST_LOOK, Batch, Paired, batch_of, collect, paired
from coordatt_deploy.profile.rounds import measure_openings
from coordatt_deploy.profile.turns import OpenFile, opened_calls

NAMES: Final = ("a", "again", "b")
BATCH_SECONDS: Final = 0.5  # of samples, of the three together: what openings differ by costs more than what samples do
FEWEST_ROUNDS: Final = 2
MOST_ROUNDS: Final = 30  # in a batch: more would be too short to be more than what a turn begins with


@dataclass(frozen=True, slots=True)
class PairSettings:
    """How two files are timed against each other. These are the defaults of the command line, too.

    Attributes:
        min_effect: The least change that counts: 0.03 for three per cent.
        min_seconds: Time that is given to a pair before it stays undecided; most pairs need a part of it.
        threads: Worker threads of the runtimes.
        seed: Of the orders of opening.
    """

    min_effect: float = 0.03
    min_seconds: float = 60.0
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.001 <= self.min_effect <= 1:
            raise UsageError(f"--min-effect is {self.min_effect:.4%}; give a change from 0.1 % to 100 %, such as 3 %")
        if not 0 <= self.min_seconds <= 86_400:
            raise UsageError(f"--min-seconds is {self.min_seconds}; it lies between 0 and a day")
        ProfileSettings(threads=(self.threads,))  # which refuses more than there are cores


@dataclass(frozen=True, slots=True)
class PairMeasurement:
    """What was measured of a pair.

    Attributes:
        known: What the batches say; None where other processes left too few of them.
        a_ms: Median over the batches of the median of the first file; NaN where other processes left none.
        b_ms: Of the second file.
        batches: How many there were.
        seconds: That they took.
    """

    known: Paired | None
    a_ms: float
    b_ms: float
    batches: int
    seconds: float


def measure_pair(
    a: OpenFile, b: OpenFile, settings: PairSettings, on_progress: Callable[[float], None] = lambda _share: None
) -> PairMeasurement:
    """Time *b* against *a* until it is decided or the time is used up.

    Args:
        a: The file before.
        b: The file after; both are fed with their own inputs.
        settings: How long, and what counts.
        on_progress: Told the share of the time that has passed, from 0 to 1, between two batches.

    Raises:
        BundleError: A file cannot be opened.
        KeyboardInterrupt: It was interrupted.
    """
    taken, seconds = collect(batches(a, b, settings, on_progress), settings.min_effect, settings.min_seconds)
    a_ms, b_ms = (_middle([item.median_ms[side] for item in taken]) for side in (0, 2))
    return PairMeasurement(paired(taken), a_ms, b_ms, len(taken), seconds)


def _middle(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return median(known) if known else math.nan


def batches(
    a: OpenFile, b: OpenFile, settings: PairSettings, on_progress: Callable[[float], None] = lambda _share: None
) -> Iterator[tuple[Batch, float]]:
    """Yield batches without end, each with the seconds since the first began; see ``measure_pair``."""
    # Each has inputs of its own: what two share stays in the caches while the third has its turn.
    again = replace(a, inputs={name: value.copy() for name, value in a.inputs.items()})
    entries = {"a": a, "again": again, "b": b}
    choice = random.Random(settings.seed)  # noqa: S311  (an order, not a secret)
    orders: list[tuple[str, ...]] = []
    wanted = min(BATCH_SECONDS, settings.min_seconds / FIRST_LOOK)
    # The first opening fills the caches of the disk and settles how long a batch is; it counts for nothing else.
    rounds, own_seconds = _length(_timed(entries, FEWEST_ROUNDS, 0.0, settings.threads, 0), wanted)
    begun = time.monotonic()
    while True:
        if not orders:
            orders = list(permutations(NAMES))
            choice.shuffle(orders)
        ordered = {name: entries[name] for name in orders.pop()}
        measured = _timed(ordered, rounds, own_seconds, settings.threads, choice.getrandbits(32))
        if measured.interrupted:  # a batch that ended early is none
            raise KeyboardInterrupt
        sides = [measured.latencies[name].undisturbed for name in NAMES]
        passed = time.monotonic() - begun
        on_progress(min(1.0, passed / settings.min_seconds) if settings.min_seconds else 1.0)
        yield batch_of(*sides), passed


def _length(first: Measurement, wanted: float) -> tuple[int, float]:
    """Return the rounds of a batch and the seconds of each file's samples in it, from a short one."""
    call = min(min(item.samples_ns) for item in first.latencies.values()) / 1e9
    round_seconds = len(NAMES) * (SAMPLES_PER_ROUND + 1) * call
    rounds = min(max(FEWEST_ROUNDS, math.ceil(wanted / round_seconds)), MOST_ROUNDS)
    return rounds, wanted / len(NAMES)


def _timed(entries: Mapping[str, OpenFile], rounds: int, seconds: float, threads: int, seed: int) -> Measurement:
    """Open the three in the order given, and let them take turns."""
    asked = ProfileSettings(
        threads=(threads,), samples=rounds * SAMPLES_PER_ROUND, openings=1, min_seconds=seconds, seed=seed
    )
    return measure_openings(partial(opened_calls, entries, threads), asked, threads=threads, with_yardstick=False)
