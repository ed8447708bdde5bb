"""The second stage: quantize what a bundle holds. Its input is the bundle, or what an export is about to put there.

Every artifact is made in a process of its own. All of them join the bundle together, or none does.
"""

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from coordatt_deploy.bundle import Bundle, Manifest, artifact_name, finish, open_bundle, save_golden, writing
from coordatt_deploy.errors import MissingDependencyError, UsageError
from coordatt_deploy.exporters import Exported, need_converters
from coordatt_deploy.layers import LayerMap
from coordatt_deploy.models.registry import model_card, trained_models
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.calibration import (
    COUNT,
    DIGITS,
    CalibrationSet,
    digits_calibration,
    load_calibration,
)
from coordatt_deploy.quantization.recipes import BASE, RECIPES, Recipe, checked, needs_preparing
from coordatt_deploy.quiet import captured, set_environment
from coordatt_deploy.specs import Artifact, Format, ModelSpec, TargetCpu
from coordatt_deploy.tensors import weights_sha256
from coordatt_deploy.workers import job_log, workers


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """What to quantize, and on what data.

    Attributes:
        recipes: Each is written in every format of *formats*; see ``recipes.load_recipe``.
        formats: Empty for every format that can express the recipe, of those the bundle has.
        target_cpus: For ONNX; empty for those that the bundle's float files are written for, ARM64 if it has none.
        calibration: ``digits``, a folder of images or an ``.npz``; None: none is given.
        count: Images to use at most.
        seed: Of the choice among more images.
        command: The command line, for the manifest.
    """

    recipes: tuple[Recipe, ...]
    formats: tuple[Format, ...] = ()
    target_cpus: tuple[TargetCpu, ...] = ()
    calibration: str | None = None
    count: int = COUNT
    seed: int = 0
    command: str = ""

    def pairs(self, formats: Sequence[Format]) -> tuple[tuple[Format, Recipe], ...]:
        """Return every format and recipe to write.

        Args:
            formats: Of the bundle, for where the plan names none.

        Raises:
            UsageError: A format that was named cannot express a recipe, or none of the bundle's can.
        """
        found: list[tuple[Format, Recipe]] = []
        for recipe in dict.fromkeys(self.recipes):
            kinds = self.formats or [kind for kind in formats if recipe.base in RECIPES[kind]]
            if not kinds:
                able = ", ".join(kind for kind, names in RECIPES.items() if recipe.base in names)
                if not able:
                    checked(recipe, Format.TFLITE)  # says why
                raise UsageError(f"{recipe.name} is for {able}; name one with --format")
            for kind in dict.fromkeys(kinds):
                checked(recipe, kind)
                found.append((kind, recipe))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Job:
    """One artifact to write.

    Attributes:
        root: Of the bundle, with ``reference/`` and the float artifacts in place.
        path: Relative to it.
        source: The float artifact to start from; None to make one.
        data: None for recipes that need none.
    """

    kind: Format
    recipe: Recipe
    target_cpu: TargetCpu | None
    spec: ModelSpec
    root: Path
    path: str
    source: Artifact | None
    data: CalibrationSet | None
    log: Path


ASIDE_PREFIX: Final = "set-aside-"

Made = tuple[Artifact, dict[str, Any]]


def quantize(bundle: Bundle, plan: QuantizePlan, stages: Stages) -> Bundle:
    """Quantize into the bundle: all artifacts of the plan or none.

    Raises:
        UsageError: A format cannot express a recipe, or the calibration data will not do.
        MissingDependencyError: A converter is not installed, or the bundle has no ``reference/``.
        ConversionError: A quantizer refused a file.
    """
    set_environment()
    manifest = bundle.manifest
    present = [kind for kind in Format if any(item.format is kind for item in manifest.artifacts)]
    pairs = plan.pairs(present or tuple(Format))
    need_converters(*(kind for kind, _ in pairs))
    if not (bundle.root / "reference" / "graph.json").exists():
        raise MissingDependencyError(f"{bundle.root} has no reference/ to quantize from; build it again")
    with stages.stage("calibration data"):
        data = calibration_of(plan, manifest)
    with writing(bundle.root, manifest.model.source_sha256) as staging:
        jobs = plan_jobs(plan, pairs, manifest, staging, data)
        with workers(len(jobs)) as pool:
            made = collect(submit(jobs, pool), stages)
        finish(staging, with_artifacts(manifest, made, stages, staging))
    return open_bundle(bundle.root, verify=False)


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
    from safetensors.numpy import load_file

    return any(weights_sha256(load_file(model_card(name).weights_path)) == source_sha256 for name in trained_models())


def plan_jobs(
    plan: QuantizePlan,
    pairs: Sequence[tuple[Format, Recipe]],
    manifest: Manifest,
    root: Path,
    data: CalibrationSet | None,
) -> list[Job]:
    """Return the jobs, the slowest first."""
    floats = [item for item in manifest.artifacts if item.recipe is None]
    cpus = tuple(dict.fromkeys(plan.target_cpus)) or tuple(
        dict.fromkeys(item.target_cpu for item in floats if item.target_cpu is not None)
    )
    jobs = []
    for kind, recipe in sorted(pairs, key=lambda pair: (pair[0] is not Format.TFLITE, pair[0] is not Format.COREML)):
        for cpu in (cpus or (TargetCpu.ARM64,)) if kind is Format.ONNX else (None,):
            wanted = (kind, BASE[kind], cpu)
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
                    log=job_log("quantize", Path(path)),
                )
            )
    return jobs


