"""The types that travel between the stages: frozen, small, and valid from birth.

Shapes are batch first. Sizes are (height, width) in pixels, bytes are bytes, times carry their unit in the name.
``to_json`` and the ``from_json`` constructors are the only way in and out of a document.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from coordatt_deploy import __version__
from coordatt_deploy.documents import DocumentError, JsonObject, from_json, to_json
from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.runtime_versions import RuntimeNeeds


class RangeMethod(enum.StrEnum):
    """How the range of an activation follows from its values on the calibration data."""

    MIN_MAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"


class Origin(enum.StrEnum):
    """How a figure came about: on the real runtime here, under QEMU, or by evaluating a saved ML Program."""

    MEASURED = "measured"
    EMULATED = "emulated"
    EVALUATED = "evaluated"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of an artifact.

    Attributes:
        name: Stable name in every format, e.g. ``image``.
        shape: Axis sizes, batch first; None for a dynamic axis.
        dtype: NumPy's name, e.g. ``float32``.
        layout: Axis letters, e.g. ``NCHW``, ``NHWC``, ``NC``.
        scale: Step of the quantization grid; None for a float tensor.
        zero_point: Integer that stands for 0.0; None for a float tensor.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    layout: str
    scale: float | None = None
    zero_point: int | None = None

    def __post_init__(self) -> None:
        if (self.scale is None) != (self.zero_point is None):
            raise ValueError(f"{self.name}: give scale and zero_point, or neither")


COLOURS: Final[Mapping[str, int | None]] = {"RGB": 3, "BGR": 3, "GREY": 1, "OTHER": None}
"""Kinds of channels and how many there are; None for any number."""


def colour_of(channels: int) -> str:
    """Return what channels are taken for where nothing is said of them: RGB, grey, or others."""
    return {3: "RGB", 1: "GREY"}.get(channels, "OTHER")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an 8-bit image becomes the input tensor: resize, crop, scale to ``input_range``, normalise.

    ``tensor = (low + pixel / 255 * (high - low) - mean) / std``, per channel.

    Attributes:
        size: Height and width of the input tensor, in pixels.
        mean: Per channel, in units of ``input_range``; as many as the tensor has channels.
        std: Per channel, in units of ``input_range``.
        colour: ``RGB`` or ``BGR``, into which grey images are replicated; ``GREY`` for one channel, to which colours
            are weighted (ITU-R 601); ``OTHER`` for channels that no image file gives.
        resize: ``bilinear``, ``bicubic`` or ``nearest`` (Pillow's filters of these names).
        crop: ``none`` (the whole image is stretched to ``size``), ``center`` (it is resized to cover
            ``size / crop_ratio`` and cut), ``squash`` (stretched to ``size / crop_ratio`` and cut) or ``border``
            (resized to lie within ``size / crop_ratio``, laid on the colour of the mean and cut).
        crop_ratio: Not for ``none``: size / size of the image after resizing; e.g. 0.875. Above 1 black is added
            around.
        input_range: What pixel values 0 and 255 become before normalising.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    colour: str = "RGB"
    resize: str = "bilinear"
    crop: str = "none"
    crop_ratio: float = 1.0
    input_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for field, known in (("colour", tuple(COLOURS)), ("resize", ("bilinear", "bicubic", "nearest")),
                             ("crop", ("none", "center", "squash", "border"))):  # fmt: skip
            value = getattr(self, field)
            if value not in known:
                raise UsageError(f"preprocessing: {field} is {value!r}; {nearest(str(value), known)}")
        needed = COLOURS[self.colour] or len(self.mean)
        if not needed or len(self.mean) != needed or len(self.std) != needed:
            raise UsageError(
                f"preprocessing: {self.colour} needs as many means and stds as channels,"
                f" {COLOURS[self.colour] or 'at least one'}; got {self.mean} and {self.std}"
            )
        if not all(math.isfinite(v) for v in self.mean) or not all(math.isfinite(v) and v > 0 for v in self.std):
            raise UsageError(f"preprocessing: mean {self.mean} must be finite and std {self.std} positive")
        if not 0 < self.crop_ratio <= 2:
            raise UsageError(f"preprocessing: crop_ratio is {self.crop_ratio}; it lies above 0 and up to 2")

    @property
    def takes_images(self) -> bool:
        """Whether an image file gives what the tensor holds."""
        return self.colour != "OTHER"

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Read what ``to_json`` wrote; an unknown key is refused by name.

        Raises:
            UsageError: A key or a value is not one of preprocessing.
            DocumentError: A value is missing or of another kind.
        """
        if not isinstance(document, Mapping):
            raise DocumentError("preprocessing is not an object")
        known = {field.name for field in dataclasses.fields(cls)}
        for key in document:
            if key not in known:
                raise UsageError(f"preprocessing: unknown key {key!r}; {nearest(key, known)}")
        return from_json(cls, document)


