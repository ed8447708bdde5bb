"""Every spelling becomes the one form that passes and converters know, and computes the same."""

import operator

import pytest
import torch
import torch.nn.functional as F
from files_against_torch import Spelled, captured, graphs, holds
from torch import nn

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.graph import DynamicSize, op_name
from coordatt_deploy.graph.lowering.recognise import find_attention


def _shuffle(x, groups=2):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def _heads(x):
    n, c, h, w = x.shape
    q = x.flatten(2).permute(0, 2, 1).contiguous().view(n, h * w, 2, c // 2).transpose(1, 2)
    weights = (q @ q.transpose(2, 3).contiguous()).softmax(-1)
    return (weights @ q).transpose(1, 2).contiguous().view(n, h * w, c)


def _twice(y):
    return y.view(1, 4, -1).mean(2) + y.view(1, -1, 4).mean(1)


def _in_place(x):
    y = x.clone()
    y[:, :2] = y[:, :2] * 2
    return y.transpose(1, 3).reshape(1, -1)


VIEWS = {
    "channel shuffle": _shuffle,
    "attention heads": _heads,
    "clone before a view": lambda x: x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).view(1, -1, 4),
    "channels last and back": lambda x: x.contiguous(memory_format=torch.channels_last).contiguous().view(1, 8, -1),
    "two views behind one copy": lambda x: _twice(x.transpose(2, 3).contiguous()),
    "view as another": lambda x: x.transpose(1, 2).contiguous().view_as(x.flatten(2).transpose(1, 2).reshape(x.shape)),
    "window partition": lambda x: x.view(1, 8, 2, 4, 3, 4).permute(0, 2, 4, 3, 5, 1).contiguous().view(-1, 16, 8),
    "unflatten behind a transposition": lambda x: x.flatten(2).mT.contiguous().unflatten(2, (2, 4)),
    "slice assignment and a reshape": _in_place,
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_of_a_copy_is_a_reshape_of_the_value(name):
    """
    The copy computes nothing and is dropped; what looked at its memory looks at the value.
    """
    net = Spelled(VIEWS[name])

    graph, folded = graphs(net)

    assert holds(net, folded)
    names = {op_name(node) for node in graph.module.graph.nodes}
    assert not names & {"contiguous", "clone", "_unsafe_view"}


TUPLES = {
    "max over channels": (lambda x: torch.max(x, 1, keepdim=True)[0], "amax"),
    "min over columns": (lambda x: x.min(3).values, "amin"),
    "both extremes, one used": (lambda x: torch.aminmax(x, dim=2)[1], "amax"),
    "second half of chunk": (lambda x: x.chunk(2, 1)[1], "chunk"),
    "last of three unequal parts": (lambda x: x.split([1, 2, 5], 1)[2], "split_with_sizes"),
    "first of equal parts": (lambda x: x.split(4, 1)[0], "split"),
    "parts out of order": (lambda x: torch.cat(x.chunk(4, 1)[::-2], 1), "chunk"),
    "tensor_split": (lambda x: x.tensor_split(3, 1)[1], "tensor_split"),
    "one of unbind": (lambda x: x.unbind(1)[3], "select"),
    "adaptive maximum of all": (lambda x: F.adaptive_max_pool2d(x, 1), "amax"),
    "adaptive maximum of equal windows": (lambda x: F.adaptive_max_pool2d(x, (4, 3)), "max_pool2d"),
    "maximum with indices": (lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0], "max_pool2d"),
    "topk": (lambda x: x.flatten(2).topk(5, 2)[0], "topk"),
    "indices of topk": (lambda x: x.flatten(2).topk(5, 2)[1].float(), "topk"),
    "sort": (lambda x: x.sort(3, descending=True)[0], "sort"),
    "median": (lambda x: x.median(3).values, "topk"),
    "median that keeps its axis": (lambda x: x.flatten(2).median(2, keepdim=True)[0], "topk"),
    "third smallest": (lambda x: x.kthvalue(3, 1)[0], "topk"),
    "variance of var_mean": (lambda x: torch.var_mean(x, (2, 3), keepdim=True)[0], "var"),
    "variance and mean": (lambda x: (x - torch.var_mean(x, 1)[1][:, None]) / torch.var_mean(x, 1)[0][:, None], "var"),
    "mean of std_mean": (lambda x: torch.std_mean(x, dim=1, correction=0)[1], "mean"),
    "cummax": (lambda x: x.cummax(2)[0], "cummax"),
}


@pytest.mark.parametrize("name", TUPLES)
def test_what_nobody_reads_of_a_tuple_changes_nothing(name):
    """
    The order and names of layers stand, the graph is saved and exported again, and holds no element too many.
    """
    function, expected = TUPLES[name]
    net = Spelled(function)

    graph, folded = graphs(net)

    assert holds(net, folded)
    nodes = list(graph.module.graph.nodes)
    assert expected in {op_name(node) for node in nodes}
    assert all(node.users for node in nodes if node.target is operator.getitem)


