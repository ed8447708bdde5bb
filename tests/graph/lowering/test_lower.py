"""Every form of an attention block is the folded graph's function, in float64, and the layer map stays right."""

import copy
import runpy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.exporters.coreml.lowering import PROGRAM
from coordatt_deploy.exporters.onnx.lowering import ARM64, X86_64
from coordatt_deploy.exporters.tflite.lowering import FLOAT, INT8
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.exported_program import program
from coordatt_deploy.graph.graph import DynamicBatch, DynamicSize, aten
from coordatt_deploy.graph.lowering import lower as lowering
from coordatt_deploy.graph.lowering.forms import FORMS, Form
from coordatt_deploy.graph.lowering.lower import TOLERANCE, lower, lowering_error
from coordatt_deploy.graph.lowering.target import all_targets
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.layer_map import LayerMap

ZOO = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "zoo" / "variants.py")))
Way = ZOO.Way
WAYS = {
    "the paper's": Way(),
    "the paper's with expand": Way(expand=True),
    "timm's": Way(pool="mean", bias=False, activation="silu", skip=True),
    "columns first, joined along the width": Way(join=3, first="columns", part="slice"),
    "two branches": Way(join=None, norm=False, activation="relu"),
    "hard gates": Way(gate="relu6(x + 3) / 6", activation="hardswish", product="h * (w * x)"),
}


@cache  # lowering leaves a graph alone, so that all targets can begin with the same one
def folded(block, size=(32, 32), channels=16, dynamic=None, batch=1, batches=None):
    network, _ = ZOO.around(block(channels), channels)
    example = (torch.randn(batch, 3, *size),)
    return fold_batchnorms(capture(network, example, dynamic=dynamic, batch=batches))[0]


@cache
def written(way=WAYS["the paper's"]):
    return partial(ZOO.attention, way)


@cache
def squeeze_excite(linear, hard):
    return lambda channels: ZOO.SqueezeExcite(channels, linear=linear, hard=hard).eval()


def flattened(channels):
    return ZOO.SqueezeExcite(channels, linear=True, flat=True).eval()


def nothing(channels):  # noqa: ARG001
    return nn.Identity()


def near_miss(channels):
    return ZOO.Home("tanh", channels).eval()


def image(*size, seed=5):
    return {"image": np.random.default_rng(seed).standard_normal((1, 3, *size)).astype(np.float32)}


def worst(before, after, feeds):
    return max(error.relative_error for error in lowering_error(before, after, feeds))


