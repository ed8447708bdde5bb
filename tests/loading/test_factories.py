"""Factories of the user: arguments, mistakes in one line, and where the rest of an error goes."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from zoo_requests import ZOO, trouble, zoo

from coordatt_deploy.errors import MissingDependencyError, UsageError
from coordatt_deploy.inspection.captured_graph import inspect_source
from coordatt_deploy.loading.factories import attention_warning
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.loaded_model import capture_source
from coordatt_deploy.loading.model_request import ModelRequest


def test_a_factory_from_an_importable_module(tmp_path, monkeypatch):
    """
    package.module:factory is looked for from the current folder, as Python does.
    """
    package = tmp_path / "users_package"
    package.mkdir()
    shutil.copy(ZOO / "official_block.py", package / "block.py")
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from .block import SmallClassifier as Backbone\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    by_module = resolve(ModelRequest("users_package.nets:Backbone", input_size=(32, 32)))
    by_file = resolve(ModelRequest("users_package/nets.py:Backbone", input_size=(32, 32)))

    assert "Backbone" == by_module.spec.name == by_file.spec.name
    assert type(by_module.module) is type(by_file.module)


def test_arguments_reach_the_factory():
    """
    --model-args by name, and num_classes where the factory has it.
    """
    source = resolve(trouble("plain", model_args={"width": 6}, num_classes=9))

    assert (6, 9) == (source.module[0].out_channels, source.module[3].out_features)


def test_a_module_that_is_built_already_and_a_class_are_factories_too():
    """
    A variable of the file that holds a module, and a class without needed arguments.
    """
    assert (1, 4) == tuple(resolve(trouble("READY")).module(torch.zeros(1, 3, 8, 8)).shape)
    assert "SmallClassifier" == resolve(zoo("official_block:SmallClassifier")).spec.name


def test_generic_names_of_factories_give_way_to_the_files():
    """
    ``build`` says nothing; a given name wins.
    """
    assert "official_block" == resolve(zoo("official_block:build")).spec.name
    assert "mine" == resolve(zoo("official_block:build", name="mine")).spec.name


def test_what_the_users_code_prints_stays_off_the_screen():
    """
    The factory prints; stdout belongs to results.
    """
    code = f"from coordatt_deploy.loading.load import *; resolve(ModelRequest({str(ZOO / 'trouble.py')!r} + ':plain'))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ("", "") == (done.stdout, done.stderr)


def test_fresh_modules_are_set_to_evaluation_and_it_is_said():
    """
    torch builds every module in training mode.
    """
    source = resolve(zoo("official_block:build"))

    assert not any(layer.training for layer in source.module.modules())
    assert "the model came in training mode and was set to evaluation with eval()" in source.notes


BAD = [
    ("zzzz", "there is no 'zzzz' in trouble; known: AloneDoubled, ByKeyword, "),
    ("plian", "did you mean plain"),
    ("CONSTANT", "is of type int; expected a function or class"),
    ("needs", r"needs width, depth; give them as --model-args '\{\"width\": ..., \"depth\": ...\}'"),
    ("returns_none", "returns a NoneType; expected a torch.nn.Module"),
    ("returns_class", r"returns the class Conv2d; return an instance: Conv2d\(...\)"),
    ("returns_pair", "returns a tuple of 2; return the torch.nn.Module alone"),
    ("scripted", "returns a TorchScript module"),
    ("half", r"float16; export needs float32 weights, call model\.float\(\)"),
    ("elsewhere", "0.weight is on device meta"),
    ("lazy", "run the model once before it is returned"),
    ("damaged", "0.weight holds 1 values that are NaN"),
    ("StaysInTraining", "norm stays in training mode after model.eval"),
    ("awaited", "is an async function; write it without async"),
    ("ReturnsDataclass", "returns a Result without a tensor in it; return tensors"),
    ("ReturnsNothing", "returns a dict without a tensor in it"),
    ("ByKeyword", "forward takes x by keyword only"),
    ("NoInput", "forward takes no input"),
]


@pytest.mark.parametrize(("name", "text"), BAD)
def test_bad_factories_are_told_in_one_line(name, text):
    """
    What was received, what was expected, what to do.
    """
    with pytest.raises(UsageError, match=text) as caught:
        resolve(trouble(name))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "text", "line"), [
    ("raises", "RuntimeError: no such file: weights.pth", 'raise RuntimeError("no such file'),
    ("leaves", "SystemExit: usage: train.py", "sys.exit("),
])  # fmt: skip
def test_what_the_users_code_raises_goes_to_a_file(name, text, line):
    """
    One line for the screen names their line; the traceback is in the log.
    """
    with pytest.raises(UsageError, match=text) as caught:
        resolve(trouble(name))

    message = str(caught.value)
    log = Path(message.rpartition(" is in ")[2])
    assert "\n" not in message
    assert "trouble.py:" in message
    assert line in message
    assert "Traceback" in log.read_text(encoding="utf-8")


def test_data_dependent_control_flow_names_the_users_line():
    """
    torch.export's page of text is boiled down to file, line and remedy; control flow on sizes is no trouble.
    """
    source = resolve(trouble("LooksAtValues"))

    with pytest.raises(
        UsageError, match=r"depends on the values of a tensor at .*trouble\.py:\d+ \(if y\.mean\(\) > 0:\)"
    ):
        capture_source(source)

    assert capture_source(resolve(trouble("LooksAtSizes"))).outputs == ("output",)


def test_wrong_arguments_are_answered_with_the_nearest():
    """
    Also where the model takes none.
    """
    with pytest.raises(UsageError, match="has no argument 'widht'; did you mean width"):
        resolve(trouble("plain", model_args={"widht": 3}))
    with pytest.raises(UsageError, match="takes no arguments"):
        resolve(trouble("READY", model_args={"width": 3}))
    with pytest.raises(UsageError, match="takes no argument 'depth'; it takes num_classes, reduction"):
        resolve(ModelRequest("mobilenetv2_ca_035", model_args={"depth": 3}))


def test_timm_is_asked_for_with_its_install_line(monkeypatch):
    """
    timm is not among the dependencies.
    """
    real = importlib.import_module

    def without_timm(name, package=None):
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_timm)

    with pytest.raises(MissingDependencyError, match="pip install timm"):
        resolve(ModelRequest("timm:efficientnet_b0"))


def test_attention_that_was_asked_for_and_is_not_there_is_said():
    """
    timm builds mobilenetv2 without complaint and without the attention that se_layer names.
    """
    warning = attention_warning("timm:mobilenetv2_100", {"se_layer": "coord"}, 0)

    assert "se_layer was given, but no attention block was found" in warning
    assert attention_warning("timm:efficientnet_b0", {"se_layer": "coord"}, 16) is None
    assert attention_warning("timm:mobilenetv2_100", None, 0) is None


def test_inspect_says_that_attention_is_not_there():
    """
    The note stands where the user looks: among what was found.
    """
    source = resolve(ModelRequest(f"{ZOO / 'trouble.py'}:plain"))

    assert any("se_layer was given" in note for note in inspect_source(source, "timm:x", {"se_layer": "coord"}).notes)
    assert not any("se_layer" in note for note in inspect_source(source, "timm:x").notes)


@pytest.mark.parametrize("classes", ["7", 7.0, True, -1])
def test_a_number_of_classes_that_is_none_is_refused(classes):
    """
    --model-args may hold any JSON.
    """
    with pytest.raises(UsageError, match=r"num_classes is .*; it must be a whole number of at least 1"):
        resolve(ModelRequest("mobilenetv2_ca_035", model_args={"num_classes": classes}))
