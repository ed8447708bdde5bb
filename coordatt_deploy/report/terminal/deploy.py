"""What became of a deployment, on the terminal."""

from typing import Final

from coordatt_deploy.fleet.deploy_result import DeployResult, DeployState
from coordatt_deploy.plurals import of_total
from coordatt_deploy.report.terminal.console import line, new_console, say
from coordatt_deploy.report.terminal.tables import Column, show_table

STYLES: Final = {
    DeployState.SWITCHED: "green",
    DeployState.ALREADY: "green",
    DeployState.BACK: "green",
    DeployState.PLANNED: "yellow",
    DeployState.FAILED: "bold red",
    DeployState.LEFT: "red",
}


def show_deployment(result: DeployResult) -> None:
    """How many boards there are of each state, and a row for each board."""
    console = new_console()
    total = len(result.boards)
    counts = [(result.counted(state), state) for state in DeployState]
    said = ", ".join(f"{of_total(count, total, 'board')} {_of(count, state)}" for count, state in counts if count)
    what = "rollback" if result.version is None else result.version
    say(console, f"{what}: {said}", "bold green" if result.exit_code == 0 else "bold red")
    columns = (
        Column("board", name=True),
        Column("state"),
        Column("version before", rank=1, name=True),
        Column("version now", name=True),
        Column("reason", prose=True),
    )
    rows = [
        (
            board.host,
            line(board.state, style=STYLES[board.state]),
            board.before or "–",
            (board.now or "–") if board.known else "not known",
            board.reason or ("hashes alone, not proven" if board.proven is None and _is_new(board.state) else "–"),
        )
        for board in result.boards
    ]
    show_table(console, "Boards", columns, rows)


def _of(count: int, state: DeployState) -> str:
    return "left as they were" if state is DeployState.LEFT and count > 1 else state.value


def _is_new(state: DeployState) -> bool:
    return state in {DeployState.SWITCHED, DeployState.ALREADY}
