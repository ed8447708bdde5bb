"""Means are summed as phones sum them: what that costs is measured, and it stays the mean."""

import numpy as np
import pytest
import torch
from torch import nn

from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.summation_order import COMPUTED, ROWS, begun_at_half, bias_first
from coordatt_deploy.parity.tolerances import TOLERANCES


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
    costs = np.abs(rounded - exact).max()

    assert of_torch < costs < 1e-3 * exact.max()
    # a file that leaves out one element of 4,096 is still beyond what is allowed, three times in four
    assert float(x.quantile(0.25)) > TOLERANCES[Format.TFLITE, Precision.FP32].multiple * costs


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


def _linear(bias):
    """Four rows of 256 elements, the weights, what torch makes of them, and the exact result."""
    random = torch.Generator().manual_seed(0)
    x, weight = torch.rand(1, 4, 256, generator=random), 0.002 * torch.randn(6, 256, generator=random)
    bias = torch.full((6,), bias)
    exact = x.double() @ weight.double().T + bias
    return [x, weight, bias], nn.functional.linear(x, weight, bias), exact


def test_a_great_bias_costs_what_beginning_at_it_does():
    """
    The named part of the error of a plain loop over float32, element by element, where that is more than torch's own.
    """
    values, result, exact = _linear(0.3)
    x, weight, bias = (value.numpy() for value in values)
    loop = np.empty(result.shape, np.float32)
    for row, column in np.ndindex(4, 6):
        total = bias[column]
        for one, factor in zip(x[0, row], weight[column], strict=True):
            total = np.float32(total + np.float32(one * factor))
        loop[0, row, column] = total

    error = np.abs(bias_first(values, result).double() - exact).numpy()
    wanted = np.maximum(np.abs(loop - exact.numpy()) / COMPUTED, np.abs(result - exact).numpy())

    assert np.allclose(error, wanted, rtol=0, atol=0.3 * 2.0**-23)
    assert error.max() > 2 * float((result - exact).abs().max())


def test_a_bias_below_the_sums_changes_nothing():
    """
    Nor does none at all, or another type.
    """
    values, result, _ = _linear(1e-6)
    great, of_great, _ = _linear(0.3)

    assert torch.equal(result, bias_first(values, result))
    assert torch.equal(of_great, bias_first([*great[:2], None], of_great))
    assert torch.equal(of_great, bias_first([value.double() for value in great], of_great))


def test_of_many_rows_some_are_summed():
    """
    The first and the last among them; the others stay torch's.
    """
    (_, weight, bias), _, _ = _linear(0.3)
    x = torch.rand(1000, 256, generator=torch.Generator().manual_seed(1))
    result = nn.functional.linear(x, weight, bias)

    changed = (bias_first([x, weight, bias], result) != result).any(dim=1)

    assert ROWS / 2 < int(changed.sum()) <= ROWS
    assert [True, True] == changed[[0, -1]].tolist()


def _gate():
    """An averaged map of 256 channels, weights and bias of a gate, what torch makes of them, and the exact gate."""
    random = torch.Generator().manual_seed(0)
    x, weight = torch.rand(2, 256, 1, 1, generator=random), 0.002 * torch.randn(48, 256, 1, 1, generator=random)
    bias = 0.01 * torch.randn(48, generator=random)
    result = nn.functional.hardsigmoid(nn.functional.conv2d(x, weight, bias))
    exact = nn.functional.hardsigmoid(nn.functional.conv2d(x.double(), weight.double(), bias.double()))
    return [x, weight, bias], result, exact


def test_a_hard_gate_begins_at_a_half():
    """
    The named part of the error of a plain float32 loop that begins at b / 6 + 1/2, where that is more than torch's.
    """
    values, result, exact = _gate()
    x, weight, bias = (value.double().numpy() for value in values)
    loop = np.empty((2, 48), np.float32)
    for row, column in np.ndindex(2, 48):
        total = np.float32(bias[column] / 6 + 0.5)
        for one, factor in zip(x[row, :, 0, 0], weight[column, :, 0, 0], strict=True):
            total = np.float32(total + np.float32(np.float32(one) * np.float32(factor / 6)))
        loop[row, column] = total

    error = np.abs(np.asarray(begun_at_half(values, result).double() - exact))[..., 0, 0]
    of_torch = np.abs(np.asarray(result.double() - exact))[..., 0, 0]
    wanted = np.maximum(np.abs(loop - exact.numpy()[..., 0, 0]) / COMPUTED, of_torch)

    np.testing.assert_allclose(error, wanted, rtol=0, atol=0.6 * 2.0**-24)
    assert error.max() > 2 * of_torch.max()


def test_a_gate_of_a_linear_layer_is_the_same_gate():
    """
    Rows instead of maps; of another type, of groups and without a bias nothing is said.
    """
    (x, weight, bias), result, _ = _gate()
    rows = [x.flatten(1), weight.flatten(1), bias]

    made = begun_at_half([x, weight, bias], result)

    assert torch.equal(made.flatten(1), begun_at_half(rows, result.flatten(1)))
    assert not torch.equal(result, made)
    for refused in ([x, weight, None], [x.double(), weight, bias], [x.repeat(1, 2, 1, 1), weight, bias]):
        assert torch.equal(result, begun_at_half(refused, result))
