"""What ``profile`` measures: raw samples with the host they were taken on, and what follows from them.

Reading a document back takes the raw samples and the host; every derived figure is derived anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar, Self

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.host import Host
from coordatt_deploy.profile.latency import ColdStart, Latency
from coordatt_deploy.profile.noise import Evidence
from coordatt_deploy.profile.operator_result import OperatorProfile
from coordatt_deploy.profile.statistics import FEWEST_SAMPLES, median_ratio
from coordatt_deploy.profile.sustained_result import SustainedLatency
from coordatt_deploy.run_records import NotRun


@dataclass(frozen=True, slots=True)
class ArtifactLatency:
    """The latency of one artifact with one number of threads, and where it comes from.

    Attributes:
        warning: Why its outputs on this machine may not be those of another; None where they are.
    """

    path: str
    format: Format
    precision: Precision
    target_cpu: TargetCpu | None
    runtime: str
    origin: Origin
    latency: Latency
    cold: ColdStart | None = None
    warning: str | None = None

    @classmethod
    def of(
        cls, artifact: Artifact, runtime: str, origin: Origin, latency: Latency, cold: ColdStart | None = None,
        warning: str | None = None,
    ) -> Self:  # fmt: skip
        """Put the description of *artifact* beside its latency."""
        return cls(
            artifact.path, artifact.format, artifact.precision, artifact.target_cpu, runtime, origin, latency, cold,
            warning,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SettingsRecord:
    """What was asked for; see ``ProfileSettings``, which also holds it to the machine, and ``SustainedSettings``."""

    threads: tuple[int, ...] = (1,)
    warmups: int = 5
    samples: int = 600
    openings: int = 10
    min_seconds: float = 1.0
    cpu_affinity: tuple[int, ...] = ()
    seed: int = 0
    sustained_s: float | None = None
    cool_down_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """All that was measured of a bundle.

    Attributes:
        host: The machine, with its states before and after.
        results: One for each artifact and number of threads.
        yardsticks: By number of threads: the machine's own speed in the rounds of those results.
        settings: What was asked for.
        skipped: What could not be measured here.
        interrupted: Whether Ctrl-C ended it early.
        inputs: Shape of each input that was fed.
    """

    host: Host
    results: tuple[ArtifactLatency, ...]
    yardsticks: Mapping[int, Latency] = field(default_factory=dict)
    settings: SettingsRecord = field(default_factory=SettingsRecord)
    skipped: tuple[NotRun, ...] = ()
    interrupted: bool = False
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LatencyRecord:
    """The latency of one artifact with one number of threads, as documents hold it.

    Attributes:
        path: In the bundle.
        format: Of the file.
        precision: That it computes in.
        target_cpu: The CPU family of its form; None where the form is the same for all.
        runtime: Name and version of what ran it.
        origin: Measured or evaluated.
        threads: Worker threads of the runtime.
        median_ms: Of all samples, as for the next four.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        iqr_ms: Interquartile range.
        ci95_ms: 95 % interval of the median; None of fewer than 20 samples.
        verdict: ``stable``, ``noisy`` or ``unusable``.
        reason: Of the verdict.
        load_ms: Opening the file in a process of its own; None where that was not measured, as for the next two.
        first_inference_ms: The first call.
        peak_memory_bytes: Greatest resident memory until its end, less what the process held before.
        warning: Why outputs on this machine may not be those of another; None where they are.
        samples_ns: Raw.
        warmups_ns: Calls that are not samples.
        samples_per_round: In the order of ``samples_ns``.
        openings: How often the artifact was opened anew.
        lost_ns: Of each sample, the time that the kernel gave to other processes.
        evidence: What the machine told.
    """

    path: str
    format: Format
    precision: Precision
    target_cpu: TargetCpu | None
    runtime: str
    origin: Origin
    threads: int
    median_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    iqr_ms: float
    ci95_ms: tuple[float, float] | None
    verdict: str
    reason: str
    load_ms: float | None
    first_inference_ms: float | None
    peak_memory_bytes: int | None
    warning: str | None
    samples_ns: tuple[int, ...]
    warmups_ns: tuple[int, ...]
    samples_per_round: int
    openings: int
    lost_ns: tuple[int | None, ...]
    evidence: Evidence

    def latency(self) -> ArtifactLatency:
        """Return the samples; every figure is derived from them anew."""
        cold = None
        if self.load_ms is not None and self.first_inference_ms is not None:
            cold = ColdStart(self.load_ms, self.first_inference_ms, self.peak_memory_bytes)
        latency = Latency(
            self.samples_ns, self.warmups_ns, self.threads, self.samples_per_round, self.openings, self.lost_ns,
            self.evidence,
        )  # fmt: skip
        return ArtifactLatency(
            self.path, self.format, self.precision, self.target_cpu, self.runtime, self.origin, latency, cold,
            self.warning,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RatioRecord:
    """Median of a over median of b, which took turns, and its 95 % interval; None of fewer than 20 samples."""

    a: str
    b: str
    threads: int
    ratio: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class YardstickRecord:
    """The machine's own speed in the rounds of a number of threads; fields as in ``LatencyRecord``."""

    threads: int
    samples_ns: tuple[int, ...]
    warmups_ns: tuple[int, ...]
    samples_per_round: int
    openings: int
    lost_ns: tuple[int | None, ...]
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """What one call of ``profile`` measured.

    Attributes:
        host: The machine, with its states before and after.
        settings: What was asked for.
        results: One for each artifact and number of threads.
        ratios: Of each pair that took turns.
        yardsticks: One for each number of threads.
        skipped: What could not be measured here.
        interrupted: Whether Ctrl-C ended it early.
        inputs: Shape of each input that was fed, in the model's layout; empty in reports of older versions.
        operators: Where the time of each file goes; empty where that was not asked for (``--ops``).
        operators_skipped: Files of which that could not be told, and why.
        sustained: Latency over time (``--sustained``), which is asked for instead of the results.
    """

    VERSION: ClassVar[int] = 1

    host: Host
    settings: SettingsRecord
    results: tuple[LatencyRecord, ...]
    ratios: tuple[RatioRecord, ...]
    yardsticks: tuple[YardstickRecord, ...] = ()
    skipped: tuple[NotRun, ...] = ()
    interrupted: bool = False
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    operators: tuple[OperatorProfile, ...] = ()
    operators_skipped: tuple[NotRun, ...] = ()
    sustained: tuple[SustainedLatency, ...] = ()

    def profile(self) -> Profile:
        """Return what was measured; every figure is derived anew."""
        return Profile(
            host=self.host,
            results=tuple(item.latency() for item in self.results),
            yardsticks={item.threads: yardstick(item) for item in self.yardsticks},
            settings=self.settings,
            skipped=self.skipped,
            interrupted=self.interrupted,
            inputs=self.inputs,
        )


