"""Float artifacts: one process lowers and converts each."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, ModelSpec
from coordatt_deploy.bundle import artifact_name
from coordatt_deploy.conversion.refusals import AskedFile, Made, Making, as_written, gather
from coordatt_deploy.formats import Format, Precision, TargetCpu, slowest_first
from coordatt_deploy.logs import captured
from coordatt_deploy.manifest import LoweringReport
from coordatt_deploy.processes import Pool, Task, job_log
from coordatt_deploy.progress import Stages
from coordatt_deploy.runtime_versions import NO_LIMITS, RuntimeLimits
from coordatt_deploy.stage_cache.store import CachedStage


@dataclass(frozen=True, slots=True)
class FloatArtifact:
    """One artifact as its exporter wrote it, what lowering did on the way, and what the user should know of it."""

    artifact: Artifact
    lowering: LoweringReport
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FloatJob:
    """One float artifact to be written.

    Attributes:
        feeds: The golden inputs, for what depends on values.
        stage: Where its result is kept; None for nowhere.
    """

    kind: Format
    precision: Precision
    target_cpu: TargetCpu | None
    spec: ModelSpec
    graph_folder: Path
    path: Path
    log: Path
    feeds: Mapping[str, Sequence[NumberArray]]
    limits: RuntimeLimits = NO_LIMITS
    stage: CachedStage | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Converting:
    """What processes are at, and what need not be made."""

    files: tuple[Making[FloatArtifact], ...]
    reused: tuple[FloatArtifact, ...]


def plan_float_jobs(
    wanted: Sequence[tuple[Format, Precision, TargetCpu | None]],
    spec: ModelSpec,
    graph_folder: Path,
    staging: Path,
    feeds: Mapping[str, Sequence[NumberArray]],
    limits: RuntimeLimits = NO_LIMITS,
) -> list[FloatJob]:
    """Return the jobs in the order of their making."""
    order = sorted(wanted, key=lambda job: slowest_first(job[0]))
    jobs = []
    for kind, precision, cpu in order:
        path = staging / artifact_name(spec.name, kind, precision, cpu)
        path.parent.mkdir(exist_ok=True)
        needed = feeds if precision is Precision.FP16 else {}
        jobs.append(FloatJob(kind, precision, cpu, spec, graph_folder, path, job_log("export", path), needed, limits))
    return jobs


def convert(job: FloatJob) -> FloatArtifact:
    """Run in a process of its own: load the folded graph, lower and convert it, describe the file."""
    with captured(job.log):
        # here, and not above: what torch and converters print as they load belongs in the log
        import torch

        from coordatt_deploy.exporters import ExportRequest, exporter
        from coordatt_deploy.graph.float16_range import beyond_float16
        from coordatt_deploy.graph.lowering.lower import lower
        from coordatt_deploy.graph.lowering.target import target_of
        from coordatt_deploy.graph.operator_support import check_supported
        from coordatt_deploy.graph.saved_graph import load_graph

        torch.set_num_threads(1)
        if job.path.is_dir():  # a package of an earlier export, or of a process that was ended
            shutil.rmtree(job.path)
        graph, report = lower(load_graph(job.graph_folder), target_of(job.kind, job.target_cpu))
        check_supported(graph, job.kind)
        cases = [dict(zip(job.feeds, values, strict=True)) for values in zip(*job.feeds.values(), strict=True)]
        beyond = frozenset(beyond_float16(graph, cases)) if cases else frozenset()
        request = ExportRequest(job.spec, job.precision, job.path, job.target_cpu, beyond, job.limits)
        exported = exporter(job.kind).export(graph, request)
    job.log.unlink(missing_ok=True)
    made = FloatArtifact(exported.described(request, job.path.parent.parent), report, exported.notes)
    if job.stage is not None:
        job.stage.keep(job.path.parent.parent, made)
    return made


def submit_floats(jobs: Sequence[FloatJob], pool: Pool, tell: Callable[[str], None] | None = None) -> Converting:
    """Start the jobs whose result is not there already; *tell* is told which, and why."""
    making, reused = [], []
    for job in jobs:
        root = job.path.parent.parent
        path = job.path.relative_to(root).as_posix()
        if job.stage is not None:
            found = job.stage.take(root, FloatArtifact, partial(_as_written, path, root))
            if tell is not None:
                tell(job.stage.told(reused=found is not None))
            if found is not None:
                reused.append(found)
                continue
        file = AskedFile(path, job.kind, job.precision, job.target_cpu)
        making.append(Making(file, pool.submit(Task(f"exporting {path}", convert), job)))
    return Converting(tuple(making), tuple(reused))


def _as_written(path: str, root: Path, made: FloatArtifact) -> bool:
    return as_written(made.artifact, path, root)


def collect_floats(pool: Pool, converting: Converting, stages: Stages, *, strict: bool) -> Made[FloatArtifact]:
    """Wait for all of them; those that were written are in the order of formats and paths.

    Raises:
        DeployError: See ``gather``.
    """
    made: Made[FloatArtifact] = Made()
    if converting.files or not converting.reused:
        with stages.stage("convert", len(converting.files)) as step:
            made = gather(pool, converting.files, step, strict=strict)
    results = (*converting.reused, *made.results)
    return replace(made, results=tuple(sorted(results, key=lambda item: item.artifact.order)))
