import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms


def _random_norm(channels, epsilon, generator):
    norm = nn.BatchNorm2d(channels, eps=epsilon)
    with torch.no_grad():
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(1e-3, 3.0, generator=generator)
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
    return norm


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    multiplier=st.integers(1, 3),
    bias=st.booleans(),
    zero_gamma=st.booleans(),
    epsilon=st.sampled_from([1e-5, 1e-3, 0.1]),
    seed=st.integers(0, 2**16),
)
def test_folding_keeps_the_function(groups, multiplier, bias, zero_gamma, epsilon, seed):
    """
    Depthwise, grouped, with and without bias, negative and zero gamma, any epsilon: the difference is float32 rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(4, 4 * multiplier, 3, padding=1, groups=groups, bias=bias),
        _random_norm(4 * multiplier, epsilon, generator),
    ).eval()
    if zero_gamma:
        net[1].weight.data[0] = 0.0
    graph = capture(net, (torch.randn(1, 4, 6, 5, generator=generator),))
    feeds = {"image": torch.randn(1, 4, 6, 5, generator=generator).numpy()}

    folded, report = fold_batchnorms(graph)
    expected, actual = run(graph, feeds)["logits"], run(folded, feeds)["logits"]

    assert report.max_relative_error < 3e-7
    assert np.max(np.abs(expected - actual)) <= 1e-6 * np.max(np.abs(expected))
    assert not [node for node in folded.module.graph.nodes if "batch_norm" in str(node.target)]


def test_the_report_names_each_pair_with_its_error(tiny_graph):
    """
    One line per BatchNorm, CoordAtt's included, with the layer's own error.
    """
    _, report = fold_batchnorms(tiny_graph)

    assert [("stem.0", "stem.1"), ("block.0", "block.1"), ("block.3.conv1", "block.3.bn1"), ("block.4", "block.5")] == [
        (item.layer, item.batch_norm) for item in report.layers
    ]
    assert all(0 < item.max_abs_error < 1e-5 for item in report.layers)


def test_folding_with_the_wrong_epsilon_shows(tiny_graph, monkeypatch):
    """
    The report's error is measured: a wrong formula makes it large.
    """
    import coordatt_deploy.graph.passes.batchnorm as fold

    monkeypatch.setattr(fold.torch, "rsqrt", lambda value: (value + 1e-2).rsqrt())
    _, report = fold_batchnorms(tiny_graph)

    assert report.max_relative_error > 1e-4


def test_the_captured_graph_is_left_alone(tiny_graph):
    """
    Folding returns a new graph.
    """
    before = str(tiny_graph.module.graph)

    fold_batchnorms(tiny_graph)

    assert before == str(tiny_graph.module.graph)


def test_the_map_sees_the_convolution_through_its_batch_norm(tiny_folded):
    """
    After folding, the convolution's tensor holds the BatchNorm's value.
    """
    by_id = {layer.layer_id: layer for layer in tiny_folded.layers.layers}

    assert "stem.1" == by_id["stem.0"].seen_through
    assert by_id["stem.1"].parts == tiny_folded.layers.resolved("stem.0").parts


class _Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image):
        features = self.conv(image)
        return self.norm(features) + features


def test_a_batch_norm_that_cannot_be_folded_is_named_with_the_reason():
    """
    A convolution whose own output is used elsewhere cannot change.
    """
    graph = capture(_Shared().eval(), (torch.randn(1, 3, 4, 4),))

    with pytest.raises(ConversionError, match=r"norm \(the convolution's own output is also used by add\)"):
        fold_batchnorms(graph)


def test_a_batch_norm_without_a_convolution_is_named():
    """
    A BatchNorm on the input has nothing to go into.
    """
    graph = capture(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)).eval(), (torch.randn(1, 3, 4, 4),))

    with pytest.raises(ConversionError, match="it follows image, not a convolution"):
        fold_batchnorms(graph)


class _Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, image):
        return self.first(self.conv(image)) + self.second(self.conv(image.flip(2)))


def test_a_convolution_used_twice_gets_weights_for_each_use():
    """
    Two BatchNorms on one shared convolution are folded into two weights.
    """
    torch.manual_seed(0)
    net = _Twice().eval()
    net.second.weight.data.mul_(-2)
    graph = capture(net, (torch.randn(1, 3, 4, 4),))
    feeds = {"image": torch.randn(1, 3, 4, 4).numpy()}

    folded, _ = fold_batchnorms(graph)

    assert np.allclose(run(graph, feeds)["logits"], run(folded, feeds)["logits"], rtol=0, atol=1e-6)
