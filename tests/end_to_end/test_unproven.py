"""The whole way with a network, a reference or golden data that prove nothing."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from coordatt_deploy.bundle import open_bundle, save_golden
from coordatt_deploy.bundle_writing import finish
from coordatt_deploy.cli import main

pytestmark = pytest.mark.slow

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, factor):
        super().__init__()
        torch.manual_seed(0)
        self.factor, self.conv, self.head = factor, nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, image):
        return self.head(torch.sin(self.conv(image) * self.factor).mean((2, 3)))


def build(factor=1.0):
    return Net(factor)
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments], catch_exceptions=False)


def exported(folder, factor):
    (folder / "net.py").write_text(NETS)
    result = run(
        "export", "--model", f"{folder / 'net.py'}:build", "--model-args", json.dumps({"factor": factor}),
        "--input-size", "24", "--format", "onnx", "--output-dir", folder / "bundle",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder / "bundle"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("healthy"), 1.0)


@pytest.fixture
def bundle(healthy, tmp_path):
    shutil.copytree(healthy, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_an_ill_conditioned_network_is_unproven_with_the_layer(tmp_path):
    """Exit 1, its own verdict in terminal, JSON, JUnit and Markdown, the sine named, a remedy said."""
    folder = exported(tmp_path, 1e8)

    result = run("parity", folder, "--json", "--junit", tmp_path / "j.xml", "--markdown", tmp_path / "m.md")

    verdict = json.loads(result.stdout)["artifacts"][0]
    assert (1, False, False) == (result.exit_code, verdict["passed"], verdict["provable"])
    assert "cannot be proven" in verdict["problem"]
    assert "precision is lost at :sin (sin), where torch's own rounding keeps" in verdict["problem"]
    assert "cannot be proven" in (tmp_path / "j.xml").read_text()
    assert "cannot be proven" in (tmp_path / "m.md").read_text()
    assert "UNPROVEN" in run("parity", folder).output
    assert 0 == run("report", folder).exit_code
    assert "cannot be proven" in next((folder / "reports").glob("*.html")).read_text()


def test_the_same_network_without_the_factor_passes(healthy):
    """The negative: nothing had to be believed either."""
    result = run("parity", healthy, "--json")

    document = json.loads(result.stdout)
    assert (0, True, []) == (result.exit_code, document["passed"], document["believed"])


@pytest.mark.parametrize("command", [["parity"], ["parity", "--outputs-only"], ["quantize"]])
def test_a_swapped_classifier_is_refused_under_the_old_hash(bundle, command):
    """The rows of the head's matrix in another order, every hash of the manifest right."""
    path = bundle / "reference" / "weights.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"head.weight": tensors["head.weight"].flip(0).contiguous()}, path)
    finish(bundle, open_bundle(bundle, verify=False).manifest)
    recipe = ["--recipe", "weight_only_wi8_afp32"] if command == ["quantize"] else []

    result = run(command[0], bundle, *command[1:], *recipe)

    assert 2 == result.exit_code
    assert "weights in reference/ are not those that the bundle was made from" in result.output


@pytest.mark.parametrize("options", [[], ["--outputs-only"]])
def test_zeroed_golden_outputs_are_refused(bundle, options):
    """Also where outputs alone are judged."""
    outputs = open_bundle(bundle).golden("outputs")
    save_golden(bundle / "golden/outputs.npz", {k: [np.zeros_like(v) for v in vs] for k, vs in outputs.items()})
    finish(bundle, open_bundle(bundle, verify=False).manifest)

    result = run("parity", bundle, *options)

    assert 2 == result.exit_code
    assert "is not what reference/ computes" in result.output


def test_inputs_that_are_not_finite_are_refused(bundle):
    """NaN in a golden input would make every output NaN, reference and all."""
    inputs = open_bundle(bundle).golden("inputs")
    inputs["image"][2][0, 0, 0, 0] = np.nan
    save_golden(bundle / "golden/inputs.npz", inputs)
    finish(bundle, open_bundle(bundle, verify=False).manifest)

    result = run("parity", bundle)

    assert 2 == result.exit_code
    assert "NaN or infinity" in result.output
