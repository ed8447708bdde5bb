"""The order of the stages: the only module that knows all of them. It owns no numerics."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.bundle_writing import check_free, check_same, check_target, check_texts, finish, writing
from coordatt_deploy.conversion.float_artifact import FloatArtifact, collect_floats, convert, plan_float_jobs
from coordatt_deploy.conversion.jobs import calibration_of, collect, plan_jobs, submit, tails_of
from coordatt_deploy.conversion.plan import ExportPlan, QuantizePlan
from coordatt_deploy.conversion.quantize_run import with_artifacts
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format
from coordatt_deploy.host import tool_versions
from coordatt_deploy.loading.sizes import formats_for_dynamic
from coordatt_deploy.logs import set_environment
from coordatt_deploy.manifest import FoldReport, Manifest, MergedBranches
from coordatt_deploy.processes import Task, workers
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.recipes import needs_preparing
from coordatt_deploy.scratch import Scratch

if TYPE_CHECKING:
    from torch import fx

    from coordatt_deploy.graph.graph import Graph
    from coordatt_deploy.loading.loaded_model import LoadedModel


SHOWN: Final = 5  # names in a remark; the manifest has all


def export(plan: ExportPlan, stages: Stages) -> Bundle:
    """Export the model into a bundle: all artifacts or none.

    Raises:
        UsageError: Bad input, or the output folder holds something else.
        MissingDependencyError: A converter is not installed.
        ConversionError: A converter refused the model.
    """
    set_environment()
    plan.check()
    if plan.output_dir is not None:
        check_free(plan.output_dir)
    jobs, pairs = plan.jobs(), plan.recipes()
    # torch takes seconds to load: a mistake in what was asked for is told first
    import torch

    from coordatt_deploy.conversion.golden import golden_inputs, write_golden
    from coordatt_deploy.graph.call_arguments import outputs as returned_nodes
    from coordatt_deploy.graph.output_regions import output_regions
    from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
    from coordatt_deploy.graph.passes.input_normalisation import fold_normalisation
    from coordatt_deploy.graph.randomness import check_deterministic
    from coordatt_deploy.graph.saved_graph import save_graph
    from coordatt_deploy.loading.bake_preprocessing import bake
    from coordatt_deploy.loading.load import resolve
    from coordatt_deploy.loading.loaded_model import capture_source, reference_module

    torch.set_num_threads(1)  # the converters work beside it
    with stages.stage("load model"):
        source = resolve(plan.model)
    with stages.stage("capture"):
        graph = capture_source(source)
        check_deterministic(graph)
    merged, state = None, source.module.state_dict()
    if plan.reparameterize:
        source, graph, merged = _merged(source, graph)
    target = plan.output_dir or Path(f"{source.spec.name}_baked" if plan.bake else source.spec.name)
    replaced = source.spec.preprocessing
    if plan.bake:
        source, graph = bake(source, graph, softmax=plan.softmax)
    check_same(check_target(target, source.spec.source_sha256), source.spec, graph.inputs)
    returned = zip(returned_nodes(graph.module.graph), graph.outputs, strict=True)
    outputs = tuple(_output_spec(node, name) for node, name in returned)
    bare = Manifest(
        model=source.spec,
        inputs=graph.inputs,
        outputs=outputs,
        command=plan.command,
        regions=output_regions(graph),
    )
    check_texts(bare)
    with stages.stage("calibration data"):
        quantize_plan = _quantize_plan(plan)
        data = calibration_of(quantize_plan, bare)
        tails = tails_of([recipe for _, recipe in pairs], graph, data)
    told = tuple(dict.fromkeys(tail.reason for found in tails.values() for tail in found))
    for note in told:
        stages.note(note)
    with stages.stage("fold BatchNorm"):
        folded, fold_report = fold_batchnorms(graph)
        baked = None
        if plan.bake:
            folded, baked = fold_normalisation(folded)
    with writing(target, source.spec.source_sha256) as staging, Scratch() as scratch:
        save_graph(folded, scratch, lines=True)
        (staging / "reference").mkdir(exist_ok=True)
        save_graph(graph, staging / "reference", None if merged else state)
        golden = golden_inputs(graph.inputs, source.spec.preprocessing, source.images, source.unseen_sizes())
        with workers(len(jobs) + len(pairs)) as pool:
            float_jobs = plan_float_jobs(jobs, source.spec, scratch, staging, golden.feeds)
            futures = [
                pool.submit(Task(f"exporting {job.path.relative_to(staging)}", convert), job) for job in float_jobs
            ]
            # What prepares its own weights needs none of the float artifacts; the rest starts from them.
            prepared, others = (
                [pair for pair in pairs if needs_preparing(pair[1]) is wanted] for wanted in (True, False)
            )
            quantizing = submit(plan_jobs(quantize_plan, prepared, bare, staging, data, tails), pool)
            with stages.stage("reference in float64", len(golden.cases)) as step:
                exact, remark = reference_module(source, graph)
                write_golden(staging, golden, graph, exact, step)
            converted = collect_floats(futures, stages)
            floats = replace(bare, artifacts=tuple(item.artifact for item in converted))
            quantizing += submit(plan_jobs(quantize_plan, others, floats, staging, data, tails), pool)
            quantized = collect(quantizing, stages)
        manifest = replace(
            _beside_earlier(floats, staging, converted),
            golden=golden.cases,
            fold=fold_report,
            reparameterized=merged,
            bake=None if baked is None else replace(baked, preprocessing=replaced),
            tool_versions=tool_versions(),
            notes=tuple(filter(None, [
                *source.notes, remark, None if baked is None else baked.remark, _of_batch_norms(fold_report),
                *_of_branches(merged), *_remarks(plan, converted),
                *(note for item in converted for note in item.notes), *told,
            ])),
        )  # fmt: skip
        finish(staging, with_artifacts(manifest, quantized, stages, staging))
    return open_bundle(target, verify=False)


def _beside_earlier(floats: Manifest, staging: Path, converted: Sequence[FloatArtifact]) -> Manifest:
    """Add what an earlier export left in *staging* and this one did not write again."""
    written = {artifact.path for artifact in floats.artifacts}
    earlier = _earlier(staging)
    lowering = {item.artifact.path: item.lowering for item in converted}
    if earlier is None:
        return replace(floats, lowering=lowering)
    kept = tuple(item for item in earlier.artifacts if item.path not in written)
    return replace(
        floats,
        artifacts=kept + floats.artifacts,
        lowering=dict(earlier.lowering) | lowering,
        quantization=earlier.quantization,
    )


def _merged(source: "LoadedModel", graph: "Graph") -> tuple["LoadedModel", "Graph", tuple[MergedBranches, ...]]:
    """Merge the branches; the bundle is another one than that of the network as it was trained."""
    # it loads torch
    from coordatt_deploy.graph.passes.branches import merge_branches

    after, merged = merge_branches(graph)
    if not merged:
        raise UsageError(
            "--reparameterize found no branches to merge: no sum of convolutions (with BatchNorm, 1x1 or identity"
            " beside them) of one value; leave it out"
        )
    state = f"{source.spec.source_sha256} reparameterized"
    name, digest = f"{source.spec.name}_reparameterized", hashlib.sha256(state.encode()).hexdigest()
    return replace(source, spec=replace(source.spec, name=name, source_sha256=digest)), after, merged


def _quantize_plan(plan: ExportPlan) -> QuantizePlan:
    return QuantizePlan(
        recipes=tuple(dict.fromkeys(recipe for _, recipe in plan.recipes())),
        target_cpus=plan.target_cpus,
        calibration=plan.calibration,
        count=plan.calibration_count,
        seed=plan.seed,
        command=plan.command,
    )


def _of_batch_norms(report: FoldReport) -> str | None:
    """Which BatchNorms cost a pass over the activation, since no layer could take them in."""
    written = report.written
    if not written:
        return None
    names = ", ".join(item.batch_norm for item in written[:SHOWN]) + (", …" if len(written) > SHOWN else "")
    return (
        f"{len(written)} of {report.folded} BatchNorms are written as a product and a sum, since no layer can take them"
        f" in exactly: {names}; inspect says why"
    )


def _of_branches(merged: Sequence[MergedBranches] | None) -> Iterator[str]:
    if merged:
        worst = max(item.relative_error for item in merged)
        yield (
            f"branches were merged into {len(merged)} convolutions; greatest change of any of these layers, in float64:"
            f" {worst:.2g} of its greatest value"
        )


def _remarks(plan: ExportPlan, converted: Sequence[FloatArtifact]) -> Iterator[str]:
    """What the user should know of formats left out and of attention that was not found."""
    # it loads torch
    from coordatt_deploy.loading.factories import attention_warning

    if plan.model.dynamic is not None and not plan.formats:
        _, text = formats_for_dynamic(plan.model.dynamic, tuple(Format), asked=False)
        if text is not None:
            yield text
    blocks = max((len(item.lowering.blocks) for item in converted), default=0)
    warning = attention_warning(plan.model.model, plan.model.model_args, blocks) if converted else None
    if warning is not None:
        yield warning
        return
    seen: set[str] = set()
    for item in converted:
        if not item.lowering.blocks and item.lowering.remark not in seen:
            seen.add(item.lowering.remark)
            yield f"{item.artifact.format}: {item.lowering.remark}"
    misses = [(miss.where, miss.reason) for item in converted for miss in item.lowering.near_misses]
    for where, reason in dict.fromkeys(misses) if blocks else ():
        yield f"{where} begins like an attention block, but {reason}; it is exported as it stands"


def _output_spec(node: "fx.Node", name: str) -> TensorSpec:
    value = node.meta["val"]
    dtype = str(value.dtype).removeprefix("torch.")
    if value.dtype.is_complex:
        raise UsageError(
            f"{name}, an output, is {dtype}; files for phones give real numbers: return torch.view_as_real(...) of it"
        )
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorSpec(name, shape, dtype, "NCHW"[: len(shape)] if len(shape) <= 4 else "")


def _earlier(staging: Path) -> Manifest | None:
    path = staging / "manifest.json"
    return Manifest.parse(path.read_text(encoding="utf-8")) if path.exists() else None
