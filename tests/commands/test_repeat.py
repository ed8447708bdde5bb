"""What was typed is kept with what it found, and the page repeats it."""

import json
import shlex
import sys

from click.testing import CliRunner
from small_bundle import float_bundle

from coordatt_deploy.cli import main
from coordatt_deploy.formats import Format


def typed(monkeypatch, *arguments):
    """Run a command as from a shell."""
    words = list(map(str, arguments))
    monkeypatch.setattr(sys, "argv", ["coordatt-deploy", *words])
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert 0 == done.exit_code, done.output
    return shlex.join(["coordatt-deploy", *words])


def test_the_page_repeats_what_was_typed(tmp_path, monkeypatch):
    """
    Every command with its options, in their order; parity twice with other options is two.
    """
    root = float_bundle(tmp_path / "net")
    commands = [
        typed(monkeypatch, "parity", root, "--outputs-only", "--format", "onnx"),
        typed(monkeypatch, "profile", root, "--samples", 20, "--min-seconds", 0),
    ]
    typed(monkeypatch, "report", root)

    page = (root / "reports/report.html").read_text()
    document = json.loads((root / "reports/parity.json").read_text())
    assert [commands[0]] == [run["command"] for run in document["runs"]]
    assert document["runs"][0]["machine"]
    repeat = page[page.index("Repeat it") :]
    assert "\n".join([*commands, f"coordatt-deploy report {root}"]) in repeat


def test_a_partial_run_makes_no_green_page(tmp_path, monkeypatch):
    """
    From the command line to the page: two files, one judged, outputs alone.
    """
    root = float_bundle(tmp_path / "net", also=(Format.COREML,))
    typed(monkeypatch, "parity", root, "--outputs-only", "--format", "onnx")
    typed(monkeypatch, "report", root)

    page = (root / "reports/report.html").read_text()
    assert 'class="headline odd"' in page
    assert "1 of 2 files computes the model&#39;s function. 1 was not judged: net.mlpackage." in page
    assert "the outputs alone were judged, no layer" in page
    junit = (root / "reports/junit.xml").read_text()
    assert "onnx/net.onnx" in junit
