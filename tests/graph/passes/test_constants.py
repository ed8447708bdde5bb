import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import DynamicSize
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms


def _operators(graph):
    return [str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"]


class _Standardised(nn.Conv2d):
    """A convolution whose kernel is standardised every time it is used."""

    def forward(self, image):
        kernel = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        kernel = kernel / kernel.std((1, 2, 3), keepdim=True)
        return functional.conv2d(image, kernel, self.bias, padding=1)


class _Chunked(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(8, 3, 1, 1))

    def forward(self, image):
        first, second = self.kernels.chunk(2)
        offset = torch.arange(4, dtype=torch.float32).reshape(1, 4, 1, 1) / 4
        return functional.conv2d(image, first) * functional.conv2d(image, second) + offset


def _normalised():
    return parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1))


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: _Standardised(3, 4, 3), ["aten.conv2d.default"]),
        (_normalised, ["aten.conv2d.default"]),
        (_Chunked, ["aten.conv2d.default", "aten.conv2d.default", "aten.mul.Tensor", "aten.add.Tensor"]),
    ],
)
def test_what_depends_on_weights_alone_becomes_a_weight(make, left):
    """
    Standardised, re-parameterised and chunked kernels are computed once, and the function stays.
    """
    torch.manual_seed(0)
    module = make().eval()
    image = torch.randn(1, 3, 6, 5)

    graph = capture(module, (image,))

    assert left == _operators(graph)
    expected = module(image).detach().numpy()
    assert np.allclose(expected, run(graph, {"image": image.numpy()}, dtype=torch.float32)["logits"], atol=1e-6)
    assert len(left) == len(graph.layers.layers)


class _Random(nn.Module):
    def forward(self, image):
        return image + torch.rand(1, 3, 1, 1)


def test_random_numbers_are_no_constants():
    """
    They differ from run to run, and an artifact that freezes them would be wrong.
    """
    assert "aten.rand.default" in _operators(capture(_Random().eval(), (torch.randn(1, 3, 4, 4),)))


class _AsksForItsSize(nn.Module):
    """As everybody writes coordinate attention: the size is that of the activation's result."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, image):
        x = functional.relu6(self.norm(self.conv(image)), inplace=True)
        _, _, height, width = x.size()
        joined = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], dim=2)
        rows, columns = joined.split([height, width], dim=2)
        return x * rows * columns.transpose(2, 3)


def test_sizes_are_read_off_the_value_that_the_code_reads_them_off():
    """
    The BatchNorm behind the convolution folds with a dynamic size as well, and the function is right at other sizes.
    """
    torch.manual_seed(0)
    module = _AsksForItsSize().eval()
    graph = capture(module, (torch.randn(1, 3, 16, 24),), dynamic=DynamicSize(8, 64, 2))

    folded, _ = fold_batchnorms(graph)

    sources = {str(node.args[0]) for node in graph.module.graph.nodes if "sym_size" in str(node.target)}
    assert {"relu6_"} == sources
    image = torch.randn(1, 3, 30, 18)
    expected = module(image).detach().numpy()
    assert np.allclose(expected, run(folded, {"image": image.numpy()}, dtype=torch.float32)["logits"], atol=1e-6)
