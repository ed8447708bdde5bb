"""Blocks of terms that are written anew compute what they did, in float64, and every layer is where the map says."""

import runpy
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from files_against_torch import Spelled, captured, randomised
from torch import nn

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.exporters.onnx.lowering import ARM64, ARM64_INT8, X86_64
from coordatt_deploy.exporters.tflite.lowering import FLOAT, INT8
from coordatt_deploy.graph.exported_program import program
from coordatt_deploy.graph.graph import DynamicBatch, DynamicSize, aten, op_name
from coordatt_deploy.graph.lowering.blocks import Kind
from coordatt_deploy.graph.lowering.lower import AS_IT_STANDS, TOLERANCE, lower, lowering_error
from coordatt_deploy.graph.lowering.target import all_targets
from coordatt_deploy.graph.lowering.term_writer import FOUR_AXES, Kernels, Order, TermStyle, TermWriter
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.models.factory import create_attention

REFERENCE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "zoo" / "attention_references.py")))
CHANNELS = 16
# Every kind in every style, whether the runtime is faster so or not: a form must be right wherever it is asked for.
STYLES = [
    TermStyle(frozenset(Kind), Order.CHANNELS_FIRST),
    TermStyle(frozenset(Kind), Order.CHANNELS_LAST),
    TermStyle(frozenset(Kind), Order.CHANNELS_FIRST, by_rows=True, kernels=Kernels.ROWS),
    TermStyle(frozenset(Kind), Order.CHANNELS_LAST, kernels=Kernels.BLOCKS),
    TermStyle(frozenset(Kind), Order.CHANNELS_LAST, sums_first=False, spelt_norms=True),
]
EVERYWHERE = [replace(FLOAT, name=f"style {index}", terms=style) for index, style in enumerate(STYLES)]
EVERYWHERE += [replace(INT8, name="scaled hard-swish", terms=STYLES[1])]


