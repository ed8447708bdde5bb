"""The manifest: what a bundle holds, and what was done to the network on the way into each of its files."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Self

from coordatt_deploy.artifact_specs import (
    Artifact,
    ModelSpec,
    OutputKind,
    OutputRegion,
    Preprocessing,
    RangeMethod,
    TensorSpec,
)
from coordatt_deploy.documents import REQUIRED, DocumentError, dump, from_json, parse_object
from coordatt_deploy.errors import BundleError, RefusedOperator
from coordatt_deploy.formats import Format, IoType, TargetCpu
from coordatt_deploy.progress import Stage
from coordatt_deploy.runtime_versions import NO_LIMITS, RuntimeLimits

MANIFEST: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One golden input.

    Attributes:
        name: E.g. ``digit_3``, ``zeros``, ``noise``.
        image: Path of the PNG it comes from, relative to the bundle; None for a made-up tensor.
        label: Index of its class; None where it has none.
    """

    name: str
    image: str | None = None
    label: int | None = None


class FoldForm(enum.StrEnum):
    """What became of a BatchNorm."""

    PRECEDING = "preceding"
    """Part of the convolution or linear layer before it."""
    FOLLOWING = "following"
    """Part of the convolution or linear layer behind it."""
    SCALE_AND_SHIFT = "scale_and_shift"
    """A product and a sum per channel: no layer could take it in exactly."""
    INPUT_STATISTICS = "input_statistics"
    """Written as what it computes from its input: it keeps no running statistics."""


@dataclass(frozen=True, slots=True)
class FoldedBatchNorm:
    """One BatchNorm that is gone.

    Attributes:
        layer: Layer id of what holds it now; its own where no layer took it in.
        batch_norm: Layer id of the BatchNorm.
        max_abs_error: Greatest difference between its value before and after, both run in float64; of the layer behind
            where that took it in.
        relative_error: That difference over the greatest magnitude of the value.
        form: What became of it.
    """

    layer: str
    batch_norm: str
    max_abs_error: float
    relative_error: float
    form: FoldForm = FoldForm.PRECEDING


@dataclass(frozen=True, slots=True)
class FoldReport:
    """What folding BatchNorm did.

    Attributes:
        folded: Number of BatchNorms that are gone.
        max_relative_error: Of the worst layer; 0 where nothing was folded.
        layers: Each of them, in execution order.
    """

    folded: int
    max_relative_error: float
    layers: tuple[FoldedBatchNorm, ...]

    @property
    def written(self) -> tuple[FoldedBatchNorm, ...]:
        """Those that no layer took in, which cost a pass over the activation each."""
        return tuple(item for item in self.layers if item.form not in {FoldForm.PRECEDING, FoldForm.FOLLOWING})

    @classmethod
    def of(cls, layers: tuple[FoldedBatchNorm, ...]) -> Self:
        """Sum up what was folded."""
        return cls(len(layers), max((item.relative_error for item in layers), default=0.0), layers)


@dataclass(frozen=True, slots=True)
class MergedBranches:
    """A sum of linear branches that is one convolution now.

    Attributes:
        layer: Layer id of the sum.
        branches: Layer ids of what was merged into it.
        max_abs_error: Greatest difference between the sum before and after, both run in float64.
        relative_error: That difference over the greatest magnitude of the sum.
    """

    layer: str
    branches: tuple[str, ...]
    max_abs_error: float
    relative_error: float


@dataclass(frozen=True, slots=True)
class BakeReport:
    """What became of the normalisation, where it is part of the network.

    Attributes:
        layers: Layer ids of the convolutions that it was folded into.
        form: ``folded`` (nothing is left of it), ``padded`` (a padding with grey is left), or ``shifted`` (one sum on
            the image is left).
        max_relative_error: Greatest difference of an output to the normalisation done apart, both in float64, over the
            output's greatest value.
        remark: One sentence for the user.
        preprocessing: What it replaces; None while that is not known.
    """

    layers: tuple[str, ...]
    form: str
    max_relative_error: float
    remark: str
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True, slots=True)
class LoweredBlock:
    """One attention block and what became of it.

    Attributes:
        name: Path of the module that holds it.
        kind: ``coordatt``, ``squeeze_excite``, ``eca``, ``cbam`` and so on; ``docs/performance.md`` has all.
        channels: Of the feature map.
        squeezed: Channels between the two mixing layers; None for a block that has no two.
        height: Of the feature map; None if dynamic.
        width: Of the feature map; None if dynamic.
        form: How it is written now.
        declined: Why not in the form that the target is fastest with; None where it is.
    """

    name: str
    kind: str
    channels: int
    squeezed: int | None
    height: int | None
    width: int | None
    form: str
    declined: str | None = None


