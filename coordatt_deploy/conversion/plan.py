"""What to export and what to quantize, as plans that are checked before any work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, OutputKind, RangeMethod
from coordatt_deploy.data.calibration import COUNT, CalibrationSet
from coordatt_deploy.errors import UsageError
from coordatt_deploy.format_modules import installed_formats, need_converters
from coordatt_deploy.formats import FORMATS, Format, Precision, TargetCpu
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.loading.sizes import formats_for_dynamic
from coordatt_deploy.manifest import ConfigRecord
from coordatt_deploy.quantization.recipes import Recipe, checked, recipe_of
from coordatt_deploy.runtime_versions import NO_LIMITS, RuntimeLimits
from coordatt_deploy.stage_cache.store import CachedStage, StageCache

DEFAULT_MODEL: Final = "mobilenetv2_ca_035.digits"


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What to export.

    Attributes:
        model: The model, and what is said of it: its size and batch, whether they are dynamic, weights, preprocessing.
        formats: Which to write; empty for all that are installed.
        precisions: None for every float precision of each format; int8, and fp16 where the exporter does not write it,
            come from a recipe.
        calibration: See ``QuantizePlan``, as for the next two.
        calibration_count: Images to use at most.
        seed: Of the choice among more images.
        ranges: How activation ranges are found; None for the recipe's own way.
        target_cpus: CPU families whose fastest form is written, where forms differ (ONNX).
        bake: Whether normalisation becomes part of the network, which then takes pixels.
        softmax: Whether it then gives probabilities.
        reparameterize: Whether sums of linear branches become one convolution each.
        output_dir: The bundle; None for the model's name in the current folder.
        strict: Whether all files are to be written, or none.
        output_kinds: What outputs are, by name, where the user says it.
        command: The command line, for the manifest.
        limits: For how old a runtime files are written.
        cache: Where results of stages are looked for and kept; None to make everything anew.
        config: The file that says what to build; None where the command line does.
    """

    model: ModelRequest = field(default_factory=lambda: ModelRequest(DEFAULT_MODEL))
    formats: tuple[Format, ...] = ()
    precisions: tuple[Precision, ...] | None = None
    target_cpus: tuple[TargetCpu, ...] = (TargetCpu.ARM64,)
    calibration: str | None = None
    calibration_count: int = COUNT
    seed: int = 0
    ranges: RangeMethod | None = None
    bake: bool = False
    softmax: bool = False
    reparameterize: bool = False
    output_dir: Path | None = None
    strict: bool = False
    output_kinds: Mapping[str, OutputKind] = field(default_factory=dict)
    command: str = ""
    limits: RuntimeLimits = NO_LIMITS
    cache: StageCache | None = None
    config: ConfigRecord | None = None

    def check(self) -> None:
        """Refuse what can be refused before any work, and before torch is loaded.

        Raises:
            UsageError: As for ``jobs``; softmax without baking; baking with a dynamic batch; an unknown backbone or an
                impossible size.
            MissingDependencyError: A converter is not installed.
        """
        jobs, pairs = self.jobs(), self.recipes()
        self.limits.check(tuple(dict.fromkeys([*(kind for kind, _, _ in jobs), *(kind for kind, _ in pairs)])))
        several = "--dynamic-batch" if self.model.batch is not None else "--batch-size"
        if self.bake and (self.model.batch is not None or (self.model.batch_size or 1) > 1):
            raise UsageError(
                "--bake-preprocessing is for apps that hand over one image as it comes from a camera, and with"
                f" {several} a file takes several; leave one of the two out"
            )
        if self.softmax and not self.bake:
            raise UsageError("--softmax is for apps that take the file as it is; give --bake-preprocessing as well")
        need_converters([*(kind for kind, _, _ in jobs), *(kind for kind, _ in pairs)])
        self.model.check()

    def jobs(self) -> tuple[tuple[Format, Precision, TargetCpu | None], ...]:
        """Return the float artifacts to write.

        Raises:
            UsageError: A format does not have one of the precisions, or cannot have a dynamic size or batch.
        """
        wanted: list[tuple[Format, Precision, TargetCpu | None]] = []
        for kind, precision in self._asked():
            if precision in FORMATS[kind].exported:
                cpus = tuple(dict.fromkeys(self.target_cpus)) if FORMATS[kind].per_cpu else (None,)
                wanted.extend((kind, precision, cpu) for cpu in cpus)
        return tuple(wanted)

    def recipes(self) -> tuple[tuple[Format, Recipe], ...]:
        """Return each format with a recipe that is to be written in it.

        Raises:
            UsageError: As for ``jobs``.
        """
        wanted = []
        for kind, precision in self._asked():
            recipe = None if precision in FORMATS[kind].exported else recipe_of(precision, kind)
            if recipe is not None:
                wanted.append((kind, recipe if self.ranges is None else replace(recipe, ranges=self.ranges)))
        return tuple(wanted)

    def _asked(self) -> tuple[tuple[Format, Precision], ...]:
        formats = self.formats or installed_formats()
        model = self.model
        if model.dynamic is not None or model.batch is not None:
            formats, _ = formats_for_dynamic(model.dynamic, formats, asked=bool(self.formats))
        if model.input_layout is not None:
            formats = formats_in_layout(model.input_layout.name, formats, asked=bool(self.formats))
        if self.precisions and not self.formats:  # all formats that have one of them
            formats = tuple(kind for kind in formats if set(self.precisions) & set(_precisions(kind)))
        asked = []
        for kind in dict.fromkeys(formats):
            for precision in dict.fromkeys(self.precisions or FORMATS[kind].precisions):
                if precision not in _precisions(kind):
                    raise UsageError(
                        f"{kind} has no precision {precision} here; it has: {', '.join(_precisions(kind))}"
                    )
                asked.append((kind, precision))
        return tuple(asked)


