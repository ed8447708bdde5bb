"""Build a backbone by name, with its trained weights where it has some."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.models.attention_options import AttentionOptions, Place
from coordatt_deploy.models.building_blocks import AttentionBuilder
from coordatt_deploy.models.cards import Attention, ModelCard
from coordatt_deploy.models.registry import (
    ARCHITECTURES,
    ATTENTION_BLOCKS,
    chosen_attention,
    chosen_switches,
    model_card,
)

NO_SWITCHES: Final[Mapping[str, bool]] = MappingProxyType({})


class ArchitectureBuilder(Protocol):
    """What ``registry.ARCHITECTURES`` names."""

    def __call__(
        self, *, width: float, num_classes: int, attention: AttentionBuilder | None, place: Place, **switches: bool
    ) -> nn.Module:
        """Build a network; *attention* builds the block of one place, *switches* are the architecture's own."""


class BlockBuilder(Protocol):
    """What ``registry.ATTENTION_BLOCKS`` names."""

    def __call__(self, channels: int, options: AttentionOptions) -> nn.Module:
        """Build a block; *options* are of the block's own class."""


@dataclass(frozen=True, slots=True)
class _Blocks:
    """An ``AttentionBuilder`` of one kind of block."""

    builder: BlockBuilder
    options: AttentionOptions

    def __call__(self, channels: int, *, expansion: int = 1) -> nn.Module:
        return self.builder(channels, self.options.within(expansion))


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool | None = None,
    seed: int = 0,
    **choices: object,
) -> nn.Module:
    """Build the model called *name* in evaluation mode.

    Args:
        name: One of ``list_models()``.
        num_classes: Number of logits; None for the card's own.
        pretrained: Whether to load the trained weights; None: wherever the model has some.
        seed: Fresh weights are drawn from this seed, so that the same call gives the same network. The random state
            of the caller is left alone.
        choices: Of attention, instead of the card's: ``attention`` (another block), ``place``, and options of the
            block, such as ``reduction`` and ``activation``; see ``attention_options``. Of the architecture, what its
            ``switches`` are, such as ``decode``. None leaves the card's.

    Raises:
        UsageError: No such model; an option that doesn't fit it or its trained weights; damaged weights.
    """
    card = model_card(name)
    switches, others = chosen_switches(card, {key: value for key, value in choices.items() if value is not None})
    attended = chosen_attention(card, others)
    return build(card, attended, num_classes=num_classes, pretrained=pretrained, seed=seed, switches=switches)


def build(
    card: ModelCard,
    attended: Attention | None,
    *,
    num_classes: int | None = None,
    pretrained: bool | None = None,
    seed: int = 0,
    switches: Mapping[str, bool] = NO_SWITCHES,
) -> nn.Module:
    """Build the model of *card* with the attention *attended* instead of its own; see ``create_model``."""
    if pretrained is None:
        pretrained = card.trained
    _check_options(card, num_classes, attended, pretrained=pretrained)
    architecture = ARCHITECTURES[card.architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = cast(ArchitectureBuilder, _find(architecture.builder))(
            width=card.width,
            num_classes=card.num_classes if num_classes is None else num_classes,
            attention=None if attended is None else _blocks(attended),
            place=architecture.places[0] if attended is None else attended.place,
            **switches,
        )
    if pretrained:
        network.load_state_dict(read_weights(card.weights_path, card.recipe()["weights"]["sha256"]))
    return network.eval()


def create_attention(kind: str, channels: int, **options: object) -> nn.Module:
    """Build one attention block in evaluation mode.

    Args:
        kind: Key of ``registry.ATTENTION_BLOCKS``.
        channels: Of the feature map, in and out.
        options: Of the block, by name; see ``attention_options``.

    Raises:
        UsageError: No such block or option.
    """
    if kind not in ATTENTION_BLOCKS:
        raise UsageError(f"unknown attention block {kind!r}; {nearest(kind, ATTENTION_BLOCKS)}")
    block = ATTENTION_BLOCKS[kind]
    return cast(BlockBuilder, _find(block.builder))(channels, block.options.changed(options)).eval()


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


def _check_options(card: ModelCard, num_classes: int | None, attended: Attention | None, *, pretrained: bool) -> None:
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"num_classes is {num_classes}; it must be a whole number of at least 1")
    if not pretrained:
        return
    if not card.trained:
        raise UsageError(f"{card.name} has no trained weights; leave pretrained out to get fresh ones")
    if num_classes not in (None, card.num_classes) or attended != card.attended:
        raise UsageError(
            f"the trained weights of {card.name} need num_classes={card.num_classes} and the attention that they were"
            f" trained with ({card.attended}); use pretrained=False to get fresh weights of another shape"
        )


def _blocks(attended: Attention) -> AttentionBuilder:
    return _Blocks(cast(BlockBuilder, _find(ATTENTION_BLOCKS[attended.kind].builder)), attended.options)


def _find(place: str) -> object:
    """Return the class at *place*, written "package.module:Class"."""
    module, _, attribute = place.partition(":")
    found: object = getattr(import_module(module), attribute)
    return found
