"""Means are summed as phones sum them: what that costs is measured, and it stays the mean."""

import numpy as np
import pytest
import torch
from torch import nn

from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run


class _Mean(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean(3, keepdim=True),
        lambda x: x.mean(),
        lambda x: nn.functional.adaptive_avg_pool2d(x, (None, 1)),
        lambda x: nn.functional.adaptive_avg_pool2d(x, 1),
        lambda x: nn.functional.adaptive_avg_pool2d(x, (1, None)),
        lambda x: nn.functional.avg_pool2d(x, (24, 1)),
        lambda x: nn.functional.avg_pool2d(x, 3, 2, 1),
        lambda x: nn.functional.adaptive_avg_pool2d(x, (6, 8)),
    ],
)
def test_a_mean_stays_the_mean(function):
    """
    Whichever way it is written, float32 and float64 agree to rounding; windows that cover less are left to torch.
    """
    x = torch.randn(2, 5, 24, 32, generator=torch.Generator().manual_seed(0))
    graph = capture(_Mean(function).eval(), (x,))

    (exact,) = run(graph, {"image": x.numpy()}).values()
    (rounded,) = run(graph, {"image": x.numpy()}, dtype=torch.float32).values()

    assert np.float32 == rounded.dtype
    assert np.allclose(exact, function(x.double()).numpy(), rtol=0, atol=1e-14)
    assert np.allclose(rounded, exact, rtol=0, atol=1e-5)


def test_a_sum_is_taken_one_after_another_too():
    """
    SimAM's sum of squares: what it costs a phone is more than torch's tree of sums does, and it stays the sum.
    """
    x = torch.rand(1, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    graph = capture(_Mean(lambda x: x.sum((2, 3), keepdim=True)).eval(), (x,))

    (exact,) = run(graph, {"image": x.numpy()}).values()
    (rounded,) = run(graph, {"image": x.numpy()}, dtype=torch.float32).values()
    of_torch = np.abs(x.sum((2, 3), keepdim=True).numpy() - exact).max()

    assert np.allclose(exact, x.double().sum((2, 3), keepdim=True).numpy(), rtol=1e-12)
    assert of_torch < np.abs(rounded - exact).max() < 1e-3 * exact.max()


def test_one_after_another_rounds_more_than_torch_does():
    """
    Over 64 x 64 positive values torch's tree of sums is far nearer to the mean than any phone is.
    """
    x = torch.rand(1, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    graph = capture(_Mean(lambda x: x.mean((2, 3))).eval(), (x,))

    (exact,) = run(graph, {"image": x.numpy()}).values()
    (rounded,) = run(graph, {"image": x.numpy()}, dtype=torch.float32).values()
    of_torch = np.abs(x.mean((2, 3)).numpy() - exact).max()

    assert np.abs(rounded - exact).max() > 4 * of_torch > 0
