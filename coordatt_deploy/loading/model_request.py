"""What is asked for: the model as the user names it, and everything said of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from coordatt_deploy.loading.sizes import Bounds

SMALLEST: Final = (
    32  # pixels: the total stride of the package's backbones; below it the last feature map would be empty
)


LONGEST_NAME: Final = 100  # letters; file systems take 255 bytes, and precision and CPU come behind


COLOUR: Final = 3  # channels


USUAL_SIZE: Final = (224, 224)


GOLDEN_COUNT: Final = 16  # of the user's own images; each costs a float64 run, and sixteen are as many as the digits


Images = tuple[tuple[str, Image.Image, int | None], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What the user says of the model; everything but ``model`` may be left out.

    Attributes:
        model: One of the forms at the top of this module.
        checkpoint: Weights of the user's own.
        checkpoint_key: The entry of the checkpoint that holds the state dict; None to find it.
        model_args: Keyword arguments of the factory (or of timm).
        input_size: (H, W) of the images.
        dynamic: Bounds of a dynamic height and width.
        inputs: Shape of each input by name, batch first, where they are not all images.
        num_classes: Number of logits.
        preprocessing: Keys of ``specs.Preprocessing`` that differ from the model's own.
        labels: Class names in the order of the logits.
        golden: Folder of images for the golden inputs.
        name: What the model is called in file names; None for what it is called in the code.
    """

    model: str
    checkpoint: Path | None = None
    checkpoint_key: str | None = None
    model_args: Mapping[str, Any] | None = None
    input_size: tuple[int, int] | None = None
    dynamic: Bounds | None = None
    inputs: Mapping[str, tuple[int, ...]] | None = None
    num_classes: int | None = None
    preprocessing: Mapping[str, Any] | None = None
    labels: tuple[str, ...] | None = None
    golden: Path | None = None
    name: str | None = None
