"""Scales that the optimizer fuses into a convolution: its tensor is judged as what it holds."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.layer_map import restore

pytestmark = pytest.mark.slow


class Net(nn.Module):
    """A convolution, something that scales it, and a sine."""

    def __init__(self, scaled) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.up, self.scaled = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2, 2), scaled
        self.register_buffer("k", torch.rand(1, 4, 1, 1) + 0.5)

    def forward(self, image):
        return torch.sin(self.scaled(self, self.conv(image)))


@pytest.mark.parametrize("scaled", [
    lambda _, x: x * 3.0,
    lambda _, x: 0.5 * x,
    lambda net, x: x * net.k + 0.25,
    lambda _, x: (x * 2.0 - 0.3) / 1.7,
    lambda net, x: net.up(x) * net.k,
    lambda _, x: x * 2.0 + x,
])  # fmt: skip
def test_every_layer_is_where_its_value_is(scaled, tmp_path):
    """One scale, one for each channel, a chain, behind a transposed convolution, and a convolution with two readers."""
    image = torch.randn(1, 3, 10, 10)
    graph = capture(Net(scaled).eval(), (image,), input_names=["image"], output_names=["output"])
    request = ExportRequest(ModelSpec("net", Preprocessing((10, 10))), Precision.FP32, tmp_path / "net.onnx")
    layers = exporter(Format.ONNX).export(graph, request).layers
    model = onnx.load(request.path)
    present = [layer for layer in layers.layers if layer.parts]
    names = dict.fromkeys(part.tensor for layer in present for part in layer.parts)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    tensors = dict(zip(names, session.run(list(names), {"image": image.numpy()}), strict=True))
    nodes = {layer.layer_id: layer.parts[0].tensor for layer in graph.layers.layers}
    exact = run(graph, {"image": image.numpy()}, nodes=frozenset(nodes.values()))

    for layer in present:
        np.testing.assert_allclose(restore(layer, tensors), exact[nodes[layer.layer_id]], rtol=1e-4, atol=1e-5)
    assert all(layer.absent is None for layer in layers.layers)
