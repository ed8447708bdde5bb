"""A linear layer whose bias is greater than its sum: how a runtime adds it, what that may cost, and what is a fault."""

import copy

import numpy as np
import pytest
import torch
from files_against_torch import captured
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.parity import localise, reference_rounding
from coordatt_deploy.parity.candidate import Candidate
from coordatt_deploy.parity.cases import ParityCases
from coordatt_deploy.parity.executors import LocalExecutor
from coordatt_deploy.parity.reference_layers import ReferenceLayers
from coordatt_deploy.parity.tolerances import TOLERANCES

pytestmark = pytest.mark.slow

WIDTH, IMAGE = 512, (1, 3, 8, 8)
CASES = 4


class Projection(nn.Module):
    """As edgenext_xx_small ends its attention: sums of a hundredth, biases of a few tenths."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.proj = nn.Conv2d(3, WIDTH, 4, 4), nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.proj.weight, std=0.002)
        nn.init.uniform_(self.proj.bias, 0.3, 0.45)

    def forward(self, image):
        return self.proj(torch.sigmoid(self.stem(image)).flatten(2).transpose(1, 2)).transpose(1, 2)


def with_weights(change):
    """A copy of the network of which the weights of the linear layer are edited."""
    module = Projection()
    with torch.no_grad():
        change(module.proj)
    return module


@pytest.fixture
def judged(tmp_path):
    """Writes the TFLite file of one network and judges its layers against another."""

    def judge(written, module):
        graph, reference = captured(copy.deepcopy(written), IMAGE), ReferenceLayers(captured(module, IMAGE))
        path = tmp_path / "net.tflite"
        request = ExportRequest(ModelSpec("net", Preprocessing(IMAGE[2:])), Precision.FP32, path)
        done = exporter(Format.TFLITE).export(lower(graph, target_of(Format.TFLITE, None))[0], request)
        artifact = Artifact("", Format.TFLITE, Precision.FP32, None, None, 0, "", done.inputs, done.outputs, "")
        random = np.random.default_rng(1)
        cases = [{"image": random.standard_normal(IMAGE).astype(np.float32)} for _ in range(CASES)]
        none = ParityCases((), {}, {}, {}, ())
        candidate = Candidate(artifact, path, done.layers, None, graph.outputs, none)
        return localise.localise(
            candidate, cases, reference, TOLERANCES[Format.TFLITE, Precision.FP32], where=LocalExecutor(),
            step=lambda: None,
        )  # fmt: skip

    return judge


def test_the_file_is_right(judged):
    """
    Its error is that of adding the products to the bias one after another, which torch's own order does not have.
    """
    assert judged(Projection(), Projection()).first_diverging_layer is None


def test_by_torchs_order_alone_it_would_be_wrong(judged, monkeypatch):
    """
    The twin: without the order that the runtime computes in, a right file is beyond a multiple of torch's rounding at
    the linear layer. What moved values cost, which would be asked next, is left out.
    """
    monkeypatch.setattr(reference_rounding, "bias_first", lambda _, result: result)
    monkeypatch.setattr(localise._Run, "ask_again", lambda _: None)

    assert "proj" == judged(Projection(), Projection()).first_diverging_layer


def _one_weight(layer):
    layer.weight[5, 7] *= 1.05


def _one_bias(layer):
    layer.bias[5] += 3e-5 * float(layer.bias.abs().max())


def _half_precision(layer):
    layer.weight.copy_(layer.weight.half().float())


@pytest.mark.parametrize("change", [_one_weight, _one_bias, _half_precision])
def test_a_fault_is_still_one(judged, change):
    """
    One weight of 262,144, the fifth digit of one bias, or weights rounded to float16: each is named.
    """
    assert "proj" == judged(with_weights(change), Projection()).first_diverging_layer
