"""The fewest layers that must stay in float until a drop in accuracy holds.

First the recipe itself is tried. Where it loses too much, the search keeps the first k of the ranking in float (see
``layer_costs``) and looks for the least k that holds, by doubling and halving, in artifacts that are quickly made, with
weights rounded to the nearest; and tries whether any of the k can go back to int8. What it found is made the whole way,
as a recipe file replays it, with weights rounded on data around the layers in float; that loses less, so fewer of the k
may do. Every verdict comes from an artifact on labelled images.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle, artifact_name, open_bundle
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.conversion.held_out_images import write_held_out
from coordatt_deploy.conversion.jobs import QuantizedArtifact, make
from coordatt_deploy.conversion.plan import Job
from coordatt_deploy.conversion.quantize_run import with_artifacts
from coordatt_deploy.data.calibration import DIGITS, SCENES
from coordatt_deploy.data.dataset import Dataset
from coordatt_deploy.data.labelled import CALIBRATION_DIGITS, CALIBRATION_SCENES, open_dataset
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.evaluation.judge import judge as judged_by
from coordatt_deploy.evaluation.metric_choice import classes_of, image_input, own_metric, scoring_of
from coordatt_deploy.evaluation.predict import Predictions, Trial, run
from coordatt_deploy.evaluation.result import Accuracy, MetricRecord
from coordatt_deploy.evaluation.scoring import Scoring
from coordatt_deploy.formats import Format, TargetCpu
from coordatt_deploy.graph.graph import Graph
from coordatt_deploy.graph.saved_graph import load_graph
from coordatt_deploy.host import available_cores, describe
from coordatt_deploy.logs import logged
from coordatt_deploy.mixed_precision.ranking import Bench, RankedJob, job_name
from coordatt_deploy.mixed_precision.result import AttemptRecord, FormatSearch, SearchDataset, SearchResult
from coordatt_deploy.mixed_precision.search_plan import SearchPlan
from coordatt_deploy.mixed_precision.smallest_set import prune, smallest_passing_set
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.recipes import Recipe, save_recipe
from coordatt_deploy.quantization.sensitivity import LayerCost
from coordatt_deploy.runtimes.host_effects import host_effect
from coordatt_deploy.scratch import Scratch

PACKAGED: Final = {DIGITS: CALIBRATION_DIGITS, SCENES: CALIBRATION_SCENES}  # the labels of calibration data
MANY: Final = 1000  # images from which on several processes pay
REPORTS: Final = "reports"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One artifact of the search.

    Attributes:
        kept: Names of the layers in float.
        score: What it is worth against the float64 reference.
        metric: That it was scored by.
        whole: Whether it was made the whole way, its weights rounded on data around the layers in float.
    """

    kept: tuple[str, ...]
    score: Accuracy
    metric: MetricRecord
    whole: bool = False

    def record(self) -> AttemptRecord:
        """Return what the document says of it."""
        pair, own = self.score.difference, self.score.score_difference
        lost, gained = (None, None) if pair is None else (pair.lost, pair.gained)
        if own is not None:
            worse, better = own.lower, own.greater
            lost, gained = (worse, better) if self.metric.higher_is_better else (better, worse)
        return AttemptRecord(self.kept, self.change[0], self.whole, lost, gained)

    @property
    def change(self) -> tuple[float, tuple[float, float] | None]:
        """The difference to the reference and its interval, in the metric's unit."""
        value, interval = self.score.change(self.metric)
        assert value is not None  # noqa: S101 - whoever failed is no attempt
        return value, interval


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """How the search ended for one format.

    Attributes:
        job: The format, and the recipe that was found or, where none holds, the one that was asked for.
        layers: How many layers could have been kept in float.
        kept: Names of those that stay in float.
        attempts: In their order; the last one of a search that found something is the artifact in the bundle.
        reached: Whether the drop holds.
        recipe_file: What replays it, relative to the bundle; None where nothing was found.
    """

    job: Job
    layers: int
    kept: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    reached: bool
    recipe_file: str | None = None

    def record(self) -> FormatSearch:
        """Return the entry of ``search.json``."""
        value, interval = self.attempts[-1].change
        return FormatSearch(
            format=self.job.kind,
            target_cpu=self.job.target_cpu,
            path=self.job.path if self.reached else None,
            reached=self.reached,
            kept=self.kept,
            layers=self.layers,
            difference_points=value,
            interval_points=interval,
            recipe_file=self.recipe_file,
            attempts=tuple(attempt.record() for attempt in self.attempts),
        )