def formats_in_layout(layout: str, formats: Sequence[Format], *, asked: bool) -> tuple[Format, ...]:
    """Return the formats whose files can take images in *layout*.

    Args:
        layout: ``NCHW`` or ``NHWC``.
        formats: To write.
        asked: Whether the user named them; otherwise those without are left out.

    Raises:
        UsageError: A format that was named has no such files.
    """
    for kind in formats:
        row = FORMATS[kind]
        if asked and layout not in row.input_layouts:
            others = " ".join(f"--format {other}" for other, able in FORMATS.items() if layout in able.input_layouts)
            raise UsageError(
                f"{row.title} files take images in {row.input_layouts[0]}, not {layout}: {row.one_layout_because}; name"
                f" the formats that do with {others}, and export {kind} into a bundle of its own without --input-layout"
            )
    return tuple(kind for kind in formats if layout in FORMATS[kind].input_layouts)


def _precisions(kind: Format) -> tuple[Precision, ...]:
    """Every precision of a format: the exporter's own, and those that a recipe stands for."""
    return tuple(item for item in Precision if item in FORMATS[kind].exported or recipe_of(item, kind) is not None)


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """What to quantize, and on what data.

    Attributes:
        recipes: Each is written in every format of *formats*; see ``quantization.recipes.load_recipe``.
        formats: Empty for every format that can express the recipe, of those the bundle has.
        target_cpus: For ONNX; empty for those that the bundle's float files are written for, ARM64 if it has none.
        calibration: A folder of images, an ``.npz``, or what is packaged; None: none is given.
        count: Images to use at most.
        seed: Of the choice among more images.
        strict: Whether all files are to be written, or none.
        command: The command line, for the manifest.
        limits: For how old a runtime files are written; None for what the bundle was exported with.
    """

    recipes: tuple[Recipe, ...]
    formats: tuple[Format, ...] = ()
    target_cpus: tuple[TargetCpu, ...] = ()
    calibration: str | None = None
    count: int = COUNT
    seed: int = 0
    strict: bool = False
    command: str = ""
    limits: RuntimeLimits | None = None

    def pairs(self, formats: Sequence[Format]) -> tuple[tuple[Format, Recipe], ...]:
        """Return every format and recipe to write.

        Args:
            formats: Of the bundle, for where the plan names none.

        Raises:
            UsageError: A format that was named cannot express a recipe, or none of the bundle's can.
        """
        found: list[tuple[Format, Recipe]] = []
        for recipe in dict.fromkeys(self.recipes):
            kinds = self.formats or [kind for kind in formats if recipe.base in FORMATS[kind].recipes]
            if not kinds:
                able = ", ".join(kind for kind, row in FORMATS.items() if recipe.base in row.recipes)
                if not able:
                    checked(recipe, next(iter(FORMATS)))  # says why
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
        float_tail: Ids of further layers that stay in float, since one grid cannot serve all parts of an output.
        limits: For how old a runtime.
        stage: Where its result is kept; None for nowhere.
        aside_stage: The same of the images that were set aside for it.
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
    float_tail: tuple[str, ...] = ()
    limits: RuntimeLimits = NO_LIMITS
    stage: CachedStage | None = None
    aside_stage: CachedStage | None = None

    @property
    def final_recipe(self) -> Recipe:
        """The recipe with all layers that stay in float."""
        layers = dict.fromkeys([*self.recipe.float_layers, *self.float_tail])
        return replace(self.recipe, float_layers=tuple(layers))
