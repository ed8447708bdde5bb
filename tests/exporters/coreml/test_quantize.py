"""Int8 packages: classifiers whose last operator gives classes and no tensors, and layers that move elements."""

import numpy as np
import pytest
import torch
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.conversion.quantized_artifact import measure_ranges, prepare, write
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.formats import Format
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import is_call
from coordatt_deploy.layer_map import restore
from coordatt_deploy.loading.bake_preprocessing import bake
from coordatt_deploy.loading.loaded_model import LoadedModel, capture_source
from coordatt_deploy.quantization.recipes import parse
from coordatt_deploy.runtimes import runtime

LABELS = ("cat", "dog", "hen", "owl")


def baked():
    """A small classifier that takes pixels, and the same as a torch module."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()  # fmt: skip
    net[-1].weight.data *= 8
    spec = ModelSpec("net", Preprocessing((16, 24)), LABELS, source_sha256="0" * 64)
    source = LoadedModel(net, spec, (torch.randn(1, 3, 16, 24),), ())
    return bake(source, capture_source(source), softmax=True)


@pytest.mark.slow
def test_a_classifier_of_pixels_as_int8(tmp_path):
    """
    Its ranges are measured without the classes, which are no tensors, and it gives the float network's probabilities.
    """
    source, graph = baked()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 24)).astype(np.float32)
    data = CalibrationSet("made up", {"image": pixels}, tuple(map(str, range(8))), 0)
    recipe = parse("static_wi8_ai8")
    (tmp_path / "float").mkdir()

    prepared = prepare(graph, recipe, Format.COREML, source.spec, tmp_path / "float", data=data)
    ranges = measure_ranges(prepared, recipe, data)
    exported, request = write(prepared, recipe, ranges, tmp_path / "net.mlpackage", source.spec)
    artifact = exported.described(request, tmp_path, recipe.name)
    feeds = {"image": pixels[:1].transpose(0, 2, 3, 1).astype(np.uint8)}
    with runtime(Format.COREML).open_artifact(tmp_path / "net.mlpackage", artifact) as runner:
        given = runner.infer(feeds)["probabilities"]
    expected = source.module(torch.from_numpy(pixels[:1])).detach().numpy()

    assert not {"classLabel", "classLabel_probs"} & set(ranges)
    np.testing.assert_allclose(given, expected, atol=0.03)


class Moving(nn.Module):
    """Channels shuffled between two convolutions, and a map flattened in front of a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(128, 5)

    def forward(self, image):
        x = self.first(image).relu()
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)
        return self.last(self.second(x).relu().flatten(1))


class Residual(nn.Module):
    """A sum of two convolutions, a ReLU, and what reads it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, image):
        x = self.stem(image)
        return self.last((self.first(x) + self.second(x)).relu()).mean((2, 3))


def quantized(module, folder):
    """The int8 package of a network: its layer map, the tensors of one run, and what they should be."""
    graph = capture(module.eval(), (torch.randn(1, 3, 16, 16),), input_names=["image"], output_names=["logits"])
    images = np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32)
    data, recipe = CalibrationSet("made up", {"image": images}, tuple(map(str, range(8))), 0), parse("static_wi8_ai8")
    spec = ModelSpec("net", Preprocessing((16, 16)), source_sha256="0" * 64)
    (folder / "float").mkdir()
    prepared = prepare(graph, recipe, Format.COREML, spec, folder / "float", data=data)
    ranges = measure_ranges(prepared, recipe, data)
    exported, request = write(prepared, recipe, ranges, folder / "net.mlpackage", spec)
    artifact = exported.described(request, folder, recipe.name)
    wanted = tuple(part.tensor for layer in exported.layers.layers for part in layer.parts)
    with runtime(Format.COREML).open_artifact(folder / "net.mlpackage", artifact, tensors=wanted) as runner:
        tensors = runner.infer({"image": images[:1]})
    exact = run(
        graph, {"image": images[:1]}, nodes=frozenset(node.name for node in graph.module.graph.nodes if is_call(node))
    )
    return exported.layers, tensors, exact


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    return quantized(Moving(), tmp_path_factory.mktemp("moving"))


@pytest.mark.slow
def test_a_sum_in_whole_steps_and_the_relu_behind_it_are_found(tmp_path):
    """
    Both hold many times their value, as coremltools leaves the step of the sum to what stores it.
    """
    layers, tensors, exact = quantized(Residual(), tmp_path)

    factors = {item.operator: item.parts[0].factor for item in layers.layers}
    assert factors["add"] == factors["relu"]
    assert np.min(factors["relu"]) > 1.5
    for layer in layers.layers:
        if layer.operator in ("add", "relu"):
            value = exact[layer.operator]
            assert np.abs(restore(layer, tensors) - value).max() < 0.05 * np.abs(value).max()


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["view", "transpose", "reshape", "flatten", "linear"])
def test_what_coremltools_moves_between_quantize_and_dequantize_is_found(moving, operator):
    """
    Its value is what the network gives, within a step; nothing is lost, and no tensor is named that is not there.
    """
    layers, tensors, exact = moving
    (layer,) = (item for item in layers.layers if item.operator == operator)
    name = "logits" if operator == "linear" else operator

    value = restore(layer, tensors)

    assert layer.parts
    assert value.shape == exact[name].shape
    assert np.abs(value - exact[name]).max() < 0.05 * np.abs(exact[name]).max()
