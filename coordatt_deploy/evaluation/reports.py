"""``reports/evaluate.json``: accuracies of many calls, as runs that accumulate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from coordatt_deploy.documents import check_version, from_json, parse_object
from coordatt_deploy.evaluation.result import TOP1, DatasetRecord, EvaluationResult, MetricRecord, SubjectAccuracy
from coordatt_deploy.run_records import HERE, Covered, NotRun, RunInputs, RunRecord, accumulated


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What an evaluation was asked for.

    Attributes:
        max_drop_points: That an artifact may lose; None for no verdict, or where the metric has another unit.
        baseline: Name of the subject that it was compared with.
        confidence: Of the intervals.
        metric: What was scored; None in reports of older versions, which knew top-1 alone.
        max_drop: That an artifact may lose, in the metric's unit; None for no verdict.
    """

    max_drop_points: float | None
    baseline: str
    confidence: float
    metric: MetricRecord | None = None
    max_drop: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRun(RunRecord):
    """One subject on one dataset.

    Attributes:
        settings: What was asked for.
        dataset: The images.
        notes: What the user should know of the whole.
        result: What came out.
    """

    settings: EvaluationSettings
    dataset: DatasetRecord
    notes: tuple[str, ...]
    result: SubjectAccuracy

    @property
    def answered(self) -> bool:
        """See ``RunRecord``."""
        return self.result.runtime != ""

    @property
    def limited(self) -> bool:
        """Whether a drop was allowed, so that there is a verdict."""
        return self.settings.max_drop_points is not None or self.settings.max_drop is not None


@dataclass(frozen=True, slots=True)
class EvaluationReports:
    """The document ``reports/evaluate.json``: the runs of many calls.

    Attributes:
        runs: A later run takes the place of an earlier one that answered the same question.
        skipped: What the target could not run, in the last call.
    """

    VERSION: ClassVar[int] = 2

    runs: tuple[EvaluationRun, ...] = ()
    skipped: tuple[NotRun, ...] = ()

    def joined(self, later: "EvaluationReports") -> "EvaluationReports":
        """Return these reports with later ones."""
        return EvaluationReports(accumulated(self.runs, later.runs), later.skipped)

    def result(self, place: str = HERE) -> EvaluationResult | None:
        """Return what is known of each subject on the dataset that was asked last; None where nothing is."""
        return next(iter(self.results(place)), None)

    def results(self, place: str = HERE) -> tuple[EvaluationResult, ...]:
        """Return what is known of each subject, dataset by dataset: the one that was asked last comes first."""
        found: dict[tuple[str, object, object, str], list[EvaluationRun]] = {}
        for run in self.runs:
            if run.place == place:
                key = run.kind, run.dataset, run.settings.metric, run.settings.baseline
                found[key] = [*found.pop(key, []), run]  # moved to the end
        return tuple(self._together(runs) for runs in reversed(found.values()))

    def _together(self, runs: Sequence[EvaluationRun]) -> EvaluationResult:
        """Runs on the same images, by the same metric, as if one call had made them."""
        last = runs[-1]
        others = [run for run in runs if run.result.name != last.settings.baseline]
        subjects = (*(run.result for run in runs if run not in others), *(run.result for run in others))
        judged = [run for run in others if run.limited]
        skipped = tuple(item for item in self.skipped if item.path not in {run.artifact for run in runs})
        return EvaluationResult(
            passed=all(run.result.passed is True for run in judged) if judged else None,
            max_drop_points=last.settings.max_drop_points,
            target=None if last.place == HERE else last.place,
            dataset=last.dataset,
            baseline=last.settings.baseline,
            confidence=last.settings.confidence,
            subjects=subjects,
            skipped=skipped,
            notes=last.notes,
            metric=last.settings.metric,
            max_drop=last.settings.max_drop,
        )


def read_reports(text: str) -> EvaluationReports:
    """Read ``reports/evaluate.json``, of this schema or of the first.

    Raises:
        DocumentError: It is damaged, or of another schema.
    """
    document = parse_object(text)
    check_version(document, 1, EvaluationReports.VERSION)
    if document["schema_version"] == EvaluationReports.VERSION:
        return from_json(EvaluationReports, document)
    result = from_json(EvaluationResult, document)
    return EvaluationReports(runs_of(result, {}, None), result.skipped)


def runs_of(result: EvaluationResult, tool_versions: dict[str, str], time: str | None) -> tuple[EvaluationRun, ...]:
    """Return the runs that make up a result."""
    settings = EvaluationSettings(
        result.max_drop_points, result.baseline, result.confidence, result.metric, result.max_drop
    )
    return tuple(
        EvaluationRun(
            kind=_kind(result.metric),
            artifact=item.name,
            sha256=item.sha256,
            place=result.target or HERE,
            inputs=RunInputs(result.dataset.source, result.dataset.images),
            covered=Covered(outputs=1),
            tool_versions=tool_versions,
            time=time,
            settings=settings,
            dataset=result.dataset,
            notes=result.notes,
            result=item,
        )
        for item in result.subjects
    )


def _kind(metric: MetricRecord | None) -> str:
    """The kind of the runs, by which a later one takes the place of an earlier one: each metric has its own."""
    if metric is None or metric.name == TOP1:
        return "accuracy"
    return metric.file or metric.name
