"""Branches that are linear in one value become one convolution, exactly; everything else stays."""

import pytest
import torch
from files_against_torch import captured, check, holds, randomised
from torch import nn

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.formats import Format
from coordatt_deploy.graph.graph import op_name
from coordatt_deploy.graph.passes import branches
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.graph.passes.branches import merge_branches


def _conv(ins, outs, kernel, norm=True, **options):
    layer = nn.Conv2d(ins, outs, kernel, bias=not norm, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outs)) if norm else layer


class Sum(nn.Module):
    """The sum of its branches."""

    def __init__(self, *branches, behind=()):
        super().__init__()
        self.branches, self.behind = nn.ModuleList(branches), nn.Sequential(*behind)

    def forward(self, x):
        return self.behind(sum(branch(x) for branch in self.branches))


class LayerScale(nn.Module):
    """FastViT's mixer: x + scale * (mixer(x) - norm(x))."""

    def __init__(self):
        super().__init__()
        self.mixer = Sum(_conv(6, 6, 7, padding=3, groups=6), _conv(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6))
        self.norm, self.scale = nn.BatchNorm2d(6), nn.Parameter(torch.rand(6, 1, 1))

    def forward(self, x):
        return x + self.scale * (self.mixer(x) - self.norm(x))


def _repvgg(channels, stride=1, **options):
    same = [nn.BatchNorm2d(channels)] if stride == 1 else []
    return Sum(_conv(channels, channels, 3, padding=1, stride=stride, **options),
               _conv(channels, channels, 1, stride=stride, **options), *same, behind=[nn.ReLU()])  # fmt: skip


BRANCHES = {
    "RepVGG": lambda: _repvgg(6),
    "RepVGG with a stride": lambda: _repvgg(6, stride=2),
    "RepVGG in groups": lambda: _repvgg(6, groups=3),
    "MobileOne": lambda: Sum(*(_conv(6, 6, 3, padding=1, groups=6) for _ in range(4)),
                             _conv(6, 6, 1, groups=6), nn.BatchNorm2d(6), behind=[nn.ReLU()]),
    "RepViT, BatchNorm behind the sum": lambda: Sum(_conv(6, 6, 3, padding=1, groups=6),
                                                    _conv(6, 6, 1, norm=False, groups=6), nn.Identity(),
                                                    behind=[nn.BatchNorm2d(6), nn.GELU()]),
    "ACNet": lambda: Sum(_conv(6, 8, 3, padding=1), _conv(6, 8, (3, 1), padding=(1, 0)),
                         _conv(6, 8, (1, 3), padding=(0, 1))),
    "FastViT": LayerScale,
    "dense beside depthwise": lambda: Sum(_conv(6, 6, 3, padding=1), _conv(6, 6, 3, padding=1, groups=6)),
    "groups of two and three": lambda: Sum(_conv(6, 6, 3, padding=1, groups=2), _conv(6, 6, 1, groups=3)),
    "with a dilation": lambda: Sum(_conv(6, 6, 3, padding=2, dilation=2), _conv(6, 6, 1), nn.Identity()),
    "large kernel and small, dilated": lambda: Sum(_conv(6, 6, 5, padding=4, dilation=2),
                                                   _conv(6, 6, 3, padding=2, dilation=2)),
}  # fmt: skip


def _net(branch):
    torch.manual_seed(0)
    return randomised(nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), branch()))


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_are_one_convolution(name):
    """
    Whatever the modules are called; the report names what was merged, with its error.
    """
    net = _net(BRANCHES[name])
    graph = captured(net)

    merged, reports = merge_branches(graph)
    folded, _ = fold_batchnorms(merged)

    assert holds(net, merged)
    assert holds(net, folded)
    assert 2 == sum(op_name(node) == "conv2d" for node in folded.module.graph.nodes)
    assert not {op_name(node) for node in folded.module.graph.nodes} & {"add", "sub", "mul", "batch_norm"}
    (report,) = reports
    assert 0 < report.relative_error < 1e-6
    assert set(report.branches) <= {layer.layer_id for layer in graph.layers.layers}
    assert all(layer.parts for layer in merged.layers.layers)
    assert "conv2d" == next(layer for layer in merged.layers.layers if layer.layer_id == report.layer).operator


class _Outside(nn.Module):
    """One branch is used outside of the sum as well."""

    def __init__(self):
        super().__init__()
        self.first, self.second = _conv(6, 6, 3, padding=1), _conv(6, 6, 1)

    def forward(self, x):
        y = self.first(x)
        return y + self.second(x), y.relu()


class _Residual(nn.Module):
    """The sum of a value and of two convolutions of it in a row is not linear in it with one kernel."""

    def __init__(self):
        super().__init__()
        self.first, self.second = _conv(6, 6, 1), _conv(6, 6, 3, padding=1)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


LEFT = {
    "used outside": _Outside,
    "a residual block": _Residual,
    "a kernel that is not in the middle": lambda: Sum(_conv(6, 6, 3, padding=1, stride=2),
                                                      _conv(6, 6, 4, padding=1, stride=2)),
    "dilations that do not fit": lambda: Sum(_conv(6, 6, 3, padding=1), _conv(6, 6, 3, padding=2, dilation=2)),
    "an activation in a branch": lambda: Sum(_conv(6, 6, 3, padding=1), nn.Sequential(_conv(6, 6, 1), nn.ReLU())),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_sum_of_linear_branches_is_left_alone(name):
    """
    No branch of these is dropped, and nothing is reported.
    """
    net = _net(LEFT[name])
    graph = captured(net)

    merged, reports = merge_branches(graph)

    assert holds(net, merged)
    assert () == reports
    assert [node.name for node in graph.module.graph.nodes] == [node.name for node in merged.module.graph.nodes]


def test_a_wrong_merge_is_refused(monkeypatch):
    """
    The error is measured: a kernel one off its place never leaves.
    """
    right = branches._regrouped
    monkeypatch.setattr(branches, "_regrouped", lambda item, groups: right(item, groups).roll(1, 1))

    with pytest.raises(ConversionError, match="merged into one convolution compute something else"):
        merge_branches(captured(_net(lambda: _repvgg(6))))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(Format))
def test_the_files_of_merged_branches(kind):
    """
    Every format computes what torch does with all branches.
    """
    net = _net(lambda: nn.Sequential(_repvgg(6), LayerScale(), _repvgg(6, stride=2)))

    check(net, formats=(kind,), fold=lambda graph: fold_batchnorms(merge_branches(graph)[0])[0])
