"""Int8 of an image classifier, whose last operator gives classes and no tensors."""

import numpy as np
import pytest
import torch
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.conversion.quantized_artifact import measure_ranges, prepare, write
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.formats import Format
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
