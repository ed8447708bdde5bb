"""The models as a table."""

from collections.abc import Sequence

from coordatt_deploy.models import ModelCard
from coordatt_deploy.models.registry import ATTENTION_BLOCKS
from coordatt_deploy.plurals import verb
from coordatt_deploy.report.terminal.console import count, new_console, say
from coordatt_deploy.report.terminal.tables import Column, listed, show_table


def show_models(cards: Sequence[ModelCard]) -> None:
    """The models, a section per family and, where each width has several, per width; 80 columns hold every row."""
    columns = (
        Column("name"), Column("block"), Column("parameters", right=True), Column("MACs", right=True), Column("input"),
    )  # fmt: skip
    sections = {_section(card) for card in cards}
    by_width = len(cards) >= 2 * len(sections)
    rows, ends = [], []
    for number, (card, following) in enumerate(zip(cards, [*cards[1:], None], strict=True)):
        height, width = card.input_size
        block = "–" if card.attention is None else ATTENTION_BLOCKS[card.attention].tag or card.attention
        rows.append((card.name, block, count(card.parameters), f"{card.macs / 1e6:.1f} M", f"{height}x{width}"))
        if following is not None and _section(following)[: 1 + by_width] != _section(card)[: 1 + by_width]:
            ends.append(number)
    console = new_console()
    show_table(console, "Models", columns, rows, sections=ends)
    text = "MACs: of convolutions and linear layers, as papers count them; inspect counts pools, gates and activations"
    say(console, f"{text} as well", style="dim")
    trained = [card.name for card in cards if card.trained]
    if trained:
        brings = f"{listed(trained)} {verb(len(trained), 'brings')} trained weights"
        say(console, f"{brings}; for the others give a --checkpoint")


def _section(card: ModelCard) -> tuple[str, tuple[float, bool]]:
    return card.architecture, (card.width, card.trained)
