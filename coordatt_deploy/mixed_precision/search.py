"""The fewest layers that must stay in float until a drop in accuracy holds.

First the recipe itself is tried. Where it loses too much, the search keeps the first k of the ranking in float (see
``layer_costs``) and looks for the least k that holds, by doubling and halving, in artifacts that are quickly made, with
weights rounded to the nearest; and tries whether any of the k can go back to int8. What it found is made the whole way,
as a recipe file replays it, with weights rounded on data around the layers in float; that loses less, so fewer of the k
may do. Every verdict comes from an artifact on labelled images.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.conversion.held_out_images import write_held_out
from coordatt_deploy.conversion.jobs import QuantizedArtifact
from coordatt_deploy.conversion.plan import Job
from coordatt_deploy.conversion.quantize_run import with_artifacts
from coordatt_deploy.documents import dump
from coordatt_deploy.evaluation.result import Accuracy, MetricRecord
from coordatt_deploy.graph.graph import Graph
from coordatt_deploy.graph.saved_graph import load_graph
from coordatt_deploy.logs import logged
from coordatt_deploy.mixed_precision.ranking import Bench, RankedJob, job_name
from coordatt_deploy.mixed_precision.result import AttemptRecord, FormatSearch, SearchDataset, SearchResult
from coordatt_deploy.mixed_precision.search_plan import SearchPlan
from coordatt_deploy.mixed_precision.smallest_set import prune, smallest_passing_set
from coordatt_deploy.mixed_precision.trials import ImageJudge, image_judge, make_in, move, with_float
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.recipes import save_recipe
from coordatt_deploy.quantization.sensitivity import LayerCost
from coordatt_deploy.scratch import Scratch

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
    with image_judge(bundle, plan.images, ranked[0][0].data, plan.max_drop) as judge, logged("search"):
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
            outcomes[index] = replace(outcome, recipe_file=save_replay(written, outcome.job))
    result = SearchResult(
        reached=all(outcome.reached for outcome in outcomes),
        max_drop_points=plan.max_drop,
        recipe=plan.quantize.recipes[0].name,
        dataset=SearchDataset(judge.dataset.source, judge.images, (*judge.dataset.notes, *judge.executor.notes)),
        results=tuple(
            replace(item, warning=judge.judged.get((item.format, item.target_cpu)))
            for item in (outcome.record() for outcome in outcomes)
        ),
        command=plan.quantize.command,
        metric=judge.scoring.record,
    )
    written.write_report("search.json", dump(result))
    return written, result


def save_replay(bundle: Bundle, job: Job) -> str:
    """Write the recipe file that replays *job*; returns its path in the bundle."""
    name = f"{REPORTS}/recipe-{job_name(job).replace(' ', '-')}.json"
    save_recipe(job.recipe, bundle.reports() / Path(name).name)
    return name


def _search_one(
    graph: Graph, job: Job, costs: Sequence[LayerCost], judge: ImageJudge, staging: Path, stages: Stages
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
            made = make_in(folder, with_float(job, _layers(kept)))
            works = judged(kept, folder, made.artifact, whole=True)
            if works:
                good[len(attempts)] = folder, with_float(job, _layers(kept)), made
            return works

        kept = [] if whole([]) else smallest_passing_set(ranking, holds)
        kept = kept if kept is None or not kept else prune(kept, ranking, whole)
        if kept is None:
            return SearchOutcome(job, len(ranking), attempts[-1].kept, tuple(attempts), False), None
        at = max(number for number in good if attempts[number - 1].kept == tuple(cost.name for cost in kept))
        folder, final, made = good[at]
        move(made.artifact, folder, staging)
        write_held_out(replace(final, root=staging))
    ordered = (*attempts[: at - 1], *attempts[at:], attempts[at - 1])
    return SearchOutcome(final, len(ranking), attempts[at - 1].kept, ordered, True), made


def _layers(kept: Sequence[LayerCost]) -> list[str]:
    return [layer for cost in kept for layer in cost.layers]
