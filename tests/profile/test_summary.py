"""Latencies, and where the time goes, as the command writes them: JUnit XML, Markdown, the page, the terminal."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from small_bundle import FLOAT_ONNX, float_bundle

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.documents import dump
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.kept_results import layer_errors
from coordatt_deploy.layer_map import Layer, LayerMap, Part
from coordatt_deploy.parity.layers import LayerRow
from coordatt_deploy.parity.reports import ParityReports, ParityRun, covered
from coordatt_deploy.parity.result import ArtifactVerdict
from coordatt_deploy.profile.reports import read_reports
from coordatt_deploy.run_records import RunInputs

VERDICT = ArtifactVerdict(
    FLOAT_ONNX, "", Format.ONNX, Precision.FP32, None, None, "onnxruntime", Origin.MEASURED, passed=False
)


def test_a_case_for_each_number_of_threads(tmp_path):
    """
    Its time is the median, and it never fails: machines differ. Both files and the JSON have the same figure.
    """
    root = float_bundle(tmp_path / "bundle")
    files = ["--junit", str(tmp_path / "junit.xml"), "--markdown", str(tmp_path / "summary.md")]
    quick = ["--samples", "30", "--min-seconds", "0.01", "--warmups", "1"]
    result = CliRunner().invoke(main, ["profile", str(root), "-q", *quick, *files], catch_exceptions=False)
    parsed = ElementTree.fromstring((tmp_path / "junit.xml").read_text())  # noqa: S314 - ours
    (case,) = parsed.iter("testcase")
    text = (tmp_path / "summary.md").read_text()

    assert 0 == result.exit_code, result.output
    assert (FLOAT_ONNX, "threads 1") == (case.get("classname"), case.get("name"))
    assert float(case.get("time")) > 0
    assert "0" == parsed.get("failures")
    assert f"| {float(case.get('time')) * 1e3:.3f} |" in text
    assert "a call takes image 1x3x8x8" in text


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_instructions_have_no_summary(option, tmp_path):
    """
    Exit 2 with what has them.
    """
    command = ["profile", str(tmp_path), "--target", "qemu-arm64", option, str(tmp_path / "file")]
    result = CliRunner().invoke(main, command)

    assert 2 == result.exit_code
    assert "--json has them" in result.output


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The small bundle with its layer in the map, judged as wrong by a report of these bytes, and profiled."""
    layers = LayerMap((Layer("conv", "conv2d", (1, 4, 8, 8), parts=(Part("logits"),)),))
    root = float_bundle(tmp_path_factory.mktemp("operators") / "bundle", layers=layers)
    manifest = json.loads((root / "manifest.json").read_text())
    artifact = manifest["artifacts"][0]
    write_parity(root, artifact["sha256"])
    quick = ["--samples", "20", "--min-seconds", "0", "--warmups", "1"]
    summary = root.parent / "summary.md"
    command = ["profile", str(root), "-q", "--ops", "--json", *quick, "--markdown", str(summary)]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert 0 == result.exit_code, result.output
    return root, json.loads(result.stdout), summary.read_text()


def write_parity(root, digest):
    """A report that has the one layer beyond tolerance, of the bytes that have this hash."""
    row = LayerRow("conv", "conv2d", None, None, None, None, misfit="another shape").record()
    verdict = replace(VERDICT, layers=(replace(row, sqnr_db=12.5, excess=30.0),), sha256=digest)
    run = ParityRun(
        kind="parity", artifact=FLOAT_ONNX, sha256=digest, place="here", inputs=RunInputs("golden", 2),
        covered=covered(verdict), tool_versions={}, time=None, result=verdict,
    )  # fmt: skip
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports/parity.json").write_text(dump(ParityReports((run,))))


def test_every_operator_of_a_file_is_in_the_table(judged):
    """
    With its layer, and the error that parity found of these bytes: on the page and in Markdown as well.
    """
    root, document, summary = judged
    (table,) = document["operators"]

    assert ["conv"] == [row["layer"] for row in table["rows"]]
    assert ["Conv"] == table["rows"][0]["timed"][0]["operators"]
    assert {"passed": False, "sqnr_db": 12.5, "excess": 30.0, "inherits": False} == table["rows"][0]["error"]
    assert "profiler" == table["method"]
    assert "| conv |" in summary
    assert "| 12.5 dB | wrong, 30 × allowed |" in summary
    assert 0 == CliRunner().invoke(main, ["report", str(root), "-q"], catch_exceptions=False).exit_code
    assert "Where the time of" in (root / "reports/report.html").read_text()


def test_the_report_keeps_the_table(judged):
    """
    A later call without it leaves it there, as long as the file has the same bytes.
    """
    root, _, _ = judged
    quick = ["--samples", "20", "--min-seconds", "0", "--warmups", "1"]
    result = CliRunner().invoke(main, ["profile", str(root), "-q", *quick], catch_exceptions=False)
    reports = read_reports((root / "reports/profile.json").read_text())

    assert 0 == result.exit_code
    assert "Where the time of" not in result.output
    assert [FLOAT_ONNX] == [run.artifact for run in reports.operators]
    run = reports.runs[0]
    other = replace(run, sha256="1" * 64)
    assert () == reports.with_session((other,), reports.sessions[-1]).operators


def test_a_verdict_on_other_bytes_is_not_told(judged):
    """
    It may be of another network: the table says that the errors are not known.
    """
    root, _, _ = judged
    before = (root / "reports/parity.json").read_text()
    bundle = open_bundle(root)
    assert {FLOAT_ONNX} == set(layer_errors(bundle))
    try:
        write_parity(root, "2" * 64)
        assert {} == layer_errors(bundle)
    finally:
        (root / "reports/parity.json").write_text(before)


def test_the_table_on_the_terminal(judged):
    """
    Dearest first, and whatever is wrong.
    """
    root, _, _ = judged
    quick = ["--samples", "20", "--min-seconds", "0", "--warmups", "1"]
    result = CliRunner().invoke(main, ["profile", str(root), "-q", "--ops", *quick], env={"COLUMNS": "200"})

    assert 0 == result.exit_code, result.output
    assert "Where the time of onnx fp32 goes" in result.output
    assert "wrong, 30 × allowed" in result.output


def test_instructions_have_no_operators(tmp_path):
    """
    Exit 2: a target counts those of a whole file.
    """
    result = CliRunner().invoke(main, ["profile", str(tmp_path), "--target", "qemu-arm64", "--ops"])

    assert 2 == result.exit_code
    assert "--ops is for latency" in result.output