@dataclass(frozen=True, slots=True)
class NearMiss:
    """Something that begins like an attention block and is not one, or not one that can be rewritten.

    Attributes:
        where: Path of the module that begins it, or a node's name where there is none.
        reason: What is different.
    """

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class DecomposedOperator:
    """An operator that was written in the terms of others for one converter.

    Attributes:
        layer: Id of the layer that it computes.
        operator: Of the captured graph.
        decomposition: How it is written now; ``docs/operators.md`` lists them.
    """

    layer: str
    operator: str
    decomposition: str


@dataclass(frozen=True, slots=True)
class LoweringReport:
    """What lowering did.

    Attributes:
        target: The runtime, and the CPU where it matters.
        blocks: In execution order.
        near_misses: What looks like a block and was left as it is, with the reason.
        activations: Hard-swish and hard-sigmoid found outside the blocks, by kind.
        max_relative_error: Greatest difference of any layer to the folded graph, both run in float64, over the layer's
            greatest value.
        remark: One sentence for the user.
        decomposed: Operators written in the terms of others, because the converter does not write them, or wrongly.
    """

    target: str
    blocks: tuple[LoweredBlock, ...]
    near_misses: tuple[NearMiss, ...]
    activations: Mapping[str, int]
    max_relative_error: float
    remark: str
    decomposed: tuple[DecomposedOperator, ...] = ()


@dataclass(frozen=True, slots=True)
class RecipeRecord:
    """A quantization recipe, as a recipe file and the manifest hold it.

    Attributes:
        recipe: Its name, without suffixes.
        io: Type of inputs and outputs; None for the format's habit.
        ranges: How activation ranges are found.
        equalise: Whether channels are evened out.
        adjust: Whether weights are rounded on data.
        float_layers: Layer ids that stay in float.
    """

    VERSION: ClassVar[int] = 1

    schema_version: int
    recipe: str
    io: IoType | None = None
    ranges: RangeMethod | None = None
    equalise: bool | None = None
    adjust: bool = True
    float_layers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CalibrationRecord:
    """The data that activations were measured on.

    Attributes:
        source: Where it came from.
        count: Cases that were used.
        seed: Of the choice among more.
        sha256: Of the tensors.
        held_out: Further cases that were set aside for parity.
        notes: What the user was told of it.
    """

    source: str
    count: int
    seed: int
    sha256: str
    held_out: int = field(default=0, metadata={"key": "set_aside"})
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldOutCases:
    """Calibration cases that no range was measured on, and the reference's values for them.

    Attributes:
        folder: Name of the folder below ``golden/``.
        names: Of the cases.
    """

    folder: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EqualiseReport:
    """What evening out channels did.

    Attributes:
        chains: How many chains of tensors were scaled.
        channels: Channels with a factor other than 1.
        greatest_factor: Of all.
    """

    chains: int
    channels: int
    greatest_factor: float


@dataclass(frozen=True, slots=True)
class RoundedLayer:
    """One layer with rounded weights.

    Attributes:
        layer: Layer id.
        sqnr_db: Of its output in the simulated int8 network, before it is rounded itself.
    """

    layer: str
    sqnr_db: float


