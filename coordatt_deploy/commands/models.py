"""``coordatt-deploy models``."""

import click

from coordatt_deploy.commands.options import json_option
from coordatt_deploy.commands.output import print_document
from coordatt_deploy.documents import JsonObject, to_json
from coordatt_deploy.errors import UsageError
from coordatt_deploy.models import ModelCard, list_models, model_card
from coordatt_deploy.models.registry import ARCHITECTURES, ATTENTION_BLOCKS, TAGS, attention_kind

PLAIN = "none"


@click.command()
@click.option(
    "--attention",
    metavar="BLOCK",
    help=f"Only models with this attention block: {', '.join(TAGS)}, or {PLAIN} for the plain backbones.",
)
@click.option("--family", type=click.Choice(tuple(ARCHITECTURES)), help="Only models of this family.")
@json_option
def models(attention: str | None, family: str | None, as_json: bool) -> None:
    """List backbones, detectors and segmentation nets, with parameters and multiply-accumulates.

    \b
    Example:
        coordatt-deploy models --attention eca
    """
    cards = [model_card(name) for name in list_models()]
    if family is not None:
        cards = [card for card in cards if card.architecture == family]
    if attention is not None:
        kind = None if attention == PLAIN else attention_kind(attention)
        cards = [card for card in cards if card.attention == kind]
        if not cards:
            blocks = [name for name, block in ATTENTION_BLOCKS.items() if block.tag is not None]
            raise UsageError(
                f"no model is named after {attention}; give a backbone --model-args"
                f' \'{{"attention": "{attention}"}}\' instead. Models have: {", ".join(blocks)}'
            )
    if as_json:
        print_document({"models": [_described(card) for card in cards]})
        return
    from coordatt_deploy.report.terminal.models import show_models  # rich, see coordatt_deploy.cli

    show_models(cards)


def _described(card: ModelCard) -> JsonObject:
    return {
        "name": card.name,
        "family": card.architecture,
        "attention": card.attention,
        "parameters": card.parameters,
        "macs": card.macs,
        "task": card.task,
        "trained": card.trained,
        "input_size": to_json(card.input_size),
        "num_classes": card.num_classes,
    }
