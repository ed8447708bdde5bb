"""The most accurate file that keeps a limit of size or latency, over recipes and layers.

Of each format and CPU every recipe is made, those that are quickly made first; where static int8 loses something and
the limit leaves room, layers go back into float by the noise that they bring for a byte. Each is judged as a real file:
accuracy on the labelled images, size in bytes, and where latency is limited its time in turns with the float file's.
``choice`` says which one it is. Nothing is written where none keeps the limits.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.conversion.calibration import Calibration, calibrate, own_dataset
from coordatt_deploy.conversion.held_out_images import write_held_out
from coordatt_deploy.conversion.jobs import QuantizedArtifact, plan_jobs
from coordatt_deploy.conversion.plan import Job, QuantizePlan, formats_in_layout
from coordatt_deploy.conversion.quantize_run import with_artifacts
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import ConversionError, MissingDependencyError, UsageError
from coordatt_deploy.evaluation.result import Accuracy, MetricRecord
from coordatt_deploy.format_modules import need_converters
from coordatt_deploy.formats import FORMATS, Format, TargetCpu
from coordatt_deploy.graph.graph import Graph
from coordatt_deploy.graph.saved_graph import load_graph
from coordatt_deploy.graph.source_weights import check_source_weights
from coordatt_deploy.host import describe
from coordatt_deploy.logs import logged, set_environment
from coordatt_deploy.mixed_precision.choice import Limits, choose, fill, nearest, pareto, weighed
from coordatt_deploy.mixed_precision.ranking import Bench, float_bytes, job_name, ranked_alone
from coordatt_deploy.mixed_precision.result import (
    CandidateRecord,
    FormatSearch,
    LimitVerdict,
    SearchDataset,
    SearchResult,
)
from coordatt_deploy.mixed_precision.search import save_replay
from coordatt_deploy.mixed_precision.search_plan import TradeoffPlan
from coordatt_deploy.mixed_precision.trials import ImageJudge, image_judge, make_in, move, with_float
from coordatt_deploy.profile.compare import compare_latencies
from coordatt_deploy.profile.latency import Latency, ProfileSettings
from coordatt_deploy.profile.turns import Feeds, OpenFile, take_turns
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.recipes import STATIC_INT8, Mode, Recipe
from coordatt_deploy.quantization.sensitivity import LayerCost
from coordatt_deploy.run_records import NotRun
from coordatt_deploy.runtimes.host_effects import FAMILIES
from coordatt_deploy.scratch import Scratch

QUICKEST: Final = (Mode.WEIGHT_ONLY, Mode.PALETTIZED, Mode.DYNAMIC, Mode.STATIC)  # to make
FITTINGS: Final = 5  # artifacts that are made to see whether layers in float fit into the limit
FLOAT_LAYERS: Final = (1, 4)  # costliest layers in float that are tried for a latency

Pairs = tuple[tuple[Format, Recipe], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A file on trial.

    Attributes:
        record: What is known of it.
        artifact: Its description.
        folder: That its path is relative to.
        job: That made it; None for a float file of the bundle.
        made: What the manifest would say of it; None for a float file of the bundle.
    """

    record: CandidateRecord
    artifact: Artifact
    folder: Path
    job: Job | None = None
    made: QuantizedArtifact | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """How the search ended for one format and CPU."""

    name: str
    kind: Format
    cpu: TargetCpu | None
    candidates: tuple[Candidate, ...]
    winner: Candidate | None
    nearest: Candidate
    layers: int
    refused: tuple[NotRun, ...]
    warning: str | None

    def record(self, recipe_file: str | None) -> FormatSearch:
        """Return the entry of ``search.json``."""
        told = self.winner or self.nearest
        return FormatSearch(
            format=self.kind,
            target_cpu=self.cpu,
            path=None if self.winner is None else self.winner.artifact.path,
            reached=self.winner is not None,
            kept=told.record.kept,
            layers=self.layers,
            difference_points=told.record.points,
            interval_points=told.record.interval_points,
            recipe_file=recipe_file,
            attempts=(),
            warning=self.warning,
            candidates=tuple(item.record for item in self.candidates),
            nearest=None if self.winner is not None else self.nearest.artifact.path,
            refused=self.refused,
        )


