"""A user's own network with its attention blocks exchanged."""

import pytest
import torch

from coordatt_deploy.attention_cost.networks import network
from coordatt_deploy.attention_cost.plan import CostPlan, Subject
from coordatt_deploy.errors import UsageError
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.models.coordatt import CoordAtt
from coordatt_deploy.models.eca import ECA

CODE = """
import torch
from torch import nn


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x):
        return x * self.second(self.first(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Stem(Gate):
    def __init__(self, channels):
        super().__init__(channels)
        self.conv = nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, x):
        return super().forward(self.conv(x).relu())


def alone():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Gate(8), nn.Conv2d(8, 4, 1))


def mixed():
    torch.manual_seed(0)
    return nn.Sequential(Stem(8), nn.Conv2d(8, 4, 1))


def without():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
"""


@pytest.fixture
def plan(tmp_path):
    """Gives the plan for one of the factories above."""
    (tmp_path / "net.py").write_text(CODE)

    def named(factory, **arguments):
        model = ModelRequest(f"{tmp_path / 'net.py'}:{factory}", input_size=(16, 16))
        return CostPlan(backbones=(), model=model, latency=None, **arguments)

    return named


def test_each_block_is_exchanged_and_the_rest_is_left(plan):
    """
    Other weights and the names of the others stay; the network as it came has its own block still.
    """
    asked = plan("alone", attention=("eca", "ca"))
    plain, own, *others = (network(asked, subject).module for subject in asked.subjects)

    assert [ECA, CoordAtt] == [type(module[2]) for module in others]
    for module in (plain, *others):
        assert torch.equal(own[0].weight, module[0].weight)
        assert torch.equal(own[3].weight, module[3].weight)
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(own[3](own[1](own[0](image))), plain(image))
    assert not torch.equal(own(image), plain(image))


def test_the_network_as_it_came_is_left_alone(plan):
    """
    Exchanging works on a copy.
    """
    asked = plan("alone")
    source = network(asked, Subject(asked.subjects[0].backbone, untouched=True))

    assert "Gate" == type(source.module[2]).__name__


def test_a_block_that_is_no_module_of_its_own_is_refused(plan):
    """
    What else its module does would be gone as well; the text says what that is.
    """
    asked = plan("mixed")

    with pytest.raises(UsageError, match="beside it, so it cannot be exchanged; put the block into a module"):
        network(asked, asked.subjects[0])


def test_a_network_without_a_block_is_refused(plan):
    """
    There is nothing to exchange; `inspect` says what is found.
    """
    asked = plan("without")

    with pytest.raises(UsageError, match=r"no attention block was recognised in .* inspect"):
        network(asked, asked.subjects[0])
