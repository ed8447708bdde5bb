"""Verdicts on budgets, on the terminal."""

from typing import Final

from coordatt_deploy.release.budgets import Undecided
from coordatt_deploy.release.result import BudgetVerdict, CheckResult
from coordatt_deploy.report.terminal.console import line, new_console, say
from coordatt_deploy.report.terminal.tables import Column, show_table

STYLES: Final = {BudgetVerdict.WITHIN: "green", BudgetVerdict.EXCEEDED: "bold red", BudgetVerdict.UNDECIDED: "yellow"}


def show_budgets(result: CheckResult) -> None:
    """The verdict, a row for each budget and file, and below it the reason of each that is undecided."""
    console = new_console()
    counts = [(result.counted(verdict), verdict) for verdict in BudgetVerdict]
    said = ", ".join(f"{count} {verdict}" for count, verdict in counts if count)
    verdict = "keeps its budgets" if result.passed else "does not keep its budgets"
    say(console, f"{result.bundle} {verdict}: {said}", "bold green" if result.passed else "bold red")
    columns = (
        Column("budget", name=True),
        Column("file", rank=2, name=True),
        Column("limit", rank=1, prose=True),
        Column("found", prose=True),
        Column("verdict"),
    )
    rows = [
        (
            row.budget,
            " on ".join(filter(None, (row.path, row.place))) or "–",
            row.limit,
            row.found or "–",
            line(row.verdict, style=STYLES[row.verdict]),
        )
        for row in result.results
    ]
    show_table(console, f"Budgets of {result.budgets}", columns, rows)
    for row in result.results:
        if row.reason:
            style = STYLES[row.verdict]
            say(console, f"{row.budget}{f', {row.path}' if row.path else ''}: {row.reason}", style)
    if result.counted(BudgetVerdict.UNDECIDED) and result.undecided is Undecided.FAIL:
        say(console, 'undecided counts as a failure; undecided = "pass" in the file changes that', "dim")
