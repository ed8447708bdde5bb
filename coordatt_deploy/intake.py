"""From what the user names to a module with its weights, and what is known of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import nn

from coordatt_deploy.capture import check_weights, weights_sha256
from coordatt_deploy.errors import UsageError
from coordatt_deploy.models import create_model, model_card
from coordatt_deploy.models.digits import read_split
from coordatt_deploy.specs import ModelSpec

SMALLEST: Final = 32  # pixels: the total stride of these backbones; below it the last feature map would be empty
LARGEST: Final = 4096  # pixels: one float32 image of this size is 200 MB, and an activation of the first stage 1 GB


@dataclass(frozen=True, slots=True)
class Source:
    """A model ready to be captured.

    Attributes:
        module: In evaluation mode, float32.
        spec: Its name, preprocessing, labels and the hash of its weights.
        example: One tensor per input.
        images: Real images for the golden inputs: name, image, class.
    """

    module: nn.Module
    spec: ModelSpec
    example: tuple[torch.Tensor, ...]
    images: tuple[tuple[str, Image.Image, int | None], ...]


def load_model(
    name: str,
    *,
    checkpoint: Path | None = None,
    input_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
) -> Source:
    """Build the model called *name*, with the weights of *checkpoint* if one is given.

    Args:
        name: One of ``models.list_models()``.
        checkpoint: A ``.safetensors`` file, or one that ``torch.load`` reads with ``weights_only``.
        input_size: Height and width; None for the model's own.
        num_classes: Number of logits; None for the card's, or for what the checkpoint holds.

    Raises:
        UsageError: Unknown model, a size it cannot take, or a checkpoint that does not fit.
    """
    card = model_card(name)
    state = None if checkpoint is None else read_checkpoint(checkpoint)
    classes = num_classes or (None if state is None else _classes(state))
    try:
        module = create_model(name, num_classes=classes, pretrained=False if state is not None else None)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{name} cannot be built with {classes} classes: {error}") from None
    if state is not None and checkpoint is not None:
        fit(module, state, checkpoint.name)
    check_weights(module)
    size = check_size(input_size or card.input_size)
    keeps = state is None and classes in (None, card.num_classes)
    spec = ModelSpec(
        name=name,
        preprocessing=replace(card.preprocessing, size=size),
        labels=card.labels if keeps else None,
        attention=card.attention,
        source_sha256=weights_sha256(module),
    )
    generator = torch.Generator().manual_seed(0)
    return Source(module, spec, (torch.randn(1, 3, *size, generator=generator),), golden_images(card.trained and keeps))


def golden_images(labelled: bool) -> tuple[tuple[str, Image.Image, int | None], ...]:
    """Return the packaged golden digits; their classes only where the model knows digits."""
    split = read_split("golden")
    return tuple(
        (f"digit_{label}_{index:02d}", image, int(label) if labelled else None)
        for index, (label, image) in enumerate(zip(split.labels, split.images(), strict=True))
    )


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """Refuse sizes that the backbones cannot take.

    Raises:
        UsageError: Smaller than ``SMALLEST`` or larger than ``LARGEST``.
    """
    for what, value in zip(("height", "width"), size, strict=True):
        if not SMALLEST <= value <= LARGEST:
            raise UsageError(f"input {what} is {value} pixels; it must lie between {SMALLEST} and {LARGEST}")
    return size


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict; no code in the file is run.

    Raises:
        UsageError: The file is missing, truncated, holds code, or holds no state dict.
    """
    if not path.is_file():
        raise UsageError(f"checkpoint {path} does not exist; name a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(_why_unreadable(path, error)) from error
    for wrapper in ("state_dict", "model", "ema"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise UsageError(f"checkpoint {path.name} holds no state dict (names to tensors), but {_describe(loaded)}")
    return {str(key): value for key, value in loaded.items()}


def _why_unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    if "weights_only" in text.lower() or "Unsupported global" in text or "Unsupported class" in text:
        return (
            f"checkpoint {path.name} holds pickled code or objects, which are never run here;"
            " save its state dict alone: torch.save(model.state_dict(), path)"
        )
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    what = f"{type(error).__name__}: {first[:200]}"
    return f"checkpoint {path.name} cannot be read; is it truncated or of another kind? ({what})"


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, list(value)[:5])) or 'nothing in it'}"
    return f"a {type(value).__name__}"


def _classes(state: Mapping[str, torch.Tensor]) -> int | None:
    for key in ("classifier.1.weight", "classifier.weight"):
        tensor = state.get(key)
        if tensor is not None and tensor.ndim == 2:
            return int(tensor.shape[0])
    return None


def fit(module: nn.Module, state: Mapping[str, torch.Tensor], file: str) -> None:
    """Load *state* into *module*.

    Raises:
        UsageError: Keys are missing, unexpected or of another shape; all kinds are listed.
    """
    own = module.state_dict()
    renamed = {
        (
            f"classifier.1.{key.removeprefix('classifier.')}"
            if key in {"classifier.weight", "classifier.bias"}
            else key
        ): v
        for key, v in state.items()
    }
    missing = [key for key in own if key not in renamed and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in renamed if key not in own]
    misshapen = [
        f"{key} {tuple(renamed[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in renamed and renamed[key].shape != own[key].shape
    ]
    if missing or unexpected or misshapen:
        parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        text = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in parts if keys)
        raise UsageError(f"checkpoint {file} does not fit the model: {text}")
    module.load_state_dict({key: value.to(own[key].dtype) for key, value in renamed.items()}, strict=False)


def _some(keys: Sequence[str], count: int = 6) -> str:
    more = f" and {len(keys) - count} more" if len(keys) > count else ""
    return ", ".join(keys[:count]) + more
