"""Attention blocks other than gates along strips are told by their structure, however they are written."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from files_against_torch import Spelled, captured, randomised
from torch import nn

from coordatt_deploy.graph.graph import DynamicBatch, DynamicSize
from coordatt_deploy.graph.lowering.recognise import find_attention
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.models.factory import create_attention

REFERENCE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "zoo" / "attention_references.py")))
CHANNELS = 32


def network(block, channels=CHANNELS):
    """A convolution, the block, and a convolution."""
    return randomised(nn.Sequential(Spelled(nn.Identity(), channels=channels), block, nn.Conv2d(channels, 4, 1)))


def found_in(block, **captured_as):
    """What is found in the captured graph, which has to be what is found in the folded one."""
    graph = captured(network(block), **captured_as)
    found, folded = find_attention(graph), find_attention(fold_batchnorms(graph)[0])
    assert kinds(found) == kinds(folded)
    return found


def kinds(found):
    return [(block.kind, block.name, block.channels, block.anatomy.squeezed) for block in found.blocks]


class OneDimensionalLocal(nn.Module):
    """Efficient local attention as its paper has it: sequences, without an activation before the gates."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(CHANNELS, CHANNELS, 7, padding=3, groups=CHANNELS), nn.GroupNorm(1, CHANNELS)

    def forward(self, x):
        n, c, h, w = x.shape
        rows = torch.sigmoid(self.norm(self.conv(x.mean(3)))).view(n, c, h, 1)
        columns = torch.sigmoid(self.norm(self.conv(x.mean(2)))).view(n, c, 1, w)
        return x * (rows * columns)


class Eca(nn.Module):
    """ECA with a convolution over an axis of the channels, in one of several ways."""

    def __init__(self, how, size=5):
        super().__init__()
        self.how, half = how, size // 2
        self.line = nn.Conv1d(1, 1, size, padding=half, bias=how == "bias")
        self.tall = nn.Conv2d(1, 1, (size, 1), padding=(half, 0), bias=False)
        self.wide = nn.Conv2d(1, 1, (1, size), padding="same", bias=False)

    def forward(self, x):
        n, c = x.shape[:2]
        if self.how == "tall":
            return x * torch.sigmoid(self.tall(x.mean((2, 3)).view(n, 1, c, 1)).view(n, c, 1, 1))
        if self.how == "wide":
            return self.wide(x.mean((2, 3), keepdim=True).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).sigmoid() * x
        if self.how == "hard":
            return x * F.hardsigmoid(self.line(x.mean((2, 3))[:, None]))[:, 0, :, None, None]
        pooled = F.avg_pool2d(x, x.shape[2:]).reshape(n, 1, c)
        return x * self.line(pooled).sigmoid().reshape(n, c, 1, 1).expand(x.shape)


