"""The order of the stages: the only module that knows all of them. It owns no numerics."""

import json
import platform
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from coordatt_deploy import __version__
from coordatt_deploy.bundle import (
    Bundle,
    Manifest,
    artifact_name,
    check_same,
    check_target,
    finish,
    open_bundle,
    writing,
)
from coordatt_deploy.errors import UsageError
from coordatt_deploy.exporters import PRECISIONS, need_converters
from coordatt_deploy.intake.sizes import formats_for_dynamic
from coordatt_deploy.parity.verdicts import ParityReport
from coordatt_deploy.profile.artifacts import profile_bundle
from coordatt_deploy.profile.document import profile_document
from coordatt_deploy.profile.latency import ProfileSettings
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.calibration import COUNT
from coordatt_deploy.quantization.recipes import Recipe, needs_preparing, recipe_of
from coordatt_deploy.quiet import captured, logged, set_environment
from coordatt_deploy.second_stage.stage import QuantizePlan, calibration_of, collect, plan_jobs, submit, with_artifacts
from coordatt_deploy.specs import Artifact, Format, ModelSpec, Precision, RangeMethod, TargetCpu, TensorSpec, to_json
from coordatt_deploy.workers import job_log, workers

DEFAULT_MODEL: Final = "mobilenetv2_ca_035.digits"
TOOLS: Final = (
    "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "litert-torch", "ai-edge-litert", "ai-edge-quantizer",
    "coremltools", "numpy", "Pillow",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What to export.

    Attributes:
        model: What ``intake.Request`` takes: a name, ``file.py:factory``, a ``.pt2``, ``timm:NAME``.
        checkpoint: Weights of the user's own; None for the model's.
        formats: Which to write; empty for all that can be.
        precisions: None for every float precision of each format; int8, and fp16 where the exporter does not write it,
            come from the second stage.
        calibration: See ``second_stage.stage.QuantizePlan``, as for the next three.
        calibration_count: Images to use at most.
        seed: Of the choice among more images.
        ranges: How activation ranges are found; None for the recipe's own way.
        target_cpus: CPU families whose fastest form is written, where forms differ (ONNX).
        input_size: (H, W); None for the model's own.
        dynamic: Smallest and largest height and width, and the step; None for a static size.
        bake: Whether normalisation becomes part of the network, which then takes pixels.
        softmax: Whether it then gives probabilities.
        intake: Further fields of ``intake.Request``, by name.
        output_dir: The bundle; None for the model's name in the current folder.
        command: The command line, for the manifest.
    """

    model: str = DEFAULT_MODEL
    checkpoint: Path | None = None
    formats: tuple[Format, ...] = ()
    precisions: tuple[Precision, ...] | None = None
    target_cpus: tuple[TargetCpu, ...] = (TargetCpu.ARM64,)
    input_size: tuple[int, int] | None = None
    dynamic: tuple[int, int, int] | None = None
    calibration: str | None = None
    calibration_count: int = COUNT
    seed: int = 0
    ranges: RangeMethod | None = None
    bake: bool = False
    softmax: bool = False
    intake: Mapping[str, Any] = field(default_factory=dict)
    output_dir: Path | None = None
    command: str = ""

    def jobs(self) -> tuple[tuple[Format, Precision, TargetCpu | None], ...]:
        """Return the float artifacts to write.

        Raises:
            UsageError: A format does not have one of the precisions, or cannot have a dynamic size.
        """
        wanted: list[tuple[Format, Precision, TargetCpu | None]] = []
        for kind, precision in self._asked():
            if precision in PRECISIONS[kind]:
                cpus = tuple(dict.fromkeys(self.target_cpus)) if kind is Format.ONNX else (None,)
                wanted.extend((kind, precision, cpu) for cpu in cpus)
        return tuple(wanted)

    def recipes(self) -> tuple[tuple[Format, Recipe], ...]:
        """Return what the second stage writes.

        Raises:
            UsageError: As for ``jobs``.
        """
        wanted = []
        for kind, precision in self._asked():
            recipe = None if precision in PRECISIONS[kind] else recipe_of(precision, kind)
            if recipe is not None:
                wanted.append((kind, recipe if self.ranges is None else replace(recipe, ranges=self.ranges)))
        return tuple(wanted)

    def _asked(self) -> tuple[tuple[Format, Precision], ...]:
        formats = self.formats or tuple(Format)
        if self.dynamic is not None:
            formats, _ = formats_for_dynamic(self.dynamic, formats, asked=bool(self.formats))
        if self.precisions and not self.formats:  # all formats that have one of them
            formats = tuple(kind for kind in formats if set(self.precisions) & set(_precisions(kind)))
        asked = []
        for kind in dict.fromkeys(formats):
            for precision in dict.fromkeys(self.precisions or PRECISIONS[kind]):
                if precision not in _precisions(kind):
                    raise UsageError(
                        f"{kind} has no precision {precision} here; it has: {', '.join(_precisions(kind))}"
                    )
                asked.append((kind, precision))
        return tuple(asked)


def _precisions(kind: Format) -> tuple[Precision, ...]:
    """Every precision of a format: the exporter's own, and those that a recipe stands for."""
    return tuple(item for item in Precision if item in PRECISIONS[kind] or recipe_of(item, kind) is not None)


_Conversion = Future[tuple[Artifact, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Job:
    kind: Format
    precision: Precision
    target_cpu: TargetCpu | None
    spec: ModelSpec
    graph_folder: Path
    path: Path
    log: Path


def export(plan: ExportPlan, stages: Stages) -> Bundle:
    """Export the model into a bundle: all artifacts or none.

    Raises:
        UsageError: Bad input, or the output folder holds something else.
        MissingDependencyError: A converter is not installed.
        ConversionError: A converter refused the model.
    """
    set_environment()
    jobs, pairs = plan.jobs(), plan.recipes()
    if plan.softmax and not plan.bake:
        raise UsageError("--softmax is for apps that take the file as it is; give --bake-preprocessing as well")
    need_converters(*(kind for kind, _, _ in jobs), *(kind for kind, _ in pairs))
    import torch

    from coordatt_deploy.golden import golden_inputs, write_golden
    from coordatt_deploy.graph.fold import fold_batchnorms
    from coordatt_deploy.graph.reference import save_graph
    from coordatt_deploy.intake.bake import bake, fold_normalisation
    from coordatt_deploy.intake.request import Request, resolve
    from coordatt_deploy.intake.source import capture_source, reference_module

    torch.set_num_threads(1)  # the converters work beside it
    with stages.stage("load model"):
        request = Request(
            model=plan.model,
            checkpoint=plan.checkpoint,
            input_size=plan.input_size,
            dynamic=plan.dynamic,
            **plan.intake,
        )
        source = resolve(request)
    with stages.stage("capture"):
        graph = capture_source(source)
    target = plan.output_dir or Path(f"{source.spec.name}_baked" if plan.bake else source.spec.name)
    replaced = source.spec.preprocessing
    if plan.bake:
        source, graph = bake(source, graph, softmax=plan.softmax)
    check_same(check_target(target, source.spec.source_sha256), source.spec, graph.inputs)
    outputs = tuple(_output_spec(node, name) for node, name in _returned(graph))
    bare = Manifest(model=source.spec, inputs=graph.inputs, outputs=outputs)
    with stages.stage("calibration data"):
        second = _second_stage(plan)
        data = calibration_of(second, bare)
    with stages.stage("fold BatchNorm"):
        folded, fold_report = fold_batchnorms(graph)
        baked = None
        if plan.bake:
            folded, baked = fold_normalisation(folded)
    with writing(target, source.spec.source_sha256) as staging, tempfile.TemporaryDirectory() as scratch:
        save_graph(folded, Path(scratch))
        _fresh(staging / "reference")
        save_graph(graph, staging / "reference")
        with workers(len(jobs) + len(pairs)) as pool:
            futures = [pool.submit(_convert, job) for job in _jobs(jobs, source.spec, Path(scratch), staging)]
            # What prepares its own weights needs none of the float artifacts; the rest starts from them.
            prepared, others = (
                [pair for pair in pairs if needs_preparing(pair[1]) is wanted] for wanted in (True, False)
            )
            quantizing = submit(plan_jobs(second, prepared, bare, staging, data), pool)
            unseen = source.unseen_sizes()
            golden = golden_inputs(graph.inputs, source.spec.preprocessing, source.images, unseen)
            with stages.stage("reference in float64", len(golden.cases)) as step:
                exact, remark = reference_module(source, graph)
                write_golden(staging, golden, graph, exact, step)
            converted = _collect(futures, stages)
            floats = replace(bare, artifacts=tuple(artifact for artifact, _ in converted))
            quantizing += submit(plan_jobs(second, others, floats, staging, data), pool)
            quantized = collect(quantizing, stages)
        written = {artifact.path for artifact in floats.artifacts}
        earlier = _earlier(staging)
        kept = tuple(item for item in earlier.artifacts if item.path not in written) if earlier else ()
        lowering = dict(earlier.lowering) if earlier else {}
        lowering |= {artifact.path: report for artifact, report in converted}
        manifest = Manifest(
            model=source.spec,
            inputs=graph.inputs,
            outputs=outputs,
            artifacts=kept + floats.artifacts,
            lowering=lowering,
            quantization=earlier.quantization if earlier else {},
            golden=golden.cases,
            fold={
                "folded": len(fold_report.folded),
                "max_relative_error": fold_report.max_relative_error,
                "layers": to_json(fold_report.folded),
            },
            bake=None if baked is None else to_json(baked) | {"preprocessing": to_json(replaced)},
            tool_versions=tool_versions(),
            command=plan.command,
            notes=tuple(
                filter(
                    None, [*source.notes, remark, None if baked is None else baked.remark, *_remarks(plan, converted)]
                )
            ),
        )
        finish(staging, with_artifacts(manifest, quantized, stages, staging))
    return open_bundle(target, verify=False)


def _second_stage(plan: ExportPlan) -> QuantizePlan:
    return QuantizePlan(
        recipes=tuple(dict.fromkeys(recipe for _, recipe in plan.recipes())),
        target_cpus=plan.target_cpus,
        calibration=plan.calibration,
        count=plan.calibration_count,
        seed=plan.seed,
        command=plan.command,
    )


def _remarks(plan: ExportPlan, converted: Sequence[tuple[Artifact, dict[str, Any]]]) -> Iterator[str]:
    """What the user should know of formats left out and of attention that was not found."""
    from coordatt_deploy.intake.factories import attention_warning

    if plan.dynamic is not None and not plan.formats:
        _, text = formats_for_dynamic(plan.dynamic, tuple(Format), asked=False)
        if text is not None:
            yield text
    blocks = max((len(report["blocks"]) for _, report in converted), default=0)
    warning = attention_warning(plan.model, plan.intake.get("model_args"), blocks) if converted else None
    if warning is not None:
        yield warning
        return
    seen: set[str] = set()
    for artifact, report in converted:
        if not report["blocks"] and report["remark"] not in seen:
            seen.add(report["remark"])
            yield f"{artifact.format}: {report['remark']}"


def _jobs(
    wanted: Sequence[tuple[Format, Precision, TargetCpu | None]], spec: ModelSpec, graph_folder: Path, staging: Path
) -> list[_Job]:
    # The slowest converter first, so that it does not run alone at the end.
    order = sorted(wanted, key=lambda job: (job[0] is not Format.TFLITE, job[0] is not Format.COREML))
    jobs = []
    for kind, precision, cpu in order:
        path = staging / artifact_name(spec.name, kind, precision, cpu)
        path.parent.mkdir(exist_ok=True)
        if path.is_dir():  # a package of an earlier export
            shutil.rmtree(path)
        jobs.append(_Job(kind, precision, cpu, spec, graph_folder, path, job_log("export", path)))
    return jobs


def _convert(job: _Job) -> tuple[Artifact, dict[str, Any]]:
    """Run in a process of its own: load the folded graph, lower and convert it, describe the file."""
    with captured(job.log):
        import torch

        from coordatt_deploy.exporters import ExportRequest, exporter
        from coordatt_deploy.graph.lower import lower, target_of
        from coordatt_deploy.graph.reference import load_graph

        torch.set_num_threads(1)
        graph, report = lower(load_graph(job.graph_folder), target_of(job.kind, job.target_cpu))
        request = ExportRequest(job.spec, job.precision, job.path, job.target_cpu)
        exported = exporter(job.kind).export(graph, request)
    job.log.unlink(missing_ok=True)
    return exported.described(request, job.path.parent.parent), to_json(report)


def _collect(futures: Sequence[_Conversion], stages: Stages) -> list[tuple[Artifact, dict[str, Any]]]:
    with stages.stage("convert", len(futures)) as step:
        for future in as_completed(futures):
            future.result()
            step()
    converted = [future.result() for future in futures]
    return sorted(converted, key=lambda item: (list(Format).index(item[0].format), item[0].path))


def _fresh(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


def _returned(graph: Any) -> list[tuple[Any, str]]:
    node = next(node for node in graph.module.graph.nodes if node.op == "output")
    return list(zip(node.args[0], graph.outputs, strict=True))


def _output_spec(node: Any, name: str) -> TensorSpec:
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


def tool_versions() -> tuple[tuple[str, str], ...]:
    """Return the versions of everything that can have a hand in an artifact or a figure."""
    found = [("coordatt-deploy", __version__), ("python", platform.python_version())]
    for name in TOOLS:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return tuple(found)


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as the user would type it again."""
    return shlex.join(["coordatt-deploy", *arguments])


def measure_latency(
    bundle: Bundle,
    stages: Stages,
    settings: ProfileSettings | None = None,
    *,
    formats: Sequence[Format] = tuple(Format),
) -> dict[str, Any]:
    """Time every artifact and write ``reports/profile.json``; returns that document.

    Raises:
        UsageError: The bundle has no such artifact.
        MissingDependencyError: None of them can be run here.
    """
    set_environment()
    with logged("profile"):
        profile = profile_bundle(bundle, settings or ProfileSettings(), stages, formats=formats)
    document = profile_document(profile)
    bundle.write_report("profile.json", json.dumps(document, allow_nan=False) + "\n")
    return document


def summary(parity: ParityReport, profile: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one entry per artifact: its manifest entry, its verdict, its median latency."""
    timed = {item["path"]: item for item in profile["results"]}
    entries = []
    for item in parity.artifacts:
        verdict = item.to_json()
        verdict.pop("layers", None)
        latency = timed.get(item.artifact.path, {})
        entries.append(
            to_json(item.artifact)
            | verdict
            | {"layer_map": item.artifact.layers}
            | {key: latency.get(key) for key in ("median_ms", "p90_ms", "ci95_ms", "verdict", "threads")}
        )
    return entries
