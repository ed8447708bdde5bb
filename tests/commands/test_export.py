"""Export as a user meets it: one line for every mistake, the promised exit code, nothing half written."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from coordatt_deploy.commands.export_options import ExportOptions, ModelOptions, PreprocessingOptions
from coordatt_deploy.commands.export_plan import plan_export
from coordatt_deploy.commands.options import CalibrationOptions
from coordatt_deploy.conversion.plan import DEFAULT_MODEL
from coordatt_deploy.data.calibration import COUNT
from coordatt_deploy.formats import FORMATS, Format, TargetCpu
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.loading.preprocessing import PreprocessingChanges
from coordatt_deploy.models import create_model


def _state(name="mobilenetv2_ca_035", **options):
    return create_model(name, **options).state_dict()


def _truncated(path):
    torch.save(_state(), path)
    path.write_bytes(path.read_bytes()[:5000])


class _Evil:
    def __reduce__(self):
        return (print, ("run!",))


def _code(path):
    torch.save({"weight": _Evil()}, path)


def _other_keys(path):
    state = _state()
    state["features.0.1.wieght"] = state.pop("features.0.1.weight")
    torch.save(state, path)


def _other_shapes(path):
    state = _state()
    state["features.0.0.weight"] = torch.zeros(3, 3, 3, 3)
    torch.save(state, path)


def _with_nan(path):
    state = _state()
    state["features.0.0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, path)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (_truncated, "truncated"),
        (_code, "code"),
        (_other_keys, "features.0.1.weight"),
        (_other_shapes, "features.0.0.weight"),
        (_with_nan, "features.0.0.weight"),
        (lambda _path: None, "does not exist"),
        (lambda path: torch.save([1, 2], path), "state dict"),
    ],
    ids=["truncated", "pickled code", "other keys", "other shapes", "NaN", "missing", "no state dict"],
)
def test_a_bad_checkpoint_is_one_line_and_writes_nothing(run, tmp_path, write, expected):
    """
    Exit 2, the reason, and no folder.
    """
    write(tmp_path / "weights.pth")

    result = run("export", "--model", "mobilenetv2_ca_035", "--checkpoint", "weights.pth", "--output-dir", "out")

    assert 2 == result.exit_code, result.output
    assert expected in result.output
    assert "Traceback" not in result.output
    assert "run!" not in result.output
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "mobilenetv2_ca_10"], "mobilenetv2_ca_100"),
        (["--format", "onx"], "onnx"),
        (["--precision", "fp61"], "fp16"),
        (["--format", "executorch", "--precision", "fp16"], "executorch has no precision fp16"),
        (["--input-size", "8"], "between 32 and"),
        (["--input-size", "100000"], "between 32 and"),
        (["--input-size", "96.5"], "no size"),
        (["--input-size", "0x96"], "between 32 and"),
        (["--target-cpu", "arm"], "arm64"),
        (["--softmax"], "--bake-preprocessing as well"),
        (["--labels", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--input-shape", "1x3x96x96"], "NAME=1x3x224x224"),
        (["--input-shape", "image=1x3x0x96"], "NAME=1x3x224x224"),
        (["--name", "../../x"], "cannot be part of a file name"),
        (["--colour", "RBG"], "colour is 'RBG'; did you mean RGB"),
        (["--resize", "bilinaer"], "did you mean bilinear"),
        (["--mean", "0.5;0.5"], "--mean is '0.5;0.5'; expected numbers"),
        (["--preprocessing", "nowhere.json"], "nowhere.json does not exist"),
        (["--model-args", "[1]"], "is no JSON object"),
        (["--dynamic-size", "96"], "give MIN:MAX in pixels"),
        (["--dynamic-batch", "x"], "give MIN:MAX in images"),
        (["--dynamic-batch", "4:2"], "holds no two batches"),
        (["--dynamic-batch", "0:3"], "must lie between 1 and 4096"),
        (["--dynamic-batch", "1:8", "--format", "tflite"], "export it without --dynamic-batch"),
        (["--dynamic-batch", "1:8", "--bake-preprocessing"], "leave one of the two out"),
    ],
)
def test_a_bad_argument_is_answered_with_what_is_possible(run, tmp_path, arguments, expected):
    """
    Exit 2 and the nearest or the allowed values.
    """
    result = run("export", *arguments, "--output-dir", "out")

    assert 2 == result.exit_code, result.output
    assert expected in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_bundle_is_left_alone(run, tmp_path):
    """
    Exit 2 before any work, and the files stay.
    """
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"x")

    result = run("export", "--output-dir", "photos")

    assert 2 == result.exit_code
    assert "no bundle" in result.output
    assert ["me.jpg"] == [path.name for path in (tmp_path / "photos").iterdir()]


def test_a_missing_converter_is_exit_3_with_the_line_that_installs_it(run, tmp_path, monkeypatch):
    """
    What is missing is said before work begins.
    """
    monkeypatch.setitem(
        FORMATS, Format.COREML, replace(FORMATS[Format.COREML], converter="coremltools_of_another_planet")
    )

    result = run("export", "--format", "coreml", "--output-dir", "out")

    assert 3 == result.exit_code
    assert "pip install 'coordatt-deploy[coreml]'" in result.output
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_leaves_nothing_behind(tmp_path):
    """
    Ctrl-C while converters work: no half bundle, no folder beside it, and another exit code than a failed check.
    """
    command = [sys.executable, "-m", "coordatt_deploy", "export", "--format", "onnx", "--output-dir", "net"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not any(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    began = list(tmp_path.iterdir())
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=240)

    assert began
    assert 130 == process.returncode, said
    assert "nothing was left half written" in said
    assert [] == list(tmp_path.iterdir())


def test_without_options_the_embedded_default_is_exported():
    """
    Every format and its float precisions, ONNX for phones.
    """
    plan = plan_export(ExportOptions())

    assert ModelRequest(DEFAULT_MODEL) == plan.model
    assert ((), None, (TargetCpu.ARM64,)) == (plan.formats, plan.precisions, plan.target_cpus)
    assert (None, COUNT, 0, None) == (plan.calibration, plan.calibration_count, plan.seed, plan.ranges)


def test_options_become_the_plan(tmp_path):
    """
    Each where it belongs, read and checked; of preprocessing the option wins over the file.
    """
    (tmp_path / "labels").write_text("cat\ndog\n")
    (tmp_path / "preprocessing.json").write_text('{"mean": 0.25, "crop": "center"}')
    model = ModelOptions(
        model="net.py:net", model_args={"width": 2}, inputs=(("prior", (1, 8)),), labels=tmp_path / "labels"
    )
    preprocessing = PreprocessingOptions(mean="0.5", colour="bgr", preprocessing=tmp_path / "preprocessing.json")
    calibration = CalibrationOptions("digits", 32, 3)

    plan = plan_export(ExportOptions(model, preprocessing, calibration, formats=(Format.ONNX,), bake=True))

    changes = PreprocessingChanges(mean=(0.5,), colour="BGR", crop="center")
    assert plan.model == ModelRequest(
        "net.py:net",
        model_args={"width": 2},
        inputs={"prior": (1, 8)},
        labels=("cat", "dog"),
        preprocessing=changes,
    )
    assert ("digits", 32, 3) == (plan.calibration, plan.calibration_count, plan.seed)
    assert ((Format.ONNX,), True) == (plan.formats, plan.bake)