@dataclass(frozen=True, slots=True)
class RoundingReport:
    """What rounding weights on data did.

    Attributes:
        layers: In execution order.
        cases: Calibration cases that were used.
        output_sqnr_db: Of the simulated int8 network on these very cases, one per output.
    """

    layers: tuple[RoundedLayer, ...]
    cases: int
    output_sqnr_db: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class QuantizationRecord:
    """How an artifact was quantized.

    Attributes:
        recipe: What was asked for.
        calibration: The data; None where the recipe measures nothing.
        source: Path of the float artifact that it was made from; None where one was made for it alone.
        held_out: Cases for parity that no range was measured on; None where there are none.
        equalise: What evening out channels did; None where it was not done.
        rounding: What rounding weights on data did; None where each weight was rounded to its nearest step.
    """

    recipe: RecipeRecord
    calibration: CalibrationRecord | None = None
    source: str | None = None
    held_out: HeldOutCases | None = field(default=None, metadata={"key": "set_aside"})
    equalise: EqualiseReport | None = None
    rounding: RoundingReport | None = None


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file that was asked for and could not be written.

    Attributes:
        path: Where it would be, relative to the bundle.
        format: Its format.
        precision: Its precision, or the name of its recipe.
        reason: What its making said, in one line.
        target_cpu: The CPU family that it would be for; None where forms do not differ.
        operators: What the format cannot have, in execution order; empty where something else is the reason.
    """

    path: str
    format: Format
    precision: str
    reason: str
    target_cpu: TargetCpu | None = None
    operators: tuple[RefusedOperator, ...] = ()

    def __str__(self) -> str:
        return " ".join(filter(None, (self.format.value, self.precision, self.target_cpu)))


@dataclass(frozen=True, slots=True)
class ConfigRecord:
    """The file that said what to build.

    Attributes:
        name: Its name, without the folders that it lay in.
        sha256: Of its text.
    """

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        model: Name, preprocessing, labels, hash of the weights.
        inputs: Of the reference: NCHW float32.
        outputs: Of the reference.
        artifacts: In the order of their making.
        golden: In the order of the golden files.
        files: sha256 of every other file by its path relative to the bundle; reports are left out.
        fold: What BatchNorm folding did.
        bake: What became of the normalisation; None where the app normalises.
        lowering: By artifact, what lowering did: attention blocks with their forms, near misses, greatest error.
        quantization: By artifact, how it was quantized; float artifacts have no entry.
        tool_versions: Of everything that had a hand in it.
        command: The command line that made it.
        golden_source: What the images of the golden inputs are, in words; empty where there are none.
        commands: That and every further one that wrote files into it, in their order.
        stages: What was done, with seconds.
        notes: What was assumed, renamed or left out, for the user to read.
        source_sha256: The model's, once more where other tools look for it.
        regions: By output, the parts that different operators make; outputs of one part are left out.
        output_kinds: What each output is, as the user says or the graph proves; the others are not known.
        refused: Files that were asked for and could not be written; without them the bundle is not whole.
        limits: For how old a runtime its files were asked for; what is quantized later keeps to it.
        config: The file that said what the last export was to write; None where the command line did.
    """

    VERSION: ClassVar[int] = 1

    model: ModelSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    artifacts: tuple[Artifact, ...] = field(default=(), metadata=REQUIRED)
    golden: tuple[GoldenCase, ...] = field(default=(), metadata=REQUIRED)
    files: Mapping[str, str] = field(default_factory=dict, metadata=REQUIRED)
    fold: FoldReport | None = None
    reparameterized: tuple[MergedBranches, ...] | None = None
    bake: BakeReport | None = None
    lowering: Mapping[str, LoweringReport] = field(default_factory=dict)
    quantization: Mapping[str, QuantizationRecord] = field(default_factory=dict)
    tool_versions: Mapping[str, str] = field(default_factory=dict, metadata=REQUIRED)
    command: str = field(default="", metadata=REQUIRED)
    stages: tuple[Stage, ...] = field(default=(), metadata=REQUIRED)
    notes: tuple[str, ...] = ()
    source_sha256: str = ""
    regions: Mapping[str, tuple[OutputRegion, ...]] = field(default_factory=dict)
    output_kinds: Mapping[str, OutputKind] = field(default_factory=dict)
    refused: tuple[RefusedFile, ...] = ()
    commands: tuple[str, ...] = ()
    golden_source: str = ""
    limits: RuntimeLimits = NO_LIMITS
    config: ConfigRecord | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "source_sha256", self.model.source_sha256)

    def with_command(self, command: str) -> Self:
        """Return the manifest with a further command line that wrote files into the bundle."""
        known = self.commands or (self.command,)  # of older versions the one that made it
        return replace(self, commands=tuple(text for text in dict.fromkeys([*known, command]) if text))

    def dump(self) -> str:
        """Return the manifest as one JSON document, ``schema_version`` first."""
        return dump(self, indent=2)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``dump`` wrote.

        Raises:
            BundleError: It is not JSON, of another schema, or an entry is missing or misshapen; the text says which.
        """
        try:
            document = parse_object(text)
            version = document.get("schema_version")
            if version != cls.VERSION:
                raise BundleError(
                    f"manifest.json: schema_version is {version!r}, this tool reads {cls.VERSION};"
                    " open it with the version of coordatt-deploy that wrote it"
                )
            return from_json(cls, document)
        except DocumentError as error:
            raise BundleError(f"manifest.json is damaged: {error}") from None
