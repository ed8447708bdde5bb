"""Verdicts on budgets for machines: JUnit XML, and the annotations that GitHub's runners read."""

from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree

from coordatt_deploy.release.budgets import Undecided
from coordatt_deploy.release.result import BudgetResult, BudgetVerdict, CheckResult
from coordatt_deploy.report.junit import printable

COMMANDS: Final = {BudgetVerdict.EXCEEDED: "error", BudgetVerdict.UNDECIDED: "warning"}


def junit(result: CheckResult) -> str:
    """Return the verdicts as JUnit XML: a suite for each kind of budget, a case for each budget and file.

    An exceeded budget is a failure; an undecided one is skipped, or a failure where the file of budgets says so.
    """
    root = ElementTree.Element("testsuites", name="coordatt-deploy check")
    for kind in dict.fromkeys(item.kind for item in result.results):
        rows = [item for item in result.results if item.kind is kind]
        suite = ElementTree.SubElement(root, "testsuite", name=kind.value)
        for row in rows:
            name = printable(" ".join(filter(None, (row.budget, row.path, row.place))))
            case = ElementTree.SubElement(suite, "testcase", classname=f"budgets.{kind}", name=name, time="0")
            if row.verdict is BudgetVerdict.WITHIN:
                continue
            skipped = row.verdict is BudgetVerdict.UNDECIDED and result.undecided is Undecided.PASS
            element = ElementTree.SubElement(
                case, "skipped" if skipped else "failure", message=printable(sentence(row))
            )
            if not skipped:
                element.set("type", row.verdict.value)
        _count(suite, suite)
    _count(root, root)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _count(element: ElementTree.Element, within: ElementTree.Element) -> None:
    for key, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        element.set(key, str(sum(1 for _ in within.iter(tag))))


def annotations(result: CheckResult) -> Iterator[str]:
    """Yield one workflow command for each budget that is not kept, on the line of the file of budgets.

    Source of the form: GitHub's documentation of workflow commands, "Setting an error message".
    """
    for row in result.results:
        command = COMMANDS.get(row.verdict)
        if command is None:
            continue
        if row.verdict is BudgetVerdict.UNDECIDED and result.undecided is Undecided.FAIL:
            command = "error"
        place = f"file={_property(result.budgets)}" + (f",line={row.line}" if row.line else "")
        yield f"::{command} {place},title={_property(row.budget)}::{_data(sentence(row))}"


def sentence(row: BudgetResult) -> str:
    """``onnx/net.onnx: 2.10 MB, budget 2 MB: exceeded``."""
    where = f"{row.path}{f' on {row.place}' if row.place else ''}: " if row.path else ""
    found = f"{row.found}, " if row.found else ""
    reason = f": {row.reason}" if row.reason else ""
    return f"{where}{found}budget {row.limit}: {row.verdict}{reason}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
