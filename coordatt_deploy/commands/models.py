"""``coordatt-deploy models``."""

import click

from coordatt_deploy.commands.options import json_option
from coordatt_deploy.commands.output import print_document
from coordatt_deploy.documents import JsonObject, to_json
from coordatt_deploy.models import ModelCard, list_models, model_card


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the backbones, with parameters and multiply-accumulates.

    \b
    Example:
        coordatt-deploy models --json
    """
    cards = [model_card(name) for name in list_models()]
    if as_json:
        print_document({"models": [_described(card) for card in cards]})
        return
    from coordatt_deploy.report.terminal.models import show_models  # rich, see coordatt_deploy.cli

    show_models(cards)


def _described(card: ModelCard) -> JsonObject:
    return {
        "name": card.name,
        "parameters": card.parameters,
        "macs": card.macs,
        "attention": card.attention,
        "trained": card.trained,
        "input_size": to_json(card.input_size),
        "num_classes": card.num_classes,
    }
