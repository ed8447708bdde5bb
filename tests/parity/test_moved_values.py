"""Where torch's float32 rounds nothing by luck: what the last digits decide is allowed there, a fault is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from files_against_torch import captured
from judged_layers import judged
from torch import nn

from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.parity import localise
from coordatt_deploy.parity.cases import ParityCases
from coordatt_deploy.parity.error_statistics import LayerErrorStats
from coordatt_deploy.parity.layers import LayerRow
from coordatt_deploy.parity.moved_values import ROUNDS_NOTHING, exact_nodes, moved_cases
from coordatt_deploy.parity.outputs import judge, judge_elements
from coordatt_deploy.parity.reference_rounding import compare
from coordatt_deploy.parity.tolerances import TOLERANCES, UNIT_ROUNDOFF

SHAPE = (1, 3, 18, 20)
FP32 = TOLERANCES[Format.TFLITE, Precision.FP32]
UNIT = UNIT_ROUNDOFF[Precision.FP32]


class Normalised(nn.Module):
    """A normalisation by its own statistics, and a choice by its sign: a constant image leaves 0, or what rounds."""

    def __init__(self, epsilon=1e-5, scale=1.0, threshold=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, eps=epsilon)
        self.last, self.scale, self.threshold = nn.Conv2d(4, 4, 1), scale, threshold

    def forward(self, image):
        value = self.norm(self.stem(image))
        return self.last(torch.where(value > self.threshold, value * self.scale, self.stem(image)))


def images():
    random = np.random.default_rng(3)
    noise = [random.standard_normal(SHAPE).astype(np.float32) for _ in range(3)]
    return [*noise, np.full(SHAPE, 0.37, np.float32), np.full(SHAPE, -0.81, np.float32)]


FORMATS = [Format.ONNX, pytest.param(Format.TFLITE, marks=pytest.mark.slow),
           pytest.param(Format.COREML, marks=pytest.mark.slow)]  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_a_constant_image_under_a_normalisation_fails_no_right_file(kind):
    """
    The mean of equal values is exact in torch and not in a file, and a deviation of 0 magnifies that.
    """
    close, found = judged(kind, Normalised(), SHAPE, images=images())

    assert (True, True) == (close, found.passed), found.sentence()


@pytest.mark.parametrize("kind", FORMATS[:2])
def test_unless_the_last_digits_are_asked_the_same_file_fails(kind, monkeypatch):
    """
    The twin: by a multiple of torch's own rounding, which is 0 there, it is wrong.
    """
    monkeypatch.setattr(localise._Run, "ask_again", lambda _: None)
    close, found = judged(kind, Normalised(), SHAPE, images=images())

    assert (True, False) == (close, found.passed)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("fault", "layer"),
    [({"epsilon": 1e-3}, "norm"), ({"scale": 1.0001}, ":mul"), ({"threshold": 0.05}, ":gt")],
)
def test_beside_constant_images_a_fault_is_found_all_the_same(kind, fault, layer):
    """
    The twins: another epsilon, another factor, another threshold, in a file that is judged on the same images.
    """
    close, found = judged(kind, Normalised(), SHAPE, made_of=Normalised(**fault), images=images())

    at = next(row for row in found.rows if row.layer_id == layer)
    assert (False, False) == (close, found.passed)
    assert found.first_diverging_layer in (layer, at.seen_through), found.sentence()


def test_a_layer_that_most_cases_leave_to_the_last_digits_is_not_passed():
    """
    One such case of four is conceded; where three are, nothing can be proven of the layer, and what is beyond fails.
    """

    def row(conceded, error=0.0):
        tally = LayerErrorStats(16.0, UNIT)
        for value in REFERENCE:
            tally.add(value + error, value, compare(value.astype(np.float32), value))
        for case in range(conceded):
            tally.concede(case, 0.1, 0.01)
        return LayerRow("x", "instance_norm", tally, tally, None, None, floor_db=FP32.floor_db)

    assert [True, None] == [row(1).passed, row(3).passed]
    assert [False, False] == [row(1, 0.1).passed, row(3, 0.1).passed]


def test_in_cases_of_its_own_it_allows_no_more_elsewhere():
    """
    What is conceded to one case is no floor for another, and what is not finite concedes nothing.
    """
    random = np.random.default_rng(0)
    values = [random.standard_normal((1, 4, 5, 5)) for _ in range(4)]
    tally = LayerErrorStats(16.0, UNIT)
    for value in values:
        tally.add(value, value, compare(value.astype(np.float32), value))
    before = tally.allowances
    tally.concede(1, 1e-3, 1e-7)
    tally.concede(2, float("nan"), 1.0)

    assert [before[0], 16.0 * 1e-3, *before[2:]] == tally.allowances


def test_values_move_by_half_a_unit_at_most():
    """
    A product of two values is off by three halves of a unit; what only chooses among values stays one of them.
    """

    class Product(nn.Module):
        def forward(self, image):
            return image * image, image.relu().amax((2, 3))

    graph = captured(Product().eval(), SHAPE)
    image = images()[0]
    values = Product()(torch.from_numpy(image).double())
    exact = {name: [value.numpy()] for name, value in zip(graph.outputs, values, strict=True)}
    cases = ParityCases(("noise",), {"image": [image]}, exact, {}, (False,))

    moved = moved_cases(graph, cases, FP32)

    (product, greatest) = (np.abs(moved[name][0] - exact[name][0]) / np.abs(exact[name][0]) for name in graph.outputs)
    assert UNIT < product.max() <= 3.01 * UNIT
    assert 0 < greatest.max() <= UNIT
    assert {op for op in ("relu", "amax") if op in ROUNDS_NOTHING} == {"relu", "amax"}
    assert {"relu", "amax"} == exact_nodes(graph.module)


REFERENCE = [np.random.default_rng(seed).standard_normal((1, 4, 6, 6)) for seed in range(4)]
ROUNDING = [value.astype(np.float32) for value in REFERENCE]
# the last case is a constant image: torch has it exactly
LUCKY = [*ROUNDING[:3], REFERENCE[3]]
MOVED = [*ROUNDING[:3], REFERENCE[3] + 1e-5]


def off(case, error):
    return [value + (error if index == case else 0.0) for index, value in enumerate(ROUNDING)]


@pytest.mark.parametrize(
    ("case", "error", "passes"), [(3, 1e-4, True), (3, 2e-4, False), (0, 1e-4, False), (0, 1e-5, False)]
)
def test_an_output_may_be_off_where_the_last_digits_decide_and_nowhere_else(case, error, passes):
    """
    Sixteen times what moved values cost in that case; in the others what torch's own rounding allows.
    """
    assert judge("y", off(case, error), REFERENCE, LUCKY, FP32, moved=MOVED).passed is passes
    assert not judge("y", off(case, error), REFERENCE, LUCKY, FP32).passed


@pytest.mark.parametrize(
    ("images", "unproven"), [((), False), ((False,) * 4, False), ((False, False, False, True), True)]
)
def test_a_case_that_only_luck_reproduces_is_set_aside_unless_it_is_an_image(images, unproven):
    """
    Where moved values leave less than the floor, the case proves nothing, whatever torch's own rounding says.
    """
    drowned = [*ROUNDING[:3], REFERENCE[3] * 1.01]
    verdict = judge("y", off(3, 5e-3), REFERENCE, LUCKY, FP32, images, moved=drowned)

    assert (verdict.set_aside, verdict.passed) == ((3,), not unproven)
    assert (verdict.unproven is not None) is unproven
    assert not judge("y", off(0, 5e-3), REFERENCE, LUCKY, FP32, images, moved=drowned).passed


CLASSES = [np.random.default_rng(seed).integers(0, 4, (1, 10, 10)) for seed in range(4)]
MADE_UP = (True, True, True, False)


def turned(case, share):
    found = [value.copy() for value in CLASSES]
    flat = found[case].reshape(-1)
    flat[: round(share * flat.size)] += 1
    return found


def test_classes_that_tie_in_a_made_up_case_are_set_aside():
    """
    A constant image scores every class alike. In an image of the user's nothing is set aside, and elsewhere a class
    that differs fails.
    """
    moved = turned(3, 0.5)
    untrained = replace(FP32, untrained=True)

    tied = judge_elements("c", turned(3, 0.4), CLASSES, CLASSES, FP32, MADE_UP, moved)
    assert (tied.passed, tied.set_aside) == (True, (3,))
    for wrong, images, tolerance in (
        (turned(3, 0.4), (True,) * 4, FP32), (turned(0, 0.1), MADE_UP, FP32), (turned(0, 0.1), MADE_UP, untrained),
    ):  # fmt: skip
        assert not judge_elements("c", wrong, CLASSES, CLASSES, tolerance, images, moved).passed
    assert not judge_elements("c", turned(3, 0.4), CLASSES, CLASSES, FP32, MADE_UP).passed


class Magnifying(nn.Module):
    """Layers that magnify whatever is off by three, one after the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(7))

    def forward(self, image):
        for conv in self.convs:
            image = torch.sin(5 * conv(image))
        return image


