"""What attention costs, as Markdown."""

from coordatt_deploy.attention_cost.result import AttentionCost
from coordatt_deploy.report.attention_cost_tables import footnote, label, tables
from coordatt_deploy.report.markdown import cell


def cost_markdown(cost: AttentionCost) -> str:
    """Return every table, what could not be written, and where the figures come from."""
    lines: list[str] = []
    for table in tables(cost):
        lines += [f"### {cell(table.title)}", "", _row(table.columns)]
        lines.append("|---|" + "--:|" * (len(table.columns) - 1))
        lines += [*map(_row, table.rows), ""]
    for row, file in cost.refused:
        name = f"{row.backbone}, {label(row)}: {file.export} {file.format} {file.precision}"
        lines += [f"- {cell(name)}: not written: {cell(file.refused)}"]
    if cost.refused:
        lines.append("")
    return "\n".join([*lines, cell(footnote(cost)), ""])


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(cell, cells))} |"
