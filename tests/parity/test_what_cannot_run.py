"""What cannot be run here is skipped and said; nothing judged at all, or not what is required, is exit code 3."""

import sys

import pytest
from click.testing import CliRunner
from small_bundle import float_bundle

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.cli import main
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.parity.result import ArtifactParity, ParityReport
from coordatt_deploy.parity.run import ParityPlan
from coordatt_deploy.report.markdown import markdown
from coordatt_deploy.run_records import NotRun


def judged(kind: Format, passed: bool | None) -> ArtifactParity:
    path = {Format.ONNX: "a.onnx", Format.TFLITE: "a.tflite", Format.COREML: "a.mlpackage"}[kind]
    artifact = Artifact(path, kind, Precision.FP32, None, None, 1, "aa", (), (), "")
    problem = "not run: needs coremltools" if passed is None else None
    return ArtifactParity(artifact, "r", Origin.MEASURED, passed, problem=problem)


@pytest.mark.parametrize(
    ("onnx", "coreml", "required", "code"),
    [
        (True, None, (), 0),
        (True, None, (Format.ONNX,), 0),
        (True, None, (Format.COREML,), 3),
        (None, None, (), 3),
        (False, None, (), 1),
        (False, None, (Format.COREML,), 1),
    ],
)
def test_exit_codes(onnx, coreml, required, code):
    """
    A failure counts more than what is missing; what is missing counts where it is required, or is everything.
    """
    report = ParityReport((judged(Format.ONNX, onnx), judged(Format.COREML, coreml)), required=required)

    assert code == report.exit_code
    assert not report.passed
    assert (("a.mlpackage: not run: needs coremltools",) if Format.COREML in required else ()) == report.missing


def test_what_the_target_cannot_run_is_missing_where_it_is_required():
    """
    As on this machine.
    """
    skipped = (NotRun("coreml/net.mlpackage", "it has no Core ML"),)

    assert 3 == ParityReport((judged(Format.ONNX, True),), skipped, required=(Format.COREML,)).exit_code
    assert 0 == ParityReport((judged(Format.ONNX, True),), skipped).exit_code


def test_the_summary_says_how_many_could_be_run():
    """
    Not that something failed.
    """
    report = ParityReport((judged(Format.ONNX, True), judged(Format.COREML, None)))

    assert "1 of 2 files compute the model's function; the others could not be run here" in markdown(
        report.record(), "net"
    )


def test_required_and_left_out_is_a_contradiction():
    """
    Told before anything is run.
    """
    with pytest.raises(UsageError, match="--require coreml is not among the formats"):
        ParityPlan(formats=(Format.ONNX,), require=(Format.COREML,))


def test_on_a_board_without_the_runtime(tmp_path, monkeypatch):
    """
    The package is not there: the rest is judged and passes; required, or alone, it is exit code 3 and the install line.
    """
    root = float_bundle(tmp_path / "net", also=(Format.COREML,))
    ours = "coordatt_deploy.runtimes.coreml"
    for name in [name for name in sys.modules if name.startswith(ours)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "coremltools", None)

    def parity(*options):
        return CliRunner().invoke(main, ["parity", str(root), "--outputs-only", *options])

    found = parity()
    assert 0 == found.exit_code, found.output
    assert "pip install 'coordatt-deploy[coreml]'" in " ".join(found.output.split())
    required = parity("--require", "coreml")
    assert 3 == required.exit_code
    assert "required, and not judged: coreml/net.mlpackage" in " ".join(required.output.split())
    assert 3 == parity("--format", "coreml").exit_code
    absent = parity("--require", "tflite")
    assert 2 == absent.exit_code
    assert "no artifact in tflite, which --require asks for" in " ".join(absent.output.split())
