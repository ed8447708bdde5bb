"""Quantization jobs: planned, run in processes, collected."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import artifact_name
from coordatt_deploy.conversion.calibration import Calibration, calibration_record
from coordatt_deploy.conversion.held_out_images import SetAside, held_out_cases, write_held_out
from coordatt_deploy.conversion.plan import Job, QuantizePlan
from coordatt_deploy.conversion.refusals import AskedFile, Made, Making, as_written, gather
from coordatt_deploy.exporters import Exported
from coordatt_deploy.formats import FORMATS, Format, TargetCpu, slowest_first
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.logs import captured
from coordatt_deploy.manifest import LoweringReport, Manifest, QuantizationRecord
from coordatt_deploy.processes import Call, Pool, Task, job_log
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.recipes import Recipe, needs_preparing
from coordatt_deploy.scratch import Scratch


@dataclass(frozen=True, slots=True)
class QuantizedArtifact:
    """One artifact that was quantized, and what the manifest says of it.

    Attributes:
        artifact: As the manifest describes it.
        record: How it was quantized.
        lowering: What lowering did; None where it was made from a float artifact of the bundle.
    """

    artifact: Artifact
    record: QuantizationRecord
    lowering: LoweringReport | None


def plan_jobs(
    plan: QuantizePlan,
    pairs: Sequence[tuple[Format, Recipe]],
    manifest: Manifest,
    root: Path,
    calibration: Calibration,
) -> list[Job]:
    """Return the jobs, the slowest first.

    Args:
        plan: What was asked for.
        pairs: Each format with a recipe.
        manifest: Of the bundle, with its float artifacts.
        root: Of the bundle.
        calibration: What they are calibrated on.
    """
    floats = [item for item in manifest.artifacts if item.recipe is None]
    cpus = tuple(dict.fromkeys(plan.target_cpus)) or tuple(
        dict.fromkeys(item.target_cpu for item in floats if item.target_cpu is not None)
    )
    limits = manifest.limits if plan.limits is None else plan.limits
    jobs = []
    for kind, recipe in sorted(pairs, key=lambda pair: slowest_first(pair[0])):
        for cpu in (cpus or (TargetCpu.ARM64,)) if FORMATS[kind].per_cpu else (None,):
            wanted = (kind, FORMATS[kind].quantized_from, cpu)
            found = [item for item in floats if (item.format, item.precision, item.target_cpu) == wanted]
            path = artifact_name(manifest.model.name, kind, recipe.name, cpu)
            jobs.append(
                Job(
                    kind=kind,
                    # rounding weights on data takes minutes to gain an accuracy that random weights do not have
                    recipe=replace(recipe, adjust=recipe.adjust and not manifest.model.untrained),
                    target_cpu=cpu,
                    spec=manifest.model,
                    root=root,
                    path=path,
                    # a file that was written for other runtimes may lack what this one may have
                    source=found[0] if found and limits == manifest.limits and not needs_preparing(recipe) else None,
                    data=calibration.data if recipe.needs_calibration else None,
                    log=job_log("quantize", Path(path)),
                    float_tail=calibration.float_tail(recipe),
                    limits=limits,
                )
            )
    return jobs


@dataclass(frozen=True, slots=True, eq=False)
class Quantizing:
    """What processes are at.

    Attributes:
        files: Artifacts.
        references: The reference on the images that were set aside for some of them.
        reused: What need not be made.
    """

    files: tuple[Making[QuantizedArtifact], ...] = ()
    references: tuple[Call[None], ...] = ()
    reused: tuple[QuantizedArtifact, ...] = ()

    def __add__(self, other: "Quantizing") -> "Quantizing":
        return Quantizing(self.files + other.files, self.references + other.references, self.reused + other.reused)


def submit(jobs: Sequence[Job], pool: Pool, tell: Callable[[str], None] | None = None) -> Quantizing:
    """Start the jobs, and the reference on the images that were set aside, as far as the result is not there already.

    Args:
        jobs: What to make.
        pool: Processes.
        tell: Is told which is not made anew, and why the others are.
    """
    files, reused = [], []
    for job in jobs:
        found = _reused(job)
        if tell is not None and job.stage is not None:
            tell(job.stage.told(reused=found is not None))
        if found is not None:
            reused.append(found)
            continue
        file = AskedFile(job.path, job.kind, job.recipe.name, job.target_cpu)
        files.append(Making(file, pool.submit(Task(f"quantizing {job.path}", make), job)))
    asides = {job.data.fingerprint: job for job in jobs if job.data is not None and job.data.aside is not None}
    held_out = Task("running the reference on the images set aside", write_held_out)
    references = [
        pool.submit(held_out, job)
        for job in asides.values()
        if job.aside_stage is None or job.aside_stage.take(job.root, SetAside) is None
    ]
    return Quantizing(tuple(files), tuple(references), tuple(reused))


def _reused(job: Job) -> QuantizedArtifact | None:
    if job.stage is None:
        return None
    return job.stage.take(job.root, QuantizedArtifact, lambda made: as_written(made.artifact, job.path, job.root))


def collect(pool: Pool, quantizing: Quantizing, stages: Stages, *, strict: bool) -> Made[QuantizedArtifact]:
    """Wait for every artifact; returns them with what the manifest says of each, in the order of formats and names.

    Raises:
        DeployError: See ``gather``.
    """
    made: Made[QuantizedArtifact] = Made()
    count = len(quantizing.files) + len(quantizing.references)
    if count:
        with stages.stage("quantize", count) as step:
            made = gather(pool, quantizing.files, step, strict=strict)
            for call in pool.completed(quantizing.references):
                call.result()
                step()
    results = (*quantizing.reused, *made.results)
    return replace(made, results=tuple(sorted(results, key=lambda item: item.artifact.order)))


def make(job: Job) -> QuantizedArtifact:
    """Make one artifact in the bundle's folder; run in a process of its own."""
    with captured(job.log):
        # here, and not above: what torch and converters print as they load belongs in the log
        import torch

        from coordatt_deploy.conversion.quantized_artifact import existing, measure_ranges, prepare, write
        from coordatt_deploy.graph.saved_graph import load_graph

        torch.set_num_threads(1)
        recipe = job.final_recipe
        with Scratch() as folder:
            if job.source is None:
                graph = load_graph(job.root / "reference")
                prepared = prepare(graph, recipe, job.kind, job.spec, folder, target_cpu=job.target_cpu, data=job.data)
            else:
                layers = LayerMap.load(job.root / job.source.layers)
                exported = Exported(job.source.inputs, job.source.outputs, layers)
                batch = job.source.inputs[0].shape[0]
                at_once = load_graph(job.root / "reference").images_at_once if batch is None else batch
                prepared = existing(job.root / job.source.path, job.source, exported, at_once)
            ranges = measure_ranges(prepared, recipe, job.data)
            final = job.root / job.path
            final.parent.mkdir(exist_ok=True)
            if final.is_dir():  # of an earlier export
                shutil.rmtree(final)
            exported, request = write(prepared, recipe, ranges, final, job.spec, job.limits)
    job.log.unlink(missing_ok=True)
    record = QuantizationRecord(
        recipe=recipe.record(),
        calibration=None if job.data is None else calibration_record(job.data),
        source=None if job.source is None else job.source.path,
        held_out=held_out_cases(job),
        equalise=prepared.equalise,
        rounding=prepared.rounding,
    )
    made = QuantizedArtifact(exported.described(request, job.root, job.recipe.name), record, prepared.lowering)
    if job.stage is not None:
        job.stage.keep(job.root, made)
    return made
