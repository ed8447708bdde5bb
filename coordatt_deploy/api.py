"""The Python interface: what the command line does, for a script, a notebook or a service.

    import coordatt_deploy

    bundle = coordatt_deploy.export(network, (torch.randn(1, 3, 224, 224),), "my_net", formats=["onnx", "tflite"])
    assert bundle.check_parity().passed

The network is taken as it is, also where its class stands in the very script or notebook; it is copied first, and the
caller's keeps its mode and type. What a command refuses raises ``DeployError`` here, of which ``UsageError`` is a kind.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordatt_deploy import bundle as bundles
from coordatt_deploy.artifact_specs import About, Artifact, OutputKind
from coordatt_deploy.documents import member
from coordatt_deploy.errors import DeployError, UsageError
from coordatt_deploy.evaluation.result import Evaluation
from coordatt_deploy.formats import Format, InputLayout, Precision, TargetCpu
from coordatt_deploy.manifest import Manifest, RefusedFile
from coordatt_deploy.parity.result import ParityReport
from coordatt_deploy.profile.result import ProfileResult
from coordatt_deploy.progress import Stages
from coordatt_deploy.runtime_versions import RuntimeLimits, parse_min_runtime

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

    from coordatt_deploy.loading.model_request import GivenModule

__all__ = ["AccuracyResult", "Bundle", "DeployError", "LatencyResult", "ParityVerdict", "UsageError", "export",
           "open_bundle"]  # fmt: skip

NOTEBOOK_WIDTH: Final = 132  # columns: at fewer, tables leave some out


def export(
    model: "nn.Module | str",
    example: "torch.Tensor | Sequence[torch.Tensor] | None" = None,
    output_dir: str | Path | None = None,
    *,
    formats: Sequence[str] = (),
    precisions: Sequence[str] = (),
    target_cpus: Sequence[str] = (TargetCpu.ARM64,),
    min_runtimes: Mapping[str, str] | None = None,
    opset: int | None = None,
    dynamic_size: tuple[int, int, int] | None = None,
    dynamic_batch: tuple[int, int] | None = None,
    batch_size: int | None = None,
    input_layout: str | None = None,
    preprocessing: Mapping[str, object] | None = None,
    labels: Sequence[str] = (),
    golden_images: str | Path | None = None,
    calibration_data: str | Path | None = None,
    output_kinds: Mapping[str, str] | None = None,
    name: str | None = None,
    author: str | None = None,
    license: str | None = None,  # noqa: A002 - as the option and the files' own field are called
    description: str | None = None,
    bake_preprocessing: bool = False,
    softmax: bool = False,
    reparameterize: bool = False,
    strict: bool = False,
    progress: bool = False,
) -> "Bundle":
    """Write a network's artifacts into a bundle.

    Args:
        model: A module in float32 on the CPU, in whatever mode; or what the command's ``--model`` takes: a backbone's
            name, ``timm:NAME``, ``FILE.py:FACTORY``, a ``.pt2``.
        example: One tensor for each input, batch first, images as (N, C, H, W). Their shapes are used, not their
            values. Needed for a module; for a name, its first image's size is taken.
        output_dir: The bundle's folder; None for the model's name in the current one.
        formats: ``onnx``, ``tflite``, ``coreml``; empty for all that are installed.
        precisions: ``fp32``, ``fp16``, ``int8``; empty for every float precision of each format.
        target_cpus: ``arm64``, ``x86_64``: whose fastest form is written where forms differ (ONNX).
        min_runtimes: The oldest version that is to open the files, by ``onnxruntime``, ``tflite`` or ``ios``; what
            cannot be written for it is refused.
        opset: Of ONNX files; None for 18, the lowest that torch writes itself.
        dynamic_size: Least and greatest height and width in pixels, and the step between sizes.
        dynamic_batch: Least and greatest number of images.
        batch_size: Images that files take at once; None for as many as *example* has, or one.
        input_layout: ``nchw`` or ``nhwc``, in which files take images; ONNX has both. None for each format's usual one.
        preprocessing: What differs from the model's own, by the keys of a manifest's ``preprocessing``.
        labels: Class names in the order of the logits.
        golden_images: A folder of images for the golden inputs.
        calibration_data: For int8: a folder of images, an ``.npz``, or ``digits``.
        output_kinds: By output: ``scores``, ``boxes``, ``mask``, ``embedding``, ``other``.
        name: What the model is called in file names; None for its class or its name.
        author: Whose model it is, for the files' metadata, as the next two.
        license: That it is given under.
        description: What it is for.
        bake_preprocessing: Make normalisation part of the network, which then takes pixels.
        softmax: Give probabilities; with *bake_preprocessing*.
        reparameterize: Merge sums of linear branches into one convolution each.
        strict: Write all files, or none.
        progress: Show bars on stderr.

    Returns:
        The bundle. Its ``refused`` has what could not be written, each with the reason.

    Raises:
        UsageError: Something about the network or the arguments that cannot be shipped.
        MissingDependencyError: A converter is not installed.
        ConversionError: No file could be written.
    """
    # Not before it is called: importing coordatt_deploy loads no torch.
    from coordatt_deploy.conversion.export_run import export as run
    from coordatt_deploy.conversion.plan import ExportPlan
    from coordatt_deploy.loading.model_request import ModelRequest
    from coordatt_deploy.loading.preprocessing import changes_from

    given, size = _given(model, example)
    request = ModelRequest(
        model=model if isinstance(model, str) else type(model).__name__,
        given=given,
        input_size=size,
        dynamic=dynamic_size,
        batch=dynamic_batch,
        batch_size=batch_size,
        input_layout=None if input_layout is None else member(InputLayout, input_layout, "input_layout"),
        preprocessing=changes_from(preprocessing or {}),
        labels=tuple(labels) or None,
        golden=None if golden_images is None else Path(golden_images),
        name=name,
        about=About(author, license, description),
    )
    plan = ExportPlan(
        model=request,
        formats=_formats(formats),
        precisions=tuple(member(Precision, item, "precisions") for item in precisions) or None,
        target_cpus=tuple(member(TargetCpu, item, "target_cpus") for item in target_cpus),
        bake=bake_preprocessing,
        softmax=softmax,
        reparameterize=reparameterize,
        output_dir=None if output_dir is None else Path(output_dir),
        strict=strict,
        calibration=None if calibration_data is None else str(calibration_data),
        limits=_limits(min_runtimes or {}, opset),
        output_kinds={key: member(OutputKind, kind, "output_kinds") for key, kind in (output_kinds or {}).items()},
    )
    with _callers_settings(), _stages(progress) as stages:
        return Bundle(run(plan, stages))


def open_bundle(path: str | Path) -> "Bundle":
    """Open a bundle and verify every hash; needs no torch.

    Raises:
        BundleError: It is missing, damaged, or of another version.
    """
    return Bundle(bundles.open_bundle(Path(path)))


@dataclass(frozen=True)
class ParityVerdict(ParityReport):
    """The verdicts on a bundle's artifacts: ``passed``, and ``artifacts`` with a verdict, evidence and layers each."""

    bundle: bundles.Bundle | None = field(default=None, repr=False, kw_only=True)

    def _repr_html_(self) -> str:
        # Tables are for who looks at one.
        from coordatt_deploy.report.terminal.console import recorded
        from coordatt_deploy.report.terminal.parity import show_parity

        assert self.bundle is not None  # noqa: S101 - check_parity gives it
        with recorded(NOTEBOOK_WIDTH) as console:
            show_parity(self.bundle, self)
        return _html(console)


