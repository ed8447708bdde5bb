"""Operators in the terms of others compute the same, in float64, and their layers stay mapped."""

import pytest
import torch
import torch.nn.functional as F
from operator_benchmark import ROWS, network
from torch import nn

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import DynamicSize, aten, op_name
from coordatt_deploy.graph.lowering.decompose import decompose
from coordatt_deploy.graph.lowering.decompositions.table import DECOMPOSITIONS, Decomposition
from coordatt_deploy.graph.lowering.lower import lower, lowering_error
from coordatt_deploy.graph.lowering.target import LoweringTarget, all_targets

CASES = [
    (rule, row) for rule, item in DECOMPOSITIONS.items() for row in ROWS if row.operator in item.operators
]  # fmt: skip


def graph_of(module, size=(8, 12), batch=1, dynamic=None):
    torch.manual_seed(0)
    return capture(module.eval(), (torch.randn(batch, 3, *size),), dynamic=dynamic)


class Net(nn.Module):
    """A convolution with eight channels, then a function."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.function = nn.Conv2d(3, 8, 3, 1, 1), function

    def forward(self, image):
        return self.function(self.stem(image))


def operators(graph):
    return [op_name(node) for node in graph.module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(("rule", "row"), CASES, ids=[f"{rule}: {row.name}" for rule, row in CASES])
def test_each_decomposition_is_the_same_function(rule, row):
    """
    Every layer and the output agree with the captured graph's to the last digits of float64, or of the float32 that a
    matrix of weights is stored in; what is left as it is comes back untouched; no layer is lost.
    """
    graph = graph_of(network(row), row.size)

    rewritten, done = decompose(graph, [rule])

    if not done:
        assert rewritten is graph
        return
    assert {rule.value} == {item.decomposition for item in done}
    assert row.operator in {item.operator for item in done}
    assert max(error.relative_error for error in lowering_error(graph, rewritten)) <= 1e-6
    layers = {layer.layer_id: layer for layer in rewritten.layers.layers}
    assert [] == [layer.layer_id for layer in layers.values() if layer.absent]
    assert all(item.layer in layers for item in done)


@pytest.mark.parametrize("rule", Decomposition)
def test_each_decomposition_has_a_row_that_it_rewrites(rule):
    """
    A decomposition that no row of the table needs would be untested.
    """
    rows = [row for row in ROWS if row.operator in DECOMPOSITIONS[rule].operators]

    assert any(decompose(graph_of(network(row), row.size), [rule])[1] for row in rows)


def test_a_copy_that_broadcasting_makes_is_left_out_and_judged_at_its_user():
    """
    x * gate.expand_as(x) is x * gate: no operator stands for the copy, and its layer is seen through the product.
    """
    graph = graph_of(Net(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)).expand_as(x)))

    rewritten, (done,) = decompose(graph, [Decomposition.COPY])

    assert "expand_as" == done.operator
    assert ["conv2d", "mean", "sigmoid", "mul"] == operators(rewritten)
    (copy,) = [layer for layer in rewritten.layers.layers if layer.operator == "expand_as"]
    assert "mul" == next(layer.operator for layer in rewritten.layers.layers if layer.layer_id == copy.seen_through)


def test_a_copy_that_widens_a_product_is_kept():
    """
    The negative twin: without the copies, gate * gate would be of the gate's own size.
    """

    def widened(x):
        gate = x.mean((2, 3), keepdim=True)
        return gate.expand_as(x) * gate.expand_as(x)

    graph = graph_of(Net(widened))
    rewritten, _ = decompose(graph, [Decomposition.COPY])

    assert max(error.relative_error for error in lowering_error(graph, rewritten)) <= 1e-6
    assert (1, 8, 8, 12) == tuple(list(rewritten.module.graph.nodes)[-1].args[0][0].meta["val"].shape)


def test_copies_go_with_a_dynamic_size_too():
    """
    Where the size is a symbol, a copy that broadcasting makes is left out all the same, and any other one stays.
    """
    sizes = DynamicSize(8, 64)
    gated = Net(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)).expand_as(x))
    joined = Net(lambda x: torch.cat([x, x.mean((2, 3), keepdim=True).expand_as(x)], 1))

    assert "expand_as" not in operators(decompose(graph_of(gated, dynamic=sizes), [Decomposition.COPY])[0])
    assert "expand_as" in operators(decompose(graph_of(joined, dynamic=sizes), [Decomposition.COPY])[0])


@pytest.mark.parametrize("stride", [1, 2, 3, (2, 3)])
@pytest.mark.parametrize("kernel", [2, 3, (4, 5)])
@pytest.mark.parametrize(("groups", "dilation"), [(2, 1), (1, 2), (4, 2)])
def test_phases_of_a_transposed_convolution(stride, kernel, groups, dilation):
    """
    For every stride, kernel, number of groups and dilation, the phases put together are the transposed convolution.
    """
    layer = nn.ConvTranspose2d(8, 8, kernel, stride, 1, groups=groups, dilation=dilation)
    graph = graph_of(Net(layer), batch=2)

    rewritten, done = decompose(graph, [Decomposition.TRANSPOSED_CONVOLUTION])

    assert ["transposed_convolution"] == [item.decomposition for item in done]
    assert "conv_transpose2d" not in operators(rewritten)
    assert max(error.relative_error for error in lowering_error(graph, rewritten)) <= 1e-9


@pytest.mark.parametrize("options", [
    {"size": (13, 19)}, {"size": (5, 7)}, {"scale_factor": 1.3}, {"scale_factor": (0.5, 2.5)},
    {"scale_factor": 1.3, "recompute_scale_factor": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bicubic", "bilinear"])
def test_resizes_follow_every_way_to_say_the_size(mode, options):
    """
    Sizes and factors, whole or not, give torch's own choice of rows and weights.
    """
    graph = graph_of(Net(lambda x: F.interpolate(x, mode=mode, **options)))
    rules = [
        Decomposition.NEAREST_RESIZE, Decomposition.NEAREST_EXACT_RESIZE,
        Decomposition.BICUBIC_RESIZE, Decomposition.FRACTIONAL_RESIZE,
    ]  # fmt: skip

    rewritten, done = decompose(graph, rules)

    inexact = options == {"scale_factor": 1.3}  # 8 * 1.3 is no size: the factor and the ratio of the sizes differ
    assert bool(done) == (mode != "bilinear" or inexact)
    assert max(error.relative_error for error in lowering_error(graph, rewritten)) <= 1e-6


@pytest.mark.parametrize("beta", [1, 0.5, 2])
@pytest.mark.parametrize("threshold", [1, 5, 20])
def test_softplus_keeps_its_threshold(beta, threshold):
    """
    Where a low threshold makes it jump, it jumps; far out nothing overflows.
    """
    graph = graph_of(Net(lambda x: F.softplus(x * 60, beta, threshold)))

    rewritten, _ = decompose(graph, [Decomposition.SOFTPLUS])

    assert max(error.relative_error for error in lowering_error(graph, rewritten)) <= 1e-7


@pytest.mark.parametrize("options", [
    {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 2, "stride": 2, "output_padding": 1},
    {"kernel_size": 1, "stride": 3, "output_padding": 2}, {"kernel_size": 3, "stride": 2, "dilation": 2, "groups": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize(("kind", "before"), [
    (nn.ConvTranspose1d, lambda x: x.mean(3)), (nn.ConvTranspose2d, lambda x: x),
])  # fmt: skip
def test_phases_of_one_axis_and_beyond_the_last_tap(kind, before, options):
    """
    One axis goes as two; behind the last tap, where output padding reaches, there is nothing but the bias.
    """
    torch.manual_seed(3)
    layer = kind(8, 4, **options)
    graph = graph_of(Net(nn.Sequential(Function(before), layer)))

    rewritten, (done,) = decompose(graph, [Decomposition.TRANSPOSED_CONVOLUTION])

    assert "transposed_convolution" == done.decomposition
    assert "conv_transpose" not in " ".join(operators(rewritten))
    assert max(error.relative_error for error in lowering_error(graph, rewritten)) <= 1e-6


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, value):
        return self.function(value)


def test_the_lesser_of_two_values_is_no_minimum_along_an_axis():
    """
    Whatever made the first of them, and whichever number it was given.
    """
    graph = graph_of(Net(lambda x: torch.min(x.log_softmax(1), torch.max(x * 2, x))))

    rewritten, done = decompose(graph, [Decomposition.EXTREMUM])

    assert () == done
    assert rewritten is graph


def test_six_axes_that_do_not_fit_into_five_are_left_alone():
    """
    The negative of windows whose neighbours stay together: of a view that others read as well, and of alternate axes.
    """

    def shared(x):
        y = x.reshape(1, 8, 4, 2, 6, 2)
        return y.mean((3, 5)), y.amax((3, 5))

    for function in (shared, lambda x: x.reshape(2, 4, 4, 2, 6, 2).sum((1, 3, 5))):
        graph = graph_of(Net(function))

        assert () == decompose(graph, [Decomposition.REDUCED_WINDOWS])[1]


def test_a_decomposition_that_computes_something_else_is_refused(monkeypatch):
    """
    The negative twin: lowering holds every layer against the graph before, whichever decomposition was used.
    """
    rule = DECOMPOSITIONS[Decomposition.CELU]

    def bent(rewriter, node):
        return rewriter.call(aten.mul.Tensor, rule.write(rewriter, node), 1.001)

    target = LoweringTarget("bent", decompositions=(Decomposition.CELU,))
    graph = graph_of(Net(nn.CELU(0.5)))
    assert 1 == len(lower(graph, target)[1].decomposed)
    monkeypatch.setitem(DECOMPOSITIONS, Decomposition.CELU, type(rule)(rule.operators, bent))

    with pytest.raises(ConversionError, match=r"computes .* differently"):
        lower(graph, target)


def test_every_decomposition_is_used_by_a_format():
    """
    One that no format needs would be dead code.
    """
    assert set(Decomposition) == {rule for target in all_targets() for rule in target.decompositions}


def test_a_mask_is_lowered_beside_what_is_written_anew():
    """
    The proof that lowering changed nothing holds for booleans and positions as well.
    """
    graph = graph_of(Net(lambda x: (x * x.mean((2, 3), keepdim=True).expand_as(x), x > 0.1, x.argmax(1))))

    for target in all_targets():
        lowered, _ = lower(graph, target)
        errors = {item.layer: item.relative_error for item in lowering_error(graph, lowered)}
        assert max(errors.values()) <= 1e-6
        assert {0.0} == {errors["output_1"], errors["output_2"]}
