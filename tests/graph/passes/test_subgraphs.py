"""``torch.no_grad()`` and ``autocast`` inside ``forward`` leave nothing in the graph but their operators."""

import pytest
import torch
from files_against_torch import Spelled, captured, graphs, holds
from torch import nn

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.graph import op_name


def _no_grad(x):
    with torch.no_grad():
        y = torch.relu(x)
    return y + x


@torch.no_grad()
def _decorated(x):
    return torch.sigmoid(x) * x


def _nested(x):
    with torch.no_grad():
        y = x * 2
        with torch.enable_grad():
            z = y + x
        return torch.cat([y, z], 1)


def _two_results(x):
    with torch.no_grad():
        a, b = x.chunk(2, 1)
        largest = x.max(1)[0]
    return a * b + largest[:, None]


def _in_place(x):
    with torch.no_grad():
        y = torch.relu(x)
        y.mul_(0.5).add_(1)
    return y


def _overwrites_outside(x):
    y = x * 2
    with torch.no_grad():
        y.clamp_(-1, 1)
    return y + 1


def _autocast_off(x):
    with torch.autocast("cpu", enabled=False):
        return torch.tanh(x.transpose(1, 2).contiguous().view(1, 8, -1))


def _no_grad_in_autocast(x):
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        return x.mean((2, 3))


CALLS = [_no_grad, _decorated, _nested, _two_results, _in_place, _overwrites_outside, _autocast_off,
           _no_grad_in_autocast]  # fmt: skip


@pytest.mark.parametrize("function", CALLS)
def test_a_region_is_its_operators(function):
    """
    Nested, with several results, with operators that overwrite, as a decorator.
    """
    net = Spelled(function)

    graph, folded = graphs(net)

    assert holds(net, folded)
    assert not any("wrap" in str(node.target) for node in graph.module.graph.nodes)


def test_autocast_that_is_switched_on_is_captured_in_float32():
    """
    The files choose their own precision; the graph has the function without the rounding.
    """

    def cast(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = nn.functional.conv2d(x, x.new_ones(4, 8, 1, 1))
        return y.float().relu()

    net = Spelled(cast)

    _, folded = graphs(net)

    assert holds(net, folded)
    assert {torch.float32} == {node.meta["val"].dtype for node in folded.module.graph.nodes if op_name(node)}


class _Average(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(3))

    def forward(self, image):
        with torch.no_grad():
            self.average.mul_(0.9).add_(image.mean((0, 2, 3)), alpha=0.1)
        return image - self.average[:, None, None]


def test_state_that_is_kept_inside_a_region_is_refused():
    """
    A moving average is no function of the input, wherever it is written.
    """
    with pytest.raises(UsageError, match="overwrites its own average"):
        captured(_Average())


def test_control_flow_that_torch_export_keeps_is_refused():
    """
    A subgraph that is run or not has no place in a file.
    """
    net = Spelled(lambda x: torch.cond(x.sum() > 0, torch.relu, torch.neg, (x,)))

    with pytest.raises(UsageError, match=r"cond.* runs parts of the network by itself"):
        captured(net)
