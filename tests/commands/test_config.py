"""``build --config`` and ``--save-config``: what a file says is what the command line would say."""

import hashlib
import tomllib
from pathlib import Path

import click
import pytest

from coordatt_deploy.commands import build as module
from coordatt_deploy.commands.build import build
from coordatt_deploy.commands.config import TABLES, options_of, said, save
from coordatt_deploy.commands.export_options import ExportOptions
from coordatt_deploy.errors import UsageError
from coordatt_deploy.manifest import ConfigRecord

# What is of this run alone, and says nothing of the bundle.
OF_A_RUN = {"config", "save-config", "no-cache", "json", "verbose", "quiet"}

WHOLE = """
[model]
model = "net.py:Net"
model-args = { width = 0.5, names = ["a"] }
checkpoint = "weights/net.pth"
allow-unexpected = true
output = ["boxes=boxes", "scores=scores"]

[inputs]
input-size = [320, 192]
golden = "images"

[preprocessing]
mean = [0.485, 0.456, 0.406]
std = "0.229,0.224,0.225"

[files]
format = ["onnx", "tflite"]
precision = "int8"
output-dir = "out"
min-runtime = ["onnxruntime=1.15"]
opset = 17

[calibration]
calibration-data = "digits"
seed = 3

[check]
budgets = "budgets.toml"
"""
AS_TYPED = [
    "--model", "net.py:Net", "--model-args", '{"width": 0.5, "names": ["a"]}', "--checkpoint", "weights/net.pth",
    "--allow-unexpected", "--output", "boxes=boxes", "--output", "scores=scores", "--input-size", "320x192", "--golden",
    "images", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--format", "onnx", "--format", "tflite",
    "--precision", "int8", "--output-dir", "out", "--min-runtime", "onnxruntime=1.15", "--opset", "17",
    "--calibration-data", "digits", "--seed", "3", "--budgets", "budgets.toml",
]  # fmt: skip


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """Reads a command line of ``build``, and returns its options instead of building."""
    monkeypatch.chdir(tmp_path)

    def read(*arguments):
        context = build.make_context("build", list(arguments))
        with context:
            values = dict(context.params)
            del values["config"], values["save_config"]
            return values, said()

    return read


def test_every_option_stands_in_one_table():
    """
    A new option of ``build`` has a key, and no key is of no option.
    """
    options = {max(item.opts, key=len).removeprefix("--") for item in build.params if isinstance(item, click.Option)}
    keys = [key for table in TABLES.values() for key in table]

    assert options - OF_A_RUN == set(keys)
    assert len(keys) == len(set(keys)) == len(options_of(build))
    assert ExportOptions() is not None


def test_a_file_says_what_the_command_line_would(parsed):
    """
    Numbers, lists and tables as TOML has them, or texts as they are typed.
    """
    Path("deploy.toml").write_text(WHOLE)

    assert parsed(*AS_TYPED)[0] == parsed("--config", "deploy.toml")[0]


def test_the_command_line_wins(parsed):
    """
    Option by option; a list is replaced, not added to.
    """
    Path("deploy.toml").write_text(WHOLE)

    values, _ = parsed("--config", "deploy.toml", "--format", "coreml", "--seed", "4")

    expected, _ = parsed(*AS_TYPED[:-2], "--budgets", "budgets.toml", "--seed", "4")
    assert {**expected, "formats": ("coreml",)} == values


def test_paths_are_relative_to_the_file(parsed):
    """
    Of files, of a model's code and of data; a packaged name and a module stay as they are.
    """
    Path("conf").mkdir()
    Path("conf/deploy.toml").write_text(WHOLE.replace('"digits"', '"calib"').replace('"images"', '"/abs/images"'))

    values, _ = parsed("--config", "conf/deploy.toml")

    found = [values[key] for key in ("model", "data", "golden", "checkpoint", "output_dir", "budgets")]
    paths = [Path("/abs/images"), Path("conf/weights/net.pth"), Path("conf/out"), Path("conf/budgets.toml")]
    assert ["conf/net.py:Net", "conf/calib", *paths] == found
    Path("conf/deploy.toml").write_text('[model]\nmodel = "package.module:factory"\n')
    assert "package.module:factory" == parsed("--config", "conf/deploy.toml")[0]["model"]


