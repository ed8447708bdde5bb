"""The command line as a user meets it: one line for every mistake, the promised exit code, nothing half written."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from coordatt_deploy.cli import main
from coordatt_deploy.formats import FORMATS, Format
from coordatt_deploy.models import create_model, list_models


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_help_has_an_example_and_a_json_option(command):
    """
    Help shows how to call the command, and every command has --json.
    """
    result = CliRunner().invoke(main, [command, "--help"])

    assert 0 == result.exit_code
    assert "Example:" in result.output
    assert "--json" in result.output


@pytest.mark.parametrize("command", ["", *sorted(main.commands)])
def test_help_imports_no_framework(command):
    """
    Neither torch nor NumPy nor rich is loaded to print help.
    """
    script = (
        "import sys; from coordatt_deploy.cli import main\n"
        "try: main([*sys.argv[1:], '--help'])\n"
        "except SystemExit: pass\n"
        "frameworks = {'torch', 'numpy', 'onnx', 'onnxruntime', 'coremltools', 'litert_torch', 'rich', 'PIL'}\n"
        "heavy = frameworks & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    arguments = [command] if command else []

    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)

    assert 0 == result.returncode, result.stderr


def test_models_as_json(run):
    """
    One strict document that begins with its schema version.
    """
    result = run("models", "--json")
    document = json.loads(result.output, parse_constant=pytest.fail)
    by_name = {item["name"]: item for item in document["models"]}

    assert ("schema_version", 1) == next(iter(document.items()))
    assert list(list_models()) == [item["name"] for item in document["models"]]
    assert 3_950_648 == by_name["mobilenetv2_ca_100"]["parameters"]
    assert {"name", "parameters", "macs", "attention", "trained", "input_size"} <= set(by_name["mobilenetv2_100"])


def test_doctor_names_versions_and_remedies(run):
    """
    The document holds the host and every package.
    """
    document = json.loads(run("doctor", "--json").output)

    assert {"host", "parts"} <= set(document)
    assert "2.13.0" in next(part["version"] for part in document["parts"] if part["name"] == "torch")


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
        (["--format", "onnx", "--precision", "fp16"], "onnx has no precision fp16"),
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


@pytest.mark.parametrize("command", ["parity", "profile"])
def test_no_bundle_at_all(run, command):
    """
    Exit 2, and how to make one.
    """
    result = run(command, "nowhere")

    assert 2 == result.exit_code
    assert "coordatt-deploy build" in result.output


@pytest.mark.parametrize("threads", ["0", "1,x", "-1", "4096"])
def test_bad_thread_counts(run, threads):
    """
    Exit 2 before anything is opened.
    """
    result = run("profile", "nowhere", "--threads", threads)

    assert 2 == result.exit_code
    assert "Traceback" not in result.output


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("doctor",), 0),
        (("models",), 0),
        (("export",), 3),
        *(((command, "nothing-here"), 2) for command in ("parity", "profile", "report")),
        (("parity", "nothing-here", "--target", "qemu-arm64"), 2),
    ],
)
def test_a_board_needs_neither_torch_nor_a_converter(arguments, expected, tmp_path):
    """
    With none of them to import, each command does its work or says in one line what it needs.
    """
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'coremltools', 'litert_torch', 'safetensors', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "from coordatt_deploy.cli import main\n"
        f"main({list(arguments)!r})"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)

    assert expected == result.returncode, result.stderr
    assert "Traceback" not in result.stderr
    assert expected == 0 or result.stderr.startswith("Error: ")