def search_tradeoff(bundle: Bundle, plan: TradeoffPlan, stages: Stages) -> tuple[Bundle, SearchResult]:
    """Find the most accurate file of each format that keeps the limits; write those, recipe files and the document.

    Args:
        bundle: Opened.
        plan: What to reach, on which images.
        stages: Shows the progress.

    Returns:
        The bundle with an artifact for each format that reached the limits, and the document.

    Raises:
        UsageError: The images have no labels, a format cannot express a recipe, none can be timed here, or a limit is
            relative to a float file that is not there.
        MissingDependencyError: A converter or runtime is not installed, or the bundle has no ``reference/``.
        ConversionError: No file could be made.
    """
    set_environment()
    torch.set_num_threads(1)
    pairs, skipped = _pairs(bundle, plan)
    jobs, calibration = _jobs(bundle, plan, pairs, stages)
    groups: dict[tuple[Format, TargetCpu | None], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.kind, job.target_cpu), []).append(job)
    for kind, cpu in groups:
        _check_float(bundle, plan, kind, cpu)
    images = image_judge(bundle, plan.images, calibration.data, plan.max_drop)
    with images as judge, logged("search"), Scratch() as scratch:
        with stages.stage(f"reference on {len(judge.dataset):,} images", len(judge.dataset)) as step:
            judge.ask_reference(step)
        trial = _Trial(bundle, plan, judge, load_graph(bundle.root / "reference"), calibration.data, scratch, stages)
        outcomes = [trial.outcome(kind, cpu, group) for (kind, cpu), group in groups.items()]
        found = [item.winner for item in outcomes if item.winner is not None and item.winner.made is not None]
        if found:
            _write(bundle, plan, found, stages)
    written = open_bundle(bundle.root, verify=False)
    records = []
    for item in outcomes:
        made_by = None if item.winner is None else item.winner.job
        records.append(item.record(None if made_by is None else save_replay(written, made_by)))
    result = SearchResult(
        reached=all(item.reached for item in records),
        max_drop_points=plan.max_drop,
        recipe="any" if plan.every_recipe else ", ".join(recipe.name for recipe in plan.quantize.recipes),
        dataset=SearchDataset(judge.dataset.source, judge.images, (*judge.dataset.notes, *judge.executor.notes)),
        results=tuple(records),
        command=plan.quantize.command,
        metric=judge.scoring.record,
        max_size=None if plan.max_size is None else plan.max_size.text,
        max_latency=None if plan.max_latency is None else plan.max_latency.text,
        skipped=skipped,
    )
    written.write_report("search.json", dump(result))
    return written, result


def _pairs(bundle: Bundle, plan: TradeoffPlan) -> tuple[Pairs, tuple[NotRun, ...]]:
    """Return each format with the recipes to try, and the formats that cannot be timed here."""
    manifest, asked = bundle.manifest, plan.quantize
    present = [kind for kind in Format if any(item.format is kind for item in manifest.artifacts)]
    pairs: Pairs
    if plan.every_recipe:
        kinds = tuple(dict.fromkeys(asked.formats or present or tuple(Format)))
        pairs = tuple((kind, item) for kind in kinds for item in asked.recipes if item.base in FORMATS[kind].recipes)
    else:
        pairs = asked.pairs(present or tuple(Format))
    skipped = []
    for kind in dict.fromkeys(kind for kind, _ in pairs) if plan.max_latency is not None else ():
        row = FORMATS[kind]
        if row.native_systems and not describe().os.lower().startswith(row.native_systems):
            skipped.append(
                NotRun(kind.value, f"{row.title} files {row.elsewhere}, so their latency cannot be measured")
            )
    left = tuple(pair for pair in pairs if pair[0].value not in {item.path for item in skipped})
    if skipped and not left:
        raise UsageError(
            f"--max-latency: {skipped[0].reason}; leave it out, name another --format, or run it where it can be timed"
        )
    need_converters(kind for kind, _ in left)
    if manifest.model.input_layout is not None:
        formats_in_layout(manifest.model.input_layout, [kind for kind, _ in left], asked=True)
    if asked.limits is not None:
        asked.limits.check(tuple(dict.fromkeys(kind for kind, _ in left)))
    if not (bundle.root / "reference" / "graph.json").exists():
        raise MissingDependencyError(f"{bundle.root} has no reference/ to quantize from; build it again")
    return left, tuple(skipped)


