"""Every command's table at every width: at 80 columns no word of it is broken, and no line is wider."""

import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner
from small_bundle import float_bundle

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.documents import from_json
from coordatt_deploy.formats import Format
from coordatt_deploy.parity.result import ArtifactParity, ParityReport
from coordatt_deploy.profile.result import ProfileResult
from coordatt_deploy.report.terminal.console import recorded
from coordatt_deploy.report.terminal.parity import show_parity
from coordatt_deploy.report.terminal.profile import show_profile

WIDE = 400
SEPARATORS = "./:,|_-"
COMMANDS = (
    ("models",), ("doctor",), ("verify", "net"), ("inspect", "net/onnx/net.onnx"),
    ("parity", "net", "--outputs-only", "--verbose"), ("diff", "net", "net", "--verbose"),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a bundle in it."""
    monkeypatch.chdir(tmp_path)
    float_bundle(tmp_path / "net")
    return tmp_path


def printed(*arguments, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    return CliRunner().invoke(main, list(arguments)).stdout


def broken_words(narrow, wide):
    """Words of the narrow text that are none of the wide one. Names may be broken behind a dot and the like."""
    whole = set(re.findall(r"[^\s─]+", wide))
    said = re.sub(r"\d+\s+columns\s+show.*?as\s+well|\bof\s+all:", "", narrow, flags=re.DOTALL)
    words = [word.rstrip(";:") for word in re.findall(r"[^\s─]+", said)]
    return [word for word in words if not any(is_part(word, other.rstrip(";:")) for other in whole)]


def is_part(word, other):
    """Whether a word is another one, or a part of it between dots and the like."""
    at = other.find(word)
    return at >= 0 and (at == 0 or other[at - 1] in SEPARATORS) and (
        at + len(word) == len(other) or word[-1] in SEPARATORS
    )  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 100])
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments[:2]))
@pytest.mark.usefixtures("folder")
def test_no_word_is_broken_and_no_line_too_wide(monkeypatch, arguments, width):
    """
    Whatever stands on a narrow terminal stands in that form on a wide one; commands to type are one line.
    """
    narrow = printed(*arguments, width=width, monkeypatch=monkeypatch)
    wide = printed(*arguments, width=WIDE, monkeypatch=monkeypatch)

    assert narrow
    lines = [line for line in narrow.splitlines() if not line.startswith("  coordatt-deploy")]
    assert [] == [line for line in lines if len(line) > width]
    assert [] == broken_words(narrow, wide)


def test_what_would_be_wrong_is_seen():
    """
    The negative: a word that a column cuts in two.
    """
    assert ["measu", "red"] == broken_words("onnx measu\nred", "onnx measured runtime")


def test_the_table_of_latency_fits(folder):
    """
    Measured once, shown at several widths.
    """
    arguments = ["profile", "net", "--samples", "40", "--min-seconds", "0", "--json"]
    document = json.loads(CliRunner().invoke(main, arguments).stdout)
    result, bundle = from_json(ProfileResult, document), open_bundle(folder / "net")
    texts = {}
    for width in (60, 80, 160, WIDE):
        with recorded(width) as console:
            show_profile(bundle, result)
        texts[width] = console.export_text()

    for width in (60, 80, 160):
        assert max(map(len, texts[width].splitlines())) <= width
        assert [] == broken_words(texts[width], texts[WIDE])


@pytest.mark.usefixtures("folder")
def test_the_verdict_stands_first_and_the_next_step_last(monkeypatch):
    """
    Before the table; what is allowed is told with --verbose alone, and nothing to type if quiet.
    """
    usual = printed("parity", "net", "--outputs-only", width=100, monkeypatch=monkeypatch)
    verbose = printed("parity", "net", "--outputs-only", "--verbose", width=100, monkeypatch=monkeypatch)
    quiet = printed("parity", "net", "--outputs-only", "--quiet", width=100, monkeypatch=monkeypatch)

    assert usual.startswith("PASSED: the file computes the function of ")
    assert usual.splitlines()[-1].split("#")[0].split() == ["coordatt-deploy", "report", "net"]
    assert "allowed:" not in usual
    assert "allowed:" in verbose
    assert "next:" not in quiet
    assert quiet.startswith("PASSED")


def test_the_next_step_can_be_typed(folder, monkeypatch):
    """
    Also where the folder's name has a space: the line is run as it was printed.
    """
    float_bundle(folder / "my net")
    shown = printed("parity", "my net", "--outputs-only", width=60, monkeypatch=monkeypatch)
    line = next(line for line in shown.splitlines() if "report" in line)

    assert "coordatt-deploy report 'my net'" in line
    result = CliRunner().invoke(main, ["report", "my net"])
    assert 0 == result.exit_code


def test_what_failed_is_told_before_the_table(folder):
    """
    Each file with its reason once, below the verdict; its figures follow.
    """
    bundle = open_bundle(folder / "net")
    (right,) = bundle.manifest.artifacts
    wrong = replace(right, path="tflite/net.tflite", format=Format.TFLITE)
    report = ParityReport((
        ArtifactParity(right, "onnxruntime", Origin.MEASURED, True),
        ArtifactParity(wrong, "litert", Origin.MEASURED, False, problem="logits: 3 of 5 elements differ"),
    ))  # fmt: skip

    with recorded(100) as console:
        show_parity(bundle, report)
    verdict, _, rest = console.export_text().partition("\n\n")

    assert verdict.splitlines() == [
        f"FAILED: 1 of 2 files does not compute the function of {bundle.manifest.model.name}.",
        "  tflite fp32: logits: 3 of 5 elements differ",
    ]
    assert rest.startswith("Parity of ")
    assert "elements differ" not in rest