class CbamOfConvolutions(nn.Module):
    """CBAM as timm writes it: pointwise convolutions, the two pools the other way round."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(CHANNELS, 4, 1, bias=False), nn.Conv2d(4, CHANNELS, 1, bias=False)
        self.conv, self.bn = nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1)

    def forward(self, x):
        greatest = self.fc2(F.relu(self.fc1(F.adaptive_max_pool2d(x, 1))))
        x = x * F.sigmoid(greatest + self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))
        pooled = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * F.sigmoid(self.bn(self.conv(pooled)))


class TimmGlobalContext(nn.Module):
    """Global context as timm writes it: the LayerNorm with the channels last, a gate and no sum."""

    def __init__(self, pooled=False):
        super().__init__()
        self.attn = None if pooled else nn.Conv2d(CHANNELS, 1, 1)
        self.fc1, self.fc2, self.norm = nn.Conv2d(CHANNELS, 8, 1), nn.Conv2d(8, CHANNELS, 1), nn.LayerNorm(8)

    def forward(self, x):
        n, c, h, w = x.shape
        if self.attn is None:
            context = x.mean(dim=(2, 3), keepdim=True)
        else:
            weights = F.softmax(self.attn(x).reshape(n, 1, h * w), dim=-1).unsqueeze(3)
            context = (x.reshape(n, c, h * w).unsqueeze(1) @ weights).view(n, c, 1, 1)
        squeezed = self.norm(self.fc1(context).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x * self.fc2(F.relu(squeezed)).sigmoid()


BLOCKS = [
    ("eca", lambda: REFERENCE.ECA(3), None),
    ("eca", lambda: REFERENCE.ECA(1), None),
    *(("eca", lambda how=how: Eca(how), None) for how in ("tall", "wide", "hard", "bias", "plain")),
    ("cbam", lambda: REFERENCE.CBAM(CHANNELS), 2),
    ("cbam", CbamOfConvolutions, 4),
    ("cbam_channel", lambda: REFERENCE.ChannelGate(CHANNELS, 8), 4),
    ("cbam_spatial", REFERENCE.SpatialGate, None),
    ("triplet", REFERENCE.Triplet, None),
    ("triplet", lambda: create_attention("triplet", CHANNELS, spatial=False), None),
    ("strip_pooling", lambda: REFERENCE.SPM(CHANNELS), None),
    ("global_context", lambda: REFERENCE.GlobalContext(CHANNELS), 2),
    ("global_context", lambda: REFERENCE.GlobalContext(CHANNELS, ("channel_mul",)), 2),
    ("global_context", lambda: REFERENCE.GlobalContext(CHANNELS, ("channel_mul", "channel_add")), 2),
    ("global_context", TimmGlobalContext, 8),
    ("global_context", lambda: TimmGlobalContext(pooled=True), 8),
    ("timm_scoord", lambda: REFERENCE.TimmSimpleCoord(CHANNELS, 8), 8),
    ("timm_ela", lambda: REFERENCE.TimmLocal(CHANNELS), None),
    ("timm_ela", OneDimensionalLocal, None),
    ("timm_strip", lambda: REFERENCE.TimmStrip(CHANNELS), None),
    ("timm_strip", lambda: create_attention("timm_strip", CHANNELS, use_conv=False, skip=True), None),
]


@pytest.mark.parametrize(("kind", "block", "squeezed"), BLOCKS, ids=lambda item: item if isinstance(item, str) else "")
def test_a_block_is_found_however_it_is_written(kind, block, squeezed):
    """
    The references' own code and other people's: one block, by its module's path, and no near miss.
    """
    found = found_in(block())

    assert [(kind, "1", CHANNELS, squeezed)] == kinds(found)
    assert () == found.near_misses


@pytest.mark.parametrize(
    ("block", "captured_as"),
    [
        (lambda: REFERENCE.ECA(3), {"dynamic": DynamicSize(16, 96, 8)}),
        (lambda: create_attention("cbam", CHANNELS), {"dynamic": DynamicSize(16, 96, 8)}),
        (lambda: create_attention("strip_pooling", CHANNELS), {"dynamic": DynamicSize(16, 96, 8)}),
        (lambda: create_attention("triplet", CHANNELS), {"dynamic": DynamicSize(16, 96, 8)}),
        (lambda: create_attention("global_context", CHANNELS), {"dynamic": DynamicSize(16, 96, 8)}),
        (lambda: REFERENCE.CBAM(CHANNELS), {"batch": DynamicBatch(1, 8)}),
    ],
)
def test_a_block_of_any_size_is_found(block, captured_as):
    """
    Where height and width are dynamic it has none; a dynamic batch changes nothing.
    """
    shapes = ((2, 3, 16, 24),)
    graph = captured(network(block()), *shapes, **captured_as)

    (found,) = find_attention(graph).blocks

    sizes = (None, None) if "dynamic" in captured_as else (8, 12)
    assert sizes == (found.height, found.width)


class Changed(nn.Module):
    """What looks like one of the blocks and is none, by one thing."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.line = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.first, self.second = nn.Linear(CHANNELS, 4), nn.Linear(4, CHANNELS)
        self.other = nn.Linear(4, CHANNELS)
        self.places = nn.Conv2d(2, 1, 7, padding=3)
        self.few = nn.Conv2d(2, 1, 3, padding=0)
        self.map = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x):
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        if self.what == "other mlp":
            mean = self.second(F.relu(self.first(x.mean((2, 3)))))
            return x * torch.sigmoid(mean + self.other(F.relu(self.first(x.amax((2, 3))))))[:, :, None, None]
        if self.what == "tanh":
            return x * torch.tanh(self.places(pooled))
        if self.what == "smaller":
            return x * F.pad(torch.sigmoid(self.few(pooled)), (1, 1, 1, 1))
        if self.what == "another map":
            return self.map(x) * torch.sigmoid(self.places(pooled))
        if self.what == "used again":
            gate = torch.sigmoid(self.places(pooled))
            return x * gate + gate
        if self.what == "two means":
            return x * torch.sigmoid(self.places(torch.cat([x.mean(1, keepdim=True)] * 2, 1)))
        gate = torch.sigmoid(self.line(x.mean((2, 3))[:, None]))[:, 0, :, None, None]
        return x * gate.flip(1)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("tanh", "gates it in a way that is not known"),
        ("smaller", "does not give one result for each position"),
        ("used again", "values inside it are used outside as well"),
        ("two means", "gates it in a way that is not known"),
        ("flipped", "convolves over a strip that does not lie as (N, C, positions)"),
        ("other mlp", "is no part of such a block"),
    ],
)
def test_a_near_miss_says_what_is_different(what, reason):
    """
    It is not taken for a block, and the reason names what differs.
    """
    found = found_in(Changed(what).eval())

    assert () == found.blocks
    assert any(reason in miss.reason for miss in found.near_misses), found.near_misses


