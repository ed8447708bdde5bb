"""What many places say of the same files, side by side, and which place stands out."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.kept_results import KeptResults
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.parity.reports import ParityRun
from coordatt_deploy.run_records import HERE, latest

FEWEST: Final = 5  # places of which one can be said to stand out
FAR: Final = 3.5  # times the usual spread: Iglewicz and Hoaglin's limit for the modified z-score
USUAL_SPREAD: Final = 1.4826  # of a normal distribution over its median absolute deviation
MOST_DISTANCE: Final = 700.0  # in logarithms: what a place says may be any number, and exp ends at 709
LEAST_SPREAD: Final = 0.02  # of latencies of equal boards, as a share: where they agree better, 7 % stand out


@dataclass(frozen=True, slots=True)
class PlaceFigures:
    """What one place says of one file; None for what it does not say.

    Attributes:
        place: Its name.
        path: Of the file.
        threads: That it was timed with.
        median_ms: Of its latency.
        ci95_ms: 95 % interval of that.
        verdict: On the latency: ``stable``, ``noisy`` or ``unusable``.
        passed: The verdict of parity.
        sqnr_db: Against the reference.
        metric: What accuracy is measured in.
        score: The accuracy; of top-1 and mIoU a share.
        dataset: That it was measured on.
        instructions: Per inference, where they were counted.
        stands_out: How its latency differs from the other places'; None where it does not.
    """

    place: str
    path: str
    threads: int | None = None
    median_ms: float | None = None
    ci95_ms: tuple[float, float] | None = None
    verdict: str | None = None
    passed: bool | None = None
    sqnr_db: float | None = None
    metric: str | None = None
    score: float | None = None
    dataset: str | None = None
    instructions: int | None = None
    stands_out: str | None = None


@dataclass(frozen=True, slots=True)
class _Timed:
    """A latency of one place."""

    threads: int
    median_ms: float
    ci95_ms: tuple[float, float] | None
    verdict: str


def compared(manifest: Manifest, kept: KeptResults) -> tuple[PlaceFigures, ...]:
    """Return what every place says of every file that the bundle has now, with the fewest threads that it timed.

    Places come as the results have them, files in the order of the manifest. Empty where only this machine was asked.
    """
    hashes = {item.path: item.sha256 for item in manifest.artifacts}
    timed = _timed(kept, hashes)
    counted = {
        (place, run.artifact): run.result.instructions
        for place, found in kept.instructions.items()
        for run in found.runs
        if hashes.get(run.artifact) == run.sha256
    }
    scored = _scored(kept, hashes)
    judged: dict[tuple[str, str], ParityRun] = {}
    for place in dict.fromkeys(run.place for run in kept.parity.runs):
        for run in latest(kept.parity.runs, place, hashes):
            if hashes.get(run.artifact) == run.sha256:
                judged[place, run.artifact] = run
    known = {**dict.fromkeys(judged), **dict.fromkeys(timed), **dict.fromkeys(scored), **dict.fromkeys(counted)}
    places = dict.fromkeys(place for place, _ in known)
    if not set(places) - {HERE}:
        return ()
    outliers = _outliers(timed)
    rows = []
    for path in hashes:
        for place in places:
            key = place, path
            if key not in known:
                continue
            latency, verdict = timed.get(key), judged.get(key)
            metric, score, dataset = scored.get(key, (None, None, None))
            rows.append(
                PlaceFigures(
                    place=place,
                    path=path,
                    threads=None if latency is None else latency.threads,
                    median_ms=None if latency is None else latency.median_ms,
                    ci95_ms=None if latency is None else latency.ci95_ms,
                    verdict=None if latency is None else latency.verdict,
                    passed=None if verdict is None else verdict.result.passed,
                    sqnr_db=None if verdict is None else verdict.result.sqnr_db,
                    metric=metric,
                    score=score,
                    dataset=dataset,
                    instructions=counted.get(key),
                    stands_out=outliers.get(key),
                )
            )
    return tuple(rows)


def _timed(kept: KeptResults, hashes: Mapping[str, str]) -> dict[tuple[str, str], _Timed]:
    """The latency of each file at each place, with the fewest threads; an evaluator's time is none."""
    found: dict[tuple[str, str], _Timed] = {}
    for place, reports in {HERE: kept.profile, **kept.latency_elsewhere}.items():
        for run in reports.runs:
            record = run.result
            if record.origin is Origin.EVALUATED or hashes.get(run.artifact) != run.sha256:
                continue
            known = found.get((place, run.artifact))
            if known is None or record.threads <= known.threads:
                found[place, run.artifact] = _Timed(record.threads, record.median_ms, record.ci95_ms, record.verdict)
    return found


def _scored(kept: KeptResults, hashes: Mapping[str, str]) -> dict[tuple[str, str], tuple[str, float | None, str]]:
    """The accuracy of each file at each place, on the dataset that was asked last there."""
    found: dict[tuple[str, str], tuple[str, float | None, str]] = {}
    for place, reports in {HERE: kept.accuracy, **kept.accuracy_elsewhere}.items():
        for run in reports.runs:
            if hashes.get(run.artifact) == run.sha256:
                metric = run.settings.metric
                score = run.result.top1 if run.result.score is None else run.result.score
                found[place, run.artifact] = ("top-1" if metric is None else metric.name, score, run.dataset.source)
    return found


def _outliers(timed: Mapping[tuple[str, str], _Timed]) -> dict[tuple[str, str], str]:
    """Say of each latency that is far from the other places' how far; an unusable one is compared with none."""
    groups: dict[tuple[str, int], list[tuple[str, float]]] = {}
    for (place, path), item in timed.items():
        if item.verdict != "unusable" and 0 < item.median_ms < math.inf:
            groups.setdefault((path, item.threads), []).append((place, item.median_ms))
    found = {}
    for (path, _), members in groups.items():
        usual, limit = _usual([median for _, median in members])
        for place, median in members:
            distance = math.log(median) - math.log(usual)
            if len(members) >= FEWEST and abs(distance) > limit:
                ratio = math.exp(min(abs(distance), MOST_DISTANCE))
                word = "slower" if distance > 0 else "faster"
                times = f"{ratio:.2f}" if ratio < 1e4 else f"{ratio:.1e}"
                found[place, path] = f"{times} times {word} than the median place ({usual:.3g} ms)"
    return found


def _usual(medians: Sequence[float]) -> tuple[float, float]:
    """The median of the places, and how far from it, in logarithms, is not far yet."""
    logs = [math.log(median) for median in medians]
    middle = statistics.median(logs)
    spread = USUAL_SPREAD * statistics.median([abs(value - middle) for value in logs])
    return math.exp(middle), FAR * max(spread, LEAST_SPREAD)
