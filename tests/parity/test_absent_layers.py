"""A layer without a tensor of its own: what proves that it was computed, and what does not."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import is_call, op_name
from coordatt_deploy.graph.operators import Trait, having
from coordatt_deploy.layer_map import TAKEN_UP, LayerMap
from coordatt_deploy.parity.absences import Absence, by_graph
from coordatt_deploy.parity.absent_layers import Judged, told, unproven_absences, why_absent
from coordatt_deploy.parity.error_statistics import LayerErrorStats
from coordatt_deploy.parity.layers import LayerRow
from coordatt_deploy.parity.reference_layers import ReferenceLayers
from coordatt_deploy.parity.reference_rounding import compare
from coordatt_deploy.parity.tolerances import TOLERANCES


class Steps(nn.Module):
    """Sums, products and moves of every kind between two convolutions."""

    def __init__(self, epsilon=1e-12, dead=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.epsilon = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), epsilon
        if dead:
            self.first.weight.data[1] = self.first.bias.data[1] = 0

    def forward(self, image):
        value = self.first(image).relu()
        value = value / (value.mean((2, 3), keepdim=True) + self.epsilon)
        value = (value + 0.0) * 1.0
        value = (value.sigmoid() - 0.25) * 2.0
        return self.last(value.permute(0, 1, 3, 2))


def judged(module, cases=3):
    """The reference of *module*, its cases, and a perfect verdict on each of its layers."""
    graph = capture(module.eval(), (torch.randn(1, 3, 4, 6),))
    reference = ReferenceLayers(graph)
    random = np.random.default_rng(0)
    feeds = [{graph.inputs[0].name: random.standard_normal((1, 3, 4, 6)).astype(np.float32)} for _ in range(cases)]
    tolerance = TOLERANCES[Format.ONNX, Precision.FP32]
    rows = {}
    for layer in graph.layers.layers:
        tally = LayerErrorStats(tolerance.multiple, 2.0**-24)
        for one in feeds:
            exact = reference.reference(one).values[layer.layer_id]
            tally.add(exact, exact, compare(exact.astype(np.float32), exact))
        rows[layer.layer_id] = LayerRow(layer.layer_id, layer.operator, tally, tally, None, None)
    return reference, feeds, rows


def without(reference, operator, index=0, **place):
    """The map in which one layer of an operator has no tensor, and that layer."""
    layers = list(reference.graph.layers.layers)
    at = [number for number, layer in enumerate(layers) if layer.operator == operator][index]
    layers[at] = replace(layers[at], parts=(), **(place or {"absent": "gone"}))
    return LayerMap(tuple(layers)), layers[at]


@pytest.mark.parametrize(
    ("operator", "index", "expected"),
    [
        ("mean", 0, Absence.NEEDED),
        ("add", 1, Absence.NEUTRAL),
        ("mul", 0, Absence.NEUTRAL),
        ("permute", 0, Absence.MOVED),
        ("sigmoid", 0, Absence.SEEN),
        ("sub", 0, Absence.SEEN),
        ("mul", 1, Absence.SEEN),
        ("relu", 0, Absence.SEEN),
    ],
)
def test_a_layer_that_computes_needs_a_proof(operator, index, expected):
    """
    What changes nothing may be gone; what changes something is seen where it is read.
    """
    reference, feeds, rows = judged(Steps())
    layers, layer = without(reference, operator, index)

    assert expected is why_absent(layer, layers, reference, rows, feeds)
    assert unproven_absences(layers, reference, list(rows.values()), feeds) == ()


class Affine(nn.Module):
    """A learnable scale and shift of the whole map, written with the constant first as in HGNetV2."""

    def __init__(self, scale, shift):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor([scale])), nn.Parameter(torch.tensor([shift]))

    def forward(self, image):
        return (self.scale * image + self.shift).relu()


@pytest.mark.parametrize(
    ("operator", "scale", "shift", "expected"),
    [
        ("mul", 1.0, 0.5, Absence.NEUTRAL),
        ("mul", 1.001, 0.5, Absence.SEEN),
        ("add", 2.0, 0.0, Absence.NEUTRAL),
        ("add", 2.0, 0.001, Absence.SEEN),
    ],
)
def test_a_constant_may_stand_on_either_side(operator, scale, shift, expected):
    """
    1 and 0 change nothing, from the left as from the right; what is nearly so is no proof by itself.
    """
    reference, feeds, rows = judged(Affine(scale, shift))
    layers, layer = without(reference, operator)

    assert expected is why_absent(layer, layers, reference, rows, feeds)


class Negated(nn.Module):
    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(1))

    def forward(self, image):
        return (self.zero - image).relu()


def test_zero_minus_a_value_is_not_the_value():
    """
    A difference takes its neutral number on the right alone.
    """
    reference, feeds, rows = judged(Negated())
    layers, layer = without(reference, "sub")

    assert Absence.NEUTRAL is not why_absent(layer, layers, reference, rows, feeds)


@pytest.mark.parametrize("place", [{"absent": "gone"}, {"seen_through": ":div"}], ids=["absent", "fused"])
def test_an_epsilon_that_nothing_shows_is_not_passed(place):
    """
    Without the sum every value is the same to the last digit, so its absence is not proven, whatever the map says of
    it; where a channel is dead, or the constant is larger, it is.
    """
    reference, feeds, rows = judged(Steps())
    layers, layer = without(reference, "add", **place)
    assert why_absent(layer, layers, reference, rows, feeds) is None
    lost = unproven_absences(layers, reference, list(rows.values()), feeds)
    assert lost == (":add",)
    assert ":add: no tensor of the file holds the value" in told(lost)
    for module in (Steps(dead=True), Steps(epsilon=0.5)):
        reference, feeds, rows = judged(module)
        layers, layer = without(reference, "add", **place)
        assert Absence.SEEN is why_absent(layer, layers, reference, rows, feeds)


def test_a_reader_that_was_not_judged_proves_nothing():
    """
    The negative: with no verdict on what reads it, a layer that computes is not proven.
    """
    reference, feeds, rows = judged(Steps())
    layers, layer = without(reference, "sub")
    unjudged = {name: replace(row, accumulated=None, local=None) for name, row in rows.items()}

    assert why_absent(layer, layers, reference, unjudged, feeds) is None
    assert why_absent(layer, layers, reference, rows, []) is None


def test_what_no_image_changes_may_be_computed_beforehand():
    """
    A call that depends on no input is a constant, one that no output depends on is unused; the product is neither.
    """
    reference, _, _ = judged(Steps())
    module = copy.deepcopy(reference.graph.module)
    nodes = {node.name: node for node in module.graph.nodes}
    weights = next(node for node in nodes.values() if node.op == "get_attr")
    with module.graph.inserting_after(nodes["relu"]):
        constant = module.graph.call_function(torch.ops.aten.exp.default, (weights,))
        unused = module.graph.call_function(torch.ops.aten.exp.default, (nodes["relu"],))
    nodes["conv2d_1"].args = (nodes["conv2d_1"].args[0], constant)
    graph = replace(reference.graph, module=module)

    assert Absence.CONSTANT is by_graph(graph, constant)
    assert Absence.UNUSED is by_graph(graph, unused)
    assert by_graph(graph, nodes["div"]) is None


class SinglePixel(nn.Module):
    """Pools, reductions and attention of what has one element where they look; with two, all of them compute."""

    def forward(self, image, width=1):
        value = torch.nn.functional.adaptive_avg_pool2d(image, (1, width))
        pooled = torch.nn.functional.adaptive_avg_pool2d(value.relu(), 1)
        sums = (pooled * 2).sum((2, 3), keepdim=True).neg()
        weights = value.flatten(2).softmax(-1).unsqueeze(2)
        return sums, value.tanh() * weights


class TwoPixels(SinglePixel):
    def forward(self, image, width=2):
        value = torch.nn.functional.adaptive_avg_pool2d(image, (1, width))
        pooled = torch.nn.functional.adaptive_avg_pool2d(value.relu(), 1)
        sums = value.exp().sum((2, 3), keepdim=True).neg()
        weights = value.flatten(2).softmax(-1).unsqueeze(2)
        return sums, pooled, value.tanh() * weights


@pytest.mark.parametrize(
    ("operator", "index", "expected"),
    [
        ("adaptive_avg_pool2d", 1, Absence.MOVED),
        ("sum", 0, Absence.MOVED),
        ("softmax", 0, Absence.CONSTANT),
        ("mul", 1, Absence.NEUTRAL),
    ],
)
def test_what_looks_at_one_element_changes_nothing(operator, index, expected):
    """
    A pool of a map of one pixel, as small inputs have it at their end, or attention over one place; with two, each
    of them computes.
    """
    single = capture(SinglePixel().eval(), (torch.randn(1, 3, 4, 6),))
    double = capture(TwoPixels().eval(), (torch.randn(1, 3, 4, 6),))

    assert expected is by_graph(single, called(single, operator, index))
    assert by_graph(double, called(double, operator, min(index, 0 if operator == "mul" else index))) is None


def called(graph, operator, index):
    return [node for node in graph.module.graph.nodes if is_call(node) and op_name(node) == operator][index]


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        (lambda value: value[..., :1].mean(3), Absence.MOVED),
        (lambda value: F.adaptive_avg_pool2d(value[..., :1], (None, 1)), Absence.MOVED),
        (lambda value: value[..., :2].mean(3), None),
        (lambda value: F.adaptive_avg_pool2d(value[:, :, :2], (6, 2)), None),
        (lambda value: F.avg_pool2d(value, 3, 1, 1), None),
    ],
    ids=["mean", "pool", "of two places", "as many places elsewhere", "of neighbours"],
)
def test_a_mean_over_one_place_may_be_gone(average, expected):
    """
    It is that place; what computes anything needs another proof, however many values it has.
    """

    class Averaged(nn.Module):
        def forward(self, image):
            return average(image.sigmoid()) * 2.0

    graph = capture(Averaged().eval(), (torch.randn(1, 3, 4, 6),))
    (node,) = (item for item in graph.module.graph.nodes if op_name(item) in having(Trait.AVERAGE))

    assert expected is by_graph(graph, node)


class Moves(nn.Module):
    """Turns, reversals, paddings and casts that do nothing to a map of one channel; with more, all of them do."""

    def __init__(self, width=0, shift=1):
        super().__init__()
        self.width, self.shift = width, shift

    def forward(self, image):
        value = image.mean(1, keepdim=True).sigmoid()
        value = value.roll(self.shift, 1).flip(1)
        value = F.pad(value, (self.width, 0, 0, 0), mode="replicate")
        return (value.double() * 2).float().tanh()


class Scattered(Moves):
    """The same of three channels."""

    def forward(self, image):
        value = image.sigmoid().roll(self.shift, 1).flip(1)
        value = F.pad(value, (self.width, -self.width, 0, 0), mode="constant")
        return (value * 3).to(torch.int32).float().tanh()


@pytest.mark.parametrize(("operator", "index"), [("roll", 0), ("flip", 0), ("pad", 0), ("to", 0), ("to", 1)])
def test_what_moves_nothing_may_be_gone(operator, index):
    """
    A turn by whole turns, a reversal of one element, a padding without width, a cast to a wider type; with more
    elements, another width or a narrower type each of them computes.
    """
    nothing = capture(Moves().eval(), (torch.randn(1, 3, 4, 6),))
    something = capture(Scattered(width=1).eval(), (torch.randn(1, 3, 4, 6),))

    assert Absence.MOVED is by_graph(nothing, called(nothing, operator, index))
    if (operator, index) != ("to", 1):  # which is a cast of integers to float in both
        assert by_graph(something, called(something, operator, index)) is None


@pytest.mark.parametrize(("shift", "expected"), [(3, Absence.MOVED), (-6, Absence.MOVED), (2, None)])
def test_whole_turns_turn_nothing(shift, expected):
    """
    Three channels turned by three are as they were.
    """
    graph = capture(Scattered(shift=shift).eval(), (torch.randn(1, 3, 4, 6),))
    assert expected is by_graph(graph, called(graph, "roll", 0))


class OnePlace(nn.Module):
    """Attention over one place: what queries and keys are does not matter; over two it does."""

    def __init__(self, places=1):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.places = nn.Linear(3, 3), nn.Linear(3, 3), places

    def forward(self, image):
        tokens = F.adaptive_avg_pool2d(image, (1, self.places)).flatten(2).transpose(1, 2)
        return (self.query(tokens) @ self.key(tokens).transpose(1, 2)).softmax(-1) @ tokens.tanh()


def test_what_only_a_share_of_one_depends_on_is_unused():
    """
    A softmax over one element is 1, whatever it reads.
    """
    for places, expected in ((1, Absence.UNUSED), (2, None)):
        graph = capture(OnePlace(places).eval(), (torch.randn(1, 3, 4, 6),))
        found = [by_graph(graph, called(graph, "linear", index)) for index in (0, 1)]
        assert [expected, expected] == found


class Twice(nn.Module):
    """The same function twice on the same values, and once on others."""

    def forward(self, image):
        value = image.sigmoid()
        first, second, other = ((item.abs() + 0.1).rsqrt() for item in (value, value, value * 2))
        return first.tanh(), second.exp(), other.tanh()


def test_a_call_that_was_judged_need_not_be_there_twice():
    """
    Its twin holds the value; the same call of other values proves nothing, nor does a twin that is gone as well.
    """
    reference, feeds, rows = judged(Twice())
    layers, layer = without(reference, "abs", 1)
    assert Absence.REPEATED is why_absent(layer, layers, reference, rows, feeds)

    layers, layer = without(reference, "abs", 2)
    assert why_absent(layer, layers, reference, rows, feeds) is None
    both = LayerMap(tuple(
        replace(item, parts=(), absent="gone") if item.operator == "abs" else item for item in layers.layers
    ))  # fmt: skip
    assert why_absent(layer, both, reference, rows, feeds) is None


def test_stirred_values_show_what_no_case_does():
    """
    An absolute value of what is never negative, behind a convolution that may be: judged on stirred values, it is seen;
    where the reader was not judged on them, it is not.
    """

    class Positive(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.first.bias.data += 20.0

        def forward(self, image):
            return self.last(self.first(image).abs())

    reference, feeds, rows = judged(Positive())
    layers, layer = without(reference, "abs")
    cuts = frozenset(item.layer_id for item in layers.layers if item.parts)
    rounding = reference.rounding(TOLERANCES[Format.ONNX, Precision.FP32].storage, feeds, cuts)
    wide = reference.probe(feeds[0], reference.reference(feeds[0]), frozenset({"first"}), rounding, seed=0)
    negative = {name: value - 20.0 if name == "first" else value for name, value in wide.given.items()}
    with torch.no_grad():
        made = wide.made | {"last": Positive().double().last(torch.from_numpy(negative["first"]).abs()).numpy()}
    probes = (Judged(feeds[0], negative, made, stirred=True),)
    tally = LayerErrorStats(16.0, 2.0**-24)
    tally.add(made["last"], made["last"], compare(made["last"].astype(np.float32), made["last"]))
    probed = rows | {"last": replace(rows["last"], probed=tally)}

    assert why_absent(layer, layers, reference, probed, feeds) is None
    assert Absence.SEEN is why_absent(layer, layers, reference, probed, feeds, probes)
    assert why_absent(layer, layers, reference, rows, feeds, probes) is None
    assert (":abs",) == unproven_absences(layers, reference, list(probed.values()), feeds)
    assert () == unproven_absences(layers, reference, list(probed.values()), feeds, lambda: probes)


def test_a_comparison_has_no_stand_in():
    """
    What is compared is a number; whoever asks whether it is greater cannot be given the number itself.
    """

    class Chosen(nn.Module):
        def forward(self, image):
            value = F.softplus(image)
            return torch.where(value > 0, value, image) * 2.0

    reference, feeds, rows = judged(Chosen())
    layers, mask = without(reference, "gt")

    assert Absence.NEEDED is why_absent(mask, layers, reference, rows, feeds)


class Fused(nn.Module):
    """A convolution with a normalisation inside, and an activation that may have nothing to do."""

    def __init__(self, before=torch.neg):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.norm, self.before = nn.Conv2d(3, 4, 1, groups=1), nn.BatchNorm2d(4), before

    def forward(self, image):
        return self.before(self.norm(self.conv(image))).relu().exp()


@pytest.mark.parametrize("operator", ["conv2d", "batch_norm"])
def test_weights_that_are_fused_need_no_proof(operator):
    """
    Runtimes compute what comes behind them inside them, whatever numbers their arguments hold besides.
    """
    reference, cases, rows = judged(Fused())
    layers, layer = without(reference, operator, seen_through=":exp")

    assert why_absent(layer, layers, reference, rows, cases) is Absence.SEEN


@pytest.mark.parametrize(("before", "reason"), [(torch.neg, Absence.SEEN), (torch.abs, None)])
def test_an_activation_that_is_fused_into_another_is_proven(before, reason):
    """
    It is seen where something is negative; where nothing can be, its loss would go unnoticed, and it is told.
    """
    reference, cases, rows = judged(Fused(before))
    layers, layer = without(reference, "relu", seen_through=":exp", note=TAKEN_UP)

    assert why_absent(layer, layers, reference, rows, cases) is reason