@dataclass(frozen=True)
class LatencyResult(ProfileResult):
    """Latency of the artifacts on this machine: ``results``, one for each artifact and number of threads."""

    bundle: bundles.Bundle | None = field(default=None, repr=False, kw_only=True)

    def _repr_html_(self) -> str:
        # Tables are for who looks at one.
        from coordatt_deploy.report.terminal.console import recorded
        from coordatt_deploy.report.terminal.profile import show_profile

        assert self.bundle is not None  # noqa: S101 - measure_latency gives it
        with recorded(NOTEBOOK_WIDTH) as console:
            show_profile(self.bundle, self)
        return _html(console)


@dataclass(frozen=True)
class AccuracyResult(Evaluation):
    """Accuracy on labelled images: ``subjects``, the baseline first, then one for each artifact."""

    def _repr_html_(self) -> str:
        # Tables are for who looks at one.
        from coordatt_deploy.report.terminal.console import recorded
        from coordatt_deploy.report.terminal.evaluation import show

        with recorded(NOTEBOOK_WIDTH) as console:
            show(self)
        return _html(console)


class Bundle:
    """A bundle: the folder with a network's artifacts, their reference and their reports.

    Attributes:
        opened: The bundle as it was when it was opened.
    """

    def __init__(self, opened: bundles.Bundle) -> None:
        self.opened = opened

    def __repr__(self) -> str:
        return f"Bundle({str(self.root)!r}, {len(self.artifacts)} artifacts)"

    def _repr_html_(self) -> str:
        # Tables are for who looks at one.
        from coordatt_deploy.report.terminal.build import show_artifacts
        from coordatt_deploy.report.terminal.console import recorded

        with recorded(NOTEBOOK_WIDTH) as console:
            show_artifacts(self.opened)
        return _html(console)

    @property
    def root(self) -> Path:
        """Its folder."""
        return self.opened.root

    @property
    def manifest(self) -> Manifest:
        """What it holds: the model's inputs, outputs and preprocessing, and the artifacts with their hashes."""
        return self.opened.manifest

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """The files for phones and boards; their paths are relative to ``root``."""
        return self.opened.manifest.artifacts

    @property
    def refused(self) -> tuple[RefusedFile, ...]:
        """What the call that gave this bundle could not write, each with the reason."""
        return self.opened.refused

    def check_parity(
        self,
        *,
        formats: Sequence[str] = (),
        layers: bool = True,
        inputs: str | Path | None = None,
        output: str | Path | None = None,
        progress: bool = False,
    ) -> ParityVerdict:
        """Run every artifact and hold it against the float64 reference, layer by layer where torch is installed.

        Args:
            formats: Only artifacts of these.
            layers: Whether layers are judged as well as outputs.
            inputs: A folder of images or an ``.npz`` in place of the golden inputs.
            output: A file for the verdicts in place of the bundle's ``reports/parity.json``.
            progress: Show bars on stderr.

        Raises:
            UsageError: There is no such artifact, or the inputs do not fit.
            BundleError: An artifact was made from other weights, or changed meanwhile.
        """
        # What does the work: not before it is called.
        from coordatt_deploy.parity.run import ParityPlan, check_parity

        plan = ParityPlan(
            formats=_formats(formats) or tuple(Format),
            layers=layers,
            inputs=None if inputs is None else Path(inputs),
            output=None if output is None else Path(output),
        )
        with _callers_settings(), _stages(progress) as stages:
            found = check_parity(self._now(), plan, stages)
        values = {item.name: getattr(found, item.name) for item in fields(found)}
        return ParityVerdict(**values, bundle=self.opened)

    def measure_latency(
        self,
        *,
        formats: Sequence[str] = (),
        threads: Sequence[int] = (1,),
        samples: int = 600,
        min_seconds: float = 1.0,
        cpu_affinity: Sequence[int] = (),
        operators: bool = False,
        output: str | Path | None = None,
        progress: bool = False,
    ) -> LatencyResult:
        """Time every artifact on this machine's CPU, in interleaved rounds.

        Args:
            formats: Only artifacts of these.
            threads: Numbers of threads, one after the other.
            samples: Least number of calls that are timed of each artifact.
            min_seconds: Least time that these take together.
            cpu_affinity: Cores to run on; empty for all.
            operators: Find out where the time of each file goes as well, layer by layer, beside the errors that
                ``parity(layers=True)`` found.
            output: A file for the figures in place of the bundle's ``reports/profile.json``.
            progress: Show bars on stderr.

        Returns:
            Milliseconds a call (of one batch), with 95 % intervals and a verdict on how steady they are.

        Raises:
            UsageError: There is no such artifact, or a setting is impossible here.
            MissingDependencyError: None of them can be run here.
        """
        # What does the work: not before it is called.
        from coordatt_deploy.kept_results import layer_errors
        from coordatt_deploy.profile.latency import ProfileSettings
        from coordatt_deploy.profile.run import measure_latency

        settings = ProfileSettings(
            threads=tuple(threads), samples=samples, min_seconds=min_seconds, cpu_affinity=tuple(cpu_affinity)
        )
        kept = None if output is None else Path(output)
        with _stages(progress) as stages:
            bundle = self._now()
            found = measure_latency(
                bundle, stages, settings, formats=_formats(formats) or tuple(Format), output=kept,
                errors=layer_errors(bundle) if operators else None,
            )  # fmt: skip
        return LatencyResult(**{item.name: getattr(found, item.name) for item in fields(found)}, bundle=self.opened)

    def evaluate(
        self,
        dataset: str | Path,
        *,
        formats: Sequence[str] = (),
        metric: str | None = None,
        max_drop: float | None = None,
        limit: int | None = None,
        workers: int | None = None,
        progress: bool = False,
    ) -> AccuracyResult:
        """Measure the accuracy of the reference and of every artifact on labelled images.

        Args:
            dataset: A folder, an ``.npz``, or the name of a packaged set.
            formats: Only artifacts of these.
            metric: ``top-1``, ``miou``, or ``FILE.py:FUNCTION``; None for what the labels are made for.
            max_drop: By how much an artifact may be worse: percentage points, or the unit of your own metric.
            limit: How many images at most, drawn at random; None for all.
            workers: Processes; None for one per core.
            progress: Show bars on stderr.

        Raises:
            UsageError: The dataset does not fit, or the bundle gives nothing that the metric scores.
        """
        # What does the work: not before it is called.
        from coordatt_deploy.evaluation.run import EvaluationPlan, evaluate_bundle

        plan = EvaluationPlan(
            dataset=str(dataset),
            formats=_formats(formats) or tuple(Format),
            metric=metric,
            max_drop=max_drop,
            limit=limit,
            workers=workers,
        )
        with _callers_settings(), _stages(progress) as stages:
            found = evaluate_bundle(self._now(), plan, stages)
        return AccuracyResult(**{item.name: getattr(found, item.name) for item in fields(found)})

    def quantize(
        self,
        *recipes: str | Path,
        calibration_data: str | Path | None = None,
        formats: Sequence[str] = (),
        calibration_count: int | None = None,
        min_runtimes: Mapping[str, str] | None = None,
        opset: int | None = None,
        strict: bool = False,
        progress: bool = False,
    ) -> "Bundle":
        """Write small artifacts into the bundle, beside the float ones.

        Args:
            recipes: Names or files, as the command's ``--recipe`` takes them; none for ``static_wi8_ai8``.
            calibration_data: A folder of images, an ``.npz``, or ``digits``; the model's own where it has some.
            formats: Empty for every format of the bundle that can express the recipe.
            calibration_count: Images to use at most.
            min_runtimes: As ``export`` takes them, like the next one; None for those of the export.
            opset: Of ONNX files.
            strict: Write all files, or none.
            progress: Show bars on stderr.

        Returns:
            The bundle as it is then.

        Raises:
            UsageError: A format cannot express a recipe, or the calibration data does not fit.
            ConversionError: No file could be written.
        """
        # What does the work, torch among it: not before it is called.
        from coordatt_deploy.conversion.plan import QuantizePlan
        from coordatt_deploy.conversion.quantize_run import quantize
        from coordatt_deploy.data.calibration import COUNT
        from coordatt_deploy.quantization.recipes import STATIC_INT8, load_recipe

        plan = QuantizePlan(
            recipes=tuple(load_recipe(str(item)) for item in recipes or (STATIC_INT8,)),
            formats=_formats(formats),
            calibration=None if calibration_data is None else str(calibration_data),
            count=COUNT if calibration_count is None else calibration_count,
            limits=None if min_runtimes is None and opset is None else _limits(min_runtimes or {}, opset),
            strict=strict,
        )
        with _callers_settings(), _stages(progress) as stages:
            return Bundle(quantize(self._now(), plan, stages))

    def write_report(self, path: str | Path | None = None) -> Path:
        """Write all results as one HTML page.

        Args:
            path: The file; None for ``reports/report.html`` in the bundle.

        Returns:
            Where it is.
        """
        # What does the work: not before it is called.
        from coordatt_deploy.report.write import write_page

        return write_page(self._now(), None if path is None else Path(path))

    def _now(self) -> bundles.Bundle:
        """The bundle as it is now: an earlier call may have added to it."""
        return bundles.open_bundle(self.root)