def search(
    bundle: Bundle, plan: SearchPlan, ranked: Sequence[RankedJob], stages: Stages
) -> tuple[Bundle, SearchResult]:
    """Keep the fewest layers in float until the drop holds; write artifacts, recipe files and ``reports/search.json``.

    Args:
        bundle: Opened.
        plan: What to reach, on which images.
        ranked: From ``rank_layers``.
        stages: Shows the progress.

    Returns:
        The bundle with an artifact for each format that reached the drop, and the document.

    Raises:
        UsageError: The images have no labels, or not those of the model or of the metric.
        MetricError: A metric of the user's own raises, or gives no number.
    """
    judge = _judge(bundle, plan, ranked)
    with logged("search"):
        with stages.stage(f"reference on {len(judge.dataset):,} images", len(judge.dataset)) as step:
            judge.ask_reference(step)
        graph = load_graph(bundle.root / "reference")
        with writing(bundle.root, bundle.manifest.model.source_sha256, bundle.manifest) as staging:
            outcomes, made = [], []
            for job, costs in ranked:
                outcome, artifact = _search_one(graph, job, costs, judge, staging, stages)
                outcomes.append(outcome)
                made += [artifact] if artifact is not None else []
            manifest = bundle.manifest.with_command(plan.quantize.command) if made else bundle.manifest
            finish(staging, with_artifacts(manifest, made, stages, staging))
    written = open_bundle(bundle.root, verify=False)
    for index, outcome in enumerate(outcomes):
        if outcome.reached:
            outcomes[index] = replace(outcome, recipe_file=_save(written, outcome))
    result = SearchResult(
        reached=all(outcome.reached for outcome in outcomes),
        max_drop_points=plan.max_drop,
        recipe=plan.quantize.recipes[0].name,
        dataset=SearchDataset(judge.dataset.source, judge.images, tuple(judge.dataset.notes)),
        results=tuple(
            replace(item, warning=judge.judged.get((item.format, item.target_cpu)))
            for item in (outcome.record() for outcome in outcomes)
        ),
        command=plan.quantize.command,
        metric=judge.scoring.record,
    )
    written.write_report("search.json", dump(result))
    return written, result


def _save(bundle: Bundle, outcome: SearchOutcome) -> str:
    name = f"{REPORTS}/recipe-{job_name(outcome.job).replace(' ', '-')}.json"
    save_recipe(outcome.job.recipe, bundle.reports() / Path(name).name)
    return name


def _judge(bundle: Bundle, plan: SearchPlan, ranked: Sequence[RankedJob]) -> "_Judge":
    own = own_metric(plan.metric)
    classes = classes_of(bundle)
    dataset = _labelled(bundle, plan, ranked, classes)
    scoring = scoring_of(bundle, plan.metric, dataset, own)
    return _Judge(bundle, dataset, scoring, classes, plan.max_drop, plan.workers)


def _labelled(bundle: Bundle, plan: SearchPlan, ranked: Sequence[RankedJob], classes: int | None) -> Dataset:
    labels = bundle.manifest.model.labels
    source = plan.dataset
    try:
        if source is None:
            data = ranked[0][0].data
            assert data is not None  # noqa: S101 - a static recipe has it
            source = PACKAGED.get(data.source, data.source)
        dataset = open_dataset(source, labels, classes, plan.labels_by, image_input(bundle))
    except UsageError as error:
        if plan.dataset is not None:
            raise
        raise UsageError(f"--max-drop needs labelled images; the calibration data has no labels: {error}") from error
    return dataset if plan.limit is None else dataset.limited(plan.limit, plan.quantize.seed)


