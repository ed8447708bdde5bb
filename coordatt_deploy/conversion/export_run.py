"""The order of the stages: the only module that knows all of them. It owns no numerics."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from coordatt_deploy.artifact_specs import NOTHING_SAID
from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.bundle_writing import check_free, check_same, check_target, check_texts, finish, writing
from coordatt_deploy.conversion.calibration import calibrate
from coordatt_deploy.conversion.float_artifact import FloatArtifact, collect_floats, plan_float_jobs, submit_floats
from coordatt_deploy.conversion.jobs import collect, plan_jobs, submit
from coordatt_deploy.conversion.plan import ExportPlan, QuantizePlan
from coordatt_deploy.conversion.quantize_run import with_artifacts
from coordatt_deploy.conversion.refusals import check_any_written, with_refused
from coordatt_deploy.conversion.remarks import of_batch_norms, of_branches, of_formats_and_attention
from coordatt_deploy.host import tool_versions
from coordatt_deploy.logs import set_environment
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.processes import workers
from coordatt_deploy.progress import VERBOSITY, Stages, Verbosity
from coordatt_deploy.quantization.recipes import needs_preparing
from coordatt_deploy.scratch import Scratch


def export(plan: ExportPlan, stages: Stages) -> Bundle:
    """Export the model into a bundle: every file that can be written; all of them or none where the plan is strict.

    Raises:
        UsageError: Bad input, or the output folder holds something else.
        MissingDependencyError: A converter is not installed.
        ConversionError: No file could be written, or not one of them where the plan is strict.
    """
    set_environment()
    plan.check()
    if plan.output_dir is not None:
        check_free(plan.output_dir)
    jobs, pairs = plan.jobs(), plan.recipes()
    # torch takes seconds to load: a mistake in what was asked for is told first
    import torch

    from coordatt_deploy.conversion.captured_model import load_captured
    from coordatt_deploy.conversion.golden import golden_inputs, write_golden
    from coordatt_deploy.conversion.reuse import reuse_of
    from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
    from coordatt_deploy.graph.passes.input_normalisation import fold_normalisation
    from coordatt_deploy.graph.saved_graph import save_graph
    from coordatt_deploy.loading.loaded_model import reference_module

    torch.set_num_threads(1)  # the converters work beside it
    model = load_captured(plan, stages)
    source, graph, spec = model.source, model.graph, model.source.spec
    target = plan.output_dir or Path(f"{spec.name}_baked" if plan.bake else spec.name)
    existing = check_target(target, spec.source_sha256)
    if existing is not None and spec.about == NOTHING_SAID:
        spec = replace(spec, about=existing.manifest.model.about)
        source = replace(source, spec=spec)
        model = replace(model, source=source)
    check_same(existing, spec, graph.inputs)
    bare = replace(model.manifest(plan.command), limits=plan.limits, config=plan.config)
    check_texts(bare)
    quantize_plan = _quantize_plan(plan)
    calibration = calibrate(quantize_plan, bare, lambda: graph, stages)
    with stages.stage("fold BatchNorm"):
        folded, fold_report = fold_batchnorms(graph)
        folded, baked = fold_normalisation(folded) if plan.bake else (folded, None)
    with writing(target, spec.source_sha256) as staging, Scratch() as scratch:
        save_graph(folded, scratch, lines=True)
        (staging / "reference").mkdir(exist_ok=True)
        save_graph(graph, staging / "reference", model.state)
        golden = golden_inputs(
            graph.inputs, spec.preprocessing, source.images, source.unseen_sizes(), source.unseen_batches()
        )
        tell = stages.note if VERBOSITY.get() is Verbosity.VERBOSE else None
        reuse = reuse_of(plan.cache, staging / "reference", scratch)
        with workers(len(jobs) + len(pairs)) as pool:
            float_jobs = plan_float_jobs(jobs, spec, scratch, staging, golden.feeds, plan.limits)
            float_jobs = reuse.floats(float_jobs)
            converting = submit_floats(float_jobs, pool, tell)
            # What prepares its own weights needs none of the float artifacts; the rest starts from them.
            prepared, others = (
                [pair for pair in pairs if needs_preparing(pair[1]) is wanted] for wanted in (True, False)
            )
            quantizing_jobs = reuse.quantized(plan_jobs(quantize_plan, prepared, bare, staging, calibration))
            quantizing = submit(quantizing_jobs, pool, tell)
            with stages.stage("reference in float64", len(golden.cases)) as step:
                exact, remark = reference_module(source, graph)
                write_golden(staging, golden, graph, exact, step, reuse.roundings(golden.feeds))
            made = collect_floats(pool, converting, stages, strict=plan.strict)
            converted = made.results
            floats = replace(bare, artifacts=tuple(item.artifact for item in converted))
            other_jobs = reuse.quantized(plan_jobs(quantize_plan, others, floats, staging, calibration))
            quantizing += submit(other_jobs, pool, tell)
            quantized = collect(pool, quantizing, stages, strict=plan.strict)
        check_any_written(made, quantized)
        manifest = replace(
            _beside_earlier(floats, staging, converted),
            golden=golden.cases,
            golden_source=source.golden_source if golden.images else "",
            fold=fold_report,
            reparameterized=model.merged,
            bake=None if baked is None else replace(baked, preprocessing=model.replaced),
            tool_versions=tool_versions(),
            notes=tuple(filter(None, [
                *source.notes, remark, None if baked is None else baked.remark, of_batch_norms(fold_report),
                *of_branches(model.merged), *of_formats_and_attention(plan, converted),
                *(note for item in converted for note in item.notes), *calibration.notes,
            ])),
        )  # fmt: skip
        manifest = with_artifacts(manifest, quantized.results, stages, staging)
        refused = made.refused + quantized.refused
        finish(staging, with_refused(manifest, refused, staging))
    written = frozenset(item.artifact.path for item in converted)
    written |= frozenset(item.artifact.path for item in quantized.results)
    reused = frozenset(item.artifact.path for item in converting.reused)
    reused |= frozenset(item.artifact.path for item in quantizing.reused)
    return replace(open_bundle(target, verify=False), refused=refused, written=written, reused=reused)


def _beside_earlier(floats: Manifest, staging: Path, converted: Sequence[FloatArtifact]) -> Manifest:
    """Add what an earlier export left in *staging* and this one did not write again."""
    written = {artifact.path for artifact in floats.artifacts}
    earlier = _earlier(staging)
    lowering = {item.artifact.path: item.lowering for item in converted}
    if earlier is None:
        return replace(floats, lowering=lowering).with_command(floats.command)
    kept = tuple(item for item in earlier.artifacts if item.path not in written)
    return replace(
        floats,
        artifacts=kept + floats.artifacts,
        lowering=dict(earlier.lowering) | lowering,
        quantization=earlier.quantization,
        refused=earlier.refused,
        commands=earlier.with_command(floats.command).commands,
        limits=floats.limits.beside(earlier.limits, {item.format for item in floats.artifacts}),
    )


def _quantize_plan(plan: ExportPlan) -> QuantizePlan:
    return QuantizePlan(
        recipes=tuple(dict.fromkeys(recipe for _, recipe in plan.recipes())),
        target_cpus=plan.target_cpus,
        calibration=plan.calibration,
        count=plan.calibration_count,
        seed=plan.seed,
        strict=plan.strict,
        command=plan.command,
        limits=plan.limits,
    )


def _earlier(staging: Path) -> Manifest | None:
    path = staging / "manifest.json"
    return Manifest.parse(path.read_text(encoding="utf-8")) if path.exists() else None
