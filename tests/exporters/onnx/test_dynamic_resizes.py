"""Resizes of ONNX files to sizes that only the run knows, held against torch through ONNX Runtime."""

import pytest
import torch
import torch.nn.functional as F
from files_against_torch import Spelled, check
from torch import nn

from coordatt_deploy.formats import Format
from coordatt_deploy.graph.graph import DynamicSize

SIZES = ((14, 9), (9, 21), (21, 16))


def to_another(mode):
    return Spelled(
        lambda x: torch.cat([F.pad(x, (1, 1, 1, 0)), F.interpolate(x, (x.shape[2] + 1, x.shape[3] + 2), mode=mode)], 1)
    )


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_to_another_size(mode):
    """
    ONNX Runtime divides by the ratio of the sizes, and takes the neighbour where that is just below a whole number.
    """
    _, maps = check(to_another(mode), (1, 3, 14, 14), formats=(Format.ONNX,), dynamic=DynamicSize(9, 21), sizes=SIZES)

    assert not [layer for layer in maps[Format.ONNX].layers if layer.absent]


def test_a_size_that_is_read_of_a_layer_is_not_that_layer():
    """
    The convolution lies where its value is, not where its height is.
    """

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 5, 1)

        def forward(self, image):
            x = self.down(F.avg_pool2d(image, 2))
            return torch.cat([x, F.interpolate(image, size=x.shape[2:])], 1)

    _, maps = check(Net(), (1, 3, 16, 16), formats=(Format.ONNX,), dynamic=DynamicSize(8, 24, 4), sizes=((8, 24),))

    assert not [layer for layer in maps[Format.ONNX].layers if layer.absent]


def test_axes_of_size_1_that_moved():
    """
    Attention without heads is written with an axis for them; where the value has one elsewhere, the map says which.
    """
    net = Spelled(lambda x: F.scaled_dot_product_attention(*[x.mean(3)] * 3).unsqueeze(-1) + 1)

    check(net, formats=(Format.ONNX,))
