import numpy as np
import pytest
import torch
import torch.nn.functional as F
from files_against_torch import Spelled, captured, graphs, holds, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import op_name
from coordatt_deploy.graph.passes import channel_affine
from coordatt_deploy.graph.passes.batchnorm import BATCH_NORM, fold_batchnorms, form_of
from coordatt_deploy.manifest import FoldForm


def _norms(graph):
    return [node for node in graph.module.graph.nodes if node.target is BATCH_NORM]


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
    monkeypatch.setattr(channel_affine.torch, "rsqrt", lambda value: (value + 1e-2).rsqrt())
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


def test_a_batch_norm_that_no_layer_takes_in_is_a_product_and_a_sum():
    """
    A convolution whose own output is used elsewhere cannot change; the report says what was done instead.
    """
    net = randomised(_Shared())
    graph, folded = graphs(net)

    _, report = fold_batchnorms(graph)

    assert holds(net, folded)
    assert [("norm", FoldForm.SCALE_AND_SHIFT)] == [(item.layer, item.form) for item in report.layers]
    assert 1 == len(report.written)
    assert ["conv2d", "mul", "add", "add"] == [name for node in folded.module.graph.nodes if (name := op_name(node))]
    assert form_of(graph.module, _norms(graph)[0])[1] == "the convolution's own output is also used by add"


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


class _Tokens(nn.Module):
    """BatchNorm over the tokens, and over the channels of flattened tokens, as LeViT writes it."""

    def __init__(self):
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24)
        self.of_tokens, self.of_channels = nn.BatchNorm1d(24), nn.BatchNorm1d(24)

    def forward(self, image):
        y = self.mix(self.patches(image).flatten(2).transpose(1, 2))  # as many tokens as channels
        y = self.of_tokens(y)
        return self.of_channels(y.flatten(0, 1)).reshape_as(y)


class _Dense(nn.Module):
    """Pre-activation with a concatenation, as DenseNet has it."""

    def __init__(self):
        super().__init__()
        self.stem, self.grow = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.first, self.second, self.mix = nn.BatchNorm2d(4), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, image):
        y = self.stem(image)
        return self.mix(self.second(torch.cat([y, self.grow(self.first(y).relu())], 1)))


class _Identity(nn.Module):
    """A block of RepVGG in training form."""

    def __init__(self):
        super().__init__()
        self.three = nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1, bias=False), nn.BatchNorm2d(3))
        self.one = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
        self.identity = nn.BatchNorm2d(3)

    def forward(self, image):
        return (self.three(image) + self.one(image) + self.identity(image)).relu()


_BEFORE, _BEHIND, _WRITTEN, _BY_INPUT = FoldForm
_Conv, _Norm = nn.Conv2d, nn.BatchNorm2d
PLACES = {
    "transposed": ((nn.ConvTranspose2d(3, 4, 3, 2, 1, bias=False), _Norm(4)), (_BEFORE,)),
    "transposed in groups": ((_Conv(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, 2, groups=2), _Norm(6)), (_BEFORE,)),
    "transposed depthwise": ((nn.ConvTranspose2d(3, 3, 3, 2, 1, 1, groups=3), _Norm(3)), (_BEFORE,)),
    "transposed in one dimension": ((nn.Flatten(2), nn.ConvTranspose1d(3, 4, 2, 2), nn.BatchNorm1d(4)), (_BEFORE,)),
    "padding same": ((_Conv(3, 4, 3, padding="same", bias=False), _Norm(4)), (_BEFORE,)),
    "padding same of an even kernel": ((_Conv(3, 4, 4, padding="same", dilation=2), _Norm(4)), (_BEFORE,)),
    "padding valid": ((_Conv(3, 4, 3, padding="valid"), _Norm(4)), (_BEFORE,)),
    "two in a row": ((_Conv(3, 4, 3), _Norm(4), _Norm(4, affine=False)), (_BEFORE, _BEFORE)),
    "on the input": ((_Norm(3), _Conv(3, 4, 3)), (_BEHIND,)),
    "on the input, padded": ((_Norm(3), _Conv(3, 4, 3, padding=1)), (_WRITTEN,)),
    "on the input, alone": ((_Norm(3),), (_WRITTEN,)),
    "before groups": ((_Conv(3, 4, 1), nn.ReLU(), _Norm(4), _Conv(4, 6, 3, groups=2), _Norm(6)), (_BEHIND, _BEFORE)),
    "before a linear layer": ((_Conv(3, 4, 4, 4), nn.ReLU(), _Norm(4), nn.Dropout(), nn.Flatten(),
                               nn.Linear(96, 5, bias=False), nn.BatchNorm1d(5)), (_BEHIND, _BEFORE)),
    "after a pool": ((_Conv(3, 4, 3), nn.MaxPool2d(2), _Norm(4), nn.ReLU()), (_WRITTEN,)),
    "in three dimensions": ((_Conv(3, 4, 1), nn.Unflatten(2, (4, 4)), nn.BatchNorm3d(4)), (_WRITTEN,)),
    "tokens": ((_Tokens(),), (_WRITTEN, _WRITTEN)),
    "dense": ((_Dense(),), (_WRITTEN, _BEHIND)),
    "identity": ((_Identity(),), (_BEFORE, _BEFORE, _WRITTEN)),
    "without statistics": ((_Conv(3, 4, 3), _Norm(4, track_running_stats=False)), (_BY_INPUT,)),
    "without statistics or weights": ((_Norm(3, affine=False, track_running_stats=False),), (_BY_INPUT,)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_a_batch_norm_anywhere_is_gone_and_the_report_says_how(name):
    """
    Into the layer before, into the one behind where that is exact, else written out; always the same function.
    """
    torch.manual_seed(1)
    layers, forms = PLACES[name]
    net = randomised(nn.Sequential(*layers))
    graph, folded = graphs(net)

    _, report = fold_batchnorms(graph)

    assert holds(net, folded)
    assert not _norms(folded)
    assert list(forms) == [item.form for item in report.layers]
    assert report.max_relative_error < 1e-6
    assert all(layer.absent is None for layer in folded.layers.layers)
    assert all("val" in node.meta for node in folded.module.graph.nodes if node.op == "get_attr")


def test_statistics_of_several_images_are_taken_over_all_of_them():
    """
    A BatchNorm without running statistics looks at the whole batch.
    """
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()

    _, folded = graphs(net, (3, 3, 8, 8))

    assert holds(net, folded)


def test_a_padded_convolution_takes_in_a_factor_but_no_shift():
    """
    Zeros around the image stay zeros where nothing is added.
    """
    net = randomised(nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 4, 3, padding=1)))
    net[0].running_mean.zero_()

    graph, folded = graphs(net)

    assert holds(net, folded)
    assert (FoldForm.FOLLOWING, None) == form_of(graph.module, _norms(graph)[0])


