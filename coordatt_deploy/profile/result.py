"""The document ``reports/profile.json``: raw samples with the host they were taken on, and what follows from them.

Reading it back takes the raw samples and the host; every derived figure is derived anew.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Self

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.documents import SCHEMA_VERSION, to_json
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.host import Host
from coordatt_deploy.profile.latency import ColdStart, Latency
from coordatt_deploy.profile.statistics import Evidence, median_ratio


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
class Skipped:
    """An artifact that was not measured, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Profile:
    """All that was measured of a bundle.

    Attributes:
        host: The machine, with its states before and after.
        results: One for each artifact and number of threads.
        yardsticks: By number of threads: the machine's own speed in the rounds of those results.
        settings: What was asked for, as it stands in the document.
        skipped: What could not be measured here.
        interrupted: Whether Ctrl-C ended it early.
    """

    host: Host
    results: tuple[ArtifactLatency, ...]
    yardsticks: Mapping[int, Latency] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    interrupted: bool = False


def profile_document(profile: Profile) -> dict[str, Any]:
    """Return *profile* as strict JSON data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "host": to_json(profile.host),
        "settings": to_json(profile.settings),
        "results": [_result(item) for item in profile.results],
        "ratios": ratios(profile.results),
        "yardsticks": [{"threads": threads, **_samples(item)} for threads, item in profile.yardsticks.items()],
        "skipped": to_json(profile.skipped),
        "interrupted": profile.interrupted,
    }


def _result(item: ArtifactLatency) -> dict[str, Any]:
    latency, cold = item.latency, item.cold
    verdict = latency.verdict
    return {
        "path": item.path,
        "format": item.format.value,
        "precision": item.precision.value,
        "target_cpu": to_json(item.target_cpu),
        "runtime": item.runtime,
        "origin": item.origin.value,
        "threads": latency.threads,
        "median_ms": latency.median_ms,
        "p90_ms": latency.quantile_ms(0.90),
        "p95_ms": latency.quantile_ms(0.95),
        "p99_ms": latency.quantile_ms(0.99),
        "iqr_ms": latency.iqr_ms,
        "ci95_ms": list(latency.ci95_ms),
        "verdict": verdict.level.value,
        "reason": verdict.reason,
        "load_ms": cold and cold.load_ms,
        "first_inference_ms": cold and cold.first_inference_ms,
        "peak_memory_bytes": cold and cold.peak_memory_bytes,
        "warning": item.warning,
        **_samples(latency),
    }


def _samples(latency: Latency) -> dict[str, Any]:
    return {
        "samples_ns": list(latency.samples_ns),
        "warmups_ns": list(latency.warmups_ns),
        "samples_per_round": latency.per_round,
        "openings": latency.openings,
        "lost_ns": list(latency.lost_ns),
        "evidence": to_json(latency.evidence),
    }


def ratios(results: tuple[ArtifactLatency, ...]) -> list[dict[str, Any]]:
    """Return median(a) / median(b) with its interval for each pair that took turns: same threads, same origin."""
    found = []
    for a, b in combinations(results, 2):
        if a.latency.threads == b.latency.threads and a.origin is b.origin:
            ratio = median_ratio(a.latency.rounds, b.latency.rounds)
            pair = {"a": a.path, "b": b.path, "threads": a.latency.threads}
            found.append({**pair, "ratio": ratio.value, "ci95": [ratio.low, ratio.high]})
    return found


def load_profile(path: Path) -> Profile:
    """Read a document that ``profile`` wrote.

    Raises:
        UsageError: The file is missing, no profile, or of another schema.
    """
    again = "measure again with: coordatt-deploy profile BUNDLE"
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a profile: {error}; {again}") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UsageError(f"{path} has schema_version {version!r}, this version reads {SCHEMA_VERSION}; {again}")
    try:
        return parse_profile(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} is damaged ({type(error).__name__}: {error}); {again}") from None


def parse_profile(document: Mapping[str, Any]) -> Profile:
    """Return what ``profile_document`` was made from."""
    return Profile(
        host=Host.from_json(document["host"]),
        results=tuple(_parse_result(item) for item in document["results"]),
        yardsticks={item["threads"]: _parse_latency(item, threads=1) for item in document["yardsticks"]},
        settings=document["settings"],
        skipped=tuple(Skipped(**item) for item in document["skipped"]),
        interrupted=document["interrupted"],
    )


def _parse_result(item: Mapping[str, Any]) -> ArtifactLatency:
    cold = None
    if item["load_ms"] is not None:
        cold = ColdStart(item["load_ms"], item["first_inference_ms"], item["peak_memory_bytes"])
    return ArtifactLatency(
        path=item["path"],
        format=Format(item["format"]),
        precision=Precision(item["precision"]),
        target_cpu=None if item["target_cpu"] is None else TargetCpu(item["target_cpu"]),
        runtime=item["runtime"],
        origin=Origin(item["origin"]),
        latency=_parse_latency(item, item["threads"]),
        cold=cold,
        warning=item.get("warning"),
    )


def _parse_latency(item: Mapping[str, Any], threads: int) -> Latency:
    return Latency(
        samples_ns=tuple(item["samples_ns"]),
        warmups_ns=tuple(item["warmups_ns"]),
        threads=threads,
        per_round=item["samples_per_round"],
        openings=item["openings"],
        lost_ns=tuple(item["lost_ns"]),
        evidence=Evidence(**item["evidence"]),
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
