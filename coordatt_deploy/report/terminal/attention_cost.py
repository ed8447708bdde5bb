"""What attention costs, on the terminal."""

from typing import Final

from coordatt_deploy.attention_cost.result import AttentionCost
from coordatt_deploy.report.attention_cost_tables import footnote, label, tables
from coordatt_deploy.report.terminal.console import line, new_console, new_table

WIDE: Final = 110  # columns that the widest table needs


def show_cost(cost: AttentionCost) -> None:
    """A table for each figure and kind of file; a narrow terminal leaves out milliseconds."""
    console = new_console()
    for table in tables(cost):
        left_out = table.extra if console.width < WIDE else ()
        shown = [index for index in range(len(table.columns)) if index not in left_out]
        # two columns may have one name, so columns are added by their place
        drawn = new_table(table.title)
        for index in shown:
            drawn.add_column(line(table.columns[index]), justify="right" if index else "left", overflow="fold")
        for cells in table.rows:
            drawn.add_row(*(cells[index] for index in shown))
        console.print(drawn)
    for row, file in cost.refused:
        parts = (file.format, file.precision, file.target_cpu)
        name = f"{row.backbone}, {label(row)}: {file.export} {' '.join(part for part in parts if part)}"
        console.print(line(f"{name}: not written: {file.refused}", style="yellow"))
    for row in cost.rows:
        for file in row.files:
            if file.latency is not None and file.latency.verdict != "stable":
                name = f"{row.backbone}, {label(row)}: {file.export} {file.format} {file.precision}"
                reason = f"{file.latency.verdict}: {file.latency.reason}"
                console.print(line(f"{name}: {reason}", style="yellow"))
    if cost.interrupted:
        console.print(line("interrupted: these are the samples taken until then", style="yellow"))
    console.print(line(footnote(cost), style="dim"))
