"""Layers whose batch axis was taken apart: the queries, keys and values of attention."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from files_against_torch import check
from torch import nn

from coordatt_deploy import layer_map
from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest, layer_search
from coordatt_deploy.exporters.layer_search import axes_between
from coordatt_deploy.exporters.tflite.export import export
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture

HEADS, CHANNELS = 4, 16


class Attention(nn.Module):
    """Patches of two by two places as MobileViT has them, and one tensor taken apart into queries, keys and values."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, CHANNELS, 3, 2, 1)
        blocks = [nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Sigmoid()) for _ in range(5)]
        self.head = nn.Sequential(*blocks, nn.Conv2d(CHANNELS, 4, 1))
        self.norm, self.qkv = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 3 * CHANNELS)
        self.proj = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, image):
        x = self.stem(image)
        batch, channels, height, width = x.shape
        rows, columns = height // 2, width // 2
        x = x.reshape(batch * channels * rows, 2, columns, 2).transpose(1, 2)
        x = x.reshape(batch, channels, rows * columns, 4).transpose(1, 3).reshape(4 * batch, rows * columns, channels)
        parts = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, HEADS, channels // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(mixed.transpose(1, 2).reshape(x.shape))
        x = x.view(batch, 4, rows * columns, channels).transpose(1, 3)
        x = x.reshape(batch * channels * rows, columns, 2, 2).transpose(1, 2)
        return self.head(x.reshape(batch, channels, height, width))


class Growing(nn.Module):
    """On random images rounding grows tenfold from wave to wave, and no value tells anything about another."""

    def __init__(self, depth=14):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Conv2d(3 if index == 0 else 8, 8, 1) for index in range(depth))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=6.0)

    def forward(self, image):
        for layer in self.layers:
            image = torch.sin(layer(image))
        return image


def mapped(module):
    """Export to TFLite; return the layer map's own account, and the tensors that stand for the waves."""
    graph = capture(module.eval(), (torch.randn(1, 3, 4, 4),), input_names=["image"], output_names=["map"])
    with TemporaryDirectory() as folder:
        spec = ModelSpec("net", Preprocessing((4, 4)), source_sha256="0" * 64)
        found = export(graph, ExportRequest(spec, Precision.FP32, Path(folder) / "net.tflite"))
    return [layer for layer in found.layers.layers if layer.operator == "sin"]


@pytest.mark.slow
def test_layers_are_found_however_rounding_grows(monkeypatch):
    """
    Each wave in a tensor of its own: values begin anew at what has been found. Without that they are lost on the way.
    """
    waves = mapped(Growing())

    assert 14 == len({part.tensor for layer in waves for part in layer.parts})

    monkeypatch.setattr(layer_search._Search, "_given", lambda *_: {})
    monkeypatch.setattr(layer_search, "ROUNDED", 0.0)  # by what torch itself is off there every tensor would do
    waves = mapped(Growing())

    assert 14 > len({part.tensor for layer in waves for part in layer.parts})


@pytest.mark.slow
def test_parts_of_a_leading_axis_lie_where_the_map_says():
    """
    Each in a tensor of its own, which has an axis of size 1 in front; nothing of it is taken for absent.
    """
    _, maps = check(Attention(), (1, 3, 16, 16), formats=(Format.TFLITE,))

    found = {layer.layer_id: layer.parts for layer in maps[Format.TFLITE].layers if layer.operator == "select"}
    assert 3 == len(found) == len({parts[0].tensor for parts in found.values()})


@pytest.mark.slow
def test_read_as_a_batch_the_axis_in_front_would_misfit(monkeypatch):
    """
    The twin: where only later axes of size 1 may be spare, the tensor cannot stand for its layer.
    """
    monkeypatch.setattr(layer_map, "spare_axes", lambda *_: ())

    with pytest.raises(ValueError, match=r"select.*cannot stand for"):
        check(Attention(), (1, 3, 16, 16), formats=(Format.TFLITE,))


def test_another_part_is_not_taken_for_it():
    """
    Keys have the shape of queries: the values tell them apart, and one wrong value is one too many.
    """
    query, key = np.random.default_rng(0).standard_normal((2, 4, HEADS, 16, 4))
    wrong = query.copy()
    wrong[3, 3, 15, 3] += 0.01

    assert (0, 1, 2, 3) == axes_between([query[None]], [query])
    assert None is axes_between([key[None]], [query])
    assert None is axes_between([wrong[None]], [query])
