"""What every report of ``diff`` says in the same words: on the terminal, in Markdown, on the page."""

from collections.abc import Sequence
from typing import Final

from coordatt_deploy.plurals import counted
from coordatt_deploy.release.diff_result import Change, ChangeKind, DiffResult, DiffRow

ORDER: Final = tuple(Change)  # the gravest first
COUNTED: Final = (Change.REGRESSION, Change.ACCEPTED, Change.INCONCLUSIVE, Change.IMPROVEMENT, Change.CHANGED)
ALWAYS: Final = (ChangeKind.SIZE, ChangeKind.LATENCY)  # whose figures are shown where nothing changed, too


def headline(result: DiffResult) -> str:
    """``2 regressions, 1 inconclusive, 3 improvements``, or that nothing differs."""
    words = {Change.REGRESSION: "regression", Change.IMPROVEMENT: "improvement"}
    parts = [
        counted(count, words[verdict]) if verdict in words else f"{count} {verdict}"
        for verdict in COUNTED
        if (count := result.counted(verdict))
    ]
    return ", ".join(parts) or "no difference"


def told(rows: Sequence[DiffRow], *, everything: bool = False) -> list[DiffRow]:
    """Return the rows of the table: what differs, sizes and latencies; the gravest verdict first.

    Rows that could not be compared are told by their reasons alone.
    """
    shown = [
        row
        for row in rows
        if everything or row.verdict not in (Change.NO_DIFFERENCE, Change.NOT_COMPARED) or _always(row)
    ]
    return sorted(shown, key=lambda row: ORDER.index(row.verdict))


def _always(row: DiffRow) -> bool:
    return row.kind in ALWAYS and row.verdict is Change.NO_DIFFERENCE


def what(row: DiffRow) -> str:
    """``contract: labels``."""
    return f"{row.kind}: {row.subject}" if row.subject else row.kind.value


def not_compared(rows: Sequence[DiffRow]) -> list[str]:
    """Say of what could not be compared why: a sentence for each reason, with the files that it is about."""
    groups: dict[tuple[str, str], list[DiffRow]] = {}
    for row in rows:
        if row.verdict is Change.NOT_COMPARED:
            groups.setdefault((row.kind.value, row.reason), []).append(row)
    return [f"{kind} of {_of(found)}: {reason}" for (kind, reason), found in groups.items()]


def _of(rows: Sequence[DiffRow]) -> str:
    paths = list(dict.fromkeys(row.path or "the bundle" for row in rows))
    return paths[0] if len(paths) == 1 else counted(len(paths), "file")