class HardGate(nn.Module):
    """timm's ``scoord`` with a hard-swish between its layers and a hard gate."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))

    def forward(self, x):
        rows = self.second(nn.functional.hardswish(self.first(x.mean(3).transpose(1, 2)))).transpose(1, 2)
        columns = self.third(nn.functional.hardswish(self.first(x.mean(2).transpose(1, 2)))).transpose(1, 2)
        return x * nn.functional.hardsigmoid(rows.unsqueeze(-1) + columns.unsqueeze(-2))


BLOCKS = {
    "eca": lambda: create_attention("eca", CHANNELS, kernel_size=5),
    "cbam": lambda: REFERENCE.CBAM(CHANNELS, 4),
    "cbam of small kernels": lambda: create_attention("cbam", CHANNELS, kernel_size=3, activation="hard_swish"),
    "half of cbam": lambda: create_attention("cbam", CHANNELS, spatial=False),
    "other half of cbam": lambda: REFERENCE.SpatialGate(),
    "triplet": lambda: REFERENCE.Triplet(),
    "triplet of two": lambda: create_attention("triplet", CHANNELS, spatial=False, kernel_size=5),
    "strip pooling": lambda: REFERENCE.SPM(CHANNELS),
    "timm_strip": lambda: create_attention("timm_strip", CHANNELS, bias=True, skip=True),
    "timm_scoord": lambda: create_attention("timm_scoord", CHANNELS),
    "hard": HardGate,
    "timm_ela": lambda: create_attention("timm_ela", CHANNELS),
    "global context": lambda: REFERENCE.GlobalContext(CHANNELS),
    "global context that gates": lambda: create_attention("global_context", CHANNELS, multiply=True),
}


@cache
def folded(block, size=(16, 24), dynamic=None, batches=None, batch=1):
    network = nn.Sequential(Spelled(nn.Identity(), channels=CHANNELS), BLOCKS[block](), nn.Conv2d(CHANNELS, 4, 1))
    graph = captured(randomised(network), (batch, 3, *size), dynamic=dynamic, batch=batches)
    return fold_batchnorms(graph)[0]


def worst(before, after, size=(16, 24), batch=1, seed=5):
    images = np.random.default_rng(seed).standard_normal((batch, 3, *size)).astype(np.float32)
    return max(error.relative_error for error in lowering_error(before, after, {"image": images}))


def operators(graph):
    return Counter(op_name(node) for node in graph.module.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("target", EVERYWHERE, ids=str)
@pytest.mark.parametrize("block", BLOCKS)
def test_each_block_is_the_same_function_in_every_style(target, block):
    """
    Every layer that both graphs hold agrees on an input that the lowering has not seen, and none is absent.
    """
    graph = folded(block)

    lowered, report = lower(graph, target)

    (found,) = report.blocks
    assert (FOUR_AXES, None) == (found.form, found.declined)
    assert report.max_relative_error <= TOLERANCE
    assert worst(graph, lowered) <= 1e-6
    assert [] == [layer.layer_id for layer in lowered.layers.layers if layer.absent is not None]


@pytest.mark.parametrize("target", all_targets(), ids=str)
@pytest.mark.parametrize("block", BLOCKS)
def test_each_target_writes_the_kinds_that_it_is_faster_with(target, block):
    """
    The others stay as they are, which is no form that was declined.
    """
    graph = folded(block)

    lowered, report = lower(graph, target)

    (found,) = report.blocks
    expected = FOUR_AXES if found.kind in target.terms.kinds else AS_IT_STANDS
    assert (expected, None) == (found.form, found.declined)
    assert worst(graph, lowered) <= 1e-6


@pytest.mark.parametrize("target", EVERYWHERE[:3], ids=str)
@pytest.mark.parametrize("block", ["cbam of small kernels", "triplet", "strip pooling", "eca", "timm_scoord"])
def test_a_dynamic_size_is_right_at_every_size(target, block):
    """
    Captured at one size and right at others, neither of them square: no size is frozen in a form.
    """
    graph = folded(block, (32, 32), dynamic=DynamicSize(16, 96, 2), batch=2)

    lowered, report = lower(graph, target)

    assert [FOUR_AXES] == [item.form for item in report.blocks]
    program(lowered)
    for size in ((48, 20), (18, 64)):
        assert worst(graph, lowered, size, batch=2) <= 1e-6


@pytest.mark.parametrize("target", EVERYWHERE[:3], ids=str)
@pytest.mark.parametrize("block", ["cbam", "triplet", "eca", "global context"])
def test_a_dynamic_batch_is_right_at_every_batch(target, block):
    """
    No batch is frozen in a form, and nothing mixes its images.
    """
    graph = folded(block, batches=DynamicBatch(1, 8), batch=2)

    lowered, report = lower(graph, target)

    assert [FOUR_AXES] == [item.form for item in report.blocks]
    program(lowered)
    for batch in (1, 3, 8):
        assert worst(graph, lowered, batch=batch) <= 1e-6


def test_a_context_of_a_dynamic_size_stays_as_it_is():
    """
    The reason reaches the report.
    """
    graph = folded("global context", (32, 32), dynamic=DynamicSize(16, 96, 2), batch=2)

    lowered, report = lower(graph, FLOAT)

    (found,) = report.blocks
    assert AS_IT_STANDS == found.form
    assert "four_axes: a context is a product of matrices, whose sizes cannot follow" in found.declined
    assert operators(graph) == operators(lowered)


@pytest.mark.parametrize("block", ["cbam", "triplet", "strip pooling", "eca", "global context"])
def test_a_form_that_computes_something_else_is_refused(block, monkeypatch):
    """
    The negative twin: the first layer a thousandth too strong does not leave lowering.
    """
    write = TermWriter.write

    def bent(writer):
        before = set(writer.rewriter.module.graph.nodes)
        write(writer)
        written = [node for node in writer.rewriter.module.graph.nodes if node not in before]
        layer = next(node for node in written if node.target is aten.conv2d.default)
        writer.rewriter.weight(layer.args[1]).mul_(1.001)

    monkeypatch.setattr(TermWriter, "write", bent)

    with pytest.raises(ConversionError, match=r"differently: relative error .*, 1e-05 allowed"):
        lower(folded(block), EVERYWHERE[1])


@pytest.mark.parametrize("block", ["cbam", "triplet", "timm_scoord"])
def test_a_map_that_is_wrong_by_a_little_shows(block):
    """
    The negative twin of the map: one factor off by a thousandth is seen.
    """
    graph = folded(block)
    lowered, _ = lower(graph, EVERYWHERE[2])
    placed = [
        layer for layer in lowered.layers.layers if layer.parts and layer.operator in {"conv2d", "linear", "sigmoid"}
    ]

    for layer in placed:
        bent = replace(layer, parts=(replace(layer.parts[0], factor=layer.parts[0].factor * 1.001), *layer.parts[1:]))
        layers = tuple(bent if item is layer else item for item in lowered.layers.layers)
        assert worst(graph, replace(lowered, layers=LayerMap(layers))) > 1e-4


def test_a_block_that_was_not_folded_is_refused():
    """
    A BatchNorm left over would be dropped.
    """
    network = nn.Sequential(
        Spelled(nn.Identity(), channels=CHANNELS), REFERENCE.SPM(CHANNELS), nn.Conv2d(CHANNELS, 4, 1)
    )

    with pytest.raises(ConversionError, match=r"still holds a BatchNorm .*; fold the graph first"):
        lower(captured(randomised(network)), FLOAT)


def test_triplet_attention_moves_no_feature_map():
    """
    Its permutations are of values that were pooled, and the map is multiplied once instead of three times.
    """
    for target in (FLOAT, INT8, ARM64, ARM64_INT8):
        graph = lower(folded("triplet"), target)[0]
        moved = [node for node in graph.module.graph.nodes if op_name(node) in {"permute", "reshape"}]
        size = CHANNELS * 8 * 12
        products = [node for node in graph.module.graph.nodes
                    if op_name(node) == "mul" and node.meta["val"].numel() == size]  # fmt: skip

        pooled = [node for node in moved if node.meta["val"].numel() == size]
        assert len(pooled) <= (1 if target in {ARM64, ARM64_INT8} else 0)  # the reshape of a map copies nothing
        assert 1 == len(products)
        assert moved


def test_both_values_of_cbam_share_the_second_layer():
    """
    Their sum goes through it once.
    """
    before, after = operators(folded("cbam")), operators(lower(folded("cbam"), FLOAT)[0])

    assert (4, 0) == (before["linear"], after["linear"])
    # the stem, the head and the convolution over places; two layers of one value, one of the other
    assert 3 + 3 == after["conv2d"]


def test_integers_are_not_summed_row_by_row():
    """
    Each row's sum would be rounded to eight bits; pools over the channels lose nothing.
    """
    rows, whole = (operators(lower(folded("triplet"), target)[0]) for target in (ARM64, ARM64_INT8))

    assert (3, 0) == (rows["constant_pad_nd"], whole["constant_pad_nd"])
    assert rows["amax"] == whole["amax"] == 4
    assert AS_IT_STANDS == lower(folded("triplet"), X86_64)[1].blocks[0].form


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("channels", [6, 4, 16])
def test_pools_and_kernels_by_rows_are_right_for_every_size(kernel_size, channels):
    """
    Kernels of every side, channels that have no parts, a map smaller than the kernel.
    """
    block = create_attention("cbam", channels, kernel_size=kernel_size)
    network = nn.Sequential(Spelled(nn.Identity(), channels=channels), block, nn.Conv2d(channels, 4, 1))
    for size in ((6, 10), (16, 24)):
        graph = fold_batchnorms(captured(randomised(network), (2, 3, *size)))[0]

        lowered, report = lower(graph, EVERYWHERE[2])

        assert [FOUR_AXES] == [item.form for item in report.blocks]
        assert worst(graph, lowered, size, batch=2) <= 1e-6
