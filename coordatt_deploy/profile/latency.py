"""What a measurement is asked for and what it gives; every statistic is derived from the samples that are kept."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from coordatt_deploy import host
from coordatt_deploy.errors import UsageError
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile import statistics
from coordatt_deploy.profile.noise import Evidence, Verdict, judge
from coordatt_deploy.profile.statistics import Samples

SAMPLES_PER_ROUND: Final = 10

# A sample counts as preempted if it lost more than this share of its time; less is the imprecision of the clocks.
LOST: Final = 0.01


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """How to measure. These are the defaults of the command line, too.

    Attributes:
        threads: Numbers of threads to measure with, one after the other.
        warmups: Least number of calls before the first sample; up to ten times as many until steady.
        samples: Least number of samples of each artifact, over all openings.
        openings: How often the artifacts are opened anew; no more often than there are rounds.
        min_seconds: Least time that the samples of each artifact take together.
        cpu_affinity: The cores to run on; empty for all.
        seed: Of the order of the turns.
    """

    threads: tuple[int, ...] = (1,)
    warmups: int = 5
    samples: int = 600
    openings: int = 10
    min_seconds: float = 1.0
    cpu_affinity: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        cores = host.available_cores()
        if not self.threads or any(count < 1 for count in self.threads):
            raise UsageError(f"threads is {_list(self.threads)}; give one or more numbers from 1 up, e.g. 1,2")
        if len(set(self.threads)) < len(self.threads):
            raise UsageError(f"threads is {_list(self.threads)}; each number is measured once")
        if self.warmups < 1:
            raise UsageError(f"warmups is {self.warmups}; at least 1 call is needed before the first sample")
        if self.samples < statistics.FEWEST_SAMPLES:
            raise UsageError(
                f"samples is {self.samples}; at least {statistics.FEWEST_SAMPLES} are needed for an interval"
            )
        if self.openings < 1:
            raise UsageError(f"openings is {self.openings}; the artifacts are opened at least once")
        if not 0 <= self.min_seconds <= 86_400:
            raise UsageError(f"min_seconds is {self.min_seconds}; it lies between 0 and a day")
        if self.cpu_affinity:
            _check_affinity(self.cpu_affinity)
            cores = min(cores, len(self.cpu_affinity))
        if max(self.threads) > cores:
            raise UsageError(
                f"threads is {_list(self.threads)}, but this process has {counted(cores, 'core')}"
                " (machine, affinity and container limits); give a smaller number"
            )

    @property
    def rounds(self) -> int:
        """Number of rounds, over all openings."""
        return math.ceil(self.samples / SAMPLES_PER_ROUND)


def _check_affinity(cpus: tuple[int, ...]) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("cpu_affinity: this operating system pins no process to cores; leave it out")
    allowed = os.sched_getaffinity(0)
    if unknown := [cpu for cpu in cpus if cpu not in allowed]:
        raise UsageError(
            f"cpu_affinity: core {_list(unknown)} is not among this process's cores {_list(sorted(allowed))}"
        )


def _list(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers)) or "empty"


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall times of one artifact; every statistic is derived from them.

    Attributes:
        samples_ns: In the order in which they were taken, whole rounds one after the other.
        warmups_ns: Every call that is no sample: the warm-up, then the first call of each turn.
        threads: Worker threads of the runtime.
        per_round: Samples per round.
        openings: How often the artifact was opened anew, each time for as many rounds, give or take one.
        lost_ns: How much of each sample the kernel gave to other processes: 0 as a rule, None where it took a core but
            nobody knows for how long. Empty if the machine does not tell.
        evidence: What the machine told during the measurement.
    """

    samples_ns: tuple[int, ...]
    warmups_ns: tuple[int, ...] = ()
    threads: int = 1
    per_round: int = SAMPLES_PER_ROUND
    openings: int = 1
    lost_ns: tuple[int | None, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)

    def __post_init__(self) -> None:
        statistics.by_round(self.samples_ns, self.per_round)
        if self.lost_ns and len(self.lost_ns) != len(self.samples_ns):
            raise ValueError(f"{len(self.lost_ns)} lost times for {len(self.samples_ns)} samples")

    @property
    def rounds(self) -> Samples:
        """The samples as ``(rounds, per_round)``, in nanoseconds."""
        return statistics.by_round(self.samples_ns, self.per_round)

    @property
    def undisturbed(self) -> Samples:
        """The samples without what was lost to other processes ``(rounds, per_round)``; NaN where that is not known."""
        rounds = self.rounds
        if not self.lost_ns:
            return rounds
        lost: Samples = np.array([math.nan if lost is None else lost for lost in self.lost_ns[: rounds.size]])
        return np.subtract(rounds, lost.reshape(rounds.shape))

    @property
    def median_ms(self) -> float:
        """Median of all samples."""
        return self.quantile_ms(0.5)

    @property
    def iqr_ms(self) -> float:
        """Interquartile range of all samples."""
        return statistics.interquartile_range(self.samples_ns) / 1e6

    @property
    def ci95_ms(self) -> tuple[float, float] | None:
        """95 % interval of the median; None of fewer than ``FEWEST_SAMPLES``, which know none worth printing."""
        if self.rounds.size < statistics.FEWEST_SAMPLES:
            return None
        low, high = statistics.median_interval(self.rounds)
        return low / 1e6, high / 1e6

    @property
    def preempted(self) -> float | None:
        """Share of the samples that lost time to other processes; None if the machine does not tell."""
        if not self.lost_ns:
            return None
        pairs = zip(self.samples_ns, self.lost_ns, strict=True)
        return sum(lost is None or lost > LOST * sample for sample, lost in pairs) / len(self.lost_ns)

    @property
    def verdict(self) -> Verdict:
        """Whether the figure can be trusted, and why."""
        return judge(self.rounds, evidence=dataclasses.replace(self.evidence, preempted=self.preempted))

    def quantile_ms(self, q: float) -> float:
        """Return the *q* quantile (0 to 1) of all samples."""
        return statistics.quantile(self.samples_ns, q) / 1e6


@dataclass(frozen=True, slots=True)
class Measurement:
    """What ``measure`` gives.

    Attributes:
        latencies: By the name of the call, in the order given; an artifact without any sample is left out.
        yardstick: The machine itself, in the same rounds; None without any sample.
        interrupted: Whether Ctrl-C ended it early.
    """

    latencies: Mapping[str, Latency]
    yardstick: Latency | None
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class ColdStart:
    """The first seconds of an artifact, in a process of its own (``cold_start.py``).

    Attributes:
        load_ms: Opening the artifact; the runtime's library is loaded before that, the file is in the page cache.
        first_inference_ms: The first call.
        peak_memory_bytes: Greatest resident memory until the end of the first call, less what the process held before
            opening: interpreter, NumPy and the runtime's library are not counted. None where it cannot be known.
    """

    load_ms: float
    first_inference_ms: float
    peak_memory_bytes: int | None
