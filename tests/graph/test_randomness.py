"""A network that draws random numbers is refused for that reason, before anything is compared."""

import pytest
import torch
import torch.nn.functional as F
from files_against_torch import Spelled, captured
from torch import nn

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.randomness import check_deterministic

NOISE = {
    "randn": lambda x: x + 0.01 * torch.randn(1, 8, 1, 1),
    "rand_like": lambda x: x * (torch.rand_like(x) > 0.1),
    "normal": lambda x: x + torch.normal(0.0, 1.0, (1, 8, 1, 1)),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full((1, 8, 1, 1), 0.9)),
    "randint": lambda x: x + torch.randint(0, 2, (1,)),
    "randperm": lambda x: x[:, torch.randperm(8)],
}


@pytest.mark.parametrize("name", NOISE)
def test_the_operator_and_its_line_are_named(name):
    """
    So that the user finds the noise that training left behind.
    """
    graph = captured(Spelled(NOISE[name]))

    with pytest.raises(UsageError, match=rf"draws random numbers.*{name} at .*\.py:\d+"):
        check_deterministic(graph)


QUIET = {
    "rrelu at inference": F.rrelu,
    "dropout at inference": lambda x: F.dropout(x, 0.5, training=False),
    "attention without dropout": lambda x: F.scaled_dot_product_attention(*[x.flatten(2)] * 3),
    "noise that nobody uses": lambda x: (torch.randn(4), x)[1],
}


@pytest.mark.parametrize("name", QUIET)
def test_what_could_draw_and_does_not_is_taken(name):
    """
    Operators that draw in training alone.
    """
    check_deterministic(captured(Spelled(QUIET[name])))


class _Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("noise", torch.randn(1, 3, 1, 1))

    def forward(self, image):
        return image + self.noise


def test_fixed_noise_is_a_weight():
    """
    The remedy that the text names.
    """
    check_deterministic(captured(_Fixed()))
