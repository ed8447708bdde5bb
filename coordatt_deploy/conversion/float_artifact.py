"""Float artifacts: one process lowers and converts each."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, ModelSpec
from coordatt_deploy.bundle import artifact_name
from coordatt_deploy.conversion.refusals import AskedFile, Made, Making, gather
from coordatt_deploy.formats import Format, Precision, TargetCpu, slowest_first
from coordatt_deploy.logs import captured
from coordatt_deploy.manifest import LoweringReport
from coordatt_deploy.processes import Pool, Task, job_log
from coordatt_deploy.progress import Stages
from coordatt_deploy.runtime_versions import NO_LIMITS, RuntimeLimits


@dataclass(frozen=True, slots=True)
class FloatArtifact:
    """One artifact as its exporter wrote it, what lowering did on the way, and what the user should know of it."""

    artifact: Artifact
    lowering: LoweringReport
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FloatJob:
    """One float artifact to be written; *feeds* are the golden inputs, for what depends on values."""

    kind: Format
    precision: Precision
    target_cpu: TargetCpu | None
    spec: ModelSpec
    graph_folder: Path
    path: Path
    log: Path
    feeds: Mapping[str, Sequence[NumberArray]]
    limits: RuntimeLimits = NO_LIMITS


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
    return FloatArtifact(exported.described(request, job.path.parent.parent), report, exported.notes)


def submit_floats(jobs: Sequence[FloatJob], pool: Pool) -> list[Making[FloatArtifact]]:
    """Start the jobs."""
    making = []
    for job in jobs:
        path = job.path.relative_to(job.path.parent.parent).as_posix()
        file = AskedFile(path, job.kind, job.precision, job.target_cpu)
        making.append(Making(file, pool.submit(Task(f"exporting {path}", convert), job)))
    return making


def collect_floats(
    pool: Pool, making: Sequence[Making[FloatArtifact]], stages: Stages, *, strict: bool
) -> Made[FloatArtifact]:
    """Wait for all of them; those that were written are in the order of formats and paths.

    Raises:
        DeployError: See ``gather``.
    """
    with stages.stage("convert", len(making)) as step:
        made = gather(pool, making, step, strict=strict)
    return replace(made, results=tuple(sorted(made.results, key=lambda item: item.artifact.order)))
