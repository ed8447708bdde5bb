"""Int8 beside integers: sizes that a dynamic network computes, and an input that it hands on as it is."""

import numpy as np
import pytest
import torch
from torch import nn

import coordatt_deploy

pytestmark = pytest.mark.slow


class Strips(nn.Module):
    """The strips of a map side by side, and taken apart at its height, which is known when it runs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1)

    def forward(self, image):
        value = self.first(image)
        rows, columns = value.mean(3, keepdim=True), value.mean(2, keepdim=True).permute(0, 1, 3, 2)
        first, second = self.last(torch.cat([rows, columns], 2)).split([value.shape[2], value.shape[3]], 2)
        return value * first.tanh() * second.permute(0, 1, 3, 2).tanh()


class HandedThrough(nn.Module):
    """The same tensor twice, and the input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, image):
        value = self.last(self.first(image).relu())
        return value, value, image


@pytest.fixture
def images(tmp_path):
    """Calibration data: smooth images."""
    random = np.random.default_rng(0)
    smooth = random.uniform(-1.6, 1.6, (40, 3, 8, 8)).repeat(8, 2).repeat(8, 3)
    np.savez(tmp_path / "images.npz", image=(smooth + random.uniform(-0.1, 0.1, smooth.shape)).astype(np.float32))
    return tmp_path / "images.npz"


@pytest.mark.parametrize(
    ("module", "formats", "options"),
    [
        (Strips, ["onnx", "coreml"], {"dynamic_size": (32, 96, 32)}),
        (HandedThrough, ["tflite", "coreml"], {}),
    ],
)
def test_int8_is_written_and_right(module, formats, options, images, tmp_path):
    """
    Sizes have no grid, and the input's range is found under its name; every file passes, layer by layer.
    """
    bundle = coordatt_deploy.export(
        module(), torch.zeros(1, 3, 64, 64), tmp_path / "net", formats=formats, precisions=["fp32"], **options
    ).quantize(calibration_data=images)

    assert () == bundle.refused
    assert 2 == sum(item.precision == "int8" for item in bundle.artifacts)
    assert bundle.check_parity().passed
