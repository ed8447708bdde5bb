"""TFLite files in LiteRT: who runs each operator, and what inner integers stand for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import quantizer, recipe
from small_network import LOGITS, TFLITE, artifact, feeds_for, image_of, reference
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest
from coordatt_deploy.exporters.tflite.export import export
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.runtimes.tflite import runner as litert
from coordatt_deploy.tensors import decode, encode


def test_operators_are_listed_with_who_runs_them(files):
    """
    XNNPACK takes all of a plain float network in one partition; each operator names its result.
    """
    path, _, _ = files[Format.TFLITE]

    delegation = litert.operators(path)

    assert 1 == delegation.partitions
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (subgraph,) = model.subgraphs
    codes = [model.operatorCodes[operation.opcodeIndex].builtinCode for operation in subgraph.operators]
    assert codes == [getattr(schema.BuiltinOperator, operator.name) for operator in delegation.operators]
    results = [subgraph.tensors[operation.outputs[0]].name.decode() for operation in subgraph.operators]
    assert results == [operator.tensor for operator in delegation.operators]
    assert {"CONV_2D", "MEAN", "FULLY_CONNECTED"} <= {operator.name for operator in delegation.operators}
    assert all(operator.delegated for operator in delegation.operators)


def test_an_operator_that_xnnpack_leaves_is_told_apart(tmp_path):
    """
    An operator that XNNPACK does not know splits the network into two partitions and is listed as not delegated.
    """

    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.second = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, image):
            return self.second(torch.cumsum(self.first(image), 1)).mean((2, 3))

    path = tmp_path / "split.tflite"
    spec = ModelSpec("split", Preprocessing((6, 8)))
    export(capture(Split().eval(), (torch.randn(1, 3, 6, 8),)), ExportRequest(spec, Precision.FP32, path))

    delegation = litert.operators(path)

    assert 2 == delegation.partitions
    assert {"CUMSUM"} == {operator.name for operator in delegation.operators if not operator.delegated}


def test_inner_integers_of_tflite_come_dequantized(files, tmp_path):
    """
    In an int8 file the inner tensors are given as the floats they stand for, within the grid's own error.
    """
    path, _, inner = files[Format.TFLITE]
    samples = [{"image": feeds_for(TFLITE, image_of(seed))["image"]} for seed in range(8)]
    quantization = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    result = quantization.quantize(quantization.calibrate({"serving_default": samples}))
    int8_path = tmp_path / "int8.tflite"
    int8_path.write_bytes(result.quantized_model)
    details = {item["name"]: item for item in litert.Interpreter(str(int8_path)).get_tensor_details()}
    step = details[inner]["quantization_parameters"]["scales"][0]
    image, logits = (int8_spec(spec, details[spec.name]) for spec in (TFLITE.inputs[0], LOGITS))
    described = artifact(Format.TFLITE, (image,), (logits,), Precision.INT8)
    sample = image_of(0)

    with litert.open_artifact(int8_path, described, tensors=(inner,)) as runner:
        actual = runner.infer({"image": encode(sample, image)})

    assert np.dtype(np.int8) == details[inner]["dtype"]
    assert np.dtype(np.int8) == actual["logits"].dtype
    assert np.dtype(np.float32) == actual[inner].dtype
    expected = reference(decode(encode(sample, image), image))[0].transpose(0, 2, 3, 1)
    error = np.abs(actual[inner] - expected)
    assert 0 < error.max() < 4 * step  # half a step of rounding, and the weights' own


def int8_spec(spec, detail):
    parameters = detail["quantization_parameters"]
    return replace(
        spec, dtype="int8", scale=float(parameters["scales"][0]), zero_point=int(parameters["zero_points"][0])
    )


@pytest.mark.parametrize("channel", [0, 1])
def test_dequantizing_per_channel_follows_the_channel_axis(channel):
    """
    Each channel takes its own scale and zero point, along the axis that the file names.
    """
    values = np.array([[-128, 0], [5, 127]], dtype=np.int8)
    parameters = {"scales": np.array([0.5, 2.0]), "zero_points": np.array([0, 1]), "quantized_dimension": channel}

    expected = [[-64.0, 0.0], [8.0, 252.0]] if channel == 0 else [[-64.0, -2.0], [2.5, 252.0]]

    assert expected == litert.dequantized(values, {"quantization_parameters": parameters}).tolist()
