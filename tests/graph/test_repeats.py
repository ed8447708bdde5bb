"""What a network computes twice is told from what only looks alike."""

import torch
from files_against_torch import Spelled, captured
from torch import nn

from coordatt_deploy.graph.repeats import repeated_calls


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
