"""``coordatt-deploy attention-cost``: what is refused, and what is written."""

import json

import pytest

from coordatt_deploy.attention_cost.result import AttentionCost
from coordatt_deploy.documents import load

CODE = """
from torch import nn
from coordatt_deploy.models.eca import ECA
from coordatt_deploy.models.attention_options import EcaOptions


def build(channels=8):
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), ECA(channels, EcaOptions(3)), nn.Conv2d(channels, 4, 1))
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backbone", "mobilenetv2_ca_100"), "no plain backbone"),
        (("--attention", "see"), "unknown attention block"),
        (("--activation", "gelu"), "gelu"),
        (("--model-args", "{}"), ""),
        (("--model-args", '{"width": 1}'), "give --model as well"),
        (("--no-latency", "--samples", "100"), "--samples is for latency"),
        (("--no-latency", "--min-seconds", "1"), "--min-seconds is for latency"),
        (("--threads", "0"), "threads is 0"),
        (("--plot", "cost.png"), "ends in .svg"),
        (("--plot", "nowhere/cost.svg"), "there is no folder"),
        (("--markdown", "nowhere/cost.md"), "there is no folder"),
        (("--target", "mac"), "unknown target"),
        (("--precision", "fp8"), "fp8"),
        (("--model", "nowhere.py:build"), "nowhere.py"),
    ],
)
def test_what_means_nothing_is_refused(run, arguments, said):
    """
    Exit 2 before any work, with what was received; never a traceback.
    """
    arguments = arguments if said else (*arguments, "--plot", "cost.png")

    result = run("attention-cost", *arguments)

    assert 2 == result.exit_code
    assert said in result.output
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_the_tables_the_picture_and_the_document(run, tmp_path):
    """
    A network of the user's own: exit 0, a row for each network on stdout, and the same in the files that were named.
    """
    (tmp_path / "net.py").write_text(CODE)
    arguments = ("--model", "net.py:build", "--attention", "se", "--input-size", "16", "--format", "onnx",
                 "--no-latency")  # fmt: skip

    shown = run("attention-cost", *arguments, "--markdown", "cost.md", "--plot", "cost.svg")
    document = run("attention-cost", *arguments, "--model-args", '{"channels": 16}', "--json")

    assert (0, 0) == (shown.exit_code, document.exit_code), shown.output + document.output
    for text in (shown.stdout, (tmp_path / "cost.md").read_text()):
        assert all(name in text for name in ("plain", "as it came", "se", "operators"))
    assert "Operators over plain" in (tmp_path / "cost.svg").read_text()
    assert 1 == json.loads(document.stdout)["schema_version"]
    read = load(AttentionCost, document.stdout)
    assert [16 * 27 + 16 + 16 * 4 + 4, 16 * 27 + 16 + 16 * 4 + 4 + 3] == [row.parameters for row in read.rows[:2]]