def _jobs(bundle: Bundle, plan: TradeoffPlan, pairs: Pairs, stages: Stages) -> tuple[list[Job], Calibration]:
    manifest = bundle.manifest
    if plan.every_recipe and plan.quantize.calibration is None and own_dataset(manifest.model.source_sha256) is None:
        stages.note("static recipes are left out: they need calibration data; give --calibration-data FOLDER")
        pairs = tuple(pair for pair in pairs if not pair[1].needs_calibration)
        if not pairs:
            raise UsageError("every recipe of these formats needs calibration data; give --calibration-data FOLDER")
    check_source_weights(bundle.root / "reference", manifest)
    asked: QuantizePlan = replace(plan.quantize, recipes=tuple(dict.fromkeys(recipe for _, recipe in pairs)))
    calibration = calibrate(asked, manifest, partial(load_graph, bundle.root / "reference"), stages)
    return plan_jobs(asked, pairs, manifest, bundle.root, calibration), calibration


def _floats(bundle: Bundle, kind: Format, cpu: TargetCpu | None) -> list[Artifact]:
    """Return the float files of a format and CPU, the one that limits are relative to first."""
    found = [
        item for item in bundle.manifest.artifacts
        if item.format is kind and item.target_cpu == cpu and item.recipe is None
    ]  # fmt: skip
    return sorted(found, key=lambda item: item.precision is not FORMATS[kind].quantized_from)