def profile_result(profile: Profile) -> ProfileResult:
    """Return *profile* as documents hold it."""
    return ProfileResult(
        host=profile.host,
        settings=profile.settings,
        results=tuple(latency_record(item) for item in profile.results),
        ratios=ratios(profile.results),
        yardsticks=tuple(
            YardstickRecord(
                threads, item.samples_ns, item.warmups_ns, item.per_round, item.openings, item.lost_ns, item.evidence
            )
            for threads, item in profile.yardsticks.items()
        ),
        skipped=profile.skipped,
        interrupted=profile.interrupted,
        inputs=profile.inputs,
    )


def latency_record(item: ArtifactLatency) -> LatencyRecord:
    """Return a latency as documents hold it."""
    latency, cold, verdict = item.latency, item.cold, item.latency.verdict
    return LatencyRecord(
        path=item.path,
        format=item.format,
        precision=item.precision,
        target_cpu=item.target_cpu,
        runtime=item.runtime,
        origin=item.origin,
        threads=latency.threads,
        median_ms=latency.median_ms,
        p90_ms=latency.quantile_ms(0.90),
        p95_ms=latency.quantile_ms(0.95),
        p99_ms=latency.quantile_ms(0.99),
        iqr_ms=latency.iqr_ms,
        ci95_ms=latency.ci95_ms,
        verdict=verdict.level.value,
        reason=verdict.reason,
        load_ms=cold.load_ms if cold else None,
        first_inference_ms=cold.first_inference_ms if cold else None,
        peak_memory_bytes=cold.peak_memory_bytes if cold else None,
        warning=item.warning,
        samples_ns=latency.samples_ns,
        warmups_ns=latency.warmups_ns,
        samples_per_round=latency.per_round,
        openings=latency.openings,
        lost_ns=latency.lost_ns,
        evidence=latency.evidence,
    )


def yardstick(item: YardstickRecord) -> Latency:
    """Return the samples of a record."""
    return Latency(
        item.samples_ns, item.warmups_ns, 1, item.samples_per_round, item.openings, item.lost_ns, item.evidence
    )


def ratios(results: tuple[ArtifactLatency, ...]) -> tuple[RatioRecord, ...]:
    """Return median(a) / median(b) with its interval for each pair that took turns: same threads, same origin."""
    found = []
    for a, b in combinations(results, 2):
        if a.latency.threads == b.latency.threads and a.origin is b.origin:
            ratio = median_ratio(a.latency.rounds, b.latency.rounds)
            enough = min(a.latency.rounds.size, b.latency.rounds.size) >= FEWEST_SAMPLES
            interval = (ratio.low, ratio.high) if enough else None
            found.append(RatioRecord(a.path, b.path, a.latency.threads, ratio.value, interval))
    return tuple(found)
