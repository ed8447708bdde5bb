"""What is known of one file of a bundle, figure by figure: from the file itself, and from what commands left behind."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.errors import DeployError
from coordatt_deploy.evaluation.result import EvaluationResult, SubjectAccuracy
from coordatt_deploy.files import size_bytes
from coordatt_deploy.inspection.result import Inspection
from coordatt_deploy.inspection.run import inspect_artifact
from coordatt_deploy.kept_results import KeptResults, read_results
from coordatt_deploy.parity.result import ArtifactVerdict
from coordatt_deploy.profile.noise import Level
from coordatt_deploy.profile.reports import LatencyRun, ProfileSession
from coordatt_deploy.profile.result import LatencyRecord
from coordatt_deploy.release.budgets import POINTS, Budget, BudgetKind
from coordatt_deploy.run_records import is_current


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a file.

    Attributes:
        value: In its kind's own unit; None where it is not known.
        text: With its unit; empty where it is not known.
        interval: That it lies in, at 95 %; None where it is exact, or not known.
        missing: Why it is not known, and how to find it; None where it is.
        doubt: Why it decides nothing although it was found; None where it does.
        place: Where it is from, if not from this machine.
    """

    value: float | None
    text: str = ""
    interval: tuple[float, float] | None = None
    missing: str | None = None
    doubt: str | None = None
    place: str | None = None


class BundleFigures:
    """A bundle with all that is known of its files."""

    def __init__(self, bundle: Bundle) -> None:
        """Read what the bundle holds.

        Raises:
            BundleError: A document in ``reports/`` is damaged.
        """
        self.bundle = bundle
        self.kept: KeptResults = read_results(bundle)
        self.hashes: Mapping[str, str] = {item.path: item.sha256 for item in bundle.manifest.artifacts}
        self._inspected: dict[str, Inspection | DeployError] = {}

    @cached_property
    def verdicts(self) -> dict[str, ArtifactVerdict]:
        """Verdicts of ``parity`` on the bytes that the files have now, by path."""
        result = self.kept.parity.result(hashes=self.hashes)
        found = () if result is None else result.artifacts
        return {item.path: item for item in found if item.sha256 == self.hashes[item.path]}

    @cached_property
    def evaluations(self) -> tuple[EvaluationResult, ...]:
        """What ``evaluate`` found, dataset by dataset, the last one first."""
        return self.kept.accuracy.results()

    def session_of(self, run: LatencyRun) -> ProfileSession | None:
        """Return what the call that made *run* shares."""
        return next((item for item in self.kept.profile.sessions if item.time == run.time), None)

    def latency(self, path: str) -> LatencyRun | None:
        """Return the last latency of the bytes that a file has now, with the fewest threads; None without any."""
        runs = [run for run in self.kept.profile.runs if run.artifact == path and is_current(run, self.hashes)]
        fewest = min((run.result.threads for run in runs), default=0)
        return next((run for run in reversed(runs) if run.result.threads == fewest), None)

    def accuracy(self, path: str) -> tuple[EvaluationResult, SubjectAccuracy] | None:
        """Return the last accuracy of the bytes that a file has now, with what it was evaluated in."""
        for result in self.evaluations:
            for subject in result.subjects:
                if subject.path == path and subject.sha256 == self.hashes.get(path) and subject.problem is None:
                    return result, subject
        return None

    def inspected(self, path: str) -> Inspection:
        """Return what a file is made of.

        Raises:
            DeployError: It cannot be opened here.
        """
        if path not in self._inspected:
            try:
                self._inspected[path] = inspect_artifact(self.bundle.path(path))
            except DeployError as error:
                self._inspected[path] = error
        found = self._inspected[path]
        if isinstance(found, DeployError):
            raise found
        return found

    def figures(self, budget: Budget, artifact: Artifact) -> Iterator[Figure]:
        """Yield what a budget is held to of a file: one figure, or one of each target."""
        if budget.kind is BudgetKind.INSTRUCTIONS:
            yield from self._instructions(artifact)
        elif budget.kind is BudgetKind.OPERATORS:
            yield self._operators(artifact, budget.operator)
        elif budget.kind is BudgetKind.ACCURACY:
            yield self._accuracy(artifact, drop=budget.limit.unit == POINTS)
        else:
            yield READ[budget.kind](self, artifact)

    def size(self, artifact: Artifact) -> Figure:
        """Bytes on disk."""
        count = size_bytes(self.bundle.path(artifact.path))
        return Figure(count, size_text(count))

    def _latency(self, artifact: Artifact) -> Figure:
        run = self.latency(artifact.path)
        if run is None:
            return self._ask("it was not timed", "profile")
        found = run.result
        return Figure(found.median_ms, latency_text(found), _interval(found), doubt=_doubt(found))

    def _cold_start(self, artifact: Artifact) -> Figure:
        run = self.latency(artifact.path)
        if run is None or run.result.load_ms is None or run.result.first_inference_ms is None:
            return self._ask("its first seconds were not timed", "profile")
        value = run.result.load_ms + run.result.first_inference_ms
        return Figure(value, f"{value:.1f} ms", doubt=_not_measured(run.result))

    def _memory(self, artifact: Artifact) -> Figure:
        run = self.latency(artifact.path)
        if run is None or run.result.peak_memory_bytes is None:
            return self._ask("its memory was not measured", "profile")
        value = run.result.peak_memory_bytes
        return Figure(value, size_text(value), doubt=_not_measured(run.result))

    def _parity(self, artifact: Artifact) -> Figure:
        verdict = self.verdicts.get(artifact.path)
        if verdict is None or verdict.passed is None:
            return self._ask("it was not judged", "parity")
        if not verdict.passed:
            return Figure(float("-inf"), f"failed: {verdict.problem or verdict.summary or 'see parity'}")
        decibels = float("inf") if verdict.exact else verdict.sqnr_db
        return Figure(decibels, "equal" if verdict.exact else f"passed, {verdict.sqnr_db:.1f} dB")

    def _accuracy(self, artifact: Artifact, *, drop: bool) -> Figure:
        found = self.accuracy(artifact.path)
        if found is None:
            return self._ask("its accuracy is not known", "evaluate", " --dataset FOLDER")
        result, subject = found
        score = subject.top1 if subject.score is None else subject.score
        images = f"{result.dataset.images} images of {result.dataset.source}"
        if not drop:
            if score is None:
                return self._ask("its accuracy is not known", "evaluate", " --dataset FOLDER")
            in_points = result.metric is None or result.metric.in_points
            return Figure(score, f"{score:.2%} of {images}" if in_points else f"{score:.4g} on {images}")
        if subject.difference_points is None:
            return Figure(None, missing="no difference in points is known: its metric has another unit")
        lost, interval = -subject.difference_points, subject.interval_points
        text = f"{lost:+.2f} points on {images}"
        return Figure(lost, text, None if interval is None else (-interval[1], -interval[0]))

    def _operators(self, artifact: Artifact, operator: str | None) -> Figure:
        try:
            counts = self.inspected(artifact.path).operators
        except DeployError as error:
            return Figure(None, missing=str(error))
        if operator is None:
            total = sum(counts.values())
            return Figure(total, str(total))
        count = counts.get(operator, 0)
        return Figure(count, str(count))

    def _partitions(self, artifact: Artifact) -> Figure:
        try:
            delegates = self.inspected(artifact.path).delegates
        except DeployError as error:
            return Figure(None, missing=str(error))
        known = [item for item in delegates if item.partitions is not None]
        if not known:
            return Figure(None, missing=f"of {artifact.format} files no partitions are known")
        most = max(known, key=lambda item: item.partitions or 0)
        return Figure(most.partitions, f"{most.partitions} of {most.name}")

    def _instructions(self, artifact: Artifact) -> Iterator[Figure]:
        found = False
        for place, reports in self.kept.instructions.items():
            for run in reports.runs:
                if run.artifact == artifact.path and is_current(run, self.hashes):
                    found = True
                    value = run.result.instructions
                    yield Figure(value, f"{value:,}", place=place)
        if not found:
            yield self._ask("its instructions were not counted", "profile", " --target qemu-arm64")

    def _ask(self, why: str, command: str, further: str = "") -> Figure:
        return Figure(None, missing=f"{why}: coordatt-deploy {command} {self.bundle.root}{further}")


