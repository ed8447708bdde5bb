"""Accuracy on labelled images, with a network whose answers are known: it names the colour that fills an image."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from colours import BLIND_TO_BLUE, LOGITS, RIGHT, evaluated, run

from coordatt_deploy.documents import dump
from coordatt_deploy.errors import MissingDependencyError, UsageError
from coordatt_deploy.evaluation import run as evaluation_run


def test_accuracy_and_difference_are_what_the_network_does(bundle, photos):
    """
    The reference names every colour; the file that is blind to blue loses exactly the blue third.
    """
    found = evaluated(bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(4), max_drop=1.0)
    reference, right, blind = found.subjects

    assert (12, 12, 8) == (reference.correct, right.correct, blind.correct)
    assert (None, True, False) == (reference.passed, right.passed, blind.passed)
    assert (0, 4) == (right.difference.lost, blind.difference.lost)
    assert 1.0 == right.agreement
    assert right.sqnr_db > 100 > 60 > blind.sqnr_db
    assert blind.difference.points == pytest.approx(-100 / 3)
    low, high = blind.difference.interval_points
    assert low < -100 / 3 < high < 0
    assert {"deep blue/0.png", "deep blue/1.png", "deep blue/2.png", "deep blue/3.png"} == {
        change.image for change in blind.changed
    }
    assert 1 == found.exit_code


def test_exit_code_and_words_beyond_the_limit(bundle, photos):
    """
    Exit code 1, with the points lost and allowed; within a wide limit 0.
    """
    opened = bundle(blind=BLIND_TO_BLUE)
    folder = photos(4)
    beyond = run("evaluate", opened.root, "--dataset", folder, "--workers", 1, "--max-drop", 0.5)
    within = run("evaluate", opened.root, "--dataset", folder, "--workers", 1, "--max-drop", 40)

    assert (1, 0) == (beyond.exit_code, within.exit_code)
    assert "33.33 points lost, 0.5 allowed" in beyond.stdout
    assert "within" in within.stdout


def test_without_the_reference_the_float_file_is_the_measure(bundle, photos, monkeypatch):
    """
    A board has no torch: the document says what is compared with what, and why.
    """
    monkeypatch.setattr(evaluation_run, "find_spec", lambda name: None if name == "torch" else object())
    found = evaluated(bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(4))
    document = json.loads(dump(found.record()))

    assert "onnx/right.onnx" == document["baseline"]
    assert ["onnx/right.onnx", "onnx/blind.onnx"] == [item["path"] for item in document["subjects"]]
    assert 4 == document["subjects"][1]["lost"]
    assert any("instead of the float64 reference: torch is not installed" in note for note in document["notes"])


def test_a_board_needs_no_torch(bundle, photos):
    """
    With one runtime and neither torch nor onnx, the whole command runs: exit code 0, and the float file is the measure.
    """
    opened, folder = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(2)
    script = (
        "import sys, importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'torch', 'onnx', 'safetensors', 'sklearn', 'coremltools'}:\n"
        "            raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name in {'torch', 'safetensors'} else real(name)\n"
        "from coordatt_deploy.cli import main\n"
        "main(sys.argv[1:])"
    )
    arguments = ["evaluate", str(opened.root), "--dataset", str(folder), "--workers", "1", "--json"]
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)

    assert 0 == result.returncode, result.stderr
    assert "onnx/right.onnx" == json.loads(result.stdout)["baseline"]


def test_missing_runtime_is_exit_code_three(bundle, photos, monkeypatch):
    """
    Said as "not run", never as a verdict.
    """

    def missing(kind):
        raise MissingDependencyError(f"opening {kind} artifacts needs it; run: pip install 'coordatt-deploy[runtime]'")

    monkeypatch.setattr("coordatt_deploy.evaluation.bench.runtime", missing)
    found = evaluated(bundle(), photos(2), max_drop=1.0)

    assert (3, None) == (found.exit_code, found.subjects[1].passed)
    assert "pip install" in found.subjects[1].problem


def test_wrong_classes_raise_a_doubt(bundle, photos):
    """
    Where the reference itself is no better than a guess, labels or preprocessing are the likely culprit.
    """
    names = ("green", "deep blue", "red")
    found = evaluated(bundle(), photos(40, names=names))

    assert 0 == found.subjects[0].correct
    assert any("do the folders' classes" in note for note in found.notes)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("--dataset", "missing"), "there is no dataset at missing"),
        (("--dataset", "digits"), "the digits have the labels 0 to 9"),
        (("--dataset", "digits", "--format", "tflite"), "has no artifact in tflite (it has: onnx)"),
        (("--dataset", "digits", "--limit", 0), "--limit is 0"),
        (("--dataset", "digits", "--workers", 0), "--workers is 0"),
        (("--dataset", "digits", "--max-drop", -1), "--max-drop is -1"),
        (("--dataset", "digits", "--max-drop", "nan"), "--max-drop is nan"),
        (("--dataset", "digits", "--labels-by", "nam"), "did you mean name"),
        (("--dataset", "digits", "--target", "qemu-arm"), "qemu-arm64"),
        ((), "--dataset"),
    ],
)
def test_slips_on_the_command_line(bundle, photos, arguments, answer):
    """
    Exit code 2, with what was expected, and no report is left behind.
    """
    opened = bundle()
    if "tflite" in arguments:
        arguments = ("--dataset", photos(1), *arguments[2:])
    result = run("evaluate", opened.root, *arguments)

    assert 2 == result.exit_code, result.output
    assert answer in result.stderr.replace("\n", " ")
    assert not (opened.root / "reports" / "evaluate.json").exists()


def test_a_detector_has_no_accuracy(bundle, photos):
    """
    A model without (1, classes) is refused by what it gives.
    """
    boxes = replace(LOGITS, name="boxes", shape=(1, 4, 8, 8))
    with pytest.raises(UsageError, match=r"gives boxes \(1, 4, 8, 8\)"):
        evaluated(bundle(outputs=(boxes,)), photos(1))


@pytest.mark.slow
def test_packaged_weights_on_the_packaged_digits(tmp_path):
    """
    The embedded default's float files are right on as many held-out digits as its recipe says.
    """
    root = tmp_path / "digits"
    assert 0 == run("export", "--format", "onnx", "--format", "tflite", "--output-dir", root).exit_code
    result = run("evaluate", root, "--dataset", "digits", "--max-drop", 0.0, "--json")
    assert 0 == result.exit_code, result.output
    document = json.loads(result.stdout)

    assert [357, 357, 357] == [item["correct"] for item in document["subjects"]]
    assert all(item["agreement"] == 1.0 for item in document["subjects"][1:])