class OutputKind(enum.StrEnum):
    """What an output is, which decides how it is judged."""

    SCORES = "scores"
    """A number per class: the greatest must be the same."""
    BOXES = "boxes"
    """Places and sizes."""
    MASK = "mask"
    """A class per pixel, or a map of scores for each class: the class of each pixel must be the same."""
    EMBEDDING = "embedding"
    """A vector to be compared with others: which of its numbers is the greatest says nothing."""
    OTHER = "other"
    """Not known; judged as scores where it has the shape of scores."""


@dataclass(frozen=True, slots=True)
class OutputRegion:
    """A part of an output that one operator makes.

    Attributes:
        layer: Id of the layer that makes it.
        axes: Its places on each axis of the output; None for all of an axis.
        operator: That makes it (``sigmoid``); None where its values were scaled or shifted afterwards.
    """

    layer: str
    axes: tuple[tuple[int, ...] | None, ...]
    operator: str | None = None


@dataclass(frozen=True, slots=True)
class About:
    """What the user says of a model for whoever opens its files; None where nothing was said.

    Attributes:
        author: Of the model.
        license: That it is given under.
        description: One or a few sentences.
    """

    author: str | None = None
    license: str | None = None
    description: str | None = None

    def said(self) -> dict[str, str]:
        """Return what was said, by the names of the fields."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value}


NOTHING_SAID: Final = About()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is known of a model beside its weights.

    Attributes:
        name: ``mobilenetv2_ca_035.digits``, or what the user calls theirs; it becomes part of file names.
        preprocessing: How an image becomes the input tensor.
        labels: Class names in the order of the logits; None where unknown.
        attention: Name of the attention block, e.g. ``coordatt``; None without.
        source_sha256: Hash of the weights (names, shapes and bytes) that everything was made from.
        pixels: Whether normalisation is part of the network, so that it takes 8-bit RGB or grey pixels as they are.
        untrained: Whether its weights are known to be random, so that the classes it names mean nothing.
        about: Author, licence and description in the user's own words.
        input_layout: ``NCHW`` or ``NHWC``, in which files take images; None for each format's usual one.
    """

    name: str
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    attention: str | None = None
    source_sha256: str = ""
    pixels: bool = False
    untrained: bool = False
    about: About = NOTHING_SAID
    input_layout: str | None = None


@dataclass(frozen=True, slots=True)
class AppValue:
    """What an app gives to a file or gets of it.

    Attributes:
        name: As the app spells it.
        type: ``image``, ``multi-array``, ``text``, ``numbers by text`` or ``numbers by whole number``.
        meaning: What the file itself says of it.
    """

    name: str
    type: str
    meaning: str


@dataclass(frozen=True, slots=True)
class AppInterface:
    """What an app meets, where that is not the tensors: Core ML's images and classifiers."""

    inputs: tuple[AppValue, ...]
    outputs: tuple[AppValue, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file (or folder, for Core ML) that a runtime opens, as the manifest describes it.

    Attributes:
        path: Relative to the bundle, with forward slashes.
        recipe: Name of the quantization recipe, e.g. ``static_wi8_ai8``; None for float.
        target_cpu: The CPU family of its form; None where the form is the same for all.
        bytes: Size on disk; of all files of a package together.
        sha256: Of the file, or of the package's sorted relative paths and contents.
        inputs: The tensors that it takes.
        outputs: The tensors that it computes.
        layers: Path of the layer map, relative to the bundle.
        app: What an app gives and gets instead of these tensors; None where it is the tensors.
        needs: Of the runtime that opens it; None in bundles of older versions.
    """

    path: str
    format: Format
    precision: Precision
    recipe: str | None
    target_cpu: TargetCpu | None
    bytes: int
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: str
    app: AppInterface | None = None
    needs: RuntimeNeeds | None = None

    @property
    def order(self) -> tuple[int, str]:
        """Where it stands in lists: by format, then by path."""
        return list(Format).index(self.format), self.path


def metadata(spec: ModelSpec, target_cpu: TargetCpu | None = None) -> JsonObject:
    """Return what every artifact carries in its format's metadata, as plain JSON data.

    Keys: ``model``, ``source_sha256``, ``preprocessing``, ``labels``, ``target_cpu``, ``producer``, and where the user
    said so ``author``, ``license`` and ``description``. No path, no time.
    """
    return {
        "model": spec.name,
        "source_sha256": spec.source_sha256,
        "preprocessing": to_json(spec.preprocessing),
        "labels": to_json(spec.labels),
        "attention": spec.attention,
        "target_cpu": to_json(target_cpu),
        "producer": f"coordatt-deploy {__version__}",
        **spec.about.said(),
    }
