"""What every report of ``diff`` says in the same words: on the terminal, in Markdown, on the page."""

from collections.abc import Sequence
from typing import Final

from coordatt_deploy.evaluation.result import TOP1
from coordatt_deploy.plurals import counted
from coordatt_deploy.release.diff_result import Change, ChangeKind, DiffResult, DiffRow

ORDER: Final = (
    Change.REGRESSION, Change.INCONCLUSIVE, Change.ACCEPTED, Change.IMPROVEMENT, Change.CHANGED, Change.NO_DIFFERENCE,
    Change.NOT_COMPARED,
)  # fmt: skip
EXPLAINED: Final = (Change.REGRESSION, Change.ACCEPTED, Change.INCONCLUSIVE)  # whose reasons every report has
COUNTED: Final = (Change.REGRESSION, Change.ACCEPTED, Change.INCONCLUSIVE, Change.IMPROVEMENT, Change.CHANGED)
ONE_THREAD: Final = counted(1, "thread")
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
    """``contract: labels``; one thread and top-1 are what everybody expects, and are not said."""
    return row.kind.value if row.subject in ("", ONE_THREAD, TOP1) else f"{row.kind}: {row.subject}"


def sides(row: DiffRow) -> str:
    """``1.98 MB → 1.96 MB``; empty where neither is known."""
    return f"{row.before or '–'} → {row.after or '–'}" if row.before or row.after else ""


def where(row: DiffRow) -> str:
    """Of which file it is, behind what it is: ``, onnx/net.onnx``."""
    return f", {row.path}" if row.path else ""


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