@dataclass(slots=True)
class _Judge:
    """Says what an artifact is worth against the reference, and whether it loses more than *max_drop*.

    *judged* says of formats and CPUs how their artifacts were judged where this CPU makes something else of them.
    """

    bundle: Bundle
    dataset: Dataset
    scoring: Scoring
    classes: int | None
    max_drop: float
    workers: int | None
    reference: Predictions | None = None
    judged: dict[tuple[Format, TargetCpu | None], str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return 0 if self.reference is None else len(self.reference.rows)

    def ask_reference(self, step: Callable[[], None]) -> None:
        self.reference = self._answers(Trial(self.bundle, (), True, image_input(self.bundle).name, self.scoring), step)

    def ask(self, folder: Path, artifact: Artifact) -> Accuracy:
        assert self.reference is not None  # noqa: S101 - it is asked first
        there = Bundle(folder, self.bundle.manifest)
        effect = host_effect(there.path(artifact.path), artifact, describe())
        exact: frozenset[str] = frozenset()
        if effect is not None and effect.foreign:
            exact, self.judged[artifact.format, artifact.target_cpu] = frozenset((artifact.path,)), effect.judged()
        input_name = image_input(self.bundle).name
        answers = self._answers(Trial(there, (artifact,), False, input_name, self.scoring, exact_sums=exact))
        both = self.reference.beside(answers)
        return judged_by([None, artifact], both, self.dataset, self.scoring, self.classes, self.max_drop)[1]

    def _answers(self, trial: Trial, step: Callable[[], None] = lambda: None) -> Predictions:
        workers = self.workers or (available_cores() if len(self.dataset) >= MANY else 1)
        answers = run(trial, self.dataset.images, workers, step)
        for failure in answers.failures.values():
            raise ConversionError(failure.text)
        if not len(answers.rows):
            raise UsageError(f"none of the images of {self.dataset.source} can be read: {answers.unreadable[0][1]}")
        return answers


def _search_one(
    graph: Graph, job: Job, costs: Sequence[LayerCost], judge: _Judge, staging: Path, stages: Stages
) -> tuple[SearchOutcome, QuantizedArtifact | None]:
    """Search one format; what was found goes into *staging*, the bundle that is being written."""
    data = job.data
    assert data is not None  # noqa: S101 - a static recipe has it
    ranking = [cost for cost in costs if cost.layers]
    attempts: list[Attempt] = []
    # In these artifacts every weight is rounded to its nearest step: weights that were rounded to make up for one
    # another are ruined for a layer that is then kept in float.
    nearest = replace(job, recipe=replace(job.recipe, adjust=False))
    benches: list[Bench] = []
    with ExitStack() as stack:
        step = stack.enter_context(stages.stage(f"search, {job_name(job)}"))
        scratch = stack.enter_context(Scratch())

        def judged(kept: Sequence[LayerCost], folder: Path, artifact: Artifact, *, whole: bool) -> bool:
            score = judge.ask(folder, artifact)
            attempts.append(Attempt(tuple(cost.name for cost in kept), score, judge.scoring.record, whole))
            step()
            return bool(score.passed)

        def holds(kept: Sequence[LayerCost]) -> bool:
            if not kept:
                return False  # it was made the whole way, and lost more
            if not benches:
                benches.append(stack.enter_context(Bench(graph, nearest, data)))
            with benches[0].artifact(_layers(kept)) as (folder, artifact):
                return judged(kept, folder, artifact, whole=False)

        good: dict[int, tuple[Path, Job, QuantizedArtifact]] = {}

        def whole(kept: Sequence[LayerCost]) -> bool:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            made = _make_in(folder, _with_float(job, _layers(kept)))
            works = judged(kept, folder, made.artifact, whole=True)
            if works:
                good[len(attempts)] = folder, _with_float(job, _layers(kept)), made
            return works

        kept = [] if whole([]) else smallest_passing_set(ranking, holds)
        kept = kept if kept is None or not kept else prune(kept, ranking, whole)
        if kept is None:
            return SearchOutcome(job, len(ranking), attempts[-1].kept, tuple(attempts), False), None
        at = max(number for number in good if attempts[number - 1].kept == tuple(cost.name for cost in kept))
        folder, final, made = good[at]
        _move(made.artifact, folder, staging)
        write_held_out(replace(final, root=staging))
    ordered = (*attempts[: at - 1], *attempts[at:], attempts[at - 1])
    return SearchOutcome(final, len(ranking), attempts[at - 1].kept, ordered, True), made


def _layers(kept: Sequence[LayerCost]) -> list[str]:
    return [layer for cost in kept for layer in cost.layers]


def _with_float(job: Job, layers: Sequence[str]) -> Job:
    recipe: Recipe = replace(job.recipe, float_layers=tuple(dict.fromkeys([*job.final_recipe.float_layers, *layers])))
    return replace(job, recipe=recipe, path=artifact_name(job.spec.name, job.kind, recipe.name, job.target_cpu))


def _make_in(folder: Path, job: Job) -> QuantizedArtifact:
    """Make an artifact as the second stage does, in a folder that stands for the bundle."""
    (folder / "reference").symlink_to((job.root / "reference").absolute())
    if job.source is not None:
        for relative in (job.source.path, job.source.layers):
            _copy(job.root / relative, folder / relative)
    return make(replace(job, root=folder))


def _move(artifact: Artifact, source: Path, target: Path) -> None:
    for relative in (artifact.path, artifact.layers):
        _copy(source / relative, target / relative)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