def _check_float(bundle: Bundle, plan: TradeoffPlan, kind: Format, cpu: TargetCpu | None) -> None:
    relative = [item for item in (plan.max_size, plan.max_latency) if item is not None and item.relative]
    if relative and not _floats(bundle, kind, cpu):
        name = " ".join(filter(None, (kind.value, cpu)))
        raise UsageError(
            f"{relative[0].text} is relative to the float file, and the bundle has none for {name}; export it, or write"
            " an absolute limit"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """Makes and judges the files of one format after the other."""

    bundle: Bundle
    plan: TradeoffPlan
    judge: ImageJudge
    graph: Graph
    data: CalibrationSet | None
    scratch: Path
    stages: Stages

    def outcome(self, kind: Format, cpu: TargetCpu | None, jobs: Sequence[Job]) -> Outcome:
        """Search one format and CPU."""
        name = job_name(jobs[0])
        floats = _floats(self.bundle, kind, cpu)
        limits = self._limits(floats[0] if floats else None)
        refused: list[NotRun] = []
        with self.stages.stage(f"files on trial, {name}", len(floats) + len(jobs)) as step:
            found = []
            for artifact in floats:
                found.append(self._judged(artifact, self.bundle.root))
                step()
            for job in sorted(jobs, key=lambda job: QUICKEST.index(job.recipe.mode)):
                found += self._made(job, (), refused)
                step()
        layers, further = self._layers_in_float(found, limits, refused)
        found += further
        if not found:
            raise ConversionError(f"no file of {name} could be made: {refused[0].reason}")
        found = self._timed(found, floats[0] if floats else None, limits, name)
        records = [weighed(item.record, limits) for item in found]
        winner, front = choose(records, limits), pareto(records, limits)
        records = [replace(item, pareto=index in front, chosen=index == winner) for index, item in enumerate(records)]
        found = [replace(item, record=record) for item, record in zip(found, records, strict=True)]
        near = nearest(records, limits)
        assert near is not None  # noqa: S101 - there is a file
        warnings = [self.judge.judged.get((kind, cpu)), self._timed_elsewhere(cpu)]
        return Outcome(
            name, kind, cpu, tuple(found), None if winner is None else found[winner], found[near], layers,
            tuple(refused), "; ".join(filter(None, warnings)) or None,
        )  # fmt: skip

    def _limits(self, baseline: Artifact | None) -> Limits:
        size = self.plan.max_size
        return Limits(
            size=None if size is None else size.of(None if baseline is None else baseline.bytes),
            size_text="" if size is None else size.text,
            latency=self.plan.max_latency,
            max_drop=self.plan.max_drop,
            higher_is_better=self.judge.scoring.record.higher_is_better,
        )

    def _timed_elsewhere(self, cpu: TargetCpu | None) -> str | None:
        here = describe().architecture
        if self.plan.max_latency is None or cpu is None or FAMILIES.get(here) == cpu:
            return None
        return f"timed on this {here} CPU; the files are written for {cpu}"

    def _made(self, job: Job, kept: Sequence[LayerCost], refused: list[NotRun]) -> list[Candidate]:
        """Make and judge a file; empty where it was refused."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        try:
            made = make_in(folder, job)
            found = self._judged(made.artifact, folder, tuple(cost.name for cost in kept))
        except (ConversionError, UsageError) as error:
            refused.append(NotRun(job.path, str(error)))
            return []
        return [replace(found, job=job, made=made)]

    def _judged(self, artifact: Artifact, folder: Path, kept: tuple[str, ...] = ()) -> Candidate:
        score, metric = self.judge.ask(folder, artifact), self.judge.scoring.record
        points, interval = score.change(metric)
        assert points is not None  # noqa: S101 - whoever failed is no candidate
        lost, gained = _changes(score, metric)
        record = CandidateRecord(
            name=artifact.recipe or artifact.precision.value, path=artifact.path, recipe=artifact.recipe, kept=kept,
            size_bytes=artifact.bytes, points=points, interval_points=interval, lost=lost, gained=gained,
        )  # fmt: skip
        return Candidate(record, artifact, folder)

    def _layers_in_float(
        self, found: Sequence[Candidate], limits: Limits, refused: list[NotRun]
    ) -> tuple[int, list[Candidate]]:
        """Put layers of static int8 back into float where it loses something and the limit leaves room for them.

        Returns:
            How many layers there are, 0 where they were not ranked, and the files.
        """
        static = next((item for item in found if item.job is not None and item.job.recipe.base == STATIC_INT8), None)
        if static is None or static.job is None or static.job.data is None or limits.gain(static.record) >= 0:
            return 0, []
        if limits.size is not None and static.record.size_bytes >= limits.size:
            return 0, []
        job, data = static.job, static.job.data
        costs = [cost for cost in ranked_alone(self.graph, job, data, self.stages) if cost.layers and cost.share > 0]
        sets: list[Sequence[LayerCost]] = []
        if limits.size is not None:
            sets.append(self._fitting(job, data, costs, limits.size))
        if limits.latency is not None:
            sets += [costs[:count] for count in FLOAT_LAYERS if count < len(costs)]
        made: list[Candidate] = []
        with self.stages.stage(f"layers in float, {job_name(job)}", len(sets)) as step:
            for kept in sets:
                known = {item.record.kept for item in made}
                if kept and tuple(cost.name for cost in kept) not in known:
                    made += self._made(
                        with_float(job, [layer for cost in kept for layer in cost.layers]), kept, refused
                    )
                step()
        return len(costs), made

    def _fitting(self, job: Job, data: CalibrationSet, costs: Sequence[LayerCost], size: float) -> Sequence[LayerCost]:
        """Return the layers that fit, as real files of them say; empty where none does.

        Files are estimated by their weights; what else changes with layers in float, the costliest alone tells.
        """
        bytes_of = float_bytes(self.graph, job, data)
        room = 0.0
        fitting: Sequence[LayerCost] = ()
        tried: set[tuple[str, ...]] = set()
        nearest_rounding = replace(job, recipe=replace(job.recipe, adjust=False))
        with Bench(self.graph, nearest_rounding, data) as bench:
            for _ in range(FITTINGS):
                kept = fill(costs, bytes_of, room) if tried else list(costs[:1])
                names = tuple(cost.name for cost in kept)
                if not kept or names in tried:
                    break
                tried.add(names)
                with bench.artifact([layer for cost in kept for layer in cost.layers]) as (_, artifact):
                    left = size - artifact.bytes
                if left >= 0 and sum(cost.share for cost in kept) > sum(cost.share for cost in fitting):
                    fitting = kept
                room = sum(bytes_of[cost.name] for cost in kept) + left
        return fitting

    def _timed(
        self, found: Sequence[Candidate], baseline: Artifact | None, limits: Limits, name: str
    ) -> list[Candidate]:
        """Time the files that keep the other limits, all where none does, in turns with the float file."""
        if limits.latency is None:
            return list(found)
        others = replace(limits, latency=None)
        keeping = [item for item in found if weighed(item.record, others).verdict is LimitVerdict.KEEPS] or list(found)
        inputs: Feeds = {key: values[0] for key, values in self.bundle.golden("inputs").items()}
        entries = {item.artifact.path: OpenFile(item.folder / item.artifact.path, item.artifact, inputs)
                   for item in keeping}  # fmt: skip
        if baseline is not None:
            entries[baseline.path] = OpenFile(self.bundle.path(baseline.path), baseline, inputs)
        measured = take_turns(entries, ProfileSettings(), self.stages, threads=1, what=name)
        if measured.interrupted:
            raise KeyboardInterrupt
        first = None if baseline is None else measured.latencies.get(baseline.path)
        return [
            replace(item, record=_with_latency(item.record, latency, first, itself=item.artifact == baseline))
            if (latency := measured.latencies.get(item.artifact.path)) is not None and item in keeping
            else item
            for item in found
        ]


def _changes(score: Accuracy, metric: MetricRecord) -> tuple[int | None, int | None]:
    """Return how many images are lost and gained."""
    pair, own = score.difference, score.score_difference
    if pair is not None:
        return pair.lost, pair.gained
    if own is None:
        return None, None
    return (own.lower, own.greater) if metric.higher_is_better else (own.greater, own.lower)


def _with_latency(
    record: CandidateRecord, latency: Latency, baseline: Latency | None, *, itself: bool
) -> CandidateRecord:
    """Return *record* with what was timed; a ratio that other processes disturbed too much is left unknown."""
    ratio, interval = (1.0, (1.0, 1.0)) if itself else (None, None)
    if baseline is not None and not itself:
        found = compare_latencies(baseline, latency)
        ratio, interval = found.ratio, found.ci95
    return replace(
        record,
        latency_ms=latency.median_ms,
        latency_interval_ms=latency.ci95_ms,
        latency_ratio=ratio,
        ratio_interval=interval,
    )


def _write(bundle: Bundle, plan: TradeoffPlan, winners: Sequence[Candidate], stages: Stages) -> None:
    """Put the files that were chosen into the bundle."""
    made = [item.made for item in winners if item.made is not None]
    with writing(bundle.root, bundle.manifest.model.source_sha256, bundle.manifest) as staging:
        for item in winners:
            move(item.artifact, item.folder, staging)
            if item.job is not None and item.job.data is not None:
                write_held_out(replace(item.job, root=staging))
        manifest = bundle.manifest.with_command(plan.quantize.command)
        finish(staging, with_artifacts(manifest, made, stages, staging))
