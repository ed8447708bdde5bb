"""Each rule with a model that triggers it and one that does not."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # as the users of the examples write it
from torch import nn

from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import DynamicBatch, DynamicSize
from coordatt_deploy.inspection.lint import RULES, lint
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.loaded_model import capture_source
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.models.coordatt import CoordAtt

ZOO = Path(__file__).parents[1] / "zoo"


def _net(function):
    class Net(nn.Module):
        def forward(self, x):
            return function(x)

    return Net()


class _NoiseInTraining(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) * 0.1 if self.training else x * 1


class _SharedConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class _GateWithoutSqueeze(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return x * self.gate(x.mean(3, keepdim=True)).sigmoid()


def _findings(module, dynamic=None, batch=None):
    torch.manual_seed(0)
    example = (torch.randn(1 if batch is None else 2, 3, 16, 24),)
    return lint(capture(module.eval(), example, dynamic=dynamic, batch=batch))


def _assign(x):
    out = x * 2
    out[:, 1:] = out[:, 1:] + 1
    return out


def _assign_one(x):
    out = x * 2
    out[:, 1] = x[:, 0]
    return out


# Rule, whether the tool applies the remedy, a model that triggers it, and one that does the same without it.
EXAMPLES = [
    ("attention-form", True, lambda: nn.Sequential(nn.Conv2d(3, 8, 1), CoordAtt(8)), lambda: nn.Conv2d(3, 8, 1)),
    ("attention-near-miss", False,
     _GateWithoutSqueeze,
     lambda: nn.Sequential(nn.Conv2d(3, 8, 1), CoordAtt(8))),
    ("hard-activation", True,
     lambda: _net(lambda x: x * F.relu6(x + 3) / 6), lambda: _net(lambda x: F.relu6(x + 3))),
    ("strip-adaptive-pool", False,
     lambda: _net(lambda x: F.adaptive_avg_pool2d(x, (None, 1))),
     lambda: _net(lambda x: x.mean(3, keepdim=True))),
    ("strip-adaptive-pool", True,
     lambda: nn.Sequential(nn.Conv2d(3, 8, 1), CoordAtt(8)), lambda: nn.AdaptiveAvgPool2d(1)),
    ("odd-adaptive-pool", False, lambda: nn.AdaptiveAvgPool2d(5), lambda: nn.AdaptiveAvgPool2d((4, 8))),
    ("odd-adaptive-pool", False, lambda: nn.AdaptiveAvgPool2d((16, 7)), lambda: nn.AdaptiveAvgPool2d((16, 24))),
    ("broadcast-copy", False,
     lambda: _net(lambda x: x + x.mean(3, keepdim=True).expand(-1, -1, -1, 24)),
     lambda: _net(lambda x: (x + x.mean(3, keepdim=True)).expand(-1, -1, -1, -1))),
    ("slice-assignment", True, lambda: _net(_assign),
     lambda: _net(lambda x: torch.cat([x[:, :1], x[:, 1:] + 1], 1))),
    ("slice-assignment", False, lambda: _net(_assign_one), lambda: nn.ReLU(inplace=True)),
    ("many-axes", False,
     lambda: _net(lambda x: x.reshape(1, 3, 2, 8, 24).mean(2)),
     lambda: _net(lambda x: x.reshape(1, 6, 8, 24))),
    ("delegate-rejects", False, lambda: _net(lambda x: x[:, [2, 0, 1]]), lambda: _net(lambda x: x[:, 1:])),
    ("delegate-rejects", False, lambda: _net(lambda x: x.flatten(1).topk(3).values), lambda: nn.Flatten()),
    ("unconvertible", False, lambda: nn.MaxPool2d(3, 2, 1, dilation=2), lambda: nn.MaxPool2d(3, 2, 1)),
    ("unconvertible", False, lambda: _net(lambda x: torch.fft.rfft2(x).abs()), lambda: _net(torch.abs)),
    ("rewritten-operator", True, nn.CELU, nn.ReLU),
    ("rewritten-operator", True,
     lambda: nn.Upsample(scale_factor=2, mode="bicubic"), lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    ("rewritten-operator", True, lambda: nn.GELU("tanh"), nn.GELU),
    ("unfoldable-batch-norm", False, _SharedConvolution,
     lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))),
    ("training-leftover", False,
     lambda: _net(lambda x: x + torch.randn_like(x) * 0.1),
     _NoiseInTraining),
    ("wide-type", False, lambda: _net(lambda x: x.double().mean((2, 3)).float()), lambda: nn.AdaptiveAvgPool2d(1)),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "applied", "triggers", "does_not"), EXAMPLES)
def test_each_rule_finds_its_example_and_leaves_the_other(rule, applied, triggers, does_not):
    """
    The finding says where, what, the remedy, and whether the tool applies it; the twin has no such finding.
    """
    found = [item for item in _findings(triggers()) if item.rule == rule]

    assert found
    assert applied in {item.applied for item in found}
    assert all(item.where and item.what and item.remedy for item in found)
    assert [] == [item for item in _findings(does_not()) if item.rule == rule]


def test_a_dynamic_size_or_batch_is_a_finding_and_a_static_one_is_not():
    """
    The two rules that look at how the model is exported.
    """
    net = nn.Conv2d(3, 8, 3)

    assert ["dynamic-size"] == [item.rule for item in _findings(net, DynamicSize(8, 64))]
    assert ["dynamic-batch"] == [item.rule for item in _findings(net, batch=DynamicBatch(1, 4))]
    assert () == _findings(net)


def test_the_rules_read_dynamic_sizes_too():
    """
    A strip's length is a symbol then; adaptive pools over it are means by the time that the graph is captured.
    """
    net = nn.Sequential(nn.Conv2d(3, 8, 1), CoordAtt(8))

    found = {item.rule: item.applied for item in _findings(net, DynamicSize(8, 64))}

    assert {"attention-form": True, "dynamic-size": False} == found


def test_every_rule_has_an_example():
    """
    A rule that nothing triggers would be a promise without proof.
    """
    assert {rule.name for rule in RULES} == {rule for rule, *_ in EXAMPLES} | {"dynamic-size", "dynamic-batch"}


def test_a_finding_names_the_line_of_the_users_code():
    """
    Whoever has to change it wants to know where.
    """
    source = resolve(ModelRequest(f"{ZOO / 'bottleneck.py'}:Net", input_size=(32, 32)))

    (finding,) = [item for item in lint(capture_source(source)) if item.rule == "slice-assignment"]

    assert "block:cat" == finding.where
    assert "bottleneck.py" in finding.line
    assert "out[:, : self.kept, :, :]" in finding.line


def test_the_papers_network_is_full_of_remedies_that_are_applied():
    """
    Pools, copies and hard-swishes inside attention blocks are all rewritten by the tool.
    """
    source = resolve(ModelRequest(f"{ZOO / 'official_network.py'}:mbv2_ca", input_size=(64, 64)))

    findings = lint(capture_source(source))

    assert {"attention-form": 2, "strip-adaptive-pool": 4, "broadcast-copy": 4} == {
        rule: sum(item.rule == rule for item in findings) for rule in {item.rule for item in findings}
    }
    assert all(item.applied for item in findings)
