"""A file of budgets is read whole or refused with the nearest name."""

from dataclasses import replace

import pytest
from small_bundle import float_bundle

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import TargetCpu
from coordatt_deploy.release.budgets import Undecided, read_budgets, selectors

WHOLE = """
undecided = "pass"
baseline = "last.bundle"

[size]
all = "2 MB"
onnx.fp32 = "1.02 x baseline"
"tflite/net_int8.tflite" = "0.3 x tflite.fp32"

[latency]
onnx.fp32.arm64 = "12.5 ms"

[parity]
all = "passed"
tflite.static_wi8_ai8 = "35 dB"

[accuracy]
all = "0.3 points"
onnx = "97 %"

[operators]
onnx.Transpose = 0
tflite = 120
"""


def written(folder, text):
    path = folder / "budgets.toml"
    path.write_text(text)
    return path


def test_every_line_is_a_budget_with_its_place(tmp_path):
    """
    Section, files, limit in the kind's own unit, and the line that an annotation points at.
    """
    found = read_budgets(written(tmp_path, WHOLE))
    budgets = {item.name: item for item in found.budgets}

    assert (Undecided.PASS, tmp_path / "last.bundle") == (found.undecided, found.baseline)
    assert 2e6 == budgets["size.all"].limit.value
    assert ("baseline", 1.02) == (budgets["size.onnx.fp32"].limit.of, budgets["size.onnx.fp32"].limit.value)
    assert "tflite.fp32" == budgets["size.tflite/net_int8.tflite"].limit.of
    assert 12.5 == budgets["latency.onnx.fp32.arm64"].limit.value
    assert budgets["accuracy.all"].limit.is_drop
    assert 0.97 == budgets["accuracy.onnx"].limit.value
    assert ("onnx", "Transpose") == (budgets["operators.onnx.Transpose"].selector,
                                     budgets["operators.onnx.Transpose"].operator)  # fmt: skip
    lines = WHOLE.splitlines()
    assert all(item.selector.rpartition(".")[2] in lines[item.line - 1] or item.operator for item in found.budgets)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[sise]\nall = '2 MB'", "did you mean size"),
        ("[size]\nonx = '2 MB'", "did you mean onnx"),
        ("[size]\nonnx.fp23 = '2 MB'", "no precision or recipe 'fp23'"),
        ("[size]\nonnx.fp32.arm46 = '2 MB'", "did you mean arm64"),
        ("[size]\ntflite.fp32.arm64 = '2 MB'", "the same for all CPUs"),
        ("[size]\nall = '2 ms'", "the unit is ms, known are B, kB"),
        ("[latency]\nall = 12", "the unit is missing"),
        ("[latency]\nall = true", "True"),
        ("[latency]\nall = '1.05 x basline'", "basline"),
        ("[latency]\nall = '1.05 x baseline'", "name it: baseline"),
        ("[parity]\nall = '1.1 x onnx.fp32'", "not relative"),
        ("undecided = 'maybe'\n[size]\nall = '2 MB'", '"fail" or "pass"'),
        ("size = 3", "expected a section"),
        ("", "holds no budget"),
        ("[size", "not TOML"),
    ],
)
def test_what_is_no_budget_is_refused_with_what_to_write(tmp_path, text, told):
    """
    The text names the file, what was received, and the nearest name or an example.
    """
    with pytest.raises(UsageError) as error:
        read_budgets(written(tmp_path, text))

    assert "budgets.toml" in str(error.value)
    assert told in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    """
    And is no traceback.
    """
    with pytest.raises(UsageError, match=r"none\.toml cannot be read"):
        read_budgets(tmp_path / "none.toml")


def test_a_file_answers_to_its_path_and_to_what_it_is(tmp_path):
    """
    The narrowest first.
    """
    (artifact,) = open_bundle(float_bundle(tmp_path / "b")).manifest.artifacts

    assert ("onnx/net.onnx", "onnx.fp32", "onnx", "all") == selectors(artifact)
    for_arm = replace(artifact, target_cpu=TargetCpu.ARM64)
    assert ("onnx/net.onnx", "onnx.fp32.arm64", "onnx.fp32", "onnx", "all") == selectors(for_arm)
