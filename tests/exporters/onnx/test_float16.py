"""ONNX files in float16: right beside torch and by parity, wrong with one weight changed, and only when asked for."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from coordatt_deploy import api
from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.conversion.plan import ExportPlan
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of

IMAGE = (1, 3, 16, 24)


class Gated(nn.Module):
    """A convolution, a gate of its own means, and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.gate = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 8)

    def forward(self, image):
        x = nn.functional.hardswish(self.conv(image))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(x.mean((2, 3)))


class Normed(nn.Module):
    """An epsilon that float16 rounds to 0: a black image would give NaN."""

    def forward(self, image):
        return image / (image.mean((2, 3), keepdim=True) + 1e-12)


def _exported(module, path, precision=Precision.FP16):
    image = torch.randn(*IMAGE, generator=torch.Generator().manual_seed(1))
    graph, _ = lower(capture(module.eval(), (image,)), target_of(Format.ONNX, TargetCpu.ARM64))
    request = ExportRequest(ModelSpec("net", Preprocessing(IMAGE[2:])), precision, path, TargetCpu.ARM64)
    return exporter(Format.ONNX).export(graph, request), image


def test_weights_are_float16_inputs_and_outputs_float32(tmp_path):
    """
    ONNX Runtime gives what torch gives, within some of float16's eleven bits; the layer map names tensors of the file.
    """
    module = Gated()
    exported, image = _exported(module, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    (name,) = (value.name for value in model.graph.input)
    (found,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {name: image.numpy()})
    with torch.no_grad():
        expected = module(image).numpy()
    made = {output for node in model.graph.node for output in node.output}

    assert ["float32", "float32"] == [spec.dtype for spec in (*exported.inputs, *exported.outputs)]
    assert np.float32 == found.dtype
    floats = [item for item in model.graph.initializer if numpy_helper.to_array(item).dtype.kind == "f"]
    assert {onnx.TensorProto.FLOAT16} == {item.data_type for item in floats}
    assert np.abs(found - expected).max() < 4 * 2.0**-11 * np.abs(expected).max()
    assert np.abs(found - expected).max() > 0
    assert {part.tensor for layer in exported.layers.layers for part in layer.parts} <= made | {name}


def test_what_float16_would_lose_keeps_to_float32(tmp_path):
    """
    A black image gives 0, as in torch, and the user is told which layers compute in float32.
    """
    exported, image = _exported(Normed(), tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: np.zeros(image.shape, np.float32)})

    assert not found.any()
    assert "in float32" in exported.notes[0]


def test_only_when_asked_for():
    """
    An export without a word of precision writes float32; --precision fp16 writes float16 beside the other formats' own.
    """
    wanted = {(kind, precision) for kind, precision, _ in ExportPlan().jobs()}
    asked = {(kind, precision) for kind, precision, _ in ExportPlan(precisions=(Precision.FP16,)).jobs()}

    assert (Format.ONNX, Precision.FP32) in wanted
    assert (Format.ONNX, Precision.FP16) not in wanted
    assert {(Format.ONNX, Precision.FP16), (Format.COREML, Precision.FP16)} == asked


@pytest.mark.slow
def test_parity_passes_and_one_changed_weight_fails(tmp_path):
    """
    Outputs and every layer are within what float16 storage costs; with one weight doubled a layer is named.
    """
    bundle = api.export(Gated(), (torch.randn(*IMAGE),), tmp_path / "net", formats=["onnx"], precisions=["fp16"])
    right = bundle.check_parity()
    shutil.copytree(tmp_path / "net", tmp_path / "other", ignore=shutil.ignore_patterns("reports"))
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    path = tmp_path / "other" / manifest["artifacts"][0]["path"]
    model = onnx.load(path)
    (weight,) = (item for item in model.graph.initializer if list(item.dims) == [32, 3, 3, 3])
    values = numpy_helper.to_array(weight).copy()
    values.flat[np.argsort(np.abs(values), axis=None)[values.size // 2]] *= 2
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    manifest["artifacts"][0]["sha256"] = sha256(path)
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    wrong = api.open_bundle(tmp_path / "other").check_parity()

    assert right.passed
    assert not wrong.passed
    assert wrong.record().artifacts[0].first_diverging_layer