class _Standardised(nn.Conv2d):
    """A convolution whose kernel is standardised by a BatchNorm in training mode, as timm's networks do."""

    def forward(self, image):
        flat = self.weight.reshape(1, self.out_channels, -1)
        kernel = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(image, kernel, self.bias, self.stride, self.padding)


def test_a_batch_norm_on_weights_is_computed_beforehand():
    """
    The kernel that it standardises is a weight like any other, and takes in the BatchNorm behind it.
    """
    net = randomised(nn.Sequential(_Standardised(3, 8, 3, padding=1), nn.BatchNorm2d(8), _Standardised(8, 4, 3)))

    graph, folded = graphs(net)

    assert holds(net, folded)
    assert 1 == len(_norms(graph))
    assert ["conv2d", "conv2d"] == [name for node in folded.module.graph.nodes if (name := op_name(node))]


class _Conditional(nn.Module):
    """A BatchNorm whose weight is computed from the image."""

    def __init__(self):
        super().__init__()
        self.conv, self.gain = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("variance", torch.rand(4) + 0.5)

    def forward(self, image):
        y = self.conv(image)
        return F.batch_norm(y, self.mean, self.variance, self.gain(y.mean((2, 3)))[0], None)


def test_weights_that_are_computed_while_the_model_runs_are_written_out():
    """
    There is nothing to compute beforehand, so every step stands in the graph.
    """
    net = _Conditional().eval()

    graph, folded = graphs(net)

    assert holds(net, folded)
    assert "computed while the model runs" in form_of(graph.module, _norms(graph)[0])[1]


def test_a_batch_norm_in_training_mode_is_refused():
    """
    With running statistics that it would not use, it is a mistake and not a way of writing.
    """
    norm = nn.BatchNorm2d(8)
    net = Spelled(lambda x: F.batch_norm(x, norm.running_mean.clone(), norm.running_var.clone(), training=True))

    with pytest.raises(UsageError, match="BatchNorm in the model's own forward is in training mode"):
        captured(net)


class Rows(nn.Module):
    """LeViT's linear layer of tokens, normalised as rows; *used* reads the layer's own output as well."""

    def __init__(self, used=False):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.bn, self.used = nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), used
        for statistic in (self.bn.running_mean, self.bn.weight.data, self.bn.bias.data):
            statistic.normal_()

    def forward(self, image):
        y = self.linear(image.flatten(1, 2))
        rows = self.bn(y.flatten(0, 1)).reshape_as(y)
        return rows + y if self.used else rows


def test_a_linear_layer_of_tokens_takes_in_the_norm_of_its_rows():
    """
    Through the flattening and whatever only reads a size; the layer and the flattening are seen through the norm.
    """
    graph = captured(Rows().eval(), (2, 3, 5, 6))
    folded, report = fold_batchnorms(graph)
    image = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1)).numpy()
    (expected,), (made,) = (run(item, {"image": image}).values() for item in (graph, folded))

    assert [FoldForm.PRECEDING] == [item.form for item in report.layers]
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)
    assert {"linear", ":flatten_1"} == {item.layer_id for item in folded.layers.layers if item.seen_through == "bn"}
    assert not any(op_name(node) in ("mul", "add") for node in folded.module.graph.nodes)


def test_a_linear_layer_that_is_read_elsewhere_keeps_its_weights():
    """
    The twin: the norm is written as a product and a sum then.
    """
    folded, report = fold_batchnorms(captured(Rows(used=True).eval(), (2, 3, 5, 6)))

    assert [FoldForm.SCALE_AND_SHIFT] == [item.form for item in report.layers]
    assert "linear" not in {item.layer_id for item in folded.layers.layers if item.seen_through is not None}