def calls(graph):
    return [str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("target", all_targets(), ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=["square", "not square"])
def test_each_form_is_the_same_function(target, way, size):
    """
    Every layer that both graphs hold agrees, on an input that the lowering has not seen.
    """
    graph = folded(written(WAYS[way]), size)

    lowered, report = lower(graph, target)

    (block,) = report.blocks
    assert block.form in target.forms
    assert (block.form is target.forms[0]) == (block.declined is None)
    assert report.max_relative_error <= TOLERANCE
    assert worst(graph, lowered, image(*size)) <= 1e-6
    assert calls(lowered) != calls(graph)


@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_every_layer_of_the_block_is_still_there(target):
    """
    Wherever a value went (scaled, turned, cut in two), the map finds it: no layer is absent, and the squeeze, its
    activation and both gates have tensors of their own.
    """
    graph = folded(written())

    lowered, _ = lower(graph, target)

    layers = {layer.layer_id: layer for layer in lowered.layers.layers}
    assert [] == [(name, layer.absent) for name, layer in layers.items() if layer.absent is not None]
    operators = {layer.operator for layer in layers.values() if layer.parts}
    assert {"adaptive_avg_pool2d", "conv2d", "cat", "sigmoid", "mul"} <= operators


@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_a_map_that_is_wrong_by_a_little_shows(target):
    """
    The negative twin: one factor off by a thousandth is seen, whichever convolution's it is.
    """
    graph = folded(written())
    lowered, _ = lower(graph, target)
    feeds = image(32, 32)

    for layer in lowered.layers.layers:
        if layer.operator != "conv2d" or not layer.parts:
            continue
        part = layer.parts[0]
        factor = part.factor * 1.001 if isinstance(part.factor, float) else tuple(f * 1.001 for f in part.factor)
        bent = replace(layer, parts=(replace(part, factor=factor), *layer.parts[1:]))
        layers = tuple(bent if item is layer else item for item in lowered.layers.layers)
        assert worst(graph, replace(lowered, layers=LayerMap(layers)), feeds) > 1e-4


@pytest.mark.parametrize("form", Form)
def test_a_form_that_computes_something_else_is_refused(form, monkeypatch):
    """
    The negative twin: a squeeze that is a thousandth too strong does not leave lowering.
    """
    target = next(target for target in all_targets() if form in target.forms)
    rule = FORMS[form]

    def bent(writer):
        before = set(writer.rewriter.module.graph.nodes)
        rule.write(writer)
        written = (node for node in writer.rewriter.module.graph.nodes if node not in before)
        squeeze = next(node for node in written if node.target in {aten.conv2d.default, aten.linear.default})
        writer.rewriter.weight(squeeze.args[1]).mul_(1.001)

    graph = folded(written())
    monkeypatch.setattr(lowering, "FORMS", {form: replace(rule, write=bent)})

    with pytest.raises(ConversionError, match=r"differently: relative error .*, 1e-05 allowed"):
        lower(graph, replace(target, forms=(form,)))


def test_a_network_that_magnifies_roundings_is_held_to_what_float32_makes_of_it(monkeypatch):
    """
    A layer beyond the tolerance may differ by a few of its own roundings, and not by more.
    """
    graph = folded(written())
    monkeypatch.setattr(lowering, "TOLERANCE", 1e-12)

    _, report = lower(graph, INT8)

    assert 1e-12 < report.max_relative_error < 1e-5
    monkeypatch.setattr(lowering, "ROUNDINGS", 1e-3)
    with pytest.raises(ConversionError, match="differently: relative error"):
        lower(graph, INT8)


@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_a_dynamic_size_is_right_at_every_size(target):
    """
    Captured at one size and right at others, neither of them square: no kernel, scale or constant is frozen.
    """
    way = Way(pool="mean")
    graph = folded(written(way), (32, 32), dynamic=DynamicSize(16, 96, 2))

    lowered, report = lower(graph, target)

    (block,) = report.blocks
    assert (Form.MEANS, None, None) == (block.form, block.height, block.width)
    for size in ((48, 20), (18, 64)):
        assert worst(graph, lowered, image(*size)) <= 1e-6


def test_the_form_follows_from_the_size():
    """
    What a form needs and does not find is said, and the next one takes its place.
    """
    square, oblong = (lower(folded(written(), size), PROGRAM)[1].blocks[0]
                      for size in ((32, 32), (32, 48)))  # fmt: skip
    odd = lower(folded(written(), channels=20), X86_64)[1].blocks[0]

    assert (Form.PAIRED, None) == (square.form, square.declined)
    assert (Form.MEANS, "paired: strips of unequal or dynamic length cannot share a tensor") == (
        oblong.form, oblong.declined,
    )  # fmt: skip
    assert Form.MEANS == odd.form
    assert "20 channels are no whole number of blocks of 16" in odd.declined


@pytest.mark.parametrize("target", all_targets(), ids=str)
@pytest.mark.parametrize("linear", [False, True], ids=["convolutions", "linear layers"])
@pytest.mark.parametrize("hard", [False, True], ids=["sigmoid", "hard-sigmoid"])
def test_gates_per_channel_are_lowered_as_well(target, linear, hard):
    """
    Squeeze-and-excitation goes the same way, and is the same function.
    """
    graph = folded(squeeze_excite(linear, hard))

    lowered, report = lower(graph, target)

    assert ["squeeze_excite"] == [block.kind for block in report.blocks]
    assert worst(graph, lowered, image(32, 32)) <= 1e-6


@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_more_than_one_image_at_a_time(target):
    """
    A batch of three; nothing mixes its images.
    """
    graph = folded(written(), batch=3)
    feeds = {"image": np.random.default_rng(3).standard_normal((3, 3, 32, 32)).astype(np.float32)}

    lowered, _ = lower(graph, target)

    assert worst(graph, lowered, feeds) <= 1e-6


@pytest.mark.parametrize("size", [(32, 32), (32, 48)], ids=str)
@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_a_dynamic_batch_is_right_at_every_batch(target, size):
    """
    The form is that of one image, and no batch is frozen in it; the graph can be exported again.
    """
    graph = folded(written(), size, batch=2, batches=DynamicBatch(1, 8))

    lowered, report = lower(graph, target)

    assert [item.form for item in lower(folded(written(), size), target)[1].blocks] == [
        item.form for item in report.blocks
    ]
    assert {None} == {layer.shape[0] for layer in lowered.layers.layers}
    program(lowered)
    for batch in (1, 3, 8):
        images = np.random.default_rng(batch).standard_normal((batch, 3, *size)).astype(np.float32)
        assert worst(graph, lowered, {"image": images}) <= 1e-6


def test_a_form_that_freezes_the_batch_is_not_exported():
    """
    What a form writes with the captured number is right at that batch alone, and torch.export finds it.
    """
    graph = folded(written(), batch=2, batches=DynamicBatch(1, 8))
    module = copy.deepcopy(graph.module)
    output = next(item for item in module.graph.nodes if item.op == "output").args[0][0]
    with module.graph.inserting_after(output):
        frozen = module.graph.call_function(aten.reshape.default, (output, [2, *output.meta["val"].shape[1:]]))
    output.replace_all_uses_with(frozen, delete_user_cb=lambda user: user is not frozen)
    module.recompile()

    with pytest.raises(Exception, match="batch"):
        program(replace(graph, module=module))


@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_a_graph_in_which_nothing_is_recognised_stays_as_it_is(target):
    """
    It is returned untouched, and the report says so.
    """
    graph = folded(nothing)

    lowered, report = lower(graph, target)

    if target.name.partition("-")[0] not in ("tflite", "executorch"):  # the mean before the end keeps its axes there
        assert calls(graph) == calls(lowered)
    assert () == report.blocks
    assert "no attention block and no hard activation was recognised; the graph is exported as it is" == report.remark


def test_a_near_miss_is_left_alone_and_reported():
    """
    The graph keeps its own attention, and the reason reaches the report.
    """
    graph = folded(near_miss)

    lowered, report = lower(graph, ARM64)

    assert () == report.blocks
    assert "is no sigmoid or hard-sigmoid, so it is no gate" in report.near_misses[0].reason
    assert worst(graph, lowered, image(32, 32)) <= 1e-6


def test_a_block_that_was_not_folded_is_refused():
    """
    Forms are written with plain convolutions; a BatchNorm left over would be dropped.
    """
    network, name = ZOO.around(ZOO.attention(Way()))
    graph = capture(network, (torch.randn(1, 3, 32, 32),))

    with pytest.raises(ConversionError, match=f"{name} still holds a BatchNorm .*; fold the graph first"):
        lower(graph, FLOAT)


class Head(nn.Module):
    """A classifier's end, with the pool written in one of the usual ways."""

    def __init__(self, how):
        super().__init__()
        self.how, self.mix, self.head = how, nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

    def forward(self, image):
        x = self.mix(image)
        pooled = x.mean((2, 3)) if self.how == "mean" else F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.head(pooled)


@pytest.mark.parametrize(
    ("target", "how", "expected"),
    [
        (FLOAT, "mean", ["conv2d", "mean", "flatten", "linear"]),
        (INT8, "mean", ["conv2d", "mean", "flatten", "linear"]),
        (FLOAT, "pool", ["conv2d", "adaptive_avg_pool2d", "flatten", "linear"]),
        (PROGRAM, "mean", ["conv2d", "mean", "linear"]),
        (PROGRAM, "pool", ["conv2d", "mean", "linear"]),
    ],
)
def test_the_pool_before_the_head_is_written_as_the_converter_wants_it(target, how, expected):
    """
    litert-torch transposes the map for a mean that drops its axes; coremltools needs an operator more to flatten.
    """
    graph = fold_batchnorms(capture(Head(how).eval(), (torch.randn(1, 3, 8, 8),)))[0]

    lowered, report = lower(graph, target)

    assert expected == [name.split(".")[1] for name in calls(lowered)]
    assert "no attention block and no hard activation was recognised" in report.remark
    assert worst(graph, lowered, image(8, 8)) <= 1e-6


@pytest.mark.parametrize("target", [FLOAT, INT8, PROGRAM])
def test_the_pool_of_a_block_is_the_blocks(target):
    """
    A gate whose pool is flattened for linear layers: the map leads to the pool that the form has written.
    """
    graph = folded(flattened)

    lowered, report = lower(graph, target)

    assert ["squeeze_excite"] == [block.kind for block in report.blocks]
    assert [] == [layer.layer_id for layer in lowered.layers.layers if layer.absent is not None]
    assert worst(graph, lowered, image(32, 32)) <= 1e-6


class SpelledOut(nn.Module):
    """Hard-swish outside of any block: once before a convolution, once where nothing can take its factor."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, image):
        x = self.first(image)
        x = self.second(x * F.relu6(x + 3) / 6)
        return x * F.relu6(x + 3) / 6


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (ARM64, ["hardswish", "hardswish"]),
        (X86_64, ["hardswish", "hardswish"]),
        (FLOAT, ["hardswish", "hardswish"]),
        (INT8, ["add", "relu6", "mul", "hardswish"]),
        (PROGRAM, ["hardsigmoid", "mul", "hardsigmoid", "mul"]),
    ],
)
def test_hard_swish_is_spelled_as_the_runtime_wants_it(target, expected):
    """
    One operator, or three that XNNPACK takes in int8, with the sixth in the weights after them where there are any.
    """
    graph = fold_batchnorms(capture(SpelledOut().eval(), (torch.randn(1, 3, 8, 8),)))[0]

    lowered, report = lower(graph, target)

    assert expected == [name.split(".")[1] for name in calls(lowered) if "conv2d" not in name]
    assert {"hardswish": 2, "hardsigmoid": 0} == report.activations
    assert worst(graph, lowered, image(8, 8)) <= 1e-6


def test_the_graph_that_is_lowered_is_left_alone(tiny_folded):
    """
    Forms for several targets are made of one folded graph.
    """
    feeds = image(32, 48)
    before, value = calls(tiny_folded), run(tiny_folded, feeds)["logits"]

    for target in all_targets():
        lower(tiny_folded, target)

    assert before == calls(tiny_folded)
    np.testing.assert_array_equal(value, run(tiny_folded, feeds)["logits"])
