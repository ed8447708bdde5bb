"""The greatest of integers is taken of integers, and is what it was."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from files_against_torch import Spelled, captured
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.conversion import quantized_artifact as quantizing
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.exporters.tflite import quantize
from coordatt_deploy.exporters.tflite.export import OPERATOR_NAMES
from coordatt_deploy.formats import Format
from coordatt_deploy.quantization.recipes import parse

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).standard_normal((8, 3, 16, 24)).astype(np.float32)
DATA = CalibrationSet("noise", {"image": IMAGES}, tuple("abcdefgh"), 0)
SPEC = ModelSpec("small", Preprocessing((16, 24)))
RECIPE = replace(parse("static_wi8_ai8"), adjust=False)


class Greatest(nn.Module):
    """Two maxima of one map, each before a convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.first(x.amax(1, keepdim=True)), self.second(x.amax((2, 3), keepdim=True))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The float file, and the ranges of its values."""
    graph = captured(Spelled(Greatest()).eval())
    made = quantizing.prepare(graph, RECIPE, Format.TFLITE, SPEC, tmp_path_factory.mktemp("float"), data=DATA)
    return made, quantizing.measure_ranges(made, RECIPE, DATA)


def written(prepared, path):
    made, ranges = prepared
    quantizing.write(made, RECIPE, ranges, path, SPEC)
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    codes = [model.operatorCodes[item.opcodeIndex].builtinCode for item in model.subgraphs[0].operators]
    return Counter(OPERATOR_NAMES[code] for code in codes), results(path)


def results(path):
    """Every output for an image that nothing was measured on, in quantization steps."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (taken,) = interpreter.get_input_details()
    scale, zero = taken["quantization"]
    image = np.random.default_rng(1).standard_normal(tuple(taken["shape"])).astype(np.float32)
    given = np.clip(np.round(image / scale) + zero, -128, 127).astype(np.int8) if taken["dtype"] is np.int8 else image
    interpreter.set_tensor(taken["index"], given)
    interpreter.invoke()
    return [interpreter.get_tensor(item["index"]).astype(np.float64) / (item["quantization"][0] or 1.0)
            if item["dtype"] is np.float32 else interpreter.get_tensor(item["index"]).astype(np.float64)
            for item in interpreter.get_output_details()]  # fmt: skip


def test_the_file_computes_what_the_quantizers_own_does(prepared, tmp_path, monkeypatch):
    """
    Without a DEQUANTIZE, and no value is more than a step away: the quantizer's own goes through float and back.
    """
    ours, values = written(prepared, tmp_path / "ours.tflite")
    monkeypatch.setattr(quantize, "take_maxima_of_integers", lambda _: None)
    usual, expected = written(prepared, tmp_path / "usual.tflite")

    assert (2, 2) == (ours["REDUCE_MAX"], usual["REDUCE_MAX"])
    assert ours["DEQUANTIZE"] < usual["DEQUANTIZE"]
    for value, reference in zip(values, expected, strict=True):
        assert np.ptp(reference) > 0
        assert np.max(np.abs(value - reference)) <= 1.0
