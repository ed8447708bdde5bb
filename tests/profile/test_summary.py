"""Latencies as JUnit XML and Markdown, as the command writes them."""

from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from small_bundle import FLOAT_ONNX, float_bundle

from coordatt_deploy.cli import main


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
