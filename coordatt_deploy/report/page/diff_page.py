"""What ``diff`` found as one HTML page, in the looks of the report: no script, nothing fetched, every text escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from coordatt_deploy import __version__
from coordatt_deploy.release.diff_result import Change, ChangeKind, DiffResult, DiffRow
from coordatt_deploy.report.diff_words import EXPLAINED, ORDER, headline, not_compared, sides, what, where
from coordatt_deploy.report.page.figures import Row, Table, sentence
from coordatt_deploy.report.page.render import TEMPLATES

TITLES: Final = {
    ChangeKind.CONTRACT: "What an app relies on",
    ChangeKind.FILES: "Files",
    ChangeKind.SIZE: "Size",
    ChangeKind.OPERATORS: "Operators",
    ChangeKind.PARTITIONS: "Accelerators",
    ChangeKind.PARITY: "Parity",
    ChangeKind.ACCURACY: "Accuracy",
    ChangeKind.LATENCY: "Latency",
}


@dataclass(frozen=True, slots=True)
class DiffSection:
    """Everything of one kind."""

    key: str
    title: str
    table: Table


@dataclass(frozen=True, slots=True)
class DiffView:
    """The page, in which every figure is a text.

    Attributes:
        a: The one before.
        b: The one after.
        kind: ``good``, ``bad`` or ``odd``: the colour of the verdict.
        verdict: Over all rows.
        findings: What decides it, a sentence each.
        sections: A table of each kind.
        machine: Names and values.
        notes: A sentence each.
        footer: When and by which version.
    """

    a: str
    b: str
    kind: str
    verdict: str
    findings: tuple[str, ...]
    sections: tuple[DiffSection, ...]
    machine: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    footer: str


def diff_page(result: DiffResult, now: datetime | None = None) -> str:
    """Return what ``diff`` found as one HTML document.

    Args:
        result: What it found.
        now: For the foot of the page; the present by default.
    """
    moment = (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
    kinds = [kind for kind in reversed(ChangeKind) if any(row.kind is kind for row in result.rows)]
    ordered = sorted(result.rows, key=lambda row: ORDER.index(row.verdict))
    view = DiffView(
        a=result.a,
        b=result.b,
        kind="bad" if not result.passed else "odd" if result.verdict is Change.INCONCLUSIVE else "good",
        verdict=sentence(headline(result)),
        findings=tuple(_finding(row) for row in ordered if row.verdict in EXPLAINED),
        sections=tuple(
            DiffSection(kind, TITLES[kind], _table(kind, [row for row in result.rows if row.kind is kind]))
            for kind in kinds
        ),
        machine=_machine(result),
        notes=tuple(sentence(text) for text in (*result.notes, *not_compared(result.rows))),
        footer=f"Written by coordatt-deploy {__version__} on {moment}.",
    )
    return TEMPLATES.get_template("diff.html").render(page=view)


def _finding(row: DiffRow) -> str:
    said = "; ".join(filter(None, (sides(row), row.change, row.reason)))
    return f"{sentence(row.verdict)}, {what(row)}{where(row)}: {said}"


def _table(kind: ChangeKind, rows: Sequence[DiffRow]) -> Table:
    ordered = sorted(rows, key=lambda row: ORDER.index(row.verdict))
    told = len({row.subject for row in rows}) > 1  # or it says the same of each
    return Table(
        label=TITLES[kind],
        names=("file", "what") if told else ("file",),
        figures=("A", "B", "change", "verdict"),
        rows=tuple(
            Row(
                (row.path or "the bundle", row.subject or "–") if told else (row.path or "the bundle",),
                (row.before or "–", row.after or "–", row.change, row.verdict.value),
                bad=row.verdict is Change.REGRESSION,
                note=row.reason,
            )
            for row in ordered
        ),
        last="reason",
    )


def _machine(result: DiffResult) -> tuple[tuple[str, str], ...]:
    settings = result.settings
    judged = (
        ("least effect", f"{settings.min_effect:.1%}"),
        ("time for each pair", f"{settings.min_seconds:g} s"),
        ("threads", str(settings.threads)),
        ("size may grow by", f"{settings.max_size_growth:.1%}"),
        ("accuracy may fall by", f"{settings.max_drop:g}"),
        ("accepted", ", ".join(settings.accept) or "nothing"),
        ("inconclusive", "fails" if settings.fail_inconclusive else "does not fail"),
    )
    if result.host is None:
        return judged
    host = result.host
    cores = f"{host.cores_available} of {host.cores} cores"
    return (*judged, ("machine", f"{host.cpu}, {cores}, {host.os}"))
