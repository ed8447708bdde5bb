"""Attention and hard activations are found by structure alone: every class and layer has a name that says nothing."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import DynamicSize
from coordatt_deploy.graph.lowering.activations import find_activations
from coordatt_deploy.graph.lowering.recognise import find_attention
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms

ZOO = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "zoo" / "variants.py")))
Way = ZOO.Way
PAPER = Way()  # coordatt.py of the authors
WITH_EXPAND = Way(expand=True, product="x * w * h")  # mbv2_ca.py of the authors
TIMM = Way(pool="mean", bias=False, activation="silu", product="x * h * w")

WAYS = [
    PAPER,
    WITH_EXPAND,
    TIMM,
    replace(TIMM, skip=True),
    Way(join=3),
    Way(join=3, first="columns", part="slice"),
    Way(first="columns"),
    Way(part="narrow", pool="flat mean"),
    Way(join=None, pool="avg_pool", norm=False),
    *(Way(activation=name) for name in ZOO.ACTIVATIONS),
    *(Way(gate=name) for name in ZOO.GATES),
    *(Way(product=name, expand=index % 2 == 1) for index, name in enumerate(ZOO.PRODUCTS)),
]


def captured(block, size=(32, 48), channels=16, seed=0, dynamic=None):
    network, name = ZOO.around(block, channels, seed)
    return capture(network, (torch.randn(1, 3, *size),), dynamic=dynamic), name


def changed(way):
    """What differs from the paper's way, as the test's id."""
    differences = [f"{key}={value}" for key, value in vars(way).items() if value != getattr(PAPER, key)]
    return ", ".join(differences) or "as in the paper"


@pytest.mark.parametrize("way", WAYS, ids=changed)
def test_a_block_is_found_however_it_is_written(way):
    """
    One block, with its module's path, channels and size, and nothing left that looks like a near miss; in the graph as
    it was captured as well as in the folded one.
    """
    graph, name = captured(ZOO.attention(way))

    for found in (find_attention(graph), find_attention(fold_batchnorms(graph)[0])):
        assert () == found.near_misses
        (block,) = found.blocks
        assert ("coordatt", name, 16, 8, 16, 24) == (
            block.kind, block.name, block.channels, block.anatomy.squeezed, block.height, block.width,
        )  # fmt: skip
        assert ["rows", "columns"] == [branch.direction for branch in block.anatomy.branches]


@settings(max_examples=12, deadline=None)
@given(
    way=st.builds(
        Way,
        pool=st.sampled_from([*ZOO.POOLS]),
        join=st.sampled_from([None, 2, 3]),
        first=st.sampled_from(["rows", "columns"]),
        part=st.sampled_from(["split", "slice", "narrow"]),
        activation=st.sampled_from([*ZOO.ACTIVATIONS]),
        gate=st.sampled_from([*ZOO.GATES]),
        product=st.sampled_from([*ZOO.PRODUCTS]),
        expand=st.booleans(),
        bias=st.booleans(),
        norm=st.booleans(),
        skip=st.booleans(),
    ),
    channels=st.sampled_from([4, 16, 20]),
    squeezed=st.sampled_from([4, 8, 12]),
    square=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_combination_of_them_is_found(way, channels, squeezed, square, seed):
    """
    Ways of writing are independent of each other, of the names and of the sizes.
    """
    block = ZOO.attention(way, channels, squeezed, seed)
    graph, name = captured(block, (16, 16) if square else (16, 24), channels, seed)

    found = find_attention(graph)

    assert [(name, channels, squeezed)] == [(item.name, item.channels, item.anatomy.squeezed) for item in found.blocks]
    assert () == found.near_misses


@pytest.mark.parametrize("way", [PAPER, TIMM, Way(join=None, pool="mean")], ids=changed)
def test_a_block_of_any_size_is_found(way):
    """
    Where height and width are dynamic the block has none of its own.
    """
    graph, name = captured(ZOO.attention(replace(way, pool="mean")), dynamic=DynamicSize(16, 96, 2))

    (block,) = find_attention(graph).blocks

    assert (name, 16, None, None) == (block.name, block.channels, block.height, block.width)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("greatest", "takes the greatest value of each strip, not the mean"),
        ("grouped", "is a grouped convolution"),
        ("wide", "is a 3x1 convolution; only a pointwise one acts on each position alone"),
        ("other map", "joins a strip with something else"),
        ("shifted", "does not part the strips where they were joined"),
        ("tanh", "is no sigmoid or hard-sigmoid, so it is no gate"),
        ("three convolutions", "expected: convolution, activation, convolution, gate"),
        ("rows only", "only its rows are gated"),
        ("sum", "is no part of such a block"),
        ("used again", "values inside it are used outside as well"),
    ],
)
def test_a_near_miss_says_what_is_different(what, reason):
    """
    It is not taken for a block, and the reason names the operator that differs.
    """
    graph, name = captured(ZOO.Home(what).eval())

    found = find_attention(graph)

    assert () == found.blocks
    assert any(reason in miss.reason and miss.where.startswith(name) for miss in found.near_misses), found.near_misses


def test_the_home_made_block_without_a_change_is_found():
    """
    The near misses miss by the one thing that was changed.
    """
    graph, name = captured(ZOO.Home("nothing").eval())

    found = find_attention(graph)

    assert ([name], ()) == ([block.name for block in found.blocks], found.near_misses)


@pytest.mark.parametrize("linear", [False, True], ids=["convolutions", "linear layers"])
@pytest.mark.parametrize("hard", [False, True], ids=["sigmoid", "hard-sigmoid"])
def test_squeeze_and_excitation_is_found(linear, hard):
    """
    A gate per channel is another kind of block of the same machinery.
    """
    graph, name = captured(ZOO.SqueezeExcite(linear=linear, hard=hard).eval())

    (block,) = find_attention(graph).blocks

    assert ("squeeze_excite", name, 16, 8) == (block.kind, block.name, block.channels, block.anatomy.squeezed)
    assert ["whole"] == [branch.direction for branch in block.anatomy.branches]


def test_a_global_pool_is_no_near_miss():
    """
    Every classifier has one before its head.
    """
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()

    found = find_attention(capture(network, (torch.randn(1, 3, 16, 16),)))

    assert ((), (), ()) == (found.blocks, found.near_misses, found.activations)


def test_blocks_come_in_execution_order():
    """
    Two in one network, one of them in squeeze-and-excitation's form.
    """
    network = nn.Sequential(nn.Conv2d(3, 16, 1), ZOO.attention(PAPER), nn.Conv2d(16, 16, 1), ZOO.SqueezeExcite())

    found = find_attention(capture(network.eval(), (torch.randn(1, 3, 8, 12),)))

    assert [("1", "coordatt"), ("3", "squeeze_excite")] == [(block.name, block.kind) for block in found.blocks]


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def activations_of(function):
    module = capture(Applied(function).eval(), (torch.randn(1, 4, 5, 6),)).module
    return [item.op_name for item in find_activations(module)]


HARD_SWISHES = {
    "one operator": F.hardswish,
    "x * relu6(x + 3) / 6": lambda x: x * F.relu6(x + 3) / 6,
    "x * (relu6(x + 3) / 6)": lambda x: x * (F.relu6(x + 3) / 6),
    "relu6(x + 3) * (x / 6)": lambda x: F.relu6(x + 3) * (x / 6),
    "relu6(3 + x) * 0.1666… * x": lambda x: F.relu6(3.0 + x) * (1 / 6) * x,
    "x * hardsigmoid(x)": lambda x: x * F.hardsigmoid(x),
    "x * clamp(x + 3, 0, 6) / 6": lambda x: x * torch.clamp(x + 3, 0, 6) / 6,
    "x * clamp(x / 6 + 0.5, 0, 1)": lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    "hardtanh": lambda x: F.hardtanh(x - (-3.0), 0, 6) / 6 * x,
    "two clamps": lambda x: x * (x + 3).clamp(max=6).clamp(min=0) / 6,
}
HARD_SIGMOIDS = {
    "one operator": F.hardsigmoid,
    "relu6(x + 3) / 6": lambda x: F.relu6(x + 3) / 6,
    "clamp(x / 6 + 0.5, 0, 1)": lambda x: torch.clamp(x / 6 + 0.5, 0, 1),
    "0.1666… * relu6(x + 3)": lambda x: (1 / 6) * F.relu6(x + 3),
}
OTHERS = {
    "a sixth in four digits": lambda x: x * F.relu6(x + 3) * 0.1667,
    "another shift": lambda x: x * F.relu6(x + 2) / 6,
    "another bound": lambda x: x * torch.clamp(x + 3, 0, 5) / 6,
    "another factor": lambda x: x * F.relu6(x + 3) / 3,
    "subtracted the wrong way": lambda x: x * F.relu6(3 - x) / 6,
    "seen from outside": lambda x: (lambda inner: inner / 6 * x + inner)(F.relu6(x + 3)),
    "of something else": lambda x: (x + 1) * F.relu6(x + 3) * 0.5,
}


@pytest.mark.parametrize("name", HARD_SWISHES)
def test_a_hard_swish_is_found_however_it_is_spelled(name):
    """
    One hard-swish, and no hard-sigmoid inside of it.
    """
    assert ["hardswish"] == activations_of(HARD_SWISHES[name])


@pytest.mark.parametrize("name", HARD_SIGMOIDS)
def test_a_hard_sigmoid_is_found_however_it_is_spelled(name):
    """
    One hard-sigmoid.
    """
    assert ["hardsigmoid"] == activations_of(HARD_SIGMOIDS[name])


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_almost_a_hard_activation_is_none(name):
    """
    Other constants are another function, and a value that is used elsewhere cannot be fused away.
    """
    assert [] == activations_of(OTHERS[name])
