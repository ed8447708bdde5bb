"""Every backbone by name, with its card. Standard library only: a listing needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.errors import UsageError, nearest

WEIGHTS_DIR: Final = Path(__file__).parent / "weights"

ATTENTION_BLOCKS: Final = {
    "coordatt": "coordatt_deploy.models.coordatt:CoordAtt",
}
"""Where each attention block is; it is called as block(channels, reduction=...)."""

ARCHITECTURES: Final = {
    "mobilenetv2": "coordatt_deploy.models.mobilenet_v2:MobileNetV2",
}
"""Where each architecture is; it is called as architecture(width=..., num_classes=..., attention=...)."""

DEFAULT_REDUCTION: Final = 32


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
class ModelCard:
    """What is known of a backbone without building it.

    Attributes:
        name: After timm's fashion, with trained weights as a tag: ``mobilenetv2_ca_035.digits``.
        architecture: Key of ``ARCHITECTURES``.
        width: Channel multiplier.
        attention: Key of ``ATTENTION_BLOCKS``; None for a plain backbone.
        parameters: Numbers that training adjusts, with *num_classes* logits.
        macs: Multiply-accumulates of convolutions and fully connected layers for one image of *input_size*.
        input_size: (H, W) in pixels.
        num_classes: Number of logits.
        preprocessing: What turns an image into the input.
        labels: One per logit; None where the weights are not trained.
        trained: Whether the weights ship with the package.
    """

    name: str
    architecture: str
    width: float
    attention: str | None
    parameters: int
    macs: int
    input_size: tuple[int, int]
    num_classes: int
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    trained: bool = False

    def __post_init__(self) -> None:
        if self.preprocessing.size != self.input_size:
            raise ValueError(f"{self.name}: preprocessing gives {self.preprocessing.size}, not {self.input_size}")
        if self.labels is not None and len(self.labels) != self.num_classes:
            raise ValueError(f"{self.name}: {len(self.labels)} labels for {self.num_classes} classes")

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
            raise UsageError(f"{self.name} has no trained weights; trained models are: {', '.join(trained_models())}")
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


def _imagenet_card(name: str, width: float, attention: str | None, parameters: int, macs: int) -> ModelCard:
    return ModelCard(
        name=name,
        architecture="mobilenetv2",
        width=width,
        attention=attention,
        parameters=parameters,
        macs=macs,
        input_size=(224, 224),
        num_classes=1000,
        preprocessing=IMAGENET,
    )


# The counts are those of the built network; the tests count again.
_CARDS: Final = (
    ModelCard(
        name="mobilenetv2_ca_035.digits",
        architecture="mobilenetv2",
        width=0.35,
        attention="coordatt",
        parameters=482_780,
        macs=11_174_960,
        input_size=(96, 96),
        num_classes=10,
        preprocessing=DIGITS,
        labels=tuple("0123456789"),
        trained=True,
    ),
    _imagenet_card("mobilenetv2_ca_100", 1.0, "coordatt", 3_950_648, 306_666_368),
    _imagenet_card("mobilenetv2_ca_075", 0.75, "coordatt", 2_891_631, 212_648_864),
    _imagenet_card("mobilenetv2_ca_050", 0.5, "coordatt", 2_095_568, 99_002_688),
    _imagenet_card("mobilenetv2_ca_035", 0.35, "coordatt", 1_750_970, 60_471_216),
    _imagenet_card("mobilenetv2_100", 1.0, None, 3_504_872, 300_774_272),
    _imagenet_card("mobilenetv2_075", 0.75, None, 2_636_424, 209_069_792),
    _imagenet_card("mobilenetv2_050", 0.5, None, 1_968_680, 97_131_840),
    _imagenet_card("mobilenetv2_035", 0.35, None, 1_677_128, 59_285_808),
)
MODELS: Final = {card.name: card for card in _CARDS}


def list_models() -> tuple[str, ...]:
    """Return the name of every model that ``create_model`` builds, the embedded default first."""
    return tuple(MODELS)


def trained_models() -> tuple[str, ...]:
    """Return the names of the models whose trained weights ship with the package."""
    return tuple(name for name, card in MODELS.items() if card.trained)


def model_card(name: str) -> ModelCard:
    """Return the card of the model called *name*.

    Raises:
        UsageError: There is no such model; the message holds the nearest names.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise UsageError(f"unknown model {name!r}; {nearest(name, MODELS)}") from None
