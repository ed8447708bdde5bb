"""Test cases as JUnit XML: what accuracies and latencies are written with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from coordatt_deploy.report.junit import printable


@dataclass(frozen=True, slots=True)
class Case:
    """One test case.

    Attributes:
        name: Of the case.
        told: What was found; of a failure its reason.
        failed: Whether it failed.
        skipped: Whether it was not run.
        seconds: That it took.
    """

    name: str
    told: str
    failed: bool = False
    skipped: bool = False
    seconds: float = 0.0


def suites_xml(title: str, suites: Mapping[str, Sequence[Case]]) -> str:
    """Return cases by the name of their suite as a JUnit document."""
    root = ElementTree.Element("testsuites", name=title)
    _count(root, [case for cases in suites.values() for case in cases])
    for name, cases in suites.items():
        suite = ElementTree.SubElement(root, "testsuite", name=printable(name))
        _count(suite, cases)
        for case in cases:
            element = ElementTree.SubElement(
                suite, "testcase", classname=printable(name), name=printable(case.name), time=f"{case.seconds:.9f}"
            )
            told = printable(case.told)
            if case.skipped:
                ElementTree.SubElement(element, "skipped", message=told)
            elif case.failed:
                ElementTree.SubElement(element, "failure", message=told, type=title.rpartition(" ")[2]).text = told
            else:
                ElementTree.SubElement(element, "system-out").text = told
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _count(element: ElementTree.Element, cases: Sequence[Case]) -> None:
    element.set("tests", str(len(cases)))
    element.set("failures", str(sum(case.failed for case in cases)))
    element.set("skipped", str(sum(case.skipped for case in cases)))
