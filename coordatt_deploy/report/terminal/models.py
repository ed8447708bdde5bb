"""The models as a table."""

from collections.abc import Sequence

from coordatt_deploy.models import ModelCard
from coordatt_deploy.models.registry import ATTENTION_BLOCKS
from coordatt_deploy.report.terminal.console import count, line, new_console, new_table


def show_models(cards: Sequence[ModelCard]) -> None:
    """The models, a section per family and, where each width has several, per width; 80 columns hold every row."""
    table = new_table("Models", "name", "block", "parameters", "MACs", "input", right=("parameters", "MACs"))
    sections = {_section(card) for card in cards}
    by_width = len(cards) >= 2 * len(sections)
    for card, following in zip(cards, [*cards[1:], None], strict=True):
        height, width = card.input_size
        table.add_row(
            card.name,
            "–" if card.attention is None else ATTENTION_BLOCKS[card.attention].tag or card.attention,
            count(card.parameters),
            f"{card.macs / 1e6:.1f} M",
            f"{height}x{width}",
            end_section=following is not None and _section(following)[: 1 + by_width] != _section(card)[: 1 + by_width],
        )
    console = new_console()
    console.print(table)
    console.print(line("MACs: of convolutions and linear layers, as papers count them; inspect counts pools, gates and"
                       " activations as well", style="dim"))  # fmt: skip
    trained = [card.name for card in cards if card.trained]
    if trained:
        brings = f"{' and '.join(trained)} bring{'s' * (len(trained) == 1)} trained weights"
        console.print(line(f"{brings}; for the others give a --checkpoint"))


def _section(card: ModelCard) -> tuple[str, tuple[float, bool]]:
    return card.architecture, (card.width, card.trained)
