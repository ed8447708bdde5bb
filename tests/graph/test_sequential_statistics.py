"""Normalisations with statistics summed one after another: the same function, and what that order costs."""

import pytest
import torch
from torch import nn

from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import op_name
from coordatt_deploy.graph.sequential_statistics import NORMALISATIONS, SPREADS, _summed, with_statistics_in_sequence

SHAPE = (2, 6, 24, 20)


class Spread(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, image):
        return self.function(image)


MODULES = {
    "batch": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm2d(6, affine=True),
    "group": lambda: nn.GroupNorm(2, 6),
    "layer": lambda: nn.LayerNorm(20),
    "layers": lambda: nn.LayerNorm((24, 20)),
    "variance": lambda: Spread(lambda x: x.var((2, 3), keepdim=True)),
    "biased": lambda: Spread(lambda x: x.var((2, 3), unbiased=False)),
    "deviation": lambda: Spread(lambda x: x.std(1, keepdim=True)),
}


def call(module, image):
    """The call that normalises, the values of its arguments, and what torch makes of them."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    graph = capture(module.eval(), (image,)).module
    (node,) = (item for item in graph.graph.nodes if item.op == "call_function" and op_name(item) in
               {*NORMALISATIONS, *SPREADS})  # fmt: skip
    held = dict(graph.named_parameters()) | dict(graph.named_buffers())
    values = [
        (image if item.op == "placeholder" else held[item.target].detach()) if hasattr(item, "op") else item
        for item in node.args
    ]
    return node, values, node.target(*values, **node.kwargs)


@pytest.mark.parametrize("name", MODULES)
def test_it_is_the_same_function(name):
    """
    On noise, in another order of sums, and a part of that order's error where it is more than torch's.
    """
    node, values, result = call(MODULES[name](), torch.randn(SHAPE))

    summed = _summed(node, values, values[0])
    assert summed.shape == result.shape
    torch.testing.assert_close(summed, result, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(with_statistics_in_sequence(node, values, result), result, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["batch", "instance", "group", "layers"])
def test_on_a_constant_map_that_order_costs_more(name):
    """
    The same rounding at every addition, divided by the root of epsilon; torch's own is less than a tenth of it.
    """
    node, values, result = call(MODULES[name](), torch.full(SHAPE, 0.37))

    exact = node.target(*(v.double() if isinstance(v, torch.Tensor) else v for v in values), **node.kwargs)
    costs = [
        (item.double() - exact).abs().max() for item in (result, with_statistics_in_sequence(node, values, result))
    ]
    assert 10 * costs[0] < costs[1] < 0.01 * 316


def test_known_statistics_are_not_summed():
    """
    BatchNorm as it is deployed, and calls that are no normalisation.
    """
    image = torch.full(SHAPE, 0.37)
    node, values, result = call(nn.BatchNorm2d(6), image)
    assert with_statistics_in_sequence(node, values, result) is result

    graph = capture(Spread(lambda x: x.mean((2, 3))).eval(), (image,)).module
    (mean,) = (item for item in graph.graph.nodes if op_name(item) == "mean")
    value = image.mean((2, 3))
    assert with_statistics_in_sequence(mean, [image, [2, 3]], value) is value
