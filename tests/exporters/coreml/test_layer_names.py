"""Which tensor of a program is said to hold a layer: coremltools names operators of its own as well."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from files_against_torch import captured
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest
from coordatt_deploy.exporters.coreml import export
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.execution import run
from coordatt_deploy.layer_map import restore
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools as ct

# Relative to the greatest value: some roundings of float32 and of float16.
CLOSE = {Precision.FP32: 1e-5, Precision.FP16: 1e-2}


class Transformer(nn.Module):
    """Two steps of MobileViTv2: a GroupNorm of one group, a convolution, and the sum, which torch names add_<n>."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(1, 8) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))
        for norm in self.norms:
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias)

    def forward(self, image):
        x = self.stem(image)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(norm(x))
        return torch.relu(x)


@contextmanager
def _from_nought(_):
    ct.converters.mil.mil.Builder.name_count.clear()
    yield


@pytest.fixture
def displaced(tmp_path):
    """Writes the package; gives the layers whose tensor does not hold torch's value, and how many have a tensor."""

    def measure(precision):
        graph = captured(Transformer(), (1, 3, 16, 12))
        path = tmp_path / "net.mlpackage"
        done = export.export(graph, ExportRequest(ModelSpec("net", Preprocessing((16, 12))), precision, path))
        image = np.random.default_rng(5).normal(0.2, 1.5, (1, 3, 16, 12)).astype(np.float32)
        nodes = {layer.layer_id: layer.parts[0].tensor for layer in graph.layers.layers}
        wanted = run(graph, {"image": image}, nodes=frozenset(nodes.values()))
        artifact = Artifact("", Format.COREML, precision, None, None, 0, "", done.inputs, done.outputs, "")
        present = [layer for layer in done.layers.layers if layer.parts]
        tensors = tuple(layer.parts[0].tensor for layer in present)
        with runtime(Format.COREML).open_artifact(path, artifact, tensors=tensors) as runner:
            made = runner.infer({"image": image})
        far = []
        for layer in present:
            value = wanted[nodes[layer.layer_id]]
            if np.abs(restore(layer, made) - value).max() > CLOSE[precision] * np.abs(value).max():
                far.append(layer.layer_id)
        return far, len(present)

    return measure


@pytest.mark.parametrize("precision", CLOSE)
def test_layers_lie_where_the_map_says(displaced, precision):
    """
    Stem, two convolutions, two sums and the activation, though coremltools makes sums of its own for a GroupNorm.
    """
    assert displaced(precision) == ([], 6)


@pytest.mark.parametrize("precision", CLOSE)
def test_names_from_nought_on_would_displace_a_sum(displaced, precision, monkeypatch):
    """
    The second sum, whose name the first GroupNorm has then.
    """
    monkeypatch.setattr(export, "_numbered_behind", _from_nought)

    assert displaced(precision) == ([":add_1"], 6)
