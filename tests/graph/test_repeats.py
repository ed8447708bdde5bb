"""What a network computes twice is told from what only looks alike."""

import torch
import torch.nn.functional as F
from files_against_torch import Spelled, captured
from torch import nn

from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.repeats import repeated_calls, same_means


def _repeats(function, extra=None):
    net = Spelled(function)
    net.extra = extra
    return repeated_calls(captured(net).module.graph)


def test_a_head_that_is_called_twice_on_the_same_features_is_computed_once():
    """
    So is what follows on both alike.
    """
    head = nn.Conv2d(8, 4, 1)

    found = _repeats(lambda x: (head(x).sigmoid(), head(x).sigmoid()), head)

    assert {"conv2d_2": "conv2d_1", "sigmoid_1": "sigmoid"} == found


def test_other_inputs_weights_or_arguments_are_other_calls():
    """
    A second head of the same size, another axis, the same head on another value.
    """
    first, second = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    found = _repeats(
        lambda x: (first(x), second(x), first(x.relu()), x.mean(2), x.mean(3)), nn.ModuleList([first, second])
    )

    assert {} == found


def test_two_draws_of_random_numbers_are_two():
    """
    The same call, and never the same value.
    """
    assert {} == _repeats(lambda x: x + torch.rand_like(x) * torch.rand_like(x))


def test_a_mean_is_the_same_in_whatever_shape():
    """
    With or without its axes, as a pool of one place; of other axes or values, or a sum, it is another.
    """

    class Means(nn.Module):
        def forward(self, x):
            return (x.mean((2, 3)), x.mean((3, 2), keepdim=True), F.adaptive_avg_pool2d(x, 1),
                    x.mean(2), x.relu().mean((2, 3)), x.sum((2, 3)))  # fmt: skip

    graph = capture(Means().eval(), (torch.randn(1, 8, 4, 6),)).module.graph

    first = {"mean", "mean_1", "adaptive_avg_pool2d"}
    assert {name: frozenset(first - {name}) for name in first} == same_means(graph)
