"""The small network as a file of each format."""

import onnx
import pytest
import torch
from small_network import ONNX, TFLITE, Small, onnx_model

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest
from coordatt_deploy.exporters.tflite.export import export
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One small network as a file of each format, with its description and the name of its inner tensor."""
    folder = tmp_path_factory.mktemp("runtimes")
    onnx_path, tflite_path = folder / "small.onnx", folder / "small.tflite"
    onnx.save(onnx_model(), onnx_path)
    spec = ModelSpec("small", Preprocessing((6, 8)))
    export(capture(Small().eval(), (torch.randn(1, 3, 6, 8),)), ExportRequest(spec, Precision.FP32, tflite_path))
    return {Format.ONNX: (onnx_path, ONNX, "clip"), Format.TFLITE: (tflite_path, TFLITE, ":relu6")}


@pytest.fixture(params=[Format.ONNX, Format.TFLITE])
def file(request, files):
    return files[request.param]