READ: Final[Mapping[BudgetKind, Callable[[BundleFigures, Artifact], Figure]]] = {
    BudgetKind.SIZE: BundleFigures.size,
    BudgetKind.LATENCY: BundleFigures._latency,
    BudgetKind.PARITY: BundleFigures._parity,
    BudgetKind.PARTITIONS: BundleFigures._partitions,
    BudgetKind.MEMORY: BundleFigures._memory,
    BudgetKind.COLD_START: BundleFigures._cold_start,
}  # those that ask nothing further


def _not_measured(record: LatencyRecord) -> str | None:
    if record.origin is Origin.MEASURED:
        return None
    return f"{record.origin} with {record.runtime}, not measured"


def _doubt(record: LatencyRecord) -> str | None:
    if (text := _not_measured(record)) is not None:
        return text
    return "too few samples for an interval" if record.ci95_ms is None else None


def _interval(record: LatencyRecord) -> tuple[float, float] | None:
    """Of the median; of a noisy figure the middle four fifths of the samples, as its median may move within those.

    Other load only adds time: an unusable figure knows an upper end and no lower one.
    """
    if record.verdict == Level.STABLE.value:
        return record.ci95_ms
    latency = record.latency().latency
    least = 0.0 if record.verdict == Level.UNUSABLE.value else latency.quantile_ms(0.1)
    return least, latency.quantile_ms(0.9)


def latency_text(record: LatencyRecord) -> str:
    """``9.57 ms (9.41 … 9.70)``."""
    interval = "" if record.ci95_ms is None else f" ({record.ci95_ms[0]:.3g} … {record.ci95_ms[1]:.3g})"
    return f"{record.median_ms:.3g} ms{interval}{'' if record.verdict == Level.STABLE.value else f', {record.verdict}'}"


def size_text(count: float) -> str:
    """``1.96 MB``."""
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