class Lookalike(nn.Module):
    """Networks that pool, gate or weigh places and have no attention block of these kinds."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.head, self.query = nn.Linear(CHANNELS, CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.own, self.others, self.psi = nn.Conv2d(CHANNELS, 8, 1), nn.Conv2d(CHANNELS, 8, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        n, c, h, w = x.shape
        if self.what == "head":
            return self.head(x.mean((2, 3)))[:, :, None, None]
        if self.what == "image pool of a decoder":
            return torch.relu(self.query(x)) + self.own(x).mean((2, 3), keepdim=True).mean(1, keepdim=True)
        if self.what == "softmax attention":
            q, k, v = (self.query(x).flatten(2) for _ in range(3))
            return (v @ (q.transpose(1, 2) @ k).softmax(-1)).reshape(n, c, h, w) + x
        if self.what == "gate of a U-Net":
            gating = F.avg_pool2d(F.relu(self.query(x)), 2)
            gate = torch.sigmoid(self.psi(F.relu(self.own(x) + F.interpolate(self.others(gating), scale_factor=2.0))))
            return x * gate
        return x * torch.sigmoid(self.query(x))


@pytest.mark.parametrize(
    "what", ["head", "image pool of a decoder", "softmax attention", "gate of a U-Net", "gated linear unit"]
)
def test_what_only_looks_alike_is_no_block_and_no_near_miss(what):
    """
    A classifier's head, self-attention, a gate that another map computes.
    """
    found = found_in(Lookalike(what).eval())

    assert ((), ()) == (found.blocks, found.near_misses)


def test_a_map_that_is_gated_by_another_maps_pools_is_no_block():
    """
    A gate must be computed from what it gates.
    """
    assert () == found_in(Changed("another map").eval()).blocks


def test_blocks_of_several_kinds_come_in_execution_order():
    """
    Each by its own module.
    """
    names = ["triplet", "eca", "coordatt", "cbam", "squeeze_excite", "strip_pooling"]

    found = find_attention(captured(network(nn.Sequential(*(create_attention(name, CHANNELS) for name in names)))))

    assert [(name, f"1.{index}") for index, name in enumerate(names)] == [
        (item.kind, item.name) for item in found.blocks
    ]


class AlmostMixed(nn.Module):
    """A mixed pooling module that lacks its grids, whose strips are used elsewhere, or whose sum gates the map."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.near, self.far = nn.Conv2d(CHANNELS, 8, 1), nn.Conv2d(CHANNELS, 8, 1)
        self.along, self.down, self.grid = (nn.Conv2d(8, 8, size, padding="same") for size in ((1, 3), (3, 1), 3))
        self.mix = nn.Conv2d(16, CHANNELS, 1)

    def forward(self, x):
        near, far = self.near(x).relu(), self.far(x).relu()
        if self.how != "without grids":
            near = near + F.interpolate(self.grid(F.adaptive_avg_pool2d(near, 4)), x.shape[2:], mode="bilinear")
        strips = F.relu(self.down(far.mean(3, keepdim=True)) + self.along(far.mean(2, keepdim=True)))
        joined = torch.cat([near, far * strips.sigmoid() if self.how == "gated" else strips], 1)
        mixed = x + self.mix(joined)
        return mixed + strips.mean() if self.how == "used outside" else mixed


def test_a_mixed_pooling_module_is_named():
    """
    As its authors write it, pools, resizes and all; and with means that are spread by a sum.
    """
    assert [("mixed_pooling", "1", CHANNELS, None)] == kinds(found_in(REFERENCE.MPM(CHANNELS)))
    assert [("mixed_pooling", "1", CHANNELS, None)] == kinds(found_in(AlmostMixed("whole")))


@pytest.mark.parametrize("how", ["without grids", "gated", "used outside"])
def test_what_resembles_mixed_pooling_is_not_called_so(how):
    """
    Without grids, with strips that gate, or with strips that others take as well.
    """
    assert "mixed_pooling" not in [kind for kind, *_ in kinds(found_in(AlmostMixed(how)))]