@pytest.mark.parametrize("factor", [1.0, 1.0001])
def test_a_fault_in_a_network_that_magnifies_is_still_one(factor):
    """
    The samples of the whole are eight, and what magnifies makes them large; the layer alone is judged as ever.
    """
    faulty = Magnifying()
    with torch.no_grad():
        faulty.convs[2].weight *= factor

    _, found = judged(Format.ONNX, Magnifying(), SHAPE, made_of=faulty, images=images())

    assert (None if factor == 1.0 else "convs.2") == found.first_diverging_layer, found.sentence()


class Gated(nn.Module):
    """An image times a gate near 3e-4: ONNX Runtime's sigmoid is off by as much there as near 1."""

    def __init__(self, shift=0.0, factor=1.0):
        super().__init__()
        self.shift, self.factor = shift, factor

    def forward(self, image):
        gate = (image.mean((2, 3)) - 8 - self.shift).sigmoid()
        return image * (gate[:, :, None, None] * self.factor)


def test_what_a_small_sigmoid_is_multiplied_into_is_allowed_its_error():
    """
    The view and the products behind the sigmoid have its absolute error, far beyond 16 times their own rounding.
    """
    _, found = judged(Format.ONNX, Gated(), (1, 3, 13, 13))
    rows = {row.layer_id: row for row in found.rows}

    assert found.passed, found.sentence()
    assert all(row.passed for row in found.rows)
    own = max(case.rounding for case in rows[":mul_1"].accumulated.cases)
    assert rows[":mul_1"].accumulated.max_abs_error > FP32.multiple * own


@pytest.mark.parametrize(("fault", "layer"), [({"shift": 1e-3}, ":sub_1"), ({"factor": 1.001}, ":mul")])
def test_beside_a_small_sigmoid_a_thousandth_is_found_all_the_same(fault, layer):
    """
    The twins: fed with the right gate the product is held to its own rounding, and so is what the gate is made of.
    """
    _, found = judged(Format.ONNX, Gated(), (1, 3, 13, 13), made_of=Gated(**fault))

    assert (False, layer) == (found.passed, found.first_diverging_layer), found.sentence()
