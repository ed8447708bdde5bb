"""Quantize what a bundle holds. Its input is the bundle, or what an export is about to put there.

Every artifact is made in a process of its own. All that can be made join the bundle together.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.conversion.calibration import calibrate
from coordatt_deploy.conversion.held_out_images import HELD_OUT_PREFIX
from coordatt_deploy.conversion.jobs import QuantizedArtifact, collect, plan_jobs, submit
from coordatt_deploy.conversion.plan import QuantizePlan, formats_in_layout
from coordatt_deploy.conversion.refusals import check_any_written, with_refused
from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.format_modules import need_converters
from coordatt_deploy.formats import Format
from coordatt_deploy.graph.source_weights import check_source_weights
from coordatt_deploy.logs import set_environment
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.processes import workers
from coordatt_deploy.progress import Stages


def quantize(bundle: Bundle, plan: QuantizePlan, stages: Stages) -> Bundle:
    """Quantize into the bundle: every file that can be written; all of them or none where the plan is strict.

    Raises:
        UsageError: A format cannot express a recipe, the calibration data will not do, or another process writes there.
        MissingDependencyError: A converter is not installed, or the bundle has no ``reference/``.
        ConversionError: No file could be written, or not one of them where the plan is strict.
    """
    # it loads torch, which takes seconds: a bundle that is not there is told first
    from coordatt_deploy.graph.saved_graph import load_graph

    set_environment()
    manifest = bundle.manifest
    present = [kind for kind in Format if any(item.format is kind for item in manifest.artifacts)]
    pairs = plan.pairs(present or tuple(Format))
    need_converters(kind for kind, _ in pairs)
    if manifest.model.input_layout is not None:
        formats_in_layout(manifest.model.input_layout, [kind for kind, _ in pairs], asked=True)
    if plan.limits is not None:
        plan.limits.check(tuple(dict.fromkeys(kind for kind, _ in pairs)))
    if not (bundle.root / "reference" / "graph.json").exists():
        raise MissingDependencyError(f"{bundle.root} has no reference/ to quantize from; build it again")
    with writing(bundle.root, manifest.model.source_sha256, manifest) as staging:
        check_source_weights(bundle.root / "reference", manifest)
        calibration = calibrate(plan, manifest, partial(load_graph, bundle.root / "reference"), stages)
        manifest = manifest.with_command(plan.command)
        manifest = replace(manifest, notes=tuple(dict.fromkeys([*manifest.notes, *calibration.notes])))
        jobs = plan_jobs(plan, pairs, manifest, staging, calibration)
        with workers(len(jobs)) as pool:
            made = collect(pool, submit(jobs, pool), stages, strict=plan.strict)
        check_any_written(made)
        manifest = with_artifacts(manifest, made.results, stages, staging)
        finish(staging, with_refused(manifest, made.refused, staging))
    written = frozenset(item.artifact.path for item in made.results)
    return replace(open_bundle(bundle.root, verify=False), refused=made.refused, written=written)


def with_artifacts(manifest: Manifest, made: Sequence[QuantizedArtifact], stages: Stages, root: Path) -> Manifest:
    """Return the manifest with the artifacts in it, in place of earlier ones of the same names.

    Images set aside for artifacts that are gone are removed from *root*.
    """
    written = {item.artifact.path: item for item in made}
    kept = tuple(item for item in manifest.artifacts if item.path not in written)
    lowering, quantization = dict(manifest.lowering), dict(manifest.quantization)
    for path, item in written.items():
        quantization[path] = item.record
        report = item.lowering or manifest.lowering.get(item.record.source or "")
        if report is not None:
            lowering[path] = report
    used = {record.held_out.folder for record in quantization.values() if record.held_out is not None}
    for folder in (root / "golden").glob(f"{HELD_OUT_PREFIX}*"):
        if folder.name not in used:
            shutil.rmtree(folder)
    return replace(
        manifest,
        artifacts=kept + tuple(item.artifact for item in made),
        lowering=lowering,
        quantization=quantization,
        stages=manifest.stages + tuple(stages.taken),
    )
