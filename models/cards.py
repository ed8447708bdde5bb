"""What is known of a model without building it. Standard library only: a listing needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypedDict

from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.errors import UsageError
from coordatt_deploy.models.attention_options import AttentionOptions, Place

Task = Literal["classification", "detection", "segmentation"]

WEIGHTS_DIR: Final = Path(__file__).parent / "weights"


class TrainedWeights(TypedDict):
    """What is known of a file of trained weights; *sha256* is its checksum in hexadecimal."""

    bytes: int
    dtype: str
    sha256: str


class TrainingRecipe(TypedDict):
    """How weights were trained and what they reach, as ``train_digits`` writes it beside them."""

    schema_version: int
    model: str
    command: str
    optimiser: str
    settings: dict[str, object]
    data: dict[str, object]
    accuracy: dict[str, dict[str, float]]
    weights: TrainedWeights
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention block as it stands in a backbone.

    Attributes:
        kind: Key of ``registry.ATTENTION_BLOCKS``.
        place: Where in each block of the backbone.
        options: Of the attention block.
    """

    kind: str
    place: Place
    options: AttentionOptions

    def __str__(self) -> str:
        return f"{self.kind} {self.place}, {self.options}"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model without building it.

    Attributes:
        name: After timm's fashion, with trained weights as a tag: ``mobilenetv2_ca_035.digits``.
        architecture: Key of ``registry.ARCHITECTURES``; the family.
        width: Channel multiplier.
        attended: Its attention; None for a plain backbone.
        parameters: Numbers that training adjusts, with *num_classes* logits.
        macs: Multiply-accumulates of convolutions, linear layers and matrix products for an image of *input_size*.
        input_size: (H, W) in pixels.
        num_classes: Number of logits; with the background, where there is one.
        preprocessing: What turns an image into the input.
        labels: One per logit; None where the weights are not trained.
        trained: Whether the weights ship with the package.
        dataset: The packaged data that they were trained on, ``digits`` or ``scenes``; None without weights.
        task: What it is for.
    """

    name: str
    architecture: str
    width: float
    attended: Attention | None
    parameters: int
    macs: int
    input_size: tuple[int, int]
    num_classes: int
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    trained: bool = False
    dataset: str | None = None
    task: Task = "classification"

    def __post_init__(self) -> None:
        if self.preprocessing.size != self.input_size:
            raise ValueError(f"{self.name}: preprocessing gives {self.preprocessing.size}, not {self.input_size}")
        if self.labels is not None and len(self.labels) != self.num_classes:
            raise ValueError(f"{self.name}: {len(self.labels)} labels for {self.num_classes} classes")

    @property
    def attention(self) -> str | None:
        """The kind of its attention block; None for a plain backbone."""
        return None if self.attended is None else self.attended.kind

    @property
    def weights_path(self) -> Path:
        """The file of the trained weights."""
        return WEIGHTS_DIR / f"{self.name}.safetensors"

    @property
    def recipe_path(self) -> Path:
        """The file that says how the weights were trained and what they reach."""
        return WEIGHTS_DIR / f"{self.name}.json"

    def recipe(self) -> TrainingRecipe:
        """Return how the weights were trained: seed, settings, split, accuracy, checksums.

        Raises:
            UsageError: The model has no trained weights.
        """
        if not self.trained:
            trained = sorted(path.stem for path in WEIGHTS_DIR.glob("*.safetensors"))
            raise UsageError(f"{self.name} has no trained weights; trained models are: {', '.join(trained)}")
        recipe: TrainingRecipe = json.loads(self.recipe_path.read_text(encoding="utf-8"))
        return recipe


IMAGENET: Final = Preprocessing(
    size=(224, 224),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    colour="RGB",
    resize="bilinear",
    crop="center",
    crop_ratio=0.875,
)
"""The usual evaluation rule of ImageNet classifiers: the paper's repository does not state its own."""

DIGITS: Final = Preprocessing(
    size=(96, 96),
    # To [-1, 1], whose int8 grid is the 8-bit pixel grid itself: one step is one grey level.
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    colour="RGB",
    resize="bilinear",
)


def stretched_to(size: tuple[int, int]) -> Preprocessing:
    """Return the rule of detection and segmentation: the whole image stretched to (H, W), ImageNet's mean and std."""
    return Preprocessing(size=size, mean=IMAGENET.mean, std=IMAGENET.std, colour="RGB", resize="bilinear")