def test_values_and_positions_stay_together_where_both_are_used():
    """
    One operator gives both, so it is left as it is.
    """
    net = Spelled(lambda x: (x.max(1)[0], x.max(1)[1].float(), *x.min(2)))

    graph, folded = graphs(net)

    assert holds(net, folded)
    assert 1 <= sum(op_name(node) == "min" for node in graph.module.graph.nodes)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 3), (4, 4), (2, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_in_words_is_padding_in_numbers(kernel, dilation, padding):
    """
    Also for even kernels, where 'same' pads one more behind than in front.
    """
    net = nn.Sequential(nn.Conv2d(3, 6, kernel, padding=padding, dilation=dilation, groups=3)).eval()

    graph, folded = graphs(net)

    assert holds(net, folded)
    (convolution,) = [node for node in graph.module.graph.nodes if op_name(node) == "conv2d"]
    assert "default" in str(convolution.target)


POOLS = [
    (pool, {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": True, **more})
    for kernel, stride, padding in ((3, 3, 1), (2, 2, 0), (3, 2, 1), ((3, 2), (3, 2), (1, 0)), ((2, 3), (2, 3), (1, 1)))
    for pool, more in ((nn.MaxPool2d, {}), (nn.AvgPool2d, {}), (nn.AvgPool2d, {"count_include_pad": False}))
]


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (32, 33), (35, 34)])
@pytest.mark.parametrize(("pool", "options"), POOLS)
def test_a_pool_with_ceil_mode_adds_windows_along_every_axis_or_none(pool, options, size):
    """
    What torch drops no converter adds again, and the axes do not depend on each other.
    """
    net = nn.Sequential(pool(**options)).eval()

    graph, folded = graphs(net, (1, 3, *size))

    assert holds(net, folded)
    plain = pool(**options | {"ceil_mode": False})(torch.zeros(1, 3, *size)).shape[2:]
    for node in graph.module.graph.nodes:
        if "pool2d" in op_name(node):
            before, after = node.args[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
            keeps = node.args[4 if pool is nn.AvgPool2d else 5] if len(node.args) > 4 else False
            changed = [one != other for one, other in zip(before, after, strict=True)]
            assert keeps is False or after != plain or True in changed


def test_a_window_of_one_element_adds_none_at_a_dynamic_size():
    """
    The rows go without ``ceil_mode``, as no converter could tell what torch drops there; the columns keep theirs.
    """
    net = Spelled(lambda x: F.max_pool2d(x, (1, 3), 2, ceil_mode=True))

    graph, folded = graphs(net, (1, 3, 16, 24), dynamic=DynamicSize(8, 64, 8))

    pools = [node for node in graph.module.graph.nodes if op_name(node) == "max_pool2d"]
    assert [([1, 1], False), ([1, 3], True)] == [(list(node.args[1]), node.args[5]) for node in pools]
    assert all(holds(net, folded, size) for size in (None, (8, 64), (40, 24)))


def test_an_instance_norm_by_its_running_statistics_is_folded():
    """
    It is a batch norm by another name.
    """
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 2)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), norm).eval()

    _, folded = graphs(net)

    assert holds(net, folded)
    assert ["conv2d"] == [op_name(node) for node in folded.module.graph.nodes if op_name(node)]


ADAPTIVE = {
    "rows": lambda x: F.adaptive_avg_pool2d(x, (None, 1)),
    "columns": lambda x: F.adaptive_avg_pool2d(x, (1, None)),
    "rows and columns": lambda x: F.adaptive_avg_pool2d(x, (None, 1)) * F.adaptive_avg_pool2d(x, (1, None)),
    "whole": lambda x: F.adaptive_avg_pool2d(x, 1),
    "itself": lambda x: F.adaptive_avg_pool2d(x, x.shape[2:]),
    "quarters": lambda x: F.adaptive_avg_pool2d(x, 2),
    "pyramid": lambda x: torch.cat([F.adaptive_avg_pool2d(x, size).flatten(2) for size in (1, 2, 4)], 2),
    "halves of the rows": lambda x: F.adaptive_avg_pool2d(x, (2, None)),
    "strip of three": lambda x: F.adaptive_avg_pool2d(x[:, :, ::2].repeat(1, 1, 3, 1), (3, 1)),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_means_follow_a_dynamic_size(name):
    """
    At sizes that the capture never saw, after a bundle has kept the graph.
    """
    net = Spelled(ADAPTIVE[name])

    graph, folded = graphs(net, (1, 3, 64, 64), dynamic=DynamicSize(32, 128, 32))

    assert not any("adaptive" in op_name(node) for node in graph.module.graph.nodes)
    for size in ((64, 64), (96, 32), (32, 128)):
        assert holds(net, folded, size)


def test_an_adaptive_mean_over_unequal_windows_of_a_dynamic_size_is_refused():
    """
    Its windows differ from size to size; the text says what step would make them equal.
    """
    net = Spelled(lambda x: F.adaptive_avg_pool2d(x, 3))

    with pytest.raises(UsageError, match=r"at .*\.py:\d+ .*pools a dynamic size to 3, .* multiples of 3 there"):
        captured(net, (1, 3, 64, 64), dynamic=DynamicSize(32, 128, 32))


class _Attention(nn.Module):
    """Coordinate attention with its means, its activation and its parting written as given."""

    def __init__(self, pools, activation, parts):
        super().__init__()
        torch.manual_seed(0)
        self.squeeze, self.rows, self.columns = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1)
        self.spelling = (pools, activation, parts)

    def forward(self, x):
        pools, activation, parts = self.spelling
        a, b = parts(activation(self.squeeze(torch.cat(pools(x), 2))), *x.shape[2:])
        return x * torch.sigmoid(self.rows(a)) * torch.sigmoid(self.columns(b.permute(0, 1, 3, 2)))


