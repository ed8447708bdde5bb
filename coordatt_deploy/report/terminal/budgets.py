"""Verdicts on budgets, on the terminal."""

from typing import Final

from coordatt_deploy.release.budgets import Undecided
from coordatt_deploy.release.result import BudgetVerdict, CheckResult
from coordatt_deploy.report.terminal.console import line, new_console, new_table

STYLES: Final = {BudgetVerdict.WITHIN: "green", BudgetVerdict.EXCEEDED: "bold red", BudgetVerdict.UNDECIDED: "yellow"}
WIDE: Final = 110  # columns that the whole table needs


def show_budgets(result: CheckResult) -> None:
    """The verdict, a row for each budget and file, and below it the reason of each that is undecided."""
    console = new_console()
    counts = [(result.counted(verdict), verdict) for verdict in BudgetVerdict]
    said = ", ".join(f"{count} {verdict}" for count, verdict in counts if count)
    verdict = "keeps its budgets" if result.passed else "does not keep its budgets"
    console.print(line(f"{result.bundle} {verdict}: {said}", style="bold green" if result.passed else "bold red"))
    wide = console.width >= WIDE
    columns = ("budget", "file", "limit", "found", "verdict") if wide else ("budget", "found", "verdict")
    table = new_table(f"Budgets of {result.budgets}", *columns)
    for row in result.results:
        file = " on ".join(filter(None, (row.path, row.place))) or "–"
        found = row.found or "–"
        verdict_cell = line(row.verdict, style=STYLES[row.verdict])
        if wide:
            table.add_row(row.budget, file, row.limit, found, verdict_cell)
        else:
            table.add_row(row.budget, f"{found} of {row.limit}", verdict_cell)
    console.print(table)
    for row in result.results:
        if row.reason:
            style = STYLES[row.verdict]
            console.print(line(f"{row.budget}{f', {row.path}' if row.path else ''}: {row.reason}", style=style))
    if result.counted(BudgetVerdict.UNDECIDED) and result.undecided is Undecided.FAIL:
        console.print(line('undecided counts as a failure; undecided = "pass" in the file changes that', style="dim"))
