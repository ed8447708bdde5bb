"""What attention costs, on the terminal."""

from coordatt_deploy.attention_cost.result import AttentionCost
from coordatt_deploy.report.attention_cost_tables import CostTable, footnote, label, tables
from coordatt_deploy.report.terminal.console import new_console, say
from coordatt_deploy.report.terminal.tables import Column, show_table


def show_cost(cost: AttentionCost) -> None:
    """A table for each figure and kind of file; a narrow terminal leaves out milliseconds."""
    console = new_console()
    for table in tables(cost):
        columns = [Column(head, right=index > 0, rank=_rank(index, table)) for index, head in enumerate(table.columns)]
        show_table(console, table.title, columns, table.rows)
        console.print()
    for row, file in cost.refused:
        parts = (file.format, file.precision, file.target_cpu)
        name = f"{row.backbone}, {label(row)}: {file.export} {' '.join(part for part in parts if part)}"
        say(console, f"{name}: not written: {file.refused}", style="yellow")
    for row in cost.rows:
        for file in row.files:
            if file.latency is not None and file.latency.verdict != "stable":
                name = f"{row.backbone}, {label(row)}: {file.export} {file.format} {file.precision}"
                reason = f"{file.latency.verdict}: {file.latency.reason}"
                say(console, f"{name}: {reason}", style="yellow")
    if cost.interrupted:
        say(console, "interrupted: these are the samples taken until then", style="yellow")
    say(console, footnote(cost), style="dim")


def _rank(index: int, table: CostTable) -> int:
    """Milliseconds are left out before the comparison of the two files, which is the last of the extra columns."""
    if index not in table.extra:
        return 0
    return 1 if index == table.extra[-1] else 2