def _given(
    model: "nn.Module | str", example: "torch.Tensor | Sequence[torch.Tensor] | None"
) -> "tuple[GivenModule | None, tuple[int, int] | None]":
    """What a request has of a module, and the (H, W) of its first image."""
    # With a module, torch is there already.
    from coordatt_deploy.loading.model_request import GivenModule

    tensors = () if example is None else tuple(example) if isinstance(example, Sequence) else (example,)
    shapes = tuple(tuple(int(size) for size in tensor.shape) for tensor in tensors)
    size = (shapes[0][2], shapes[0][3]) if shapes and len(shapes[0]) == 4 else None
    if isinstance(model, str):
        return None, size
    if not callable(getattr(model, "state_dict", None)):
        raise UsageError(f"model is a {type(model).__name__}; expected a torch.nn.Module, or a model's name")
    if not shapes:
        raise UsageError("example is missing: give one tensor for each input, e.g. (torch.randn(1, 3, 224, 224),)")
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise UsageError(f"an example is {tensor.dtype}; files take float32 images and vectors")
    return GivenModule(model, shapes), size


def _formats(names: Sequence[str]) -> tuple[Format, ...]:
    return tuple(member(Format, item, "formats") for item in names)


def _limits(min_runtimes: Mapping[str, str], opset: int | None) -> RuntimeLimits:
    named = dict(parse_min_runtime(f"{name}={version}") for name, version in min_runtimes.items())
    return RuntimeLimits(named, opset)


def _html(console: "Console") -> str:
    """What was printed, in the colours of a terminal."""
    style = "overflow-x: auto; white-space: pre; line-height: normal; font-family: monospace"
    return console.export_html(inline_styles=True, code_format=f'<pre style="{style}">{{code}}</pre>')


@contextmanager
def _callers_settings() -> Iterator[None]:
    """Give torch's number of threads and the environment back as they were."""
    environment = dict(os.environ)
    torch = import_module("torch") if find_spec("torch") is not None else None  # else there is nothing to give back
    threads = None if torch is None else torch.get_num_threads()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        if torch is not None:
            torch.set_num_threads(threads)


@contextmanager
def _stages(progress: bool) -> Iterator[Stages]:
    # Bars are for who asks for them.
    from coordatt_deploy.report.terminal.console import bars

    with bars() if progress else nullcontext(Stages()) as stages:
        yield stages
