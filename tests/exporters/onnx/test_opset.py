"""ONNX files in other opsets: converted by onnx itself, or refused with what is in the way."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.errors import ConversionError
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.runtime_versions import RuntimeLimits
from coordatt_deploy.runtimes.reader import runtime_needs

IMAGE = (1, 3, 16, 24)


class Pooled(nn.Module):
    """What opset 18 writes in another way than 17: means over axes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, image):
        return self.head(nn.functional.hardswish(self.conv(image)).mean((2, 3)))


class Halves(nn.Module):
    """Equal parts, which onnx.version_converter cannot take below opset 18."""

    def forward(self, image):
        left, right = image.chunk(2, 3)
        return left * 2 + right


def _exported(module, tmp_path, **limits):
    torch.manual_seed(0)
    module = module.eval()
    image = torch.randn(*IMAGE)
    request = ExportRequest(
        ModelSpec("net", Preprocessing(IMAGE[2:])),
        Precision.FP32,
        tmp_path / "net.onnx",
        TargetCpu.ARM64,
        limits=RuntimeLimits(**limits),
    )
    exported = exporter(Format.ONNX).export(capture(module, (image,)), request)
    return exported, request, image


@pytest.mark.parametrize(
    ("limits", "opset", "ir_version", "least"),
    [
        ({}, 18, 8, "1.14"),
        ({"opset": 14}, 14, 7, "1.8"),
        ({"min_runtimes": {"onnxruntime": "1.12"}}, 17, 8, "1.12"),
        ({"min_runtimes": {"onnxruntime": "1.21"}}, 18, 8, "1.14"),
        ({"opset": 20}, 20, 9, "1.17"),
    ],
)
def test_a_file_in_another_opset_computes_what_torch_does(tmp_path, limits, opset, ir_version, least):
    """
    It says the opset and the lowest IR version that goes with it, keeps the names of its tensors, and is right.
    """
    module = Pooled()
    exported, request, image = _exported(module, tmp_path, **limits)
    model = onnx.load(request.path)
    (found,) = onnxruntime.InferenceSession(request.path).run(None, {model.graph.input[0].name: image.numpy()})
    artifact = exported.described(request, tmp_path.parent)

    assert [opset] == [item.version for item in model.opset_import]
    assert ir_version == model.ir_version
    assert {"onnxruntime": least} == artifact.needs.least
    assert artifact.needs == runtime_needs(request.path, Format.ONNX)
    made = {name for node in model.graph.node for name in node.output}
    assert {part.tensor for layer in exported.layers.layers for part in layer.parts} <= made | {"image", "x", "input"}
    with torch.no_grad():
        np.testing.assert_allclose(found, module(image).numpy(), rtol=1e-5, atol=1e-6)


def test_an_operator_without_a_way_down_is_refused_with_what_would_do(tmp_path):
    """
    No file is left, and the text names the operator, the lowest opset that works, and the runtime for it.
    """
    with pytest.raises(ConversionError, match=r"opset 17.*Split.*lowest.*is 18, for ONNX Runtime 1\.14"):
        _exported(Halves(), tmp_path, min_runtimes={"onnxruntime": "1.12"})

    assert not (tmp_path / "net.onnx").exists()


def test_an_opset_that_is_too_new_for_the_runtime_is_refused(tmp_path):
    """
    Both were asked for, and they contradict each other; the file is gone.
    """
    exported, request, _ = _exported(Pooled(), tmp_path, opset=19, min_runtimes={"onnxruntime": "1.15"})

    with pytest.raises(ConversionError, match=r"needs onnxruntime 1\.16 because of opset 19"):
        exported.described(request, tmp_path.parent)
    assert not request.path.exists()
