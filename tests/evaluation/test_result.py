"""The documents of an evaluation, and what is shown of them."""

import json
from dataclasses import replace

import pytest
from colours import BLIND_TO_BLUE, RIGHT, evaluated, reported, run

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.data.dataset import Dataset
from coordatt_deploy.evaluation.result import POINTS, TOP1, Accuracy, Evaluation, MetricRecord
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.report.write import write_page


def test_document_is_strict_and_whole(bundle, photos):
    """
    reports/evaluate.json holds the runs of which --json prints the result, with no NaN in it.
    """
    opened = bundle(right=RIGHT, blind=BLIND_TO_BLUE)
    result = run("evaluate", opened.root, "--dataset", photos(4), "--workers", 1, "--json")
    printed = json.loads(result.stdout, parse_constant=pytest.fail)
    written = reported(opened.root)

    assert 0 == result.exit_code, result.output
    assert printed == written
    assert "schema_version" == next(iter(printed))
    assert [1.0, 1.0, 8 / 12] == [item["top1"] for item in printed["subjects"]]
    assert "reference" == printed["baseline"]
    assert printed["passed"] is None


def test_report_shows_the_accuracy(bundle, photos):
    """
    The HTML report has a section, with hostile names as inert text.
    """
    opened = bundle(right=RIGHT, blind=BLIND_TO_BLUE)
    folder = photos(4)
    (folder / "red" / "<script>.png").write_bytes(b"")
    evaluated(opened, folder, max_drop=1.0)
    text = write_page(opened).read_text()
    renamed = replace(opened.manifest.artifacts[0], sha256="0" * 64)
    newer = replace(opened, manifest=replace(opened.manifest, artifacts=(renamed,)))

    assert "Accuracy on labelled images" in text
    assert "66.67%" in text
    assert "At most 1 points may be lost" in text
    assert "&lt;script&gt;.png" in text
    assert "<script" not in text
    assert "older file" not in text
    assert "onnx fp32: figures of an older file" in write_page(newer).read_text()


@pytest.mark.parametrize(
    ("missing", "code"), [((False, False), 0), ((False, True), 0), ((True, True), 3)], ids=["none", "one", "all"]
)
def test_what_cannot_be_run_here_is_skipped(missing, code):
    """
    A board has no Core ML; nothing evaluated at all is exit code 3. The verdict is over what was run.
    """
    reference = Accuracy("reference", None, "torch", None, correct=9)
    artifact = Artifact("a", Format.ONNX, Precision.FP32, None, None, 1, "", (), (), "")
    subjects = (
        reference,
        *(
            Accuracy(f"{index}", artifact, "", None, problem="not run: it is not installed", missing=True)
            if gone
            else Accuracy(f"{index}", artifact, "r", None, correct=9, passed=True)
            for index, gone in enumerate(missing)
        ),
    )
    top1 = MetricRecord(TOP1, higher_is_better=True, unit=POINTS)
    found = Evaluation(Dataset("photos", (), None, 9), top1, 10, 9, (), subjects, (), 0.5, None, ())

    assert code == found.exit_code
    assert (code == 0) == found.record().passed