def test_what_was_saved_says_the_same(parsed):
    """
    From the command line into a file of another folder, and from there.
    """
    Path("conf").mkdir()
    values, given = parsed(*AS_TYPED)
    record = save(Path("conf/deploy.toml"), given.values)

    text = Path("conf/deploy.toml").read_bytes()
    again, read = parsed("--config", "conf/deploy.toml")

    names = ("model", "checkpoint", "golden", "output_dir", "budgets")
    assert {**values, **dict.fromkeys(names)} == {**again, **dict.fromkeys(names)}
    inside = {name: Path(str(again[name]).replace("conf/../", "")) for name in names}
    assert {name: Path(values[name]) for name in names} == inside
    assert ConfigRecord("deploy.toml", hashlib.sha256(text).hexdigest()) == record == read.config
    assert {"width": 0.5, "names": ["a"]} == tomllib.loads(text.decode())["model"]["model-args"]


def test_what_a_file_and_the_command_line_say_is_saved_together(parsed):
    """
    So that the new file alone says it.
    """
    Path("deploy.toml").write_text('[files]\nformat = ["onnx"]\nopset = 17\n')
    values, given = parsed("--config", "deploy.toml", "--opset", "18", "--strict")
    save(Path("both.toml"), given.values)

    assert values == parsed("--config", "both.toml")[0]


def test_a_file_that_says_something_else_is_not_written_over(tmp_path):
    """
    The same again is no error.
    """
    path = tmp_path / "deploy.toml"
    save(path, {"seed": "3"})
    save(path, {"seed": "3"})

    with pytest.raises(UsageError, match="is there and says something else"):
        save(path, {"seed": "4"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[model]\n\nmodle = 'x'\n", "deploy.toml, line 3, [model]: unknown key 'modle'; did you mean model"),
        ("[modell]\n", "deploy.toml, line 1: unknown table [modell]; did you mean model?"),
        ("[model]\nopset = 17\n", "line 2, [model]: unknown key 'opset'; it belongs below [files]"),
        ("opset = 17\n", "line 1: opset stands in no table; write it below [files]"),
        ("preprocessing = 'x'\n", "line 1: preprocessing stands in no table; write it below [preprocessing]"),
        ("model = 3\n", "line 1: model stands in no table"),
        ("[files]\nformat = ['onx']\n", "line 2, [files] format: unknown format 'onx'; did you mean onnx"),
        ("[files]\nopset = 99\n", "line 2, [files] opset: 99 is not in the range 7<=x<=22"),
        ("[files]\nstrict = 'yes'\n", "line 2, [files] strict is 'yes'; write true or false"),
        ("[model]\nname = true\n", "line 2, [model] name is True; write it as on the command line"),
        ("[inputs]\ninput-size = 'big'\n", "[inputs] input-size: 'big' is no size"),
        ("[model\n", "deploy.toml is not TOML"),
        ("\ud83d", "deploy.toml cannot be read"),
        (None, "deploy.toml cannot be read: No such file"),
    ],
)
def test_what_a_file_cannot_say_is_refused(run, text, told):
    """
    Exit 2, the line, and the nearest that it can; before anything is loaded.
    """
    if text is not None:
        Path("deploy.toml").write_bytes(text.encode("utf-8", "surrogatepass"))

    result = run("build", "--config", "deploy.toml")

    assert 2 == result.exit_code
    assert told in result.output.replace("\n", " ")


def test_the_plan_names_the_file(run, monkeypatch):
    """
    By name and hash, without the folders that it lies in; a saved file in place of the one that was read.
    """
    plans = []
    monkeypatch.setattr(module, "_build", lambda plan, *_, **__: plans.append(plan))
    Path("conf").mkdir()
    text = b'[files]\nformat = ["onnx"]\n'
    Path("conf/deploy.toml").write_bytes(text)

    assert 0 == run("build", "--config", "conf/deploy.toml").exit_code
    assert 0 == run("build", "--config", "conf/deploy.toml", "--no-cache", "--save-config", "saved.toml").exit_code
    assert 0 == run("build").exit_code

    saved = hashlib.sha256(Path("saved.toml").read_bytes()).hexdigest()
    expected = [ConfigRecord("deploy.toml", hashlib.sha256(text).hexdigest()), ConfigRecord("saved.toml", saved), None]
    assert expected == [plan.config for plan in plans]
    assert [True, False, True] == [plan.cache is not None for plan in plans]


def test_help_is_given_whatever_the_file_says(run):
    """
    Also where it is not there.
    """
    assert 0 == run("build", "--config", "none.toml", "--help").exit_code
