"""One format's gap does not take the others with it: what can be written is, the rest is named with its reason."""

import json
from xml.etree import ElementTree

import numpy as np
import onnxruntime
import pytest
import torch

from coordatt_deploy.bundle import open_bundle

NETWORK = """
import torch
import torch.nn.functional as F
from torch import nn

class Dilated(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, image):
        return F.max_pool2d(self.stem(image), 3, 1, dilation=2)

def make():
    torch.manual_seed(0)
    return Dilated().eval()
"""
EXPORT = ("export", "--model", "net.py:make", "--input-size", "16x16", "--output-dir", "net")


@pytest.fixture
def network(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    return tmp_path


def make():
    scope = {}
    exec(NETWORK, scope)  # noqa: S102 - written above
    return scope["make"]()


@pytest.mark.slow
def test_formats_that_can_be_written_are(run, network):
    """
    Exit code 1; the manifest, the screen, and every report name what is missing, and the file that is there is right.
    """
    result = run(*EXPORT, "--format", "onnx", "--format", "coreml")
    bundle = open_bundle(network / "net")
    image = torch.rand(1, 3, 16, 16)
    (artifact,) = bundle.manifest.artifacts
    session = onnxruntime.InferenceSession(bundle.root / artifact.path)
    (given,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    first = bundle.manifest.refused[0]

    assert 1 == result.exit_code
    assert "onnx" == artifact.format
    np.testing.assert_allclose(given, make()(image).detach().numpy(), atol=1e-4)
    assert ["coreml fp16", "coreml fp32"] == [str(file) for file in bundle.manifest.refused]
    assert ["max_pool2d"] == [item.operator for item in first.operators]
    assert "net.py:12" in first.operators[0].line
    assert "without dilation" in first.operators[0].remedy
    assert "not written" in result.output
    assert not list((network / "net").rglob("*.mlpackage*"))

    checked = run("parity", "net", "--junit", "junit.xml", "--markdown", "summary.md")
    reported = run("report", "net")

    assert (0, 0) == (checked.exit_code, reported.exit_code), checked.output
    assert "not written: coreml fp32" in checked.output
    assert "2 of those asked for could not be written" in (network / "summary.md").read_text()
    assert "2" == ElementTree.parse(network / "junit.xml").getroot().get("skipped")  # noqa: S314 - written above
    page = (network / "net" / "reports" / "report.html").read_text()
    assert "2 of the 3 files that were asked for could not be written" in page
    assert "headline good" not in page

    again = run(*EXPORT, "--format", "onnx", "--json")
    assert 0 == again.exit_code, "all that was asked for now is there"
    assert 2 == len(json.loads(again.stdout)["refused"])


@pytest.mark.slow
def test_strict_is_all_or_nothing(run, network):
    """
    With the error of the file that could not be written, and no bundle.
    """
    result = run(*EXPORT, "--format", "onnx", "--format", "coreml", "--strict")

    assert 1 == result.exit_code
    assert "Core ML cannot have max_pool2d" in result.output
    assert not (network / "net").exists()


@pytest.mark.slow
def test_nothing_that_can_be_written_leaves_nothing(run, network):
    """
    A table of several files, one line of a single one.
    """
    several = run(*EXPORT, "--format", "coreml")
    one = run(*EXPORT, "--format", "coreml", "--precision", "fp32")

    assert (1, 1) == (several.exit_code, one.exit_code)
    assert "none of the 2 files could be written" in several.output
    assert "coreml fp16" in several.output
    assert one.output.startswith("Error: Core ML cannot have max_pool2d")
    assert not (network / "net").exists()


@pytest.mark.slow
def test_what_is_written_later_is_no_longer_missing(run, network):
    """
    The same weights, with a network that the format can have.
    """
    first = run(*EXPORT, "--format", "onnx", "--format", "coreml", "--precision", "fp32")
    (network / "net.py").write_text(
        NETWORK.replace("max_pool2d(self.stem(image), 3, 1, dilation=2)", "max_pool2d(self.stem(image), 3, 1)")
    )
    second = run(*EXPORT, "--format", "coreml", "--precision", "fp32")

    assert (1, 0) == (first.exit_code, second.exit_code), second.output
    assert () == open_bundle(network / "net").manifest.refused
