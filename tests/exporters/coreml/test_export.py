"""What coremltools' own passes make of a program: the function stays."""

import numpy as np
import pytest
import torch
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest
from coordatt_deploy.exporters.coreml import export
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools as ct

SIZE = (8, 12)


class IdentityBranch(nn.Module):
    """A BatchNorm with no convolution before it, as in MobileOne and RepVGG in training form."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.norm, self.conv = nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        nn.init.normal_(self.norm.bias)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, image):
        x = torch.relu(self.stem(image))
        return self.norm(x), self.conv(x)


@pytest.fixture
def relative_error(tmp_path):
    """How far the exported BatchNorm is from torch's in float64, relative to its greatest value."""

    def measure():
        module = IdentityBranch().eval()
        graph, _ = fold_batchnorms(capture(module, (torch.randn(1, 3, *SIZE),)))
        request = ExportRequest(ModelSpec("net", Preprocessing(SIZE)), Precision.FP32, tmp_path / "net.mlpackage")
        done = export.export(graph, request)
        image = np.random.default_rng(5).normal(0.2, 1.5, (1, 3, *SIZE)).astype(np.float32)
        with torch.no_grad():
            wanted = module.double()(torch.from_numpy(image).double())[0].numpy()
        artifact = Artifact("", Format.COREML, Precision.FP32, None, None, 0, "", done.inputs, done.outputs, "")
        with runtime(Format.COREML).open_artifact(request.path, artifact) as runner:
            value = runner.infer({done.inputs[0].name: image})[done.outputs[0].name]
        return np.abs(value - wanted).max() / np.abs(wanted).max()

    return measure


def test_a_scale_and_shift_keeps_its_scale(relative_error):
    """
    To within float32 rounding.
    """
    assert relative_error() < 1e-6


def test_all_of_the_converters_passes_would_change_the_scale(relative_error, monkeypatch):
    """
    By the default epsilon of the batch_norm that one of them writes: sqrt(1 + 1e-5).
    """
    monkeypatch.setattr(export, "_passes", lambda _: ct.PassPipeline())

    assert 2e-6 < relative_error() < 8e-6