def submit(jobs: Sequence[Job], pool: ProcessPoolExecutor) -> list[Future[Made | None]]:
    """Start the jobs, and the reference on the images that were set aside."""
    futures: list[Future[Made | None]] = [pool.submit(make, job) for job in jobs]
    asides = {job.data.fingerprint: job for job in jobs if job.data is not None and job.data.aside is not None}
    return futures + [pool.submit(write_aside, job) for job in asides.values()]


def collect(futures: Sequence[Future[Made | None]], stages: Stages) -> list[Made]:
    """Wait for every artifact; returns them with what the manifest says of each, in the order of formats and names."""
    if not futures:
        return []
    with stages.stage("quantize", len(futures)) as step:
        for future in as_completed(futures):
            future.result()
            step()
    made = [item for item in (future.result() for future in futures) if item is not None]
    return sorted(made, key=lambda item: (list(Format).index(item[0].format), item[0].path))


def make(job: Job) -> Made:
    """Make one artifact in the bundle's folder; run in a process of its own."""
    with captured(job.log):
        import torch

        from coordatt_deploy.graph.reference import load_graph
        from coordatt_deploy.second_stage.artifact import existing, measure_ranges, prepare, write

        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            if job.source is None:
                graph = load_graph(job.root / "reference")
                prepared = prepare(
                    graph, job.recipe, job.kind, job.spec, folder, target_cpu=job.target_cpu, data=job.data
                )
            else:
                layers = LayerMap.load(job.root / job.source.layers)
                exported = Exported(job.source.inputs, job.source.outputs, layers)
                prepared = existing(job.root / job.source.path, job.source, exported)
            ranges = measure_ranges(prepared, job.recipe, job.data)
            final = job.root / job.path
            final.parent.mkdir(exist_ok=True)
            if final.is_dir():  # of an earlier export
                shutil.rmtree(final)
            exported, request = write(prepared, job.recipe, ranges, final, job.spec)
    job.log.unlink(missing_ok=True)
    said = {
        "recipe": job.recipe.to_json(),
        "calibration": None if job.data is None else job.data.to_json(),
        "source": None if job.source is None else job.source.path,
        "set_aside": _aside(job),
        **prepared.preparing,
    }
    artifact = exported.described(request, job.root, job.recipe.name)
    return artifact, {"quantization": said, "lowering": prepared.lowering}


def _aside(job: Job) -> dict[str, Any] | None:
    """Where the reference on the images set aside is, for ``parity.trials``."""
    if job.data is None or job.data.aside is None:
        return None
    return {"folder": f"{ASIDE_PREFIX}{job.data.aside.fingerprint[:12]}", "names": list(job.data.aside.names)}


def write_aside(job: Job) -> None:
    """Write the images that were set aside, what the reference makes of them, and the ranges of the others.

    Run in a process of its own.
    """
    with captured(job.log):
        import torch

        from coordatt_deploy.graph.capture import prepare
        from coordatt_deploy.graph.layer_reference import ReferenceLayers
        from coordatt_deploy.graph.reference import load_graph

        torch.set_num_threads(1)
        graph = load_graph(job.root / "reference")
        place = _aside(job)
        if place is None or job.data is None or job.data.aside is None:
            return
        cases = list(job.data.aside.feeds(graph.example[0].shape[0]))
        folder = job.root / "golden" / place["folder"]
        folder.mkdir(exist_ok=True)
        for file, run in (("outputs", prepare(graph)), ("rounding_fp32", prepare(graph, dtype=torch.float32))):
            results = [run(feeds) for feeds in cases]
            save_golden(folder / f"{file}.npz", {name: [case[name] for case in results] for name in graph.outputs})
        ranges = ReferenceLayers(graph).ranges(job.data.feeds(graph.example[0].shape[0]))
        save_golden(folder / "ranges.npz", {layer: [np.array(ends)] for layer, ends in ranges.items()})
        save_golden(folder / "inputs.npz", {name: [case[name] for case in cases] for name in job.data.aside.arrays})


def with_artifacts(manifest: Manifest, made: Sequence[Made], stages: Stages, root: Path) -> Manifest:
    """Return the manifest with the artifacts in it, in place of earlier ones of the same names.

    Images set aside for artifacts that are gone are removed from *root*.
    """
    written = {artifact.path: said for artifact, said in made}
    kept = tuple(item for item in manifest.artifacts if item.path not in written)
    lowering = dict(manifest.lowering)
    for path, said in written.items():
        source = said["quantization"]["source"]
        lowering[path] = said["lowering"] or manifest.lowering.get(source)
    quantization = dict(manifest.quantization) | {path: said["quantization"] for path, said in written.items()}
    used = {said["set_aside"]["folder"] for said in quantization.values() if said.get("set_aside")}
    for folder in (root / "golden").glob(f"{ASIDE_PREFIX}*"):
        if folder.name not in used:
            shutil.rmtree(folder)
    return replace(
        manifest,
        artifacts=kept + tuple(artifact for artifact, _ in made),
        lowering=lowering,
        quantization=quantization,
        stages=manifest.stages + tuple(stages.taken),
    )
