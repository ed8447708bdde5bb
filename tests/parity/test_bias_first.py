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


class Gate(nn.Module):
    """As ghostnetv2_100 gates its maps: hard-sigmoids of sums far smaller than the half that they begin at."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.reduce = nn.Conv2d(3, WIDTH, 4, 4), nn.Conv2d(WIDTH, WIDTH // 2, 1)
        self.proj = nn.Conv2d(WIDTH // 2, WIDTH, 1)
        nn.init.normal_(self.proj.weight, std=0.002)
        nn.init.uniform_(self.reduce.bias, 0.5, 1.0)

    def forward(self, image):
        features = torch.sigmoid(self.stem(image))
        squeezed = torch.relu(self.reduce(features.mean((2, 3), keepdim=True)))
        return features * nn.functional.hardsigmoid(self.proj(squeezed))


def with_weights(network, change):
    """A copy of the network of which the weights of the linear layer are edited."""
    module = network()
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


BOTH = pytest.mark.parametrize("network", [Projection, Gate])


@BOTH
def test_the_file_is_right(judged, network):
    """
    Its error is that of adding the products to the bias one after another, which torch's own order does not have.
    """
    assert judged(network(), network()).first_diverging_layer is None


@BOTH
def test_by_torchs_order_alone_it_would_be_wrong(judged, network, monkeypatch):
    """
    The twin: without the order that the runtime computes in, a right file is beyond a multiple of torch's rounding at
    the linear layer. What moved values cost, which would be asked next, is left out.
    """
    for order in ("bias_first", "begun_at_half"):
        monkeypatch.setattr(reference_rounding, order, lambda _, result: result)
    monkeypatch.setattr(localise._Run, "ask_again", lambda _: None)

    assert "proj" == judged(network(), network()).first_diverging_layer


def _one_weight(layer):
    layer.weight[5, 7] *= 1.05


def _one_bias(layer):
    begins_at = 3.0 if isinstance(layer, nn.Conv2d) else float(layer.bias.abs().max())  # b / 6 + 1/2 = (b + 3) / 6
    layer.bias[5] += 3e-5 * begins_at


def _half_precision(layer):
    layer.weight.copy_(layer.weight.half().float())


@BOTH
@pytest.mark.parametrize("change", [_one_weight, _one_bias, _half_precision])
def test_a_fault_is_still_one(judged, network, change):
    """
    One weight of 262,144, the fifth digit of one bias, or weights rounded to float16: each is named.
    """
    assert "proj" == judged(with_weights(network, change), network()).first_diverging_layer
