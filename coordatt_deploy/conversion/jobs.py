"""Quantization jobs: planned, run in processes, collected."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordatt_deploy import processes
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import artifact_name
from coordatt_deploy.conversion.held_out_images import held_out_cases, write_held_out
from coordatt_deploy.conversion.plan import Job, QuantizePlan
from coordatt_deploy.data.calibration import DIGITS, CalibrationSet, digits_calibration, load_calibration
from coordatt_deploy.errors import UsageError
from coordatt_deploy.exporters import Exported
from coordatt_deploy.formats import FORMATS, Format, TargetCpu, slowest_first
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.logs import captured
from coordatt_deploy.manifest import CalibrationRecord, LoweringReport, Manifest, QuantizationRecord
from coordatt_deploy.models.registry import model_card, trained_models
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.recipes import Recipe, needs_preparing
from coordatt_deploy.scratch import Scratch
from coordatt_deploy.tensors import weights_sha256

if TYPE_CHECKING:
    from coordatt_deploy.graph.graph import Graph
    from coordatt_deploy.quantization.output_scales import FloatTail


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


def calibration_of(plan: QuantizePlan, manifest: Manifest) -> CalibrationSet | None:
    """Read the calibration data; None where no recipe needs any.

    Raises:
        UsageError: It is needed and not given, is given and not needed, or is not what it should be.
    """
    needing = [recipe for recipe in plan.recipes if recipe.needs_calibration]
    if not needing:
        if plan.calibration is not None:
            names = ", ".join(recipe.name for recipe in plan.recipes)
            raise UsageError(f"{names} measures nothing, so calibration data changes nothing; leave it out")
        return None
    inputs, preprocessing = manifest.inputs, manifest.model.preprocessing
    if plan.calibration is None and not _is_packaged(manifest.model.source_sha256):
        raise UsageError(
            f"{needing[0].name} needs calibration data, images of the kind that the model will meet; give"
            " --calibration-data FOLDER, or a recipe that needs none: dynamic_wi8_afp32, weight_only_wi8_afp32"
        )
    if plan.calibration in (None, DIGITS):
        return digits_calibration(inputs, preprocessing, count=plan.count, seed=plan.seed)
    return load_calibration(Path(plan.calibration or ""), inputs, preprocessing, count=plan.count, seed=plan.seed)


def _is_packaged(source_sha256: str) -> bool:
    """Whether these are the weights of an embedded model, which were trained on the packaged digits."""
    # asked only where no calibration data was given
    from safetensors.numpy import load_file

    return any(weights_sha256(load_file(model_card(name).weights_path)) == source_sha256 for name in trained_models())


def plan_jobs(
    plan: QuantizePlan,
    pairs: Sequence[tuple[Format, Recipe]],
    manifest: Manifest,
    root: Path,
    data: CalibrationSet | None,
    tails: Mapping[int, tuple["FloatTail", ...]] | None = None,
) -> list[Job]:
    """Return the jobs, the slowest first.

    Args:
        plan: What was asked for.
        pairs: Each format with a recipe.
        manifest: Of the bundle, with its float artifacts.
        root: Of the bundle.
        data: Calibration data; None where no recipe needs any.
        tails: What stays in float besides, by the bits of activations; see ``tails_of``.
    """
    floats = [item for item in manifest.artifacts if item.recipe is None]
    cpus = tuple(dict.fromkeys(plan.target_cpus)) or tuple(
        dict.fromkeys(item.target_cpu for item in floats if item.target_cpu is not None)
    )
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
                    source=found[0] if found and not needs_preparing(recipe) else None,
                    data=data if recipe.needs_calibration else None,
                    log=processes.job_log("quantize", Path(path)),
                    float_tail=_float_tail(recipe, tails or {}),
                )
            )
    return jobs


BITS: Final = {"int8": 8, "int16": 16}


def tails_of(
    recipes: Iterable[Recipe], graph: "Graph", data: CalibrationSet | None
) -> Mapping[int, tuple["FloatTail", ...]]:
    """Return what has to stay in float at the end of the network, by the bits of the recipes' activations."""
    if data is None:
        return {}
    # it loads torch
    from coordatt_deploy.quantization.output_scales import float_tails

    wanted = {BITS[recipe.activations] for recipe in recipes if recipe.needs_calibration and recipe.activations in BITS}
    return {bits: float_tails(graph, data, bits) for bits in sorted(wanted)}


def _float_tail(recipe: Recipe, tails: Mapping[int, tuple["FloatTail", ...]]) -> tuple[str, ...]:
    found = tails.get(BITS.get(recipe.activations or "", 0), ()) if recipe.needs_calibration else ()
    return tuple(dict.fromkeys(layer for tail in found for layer in tail.layers))


def submit(jobs: Sequence[Job], pool: ProcessPoolExecutor) -> list[Future[QuantizedArtifact | None]]:
    """Start the jobs, and the reference on the images that were set aside."""
    futures: list[Future[QuantizedArtifact | None]] = [
        pool.submit(processes.Task(f"quantizing {job.path}", make), job) for job in jobs
    ]
    asides = {job.data.fingerprint: job for job in jobs if job.data is not None and job.data.aside is not None}
    held_out = processes.Task("running the reference on the images set aside", write_held_out)
    return futures + [pool.submit(held_out, job) for job in asides.values()]


def collect(futures: Sequence[Future[QuantizedArtifact | None]], stages: Stages) -> list[QuantizedArtifact]:
    """Wait for every artifact; returns them with what the manifest says of each, in the order of formats and names."""
    if not futures:
        return []
    with stages.stage("quantize", len(futures)) as step:
        for future in as_completed(futures):
            future.result()
            step()
    made = [item for item in (future.result() for future in futures) if item is not None]
    return sorted(made, key=lambda item: (list(Format).index(item.artifact.format), item.artifact.path))


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
                prepared = existing(job.root / job.source.path, job.source, exported)
            ranges = measure_ranges(prepared, recipe, job.data)
            final = job.root / job.path
            final.parent.mkdir(exist_ok=True)
            if final.is_dir():  # of an earlier export
                shutil.rmtree(final)
            exported, request = write(prepared, recipe, ranges, final, job.spec)
    job.log.unlink(missing_ok=True)
    record = QuantizationRecord(
        recipe=recipe.record(),
        calibration=None if job.data is None else calibration_record(job.data),
        source=None if job.source is None else job.source.path,
        held_out=held_out_cases(job),
        equalise=prepared.equalise,
        rounding=prepared.rounding,
    )
    return QuantizedArtifact(exported.described(request, job.root, job.recipe.name), record, prepared.lowering)


def calibration_record(data: CalibrationSet) -> CalibrationRecord:
    """Return what the manifest says of calibration data."""
    held_out = 0 if data.aside is None else len(data.aside)
    return CalibrationRecord(data.source, len(data), data.seed, data.fingerprint, held_out, data.notes)
