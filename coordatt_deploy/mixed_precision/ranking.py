"""What int8 costs layer by layer: a simulated ranking, of which the top is measured again with real artifacts.

Each of the costliest layers gets an artifact with only this one layer in int8. What differs between such artifacts is
one step of quantization, so a bench prepares the float artifact and its ranges once.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.conversion.calibration import calibrate, calibration_record
from coordatt_deploy.conversion.jobs import plan_jobs
from coordatt_deploy.conversion.plan import Job, QuantizePlan
from coordatt_deploy.conversion.quantized_artifact import Prepared, lower_and_equalise, measure_ranges, write
from coordatt_deploy.conversion.quantized_artifact import prepare as prepare_artifact
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import MissingDependencyError, UsageError
from coordatt_deploy.exporters import quantizer
from coordatt_deploy.format_modules import need_converters
from coordatt_deploy.formats import Format
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.graph import Graph, weight
from coordatt_deploy.graph.saved_graph import load_graph
from coordatt_deploy.graph.source_weights import check_source_weights
from coordatt_deploy.host import describe
from coordatt_deploy.logs import logged, set_environment
from coordatt_deploy.metrics import sqnr_db_of_energies
from coordatt_deploy.mixed_precision.result import FormatSensitivity, LayerCostRecord, Sensitivity
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.ranges import Range
from coordatt_deploy.quantization.recipes import Mode
from coordatt_deploy.quantization.sensitivity import LayerCost, affordable, rank, units
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.runtimes.host_effects import host_effect
from coordatt_deploy.scratch import Scratch
from coordatt_deploy.tensors import decode, encode

VERIFIED: Final = 3  # costliest layers that are measured with a real artifact each

RankedJob = tuple[Job, list[LayerCost]]


def rank_layers(bundle: Bundle, plan: QuantizePlan, stages: Stages) -> tuple[list[RankedJob], Sensitivity]:
    """Rank the layers for every format of the plan, and write ``reports/sensitivity.json``.

    Returns:
        Each job with its layers, the costliest first; and the document.

    Raises:
        UsageError: The recipe or the calibration data will not do.
        MissingDependencyError: A converter is not installed, or the bundle has no ``reference/``.
    """
    jobs, data = _jobs(bundle, plan, stages)
    found: list[RankedJob] = []
    warnings: list[str | None] = []
    with logged("sensitivity"):
        check_source_weights(bundle.root / "reference", bundle.manifest)
        graph = load_graph(bundle.root / "reference")
        for job in jobs:
            costs = ranked_alone(graph, job, data, stages)
            verified, judged = _verified(graph, job, data, costs, stages)
            found.append((job, verified))
            warnings.append(judged)
    document = Sensitivity(
        recipe=plan.recipes[0].name,
        calibration=calibration_record(data),
        cases=affordable(graph, len(data)),
        results=tuple(
            FormatSensitivity(job.kind, job.target_cpu, predicted_db(costs), tuple(map(_record, costs)), warning)
            for (job, costs), warning in zip(found, warnings, strict=True)
        ),
        command=plan.command,
    )
    bundle.write_report("sensitivity.json", dump(document))
    return found, document


def _record(cost: LayerCost) -> LayerCostRecord:
    return LayerCostRecord(
        cost.name, cost.layers, cost.operator, cost.sqnr_db, cost.share, cost.agreement, cost.verified_db
    )


def predicted_db(costs: Sequence[LayerCost]) -> float:
    """Return the SQNR with every layer in int8, if their errors are independent of one another."""
    noise = sum(10 ** (-cost.sqnr_db / 10) for cost in costs if math.isfinite(cost.sqnr_db))
    return -10 * math.log10(noise) if noise > 0 else math.inf


def _jobs(bundle: Bundle, plan: QuantizePlan, stages: Stages) -> tuple[list[Job], CalibrationSet]:
    set_environment()
    if len(plan.recipes) != 1 or plan.recipes[0].mode is not Mode.STATIC:
        names = ", ".join(recipe.name for recipe in plan.recipes)
        raise UsageError(f"layers are ranked for one static recipe, such as static_wi8_ai8; got {names}")
    manifest = bundle.manifest
    present = [name for name in Format if any(item.format is name for item in manifest.artifacts)]
    pairs = plan.pairs(present or tuple(Format))
    need_converters(file_format for file_format, _ in pairs)
    if not (bundle.root / "reference" / "graph.json").exists():
        raise MissingDependencyError(f"{bundle.root} has no reference/ to quantize from; build it again")
    torch.set_num_threads(1)
    calibration = calibrate(plan, manifest, partial(load_graph, bundle.root / "reference"), stages)
    assert calibration.data is not None  # noqa: S101 - a static recipe needs it
    return plan_jobs(plan, pairs, manifest, bundle.root, calibration), calibration.data


def job_name(job: Job) -> str:
    """``onnx arm64``: what tells a job from the others of its recipe."""
    return " ".join(filter(None, [job.kind.value, job.target_cpu]))


def ranked_alone(graph: Graph, job: Job, data: CalibrationSet, stages: Stages) -> list[LayerCost]:
    """Return the layers, the costliest first, by simulation alone."""
    lowered = lower_and_equalise(graph, job.recipe, job.kind, target_cpu=job.target_cpu, data=data)[0]
    levels = quantizer(job.kind).weight_levels(job.target_cpu)
    integer = quantizer(job.kind).integer_operators()
    with stages.stage(f"each layer alone, {job_name(job)}", len(units(lowered, integer))) as step:
        return rank(lowered, data, method=job.recipe.ranges, levels=levels, integer=integer, step=step)


def float_bytes(graph: Graph, job: Job, data: CalibrationSet) -> dict[str, int]:
    """Return about how many bytes more a file has with each layer in float: by name, 3 for each of its weights."""
    lowered = lower_and_equalise(graph, job.recipe, job.kind, target_cpu=job.target_cpu, data=data)[0]
    nodes = {node.name: node for node in lowered.module.graph.nodes}
    found = {}
    for unit in units(lowered, quantizer(job.kind).integer_operators()):
        read = {source for name in unit.nodes for source in nodes[name].all_input_nodes}
        tensors = (weight(lowered.module, source) for source in read)
        found[unit.name] = 3 * sum(tensor.numel() for tensor in tensors if tensor is not None)
    return found


def _verified(
    graph: Graph, job: Job, data: CalibrationSet, costs: list[LayerCost], stages: Stages
) -> tuple[list[LayerCost], str | None]:
    """Measure the costliest layers with real artifacts; say how, where this CPU computes something else."""
    keepable = [cost for cost in costs if cost.layers]
    chosen = {cost.name for cost in keepable[:VERIFIED]}
    # Weights that were rounded to make up for int8 elsewhere would be errors in a network that is float elsewhere.
    recipe = replace(job.recipe, adjust=False)
    measured = []
    with (
        Bench(graph, replace(job, recipe=recipe), data) as bench,
        stages.stage(f"costliest layers, {job_name(job)}", len(chosen)) as step,
    ):
        for cost in costs:
            if cost.name in chosen:
                others = [layer for other in keepable if other.name != cost.name for layer in other.layers]
                with bench.artifact(others) as (folder, artifact):
                    cost = replace(cost, verified_db=bench.sqnr_db(folder, artifact))
                step()
            measured.append(cost)
        return measured, bench.judged


class Bench:
    """Makes artifacts of one format that differ in their float layers. Use as a context manager.

    Attributes:
        judged: How the last one was judged where this CPU makes something else of it than the one that it is made for.
    """

    def __init__(self, graph: Graph, job: Job, data: CalibrationSet) -> None:
        self.graph, self.job, self.data = graph, job, data
        self.judged: str | None = None
        self._scratch = Scratch()
        self._prepared: Prepared | None = None
        self._ranges: dict[str, Range] | None = None

    def __enter__(self) -> Self:
        folder = self._scratch.folder / "float"
        folder.mkdir()
        job = self.job
        self._prepared = prepare_artifact(
            self.graph, job.recipe, job.kind, job.spec, folder, target_cpu=job.target_cpu, data=self.data
        )
        self._ranges = measure_ranges(self._prepared, job.recipe, self.data)
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.remove()

    @contextmanager
    def artifact(self, float_layers: Sequence[str]) -> Iterator[tuple[Path, Artifact]]:
        """Give an artifact with *float_layers* in float beside those of the recipe, and the folder it is in."""
        assert self._prepared is not None  # noqa: S101 - entered
        layers = tuple(dict.fromkeys([*self.job.final_recipe.float_layers, *float_layers]))
        recipe = replace(self.job.recipe, float_layers=layers)
        with tempfile.TemporaryDirectory(dir=self._scratch.folder) as name:
            path = Path(name) / Path(self.job.path).name
            exported, request = write(self._prepared, recipe, self._ranges, path, self.job.spec)
            yield Path(name), exported.described(request, Path(name), recipe.name)

    def sqnr_db(self, folder: Path, artifact: Artifact) -> float:
        """Compare an artifact's outputs with the float64 reference on the cases of the ranking."""
        call = prepare(self.graph)
        signal = noise = 0.0
        cases = self.data.first(affordable(self.graph, len(self.data)))
        effect = host_effect(folder / artifact.path, artifact, describe())
        exact_sums = effect is not None and effect.foreign
        self.judged = effect.judged() if effect is not None and effect.foreign else self.judged
        with runtime(artifact.format).open_artifact(folder / artifact.path, artifact, exact_sums=exact_sums) as runner:
            for feeds in cases.feeds(self.graph.images_at_once):
                exact = call(feeds)
                given = runner.infer({spec.name: encode(feeds[spec.name], spec) for spec in runner.inputs})
                for spec in runner.outputs:
                    signal += float(np.square(exact[spec.name]).sum())
                    noise += float(np.square(decode(given[spec.name], spec) - exact[spec.name]).sum())
        return sqnr_db_of_energies(signal, noise)
