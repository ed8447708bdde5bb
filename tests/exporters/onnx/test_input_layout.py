"""ONNX files that take images with the channels last."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from coordatt_deploy import api
from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.conversion.plan import ExportPlan
from coordatt_deploy.errors import UsageError
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import Format, InputLayout, Precision, TargetCpu
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.runtimes.reader import read_artifact

IMAGE, PRIOR = (1, 3, 10, 14), (1, 5)


class TwoInputs(nn.Module):
    """An image of another height than width, and a vector that has no channels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3, stride=(1, 2)), nn.Linear(13, 4)

    def forward(self, image, prior):
        return self.head(torch.cat([self.conv(image).amax((2, 3)), prior], 1))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_the_file_takes_what_an_app_holds(tmp_path, precision):
    """
    ONNX Runtime gives for the image with the channels last what torch gives for the same one with the channels first.

    Other inputs stay as they are; the description, and what inspect reads in the file, have shape and layout.
    """
    module = TwoInputs().eval()
    image, prior = torch.randn(*IMAGE), torch.randn(*PRIOR)
    graph = capture(module, (image, prior), input_names=("image", "prior"))
    spec = ModelSpec("net", Preprocessing(IMAGE[2:]), input_layout="NHWC")
    path = tmp_path / "net.onnx"
    exported = exporter(Format.ONNX).export(graph, ExportRequest(spec, precision, path, TargetCpu.ARM64))
    given = {"image": image.permute(0, 2, 3, 1).contiguous().numpy(), "prior": prior.numpy()}
    (found,) = onnxruntime.InferenceSession(path).run(None, given)
    with torch.no_grad():
        expected = module(image, prior).numpy()

    assert [("image", (1, 10, 14, 3), "NHWC"), ("prior", (1, 5), "NC")] == [
        (item.name, item.shape, item.layout) for item in exported.inputs
    ]
    assert ["NHWC", "NC"] == [item.layout for item in read_artifact(path).inputs]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 if precision is Precision.FP32 else 4e-3)


def test_formats_with_one_layout_are_refused_where_they_are_named():
    """
    With the reason; where none is named, those that have the layout are written.
    """
    request = ModelRequest("mobilenetv2_ca_035.digits", input_layout=InputLayout.NHWC)

    assert {Format.ONNX, Format.TFLITE} == {kind for kind, _, _ in ExportPlan(model=request).jobs()}
    with pytest.raises(UsageError, match="Core ML files take images in NCHW, not NHWC: its convolutions"):
        ExportPlan(model=request, formats=(Format.COREML,)).jobs()


@pytest.mark.slow
def test_the_whole_way(tmp_path):
    """
    Parity passes in float and in int8, layer by layer; the int8 file takes the channels last as well.
    """
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 4),
    )  # fmt: skip
    bundle = api.export(
        network, (torch.randn(1, 3, 24, 32),), tmp_path / "net", formats=["onnx"], input_layout="nhwc", author="Jo"
    )
    written = bundle.quantize(calibration_data="digits", calibration_count=24)

    assert 2 == len(written.artifacts)
    for artifact in written.artifacts:
        assert ((1, 24, 32, 3), "NHWC") == (artifact.inputs[0].shape, artifact.inputs[0].layout)
    assert written.check_parity().passed
    with pytest.raises(UsageError, match="author, licence or description"):
        api.export(network, (torch.randn(1, 3, 24, 32),), tmp_path / "net", formats=["onnx"], input_layout="nhwc",
                   author="another")  # fmt: skip
