"""Verdicts as JUnit XML, for the machines that gather test results."""

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from coordatt_deploy.manifest import RefusedFile
from coordatt_deploy.parity.result import ArtifactVerdict, ParityResult


def junit(parity: ParityResult, refused: Sequence[RefusedFile] = ()) -> str:
    """Return a parity result as JUnit XML.

    One suite per artifact; one of *refused*, which could not be written, has a single case that was skipped. Cases are
    the outputs and the layers, each layer once, under the name that the table shows; a layer that only inherits passes,
    with a remark, as it is not the one to be mended.
    """
    root = ElementTree.Element("testsuites", name="coordatt-deploy parity")
    totals = [_suite(root, item) for item in parity.artifacts] + [_refused_suite(root, file) for file in refused]
    for position, key in enumerate(("tests", "failures", "skipped")):
        root.set(key, str(sum(total[position] for total in totals)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _suite(root: ElementTree.Element, item: ArtifactVerdict) -> tuple[int, int, int]:
    suite = ElementTree.SubElement(root, "testsuite", name=printable(item.path))
    counts = [0, 0, 0]

    def case(group: str, name: str, passed: bool | None, text: str, remark: str = "") -> None:
        element = ElementTree.SubElement(
            suite, "testcase", classname=printable(f"{item.path}:{group}"), name=printable(name), time="0"
        )
        counts[0] += 1
        if passed is None:
            counts[2] += 1
            ElementTree.SubElement(element, "skipped", message=printable(text))
        elif not passed:
            counts[1] += 1
            ElementTree.SubElement(element, "failure", message=printable(text), type="parity").text = printable(text)
        elif remark:
            ElementTree.SubElement(element, "system-out").text = printable(remark)

    # The verdict itself is a case: it stands where an artifact could not be run at all.
    warning = item.warning or ""
    text = item.problem or item.summary or "within tolerance"
    case("file", "verdict", item.passed, "; ".join(filter(None, (text, warning))), warning)
    for output in item.outputs:
        bound = "" if math.isnan(output.allowed) else f", allowed {output.allowed}"
        found = f"worst error {output.error_of_worst_case}{bound}, SQNR {output.sqnr_db} dB"
        case("outputs", output.name, output.passed, found)
    for row in item.layers:
        judged = row.local_max_abs_error if row.local_judged_error is None else row.local_judged_error
        found = row.evidence or f"local error {judged}, allowed {row.local_allowed}"
        remark = "inherits the error of an earlier layer" if row.inherits else ""
        case("layers", row.layer_id, row.passed, str(row.note) if row.passed is None else found, remark)
    for position, key in enumerate(("tests", "failures", "skipped")):
        suite.set(key, str(counts[position]))
    return counts[0], counts[1], counts[2]


def _refused_suite(root: ElementTree.Element, file: RefusedFile) -> tuple[int, int, int]:
    suite = ElementTree.SubElement(root, "testsuite", name=printable(file.path), tests="1", failures="0", skipped="1")
    case = ElementTree.SubElement(suite, "testcase", classname=printable(f"{file.path}:file"), name="verdict", time="0")
    ElementTree.SubElement(case, "skipped", message=printable(f"not written: {file.reason}"))
    return 1, 0, 1


def printable(value: object) -> str:
    """Replace what XML 1.0 has no way to write: control characters, lone surrogates."""
    return "".join(letter if _writable(ord(letter)) else "\N{REPLACEMENT CHARACTER}" for letter in str(value))


def _writable(code: int) -> bool:
    return code in (0x9, 0xA, 0xD) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000
