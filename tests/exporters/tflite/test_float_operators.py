"""What stays in float in an int8 file, whatever the recipe says: accuracy first, and XNNPACK in one piece."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.conversion.quantized_artifact import measure_ranges, prepare, write
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.exporters.tflite.float_operators import FEW, float_operators
from coordatt_deploy.formats import Format
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.models.factory import create_attention
from coordatt_deploy.quantization.recipes import load_recipe
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.runtimes.tflite import runner
from coordatt_deploy.tensors import decode, encode

SIZE = 32  # 1,024 places: none of them has half a step of 1/256
RECIPE = replace(load_recipe("static_wi8_ai8"), adjust=False)


class Tokens(nn.Module):
    """Attention between the places of a map: as many columns as places."""

    def forward(self, x):
        flat = x.flatten(2)
        weights = (flat.transpose(1, 2) @ flat).softmax(-1)
        return (flat @ weights).unflatten(2, x.shape[2:])


class Normalised(nn.Module):
    """A layer norm over the channels of every place."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def quantized(block, folder, size=SIZE, channels=16):
    """A network around *block*, its int8 file with its description, and what the float file is."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), block, nn.Conv2d(channels, 4, 1)).eval()
    images = np.random.default_rng(7).standard_normal((8, 3, size, size), np.float32)
    data = CalibrationSet("noise", {"image": images}, tuple(map(str, range(8))), 0)
    spec = ModelSpec("net", Preprocessing((size, size)))
    graph = capture(net, (torch.zeros(1, 3, size, size),))
    prepared = prepare(graph, RECIPE, Format.TFLITE, spec, folder, data=data)
    path = folder / "net.tflite"
    exported, request = write(prepared, RECIPE, measure_ranges(prepared, RECIPE, data), path, spec)
    return net, path, exported.described(request, folder, RECIPE.name), prepared.path


def sqnr_db(net, path, artifact):
    image = np.random.default_rng(9).standard_normal((1, 3, SIZE, SIZE), np.float32)
    expected = net(torch.from_numpy(image)).detach().numpy()
    with runtime(Format.TFLITE).open_artifact(path, artifact) as opened:
        (given,), (returned,) = opened.inputs, opened.outputs
        found = decode(opened.infer({given.name: encode(image, given)})[returned.name], returned)
    return 10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum())


def kept_of(path):
    """The operators of a float file that stay in float, by what they are."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph, kept = model.subgraphs[0], float_operators(model, None)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    return {names[model.operatorCodes[item.opcodeIndex].builtinCode] for item in graph.operators
            if graph.tensors[item.outputs[0]].name.decode() in kept}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["global_context", "timm_ela"])
def test_a_block_with_a_norm_runs_in_one_piece(kind, tmp_path):
    """
    In XNNPACK, and as right as a block of convolutions; with a map of a thousand places as with a small one.
    """
    net, path, artifact, source = quantized(create_attention(kind, 16), tmp_path)
    found = runner.operators(path)

    assert 1 == found.partitions
    assert [] == [item.name for item in found.operators if not item.delegated]
    assert sqnr_db(net, path, artifact) > 30
    assert "RSQRT" in kept_of(source)
    assert ("SOFTMAX" in kept_of(source)) == (kind == "global_context")


@pytest.mark.slow
def test_integers_would_lose_the_weights_of_the_places(tmp_path, monkeypatch):
    """
    The negative: without the rule the same network is wrong, so that the limit above would not hold.
    """
    monkeypatch.setattr("coordatt_deploy.exporters.tflite.quantize.float_operators", lambda _model, _ranges: set())
    net, path, artifact, _ = quantized(create_attention("global_context", 16), tmp_path)

    assert sqnr_db(net, path, artifact) < 20
    assert runner.operators(path).partitions > 1


@pytest.mark.slow
def test_whole_maps_stay_integers(tmp_path):
    """
    A product with as many columns as places, and a norm of more values than a pooled map has.
    """
    assert "BATCH_MATMUL" not in kept_of(quantized(Tokens(), tmp_path, size=8)[3])
    assert 16 * SIZE * SIZE > FEW
    assert not {"SQUARED_DIFFERENCE", "MEAN"} & kept_of(quantized(Normalised(16), tmp_path)[3])
