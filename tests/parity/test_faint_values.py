"""An epsilon that no image shows: on faint values the file adds it, or it does not, and is named."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from files_against_torch import captured, saved
from onnx import numpy_helper
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.parity.absent_layers import unproven_absences
from coordatt_deploy.parity.candidate import Candidate
from coordatt_deploy.parity.cases import ParityCases
from coordatt_deploy.parity.executors import LOCAL
from coordatt_deploy.parity.faint_values import shown_on_faint_values
from coordatt_deploy.parity.layers import with_probe
from coordatt_deploy.parity.localise import localise, probed_values
from coordatt_deploy.parity.reference_layers import ReferenceLayers
from coordatt_deploy.parity.tolerances import TOLERANCES

SHAPE = (1, 3, 8, 10)
TOLERANCE = TOLERANCES[Format.ONNX, Precision.FP32]


class RootMeanSquare(nn.Module):
    """A normalisation as ConvNeXt has it, between two convolutions."""

    def __init__(self, epsilon=1e-9):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.epsilon = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), epsilon

    def forward(self, image):
        value = self.first(image)
        return self.last(value * torch.rsqrt(value.pow(2).mean(1, keepdim=True) + self.epsilon))


def adds(number):
    """An edit: the file adds *number*."""

    def edit(model):
        (sum_,) = (node for node in model.graph.node if node.op_type == "Add")
        (constant,) = (item for item in model.graph.initializer if item.name in sum_.input)
        value = np.full_like(numpy_helper.to_array(constant), number)
        constant.CopyFrom(numpy_helper.from_array(value, constant.name))

    return edit


def verdict(folder, edit=None):
    """What is said of the sum where the map has no tensor for it: lost by all others, and what faint values say."""
    graph = captured(RootMeanSquare(), SHAPE)
    path = folder / "net.onnx"
    request = ExportRequest(ModelSpec("net", Preprocessing(SHAPE[2:])), Precision.FP32, path, TargetCpu.ARM64)
    made = exporter(Format.ONNX).export(lower(saved(graph), target_of(Format.ONNX, TargetCpu.ARM64))[0], request)
    if edit is not None:
        model = onnx.load(path)
        edit(model)
        onnx.save(model, path)
    # as a converter leaves it that writes mean, sum, root and product in one operator
    fused = {"mean", "add", "rsqrt", "pow"}
    layers = LayerMap(tuple(
        replace(item, parts=(), absent="merged") if item.operator in fused else item for item in made.layers.layers
    ))  # fmt: skip
    artifact = Artifact(path.name, Format.ONNX, Precision.FP32, None, None, 0, "", made.inputs, made.outputs, "")
    candidate = Candidate(artifact, path, layers, None, (), ParityCases((), {}, {}, {}, ()))
    random, reference = np.random.default_rng(5), ReferenceLayers(graph)
    cases = [{"image": random.standard_normal(SHAPE).astype(np.float32)} for _ in range(3)]
    rows = localise(candidate, cases, reference, TOLERANCE).rows
    assert all(row.passed is not False for row in rows)
    lost = unproven_absences(
        layers, reference, rows, cases, lambda: probed_values(candidate, cases, reference, TOLERANCE)
    )
    found = shown_on_faint_values(candidate, cases[0], reference, TOLERANCE, lost, LOCAL)
    return lost, {row.layer_id: with_probe(row, found.get(row.layer_id)) for row in rows if row.layer_id in found}


def test_an_epsilon_that_is_there_is_proven(tmp_path):
    """
    No golden value and no noise shows it, and values ten thousand times fainter do.
    """
    lost, found = verdict(tmp_path)

    assert (":add",) == lost
    assert (True, ":mul") == (found[":add"].passed, found[":add"].seen_through)


@pytest.mark.parametrize("number", [0.0, 1e-12, 5e-10, 1.2e-9], ids=str)
def test_another_one_or_none_fails(tmp_path, number):
    """
    The twins: dropped, taken for another, halved, a fifth more; every golden output is the same to the last digits.
    """
    lost, found = verdict(tmp_path, adds(number))

    assert (":add",) == lost
    assert found[":add"].passed is False
    assert "on values that the inputs do not reach" in found[":add"].shown()


def test_without_a_runtime_that_takes_them_nothing_is_proven(tmp_path, monkeypatch):
    """
    What the pieces do not give is not passed.
    """
    monkeypatch.setattr("coordatt_deploy.parity.faint_values._Faint._made", lambda *_: {})
    _, found = verdict(tmp_path)

    assert found[":add"].passed is False