def _means(x):
    return [x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)]


def _split(y, h, w):
    return y.split([h, w], 2)


ATTENTION = {
    "as the paper": (_means, F.silu, _split),
    "sums over sizes": (lambda x: [x.sum(3, keepdim=True) / x.shape[3],
                                   (x.sum(2, keepdim=True) / x.shape[2]).transpose(2, 3)], F.silu, _split),
    "means of permuted axes": (lambda x: [x.mean(3, keepdim=True), x.permute(0, 1, 3, 2).mean(3, keepdim=True)],
                               F.silu, _split),
    "means of transposed axes": (lambda x: [x.transpose(1, 3).mean(1, keepdim=True).transpose(1, 3),
                                            x.transpose(2, 3).mean(-1, keepdim=True)], F.silu, _split),
    "swish": (_means, lambda y: y * torch.sigmoid(y), _split),
    "swish the other way round": (_means, lambda y: torch.sigmoid(y) * y, _split),
    "mish": (_means, lambda y: y * torch.tanh(F.softplus(y)), _split),
    "negative slices": (_means, F.relu, lambda y, _, w: (y[:, :, :-w], y[:, :, -w:])),
    "one negative slice": (_means, F.relu, lambda y, h, w: (y[:, :, :h], y[:, :, -w:])),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_recognised_however_it_is_spelled(name):
    """
    One block, and the same function.
    """
    net = Spelled(_Attention(*ATTENTION[name]))

    _, folded = graphs(net)

    assert holds(net, folded)
    assert ["coordatt"] == [block.kind for block in find_attention(folded).blocks]


ALIKE = {
    "a product with softplus": lambda x: x * F.softplus(x),
    "a product with tanh": lambda x: torch.tanh(x) * x,
    "another softplus": lambda x: x * torch.tanh(F.softplus(x, beta=2.0)),
    "a sigmoid of something else": lambda x: x * torch.sigmoid(x + 1),
    "a sigmoid that is used twice": lambda x: (lambda gate: x * gate + gate)(torch.sigmoid(x)),
    "a product with a weight": lambda x: x * torch.full((8, 1, 1), 0.5),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_only_looks_like_an_activation_stays_as_it_is(name):
    """
    One factor, one bound or one more reader makes another function.
    """
    net = Spelled(ALIKE[name])

    graph, folded = graphs(net)

    assert holds(net, folded)
    assert not {op_name(node) for node in graph.module.graph.nodes} & {"silu", "mish"}


def test_a_sum_that_is_divided_by_something_else_stays_a_sum():
    """
    Only the number of its terms makes it a mean.
    """
    net = Spelled(lambda x: x.sum(3) / 10 + x.sum((2, 3), keepdim=True)[..., 0] / 12)

    graph, folded = graphs(net)

    assert holds(net, folded)
    assert not any(op_name(node) == "mean" for node in graph.module.graph.nodes)


SLICES = {
    "slice to the height": lambda x: torch.cat([x.mean(3), x.mean(2)], 2)[:, :, : x.shape[2]],
    "slice from the height": lambda x: torch.cat([x.mean(3), x.mean(2)], 2)[:, :, x.shape[2] :],
    "narrow": lambda x: torch.cat([x.mean(3), x.mean(2)], 2).narrow(2, 0, x.shape[2]),
    "negative": lambda x: torch.cat([x.mean(3), x.mean(2)], 2)[:, :, -x.shape[3] :],
    "half of the width": lambda x: x[..., : x.shape[3] // 2],
    "resized to another": lambda x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:], mode="bilinear"),
    "nearest to another": lambda x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:]),
}


@pytest.mark.parametrize("name", SLICES)
def test_a_bundle_keeps_sizes_that_are_computed(name):
    """
    Every value of the graph that is read back has its size, and it can be exported again.
    """
    net = Spelled(SLICES[name])

    _, folded = graphs(net, (1, 3, 64, 64), dynamic=DynamicSize(32, 128, 32))

    assert all("val" in node.meta for node in folded.module.graph.nodes if node.op == "call_function")
    for size in ((64, 64), (96, 32), (32, 128)):
        assert holds(net, folded, size)
