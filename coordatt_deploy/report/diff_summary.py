"""What ``diff`` found, for a pull request and for machines that gather test results."""

from typing import Final

from coordatt_deploy.release.diff_result import Change, DiffResult, DiffRow
from coordatt_deploy.report.diff_words import EXPLAINED, headline, not_compared, sides, told, what, where
from coordatt_deploy.report.junit_cases import Case, suites_xml
from coordatt_deploy.report.markdown import cell

MARKS: Final = {
    Change.REGRESSION: "❌", Change.INCONCLUSIVE: "❔", Change.IMPROVEMENT: "✅", Change.NO_DIFFERENCE: "✅",
    Change.CHANGED: "ℹ️", Change.ACCEPTED: "⚠️", Change.NOT_COMPARED: "➖",
}  # fmt: skip


def diff_markdown(result: DiffResult) -> str:
    """Return what differs as Markdown: the verdict, a table, the reasons."""
    mark = "✅" if result.passed else "❌"
    rows = told(result.rows)
    lines = [f"### {mark} {cell(result.b)} against {cell(result.a)}: {headline(result)}", ""]
    if rows:
        lines += ["| what | file | A | B | change | verdict |", "|---|---|--:|--:|--:|---|"]
    lines += [
        f"| {cell(what(row))} | {cell(row.label)} | {cell(row.before or '–')} | {cell(row.after or '–')} |"
        f" {cell(row.change)} | {MARKS[row.verdict]} {row.verdict} |"
        for row in rows
    ]
    lines.append("")
    for row in rows:
        if row.reason and row.verdict in EXPLAINED:
            lines.append(f"- **{cell(what(row))}**{cell(where(row))}: {cell(row.reason)}")
    lines += [f"- not compared: {cell(text)}" for text in not_compared(result.rows)]
    lines += [f"- {cell(text)}" for text in result.notes]
    return "\n".join(lines).rstrip() + "\n"


def diff_junit(result: DiffResult) -> str:
    """Return every row as a case of a suite of its kind.

    What decides nothing is skipped; what is inconclusive fails where that was asked for.
    """
    suites: dict[str, list[Case]] = {}
    for row in result.rows:
        failed = row.verdict is Change.REGRESSION or (
            row.verdict is Change.INCONCLUSIVE and result.settings.fail_inconclusive
        )
        skipped = not failed and row.verdict in (Change.INCONCLUSIVE, Change.NOT_COMPARED)
        name = " ".join(filter(None, (row.subject, row.path))) or "bundle"
        suites.setdefault(row.kind.value, []).append(Case(name, _told(row), failed=failed, skipped=skipped))
    return suites_xml("coordatt-deploy diff", suites)


def _told(row: DiffRow) -> str:
    return ", ".join(filter(None, (row.verdict.value, sides(row), row.change, row.reason)))
