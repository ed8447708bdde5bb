"""Build a backbone by name, with its trained weights where it has some."""

import hashlib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from coordatt_deploy.errors import UsageError
from coordatt_deploy.models.registry import ARCHITECTURES, ATTENTION_BLOCKS, DEFAULT_REDUCTION, ModelCard, model_card


class Architecture(Protocol):
    """What ``registry.ARCHITECTURES`` names."""

    def __call__(self, *, width: float, num_classes: int, attention: Callable[[int], nn.Module] | None) -> nn.Module:
        """Build a network; *attention* builds a block for so many channels."""


class AttentionBlock(Protocol):
    """What ``registry.ATTENTION_BLOCKS`` names."""

    def __call__(self, channels: int, *, reduction: int) -> nn.Module:
        """Build a block."""


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    reduction: int | None = None,
    pretrained: bool | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build the model called *name* in evaluation mode.

    Args:
        name: One of ``list_models()``.
        num_classes: Number of logits; None for the card's own.
        reduction: The attention block squeezes to max(8, channels // reduction) channels; None for the paper's 32.
        pretrained: Whether to load the trained weights; None: wherever the model has some.
        seed: Fresh weights are drawn from this seed, so that the same call gives the same network. The random state
            of the caller is left alone.

    Raises:
        UsageError: No such model; an option that doesn't fit it or its trained weights; damaged weights.
    """
    card = model_card(name)
    if pretrained is None:
        pretrained = card.trained
    _check_options(card, num_classes, reduction, pretrained)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = cast(Architecture, _find(ARCHITECTURES[card.architecture]))(
            width=card.width,
            num_classes=card.num_classes if num_classes is None else num_classes,
            attention=_attention(card, DEFAULT_REDUCTION if reduction is None else reduction),
        )
    if pretrained:
        network.load_state_dict(read_weights(card.weights_path, card.recipe()["weights"]["sha256"]))
    return network.eval()


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Return the state dict in the safetensors file at *path*.

    Args:
        path: The file.
        sha256: Checksum that the file must have, in hexadecimal.

    Raises:
        UsageError: The file is missing or is not the one that the checksum was taken of.
    """
    remedy = "reinstall coordatt-deploy to restore it"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the trained weights {path}: {error.strerror}; {remedy}") from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise UsageError(f"the trained weights {path} are damaged: expected SHA-256 {sha256}, found {actual}; {remedy}")
    try:
        return load(content)
    except SafetensorError as error:
        raise UsageError(f"the trained weights {path} are no safetensors file ({error}); {remedy}") from error


def _check_options(card: ModelCard, num_classes: int | None, reduction: int | None, pretrained: bool) -> None:
    for option, value in (("num_classes", num_classes), ("reduction", reduction)):
        if value is not None and value < 1:
            raise UsageError(f"{option} is {value}; it must be a whole number of at least 1")
    if reduction is not None and card.attention is None:
        raise UsageError(f"{card.name} has no attention block, so reduction={reduction} means nothing; leave it out")
    if not pretrained:
        return
    if not card.trained:
        raise UsageError(f"{card.name} has no trained weights; leave pretrained out to get fresh ones")
    if num_classes not in (None, card.num_classes) or reduction not in (None, DEFAULT_REDUCTION):
        raise UsageError(
            f"the trained weights of {card.name} need num_classes={card.num_classes} and"
            f" reduction={DEFAULT_REDUCTION}; use pretrained=False to get fresh weights of another shape"
        )


def _attention(card: ModelCard, reduction: int) -> Callable[[int], nn.Module] | None:
    if card.attention is None:
        return None
    return partial(cast(AttentionBlock, _find(ATTENTION_BLOCKS[card.attention])), reduction=reduction)


def _find(place: str) -> object:
    """Return the class at *place*, written "package.module:Class"."""
    module, _, attribute = place.partition(":")
    found: object = getattr(import_module(module), attribute)
    return found
