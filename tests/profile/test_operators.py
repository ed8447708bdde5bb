"""Where the time of a file goes: rows, shares, what is unexplained, and errors beside them; all on made-up times."""

import dataclasses

import numpy as np
import pytest

from coordatt_deploy.artifact_specs import Artifact, TensorSpec
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.layer_map import Layer, LayerMap, Part
from coordatt_deploy.profile.operator_result import LayerError
from coordatt_deploy.profile.operators import (
    PER_TURN,
    TURNS,
    WARMUPS,
    Attention,
    LayerFacts,
    operator_profile,
    overhead_of,
    turn_means,
)
from coordatt_deploy.report import operator_texts
from coordatt_deploy.runtimes.operator_times import TimedPart

ARTIFACT = Artifact(
    "onnx/net.onnx", Format.ONNX, Precision.FP32, None, None, 0, "",
    (TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW"),), (TensorSpec("logits", (1, 5), "float32", "NC"),), "",
)  # fmt: skip
LAYERS = LayerMap((
    Layer("stem.0", "conv2d", (1, 8, 4, 4), seen_through="stem.2"),
    Layer("stem.2", "relu", (1, 8, 4, 4), parts=(Part("relu"),)),
    Layer("block.ca.pool", "mean", (1, 8, 4, 1), parts=(Part("mean"),)),
    Layer("block.ca:mul", "mul", (1, 8, 4, 4), parts=(Part("gated"),)),
    Layer("block.cat", "cat", (1, 8, 4, 4), absent="gone"),
    Layer("head", "linear", (1, 5), parts=(Part("logits"),)),
))  # fmt: skip
TIMES = {"relu": 500.0, "mean": 100.0, "gated": 200.0, "logits": 200.0}


def table(times=TIMES, whole=1000.0, **facts):
    """A table of one operator for each tensor; None is a partition that belongs to no layer."""
    parts = [
        (TimedPart(f"op_{tensor}", ("Conv",), tensor, ()), np.full(TURNS, nanoseconds))
        for tensor, nanoseconds in times.items()
    ]
    return operator_profile(
        ARTIFACT, "runtime 1", 1, "profiler", np.full(TURNS, whole), parts, LayerFacts(LAYERS, **facts)
    )


def shares(found):
    return {row.layer: round(row.share, 6) for row in found.rows}


def test_each_layer_has_its_share():
    """
    Dearest first, each with the layers that were fused into it.
    """
    found = table()

    assert {"stem.2": 0.5, "block.ca:mul": 0.2, "head": 0.2, "block.ca.pool": 0.1} == shares(found)
    assert ["stem.2"] == [row.layer for row in found.rows if row.fused == ("stem.0",)]
    assert (found.explained, found.overhead_ms, found.rows_ms) == (pytest.approx(1.0), 0.0, pytest.approx(0.001))


def test_a_layer_made_three_times_dearer_rises_accordingly():
    """
    Its time by three, the others' not at all.
    """
    before = {row.layer: row.ms for row in table().rows}
    after = {row.layer: row.ms for row in table(TIMES | {"gated": 600.0}, whole=1400.0).rows}

    ratios = {name: after[name] / before[name] for name in before}
    assert {"stem.2": 1, "block.ca.pool": 1, "block.ca:mul": 3, "head": 1} == pytest.approx(ratios)


def test_a_partition_without_a_layer_is_not_explained():
    """
    One row for the whole delegate says nothing of it, however much it takes.
    """
    found = table({None: 900.0, "logits": 100.0})

    assert {None: 0.9, "head": 0.1} == shares(found)
    assert found.explained == pytest.approx(0.1)


def test_time_in_no_row_is_not_explained():
    """
    Rows that sum to less than the file's latency explain no more than they are.
    """
    assert table(whole=2000.0).explained == pytest.approx(0.5)


def test_rows_beyond_the_whole_are_shared_out():
    """
    What they sum to beyond it is taken off evenly, and shares are of what they sum to then.
    """
    found = table(whole=800.0)

    assert found.overhead_ms == pytest.approx(50e-6)
    assert found.rows_ms == pytest.approx(800e-6)
    assert sum(row.share for row in found.rows) == pytest.approx(1.0)


def test_operators_that_sum_to_far_more_than_the_file_were_disturbed():
    """
    The table says that others took the core: operators of the whole file add nothing to it.
    """
    assert "repeat it on a quiet machine" in " ".join(operator_texts.remarks(table(whole=500.0)))
    assert "repeat it" not in " ".join(operator_texts.remarks(table()))
    apart = dataclasses.replace(table(), method="submodels")
    assert "shares tell little" not in " ".join(operator_texts.remarks(apart))
    assert "shares tell little" in " ".join(operator_texts.remarks(dataclasses.replace(apart, rows_ms=0.003)))


def test_no_operator_takes_less_than_nothing():
    """
    The overhead is at most the shortest part, and never negative.
    """
    assert (overhead_of([5.0, 100.0], 10.0), overhead_of([5.0, 100.0], 200.0), overhead_of([], 1.0)) == (5.0, 0.0, 0.0)


def test_attention_is_what_lies_in_its_blocks():
    """
    By the path of the module: a name that only begins alike is none.
    """
    found = table(attention=(Attention("block.ca", "coordatt"), Attention("block.c", "eca")))

    assert {"block.ca.pool", "block.ca:mul"} == {row.layer for row in found.rows if row.block == "coordatt"}
    assert found.attention == pytest.approx(0.3)
    assert table().attention is None


def test_slow_and_wrong_stand_side_by_side():
    """
    A layer that parity found wrong says so in its row; without a run of these bytes none does.
    """
    wrong = LayerError(passed=False, sqnr_db=21.5, excess=40.0, inherits=False)
    found = table(errors={"head": wrong})
    rows = {row.layer: row for row in found.rows}

    assert operator_texts.error(rows["head"].error) == ("21.5 dB", "wrong, 40 × allowed")
    assert operator_texts.error(rows["stem.2"].error) == ("–", "not judged")
    assert found.judged
    assert not table().judged
    assert "errors are not known" in " ".join(operator_texts.remarks(table()))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"passed": True}, "right, 0.5 × allowed"),
        ({"passed": True, "inherits": True}, "inherits, 0.5 × allowed"),
        ({"passed": None}, "not judged"),
        ({"passed": False, "excess": None}, "wrong"),
    ],
)
def test_verdicts_of_layers_in_words(changed, said):
    """
    What is right with right inputs, but off in the whole, inherits.
    """
    error = dataclasses.replace(LayerError(True, float("inf"), 0.5, False), **changed)

    assert operator_texts.error(error) == ("exact", said)


def test_runs_that_lost_their_core_do_not_count():
    """
    Nor do the warm-up and the first of each turn; where all lost it, all count.
    """
    turn, lost = [900, 10, 20, 5000], [False, False, False, True]
    part = TimedPart("x", ("Conv",), None, (*[7] * WARMUPS, *turn * 2), (*[False] * WARMUPS, *lost, *[True] * PER_TURN))

    assert turn_means(part).tolist() == [15.0, (10 + 20 + 5000) / 3]
