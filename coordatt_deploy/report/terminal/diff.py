"""What ``diff`` found, on the terminal."""

from typing import Final

from coordatt_deploy.progress import VERBOSITY, Verbosity
from coordatt_deploy.release.diff_result import Change, DiffResult
from coordatt_deploy.report.diff_words import EXPLAINED, headline, not_compared, sides, told, what, where
from coordatt_deploy.report.terminal.console import line, new_console, say
from coordatt_deploy.report.terminal.tables import Column, show_table

STYLES: Final = {
    Change.REGRESSION: "bold red", Change.INCONCLUSIVE: "yellow", Change.IMPROVEMENT: "green",
    Change.NO_DIFFERENCE: "green", Change.CHANGED: "cyan", Change.ACCEPTED: "yellow", Change.NOT_COMPARED: "dim",
}  # fmt: skip
COLUMNS: Final = (
    Column("what", prose=True),
    Column("file", name=True),
    Column("A → B", rank=1, prose=True),
    Column("change", prose=True),
    Column("verdict"),
)


def show_diff(result: DiffResult) -> None:
    """The verdict, a row for each thing that differs, and below it the reasons.

    With ``--verbose`` the rows without a difference, and every reason, as well.
    """
    console = new_console()
    everything = VERBOSITY.get() is Verbosity.VERBOSE
    style = STYLES[result.verdict] if result.passed else STYLES[Change.REGRESSION]
    say(console, f"{result.b} against {result.a}: {headline(result)}", f"bold {style}".replace("bold bold", "bold"))
    rows = told(result.rows, everything=everything)
    cells = [
        (
            what(row),
            row.label,
            sides(row) if row.change else "",
            row.change or sides(row),
            line(row.verdict, style=STYLES[row.verdict]),
        )
        for row in rows
    ]
    if cells:
        show_table(console, "", COLUMNS, cells)
    for row in rows:
        if row.reason and (everything or row.verdict in EXPLAINED):
            say(console, f"{what(row)}{where(row)}: {row.reason}", STYLES[row.verdict])
    if not everything:
        for text in not_compared(result.rows):
            say(console, f"not compared: {text}", "dim")
        same = sum(row.verdict is Change.NO_DIFFERENCE for row in result.rows) - sum(
            row.verdict is Change.NO_DIFFERENCE for row in rows
        )
        if same:
            say(console, f"{same} further comparisons show no difference; --verbose lists them", "dim")
    for note in result.notes:
        say(console, note, "dim")
