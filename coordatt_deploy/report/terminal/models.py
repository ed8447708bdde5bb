"""The backbones as a table."""

from collections.abc import Sequence

from coordatt_deploy.models import ModelCard
from coordatt_deploy.report.terminal.console import count, new_console, new_table


def show_models(cards: Sequence[ModelCard]) -> None:
    """The backbones."""
    table = new_table(
        "Backbones", "name", "parameters", "MACs", "attention", "trained", "input size", right=("parameters", "MACs")
    )
    for card in cards:
        height, width = card.input_size
        table.add_row(
            card.name,
            count(card.parameters),
            f"{card.macs / 1e6:.1f} M",
            card.attention or "–",
            "yes" if card.trained else "no",
            f"{height}x{width}",
        )
    new_console().print(table)
