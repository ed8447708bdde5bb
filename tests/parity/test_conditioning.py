"""What torch's own float32 does not reproduce proves nothing, whatever a file makes of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.parity.conditioning import classes_kept, conditioning
from coordatt_deploy.parity.layers import ArtifactLayers, LayerJudge
from coordatt_deploy.parity.outputs import judge
from coordatt_deploy.parity.reference_layers import ReferenceLayers
from coordatt_deploy.parity.tolerances import TOLERANCES, for_untrained

FP32 = TOLERANCES[Format.ONNX, "fp32"]
FP16 = TOLERANCES[Format.COREML, "fp16"]


class Sine(nn.Module):
    """sin(k x) behind a convolution: the greater k, the fewer digits float32 keeps."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.factor, self.conv = factor, nn.Conv2d(3, 4, 3)

    def forward(self, image):
        return torch.sin(self.conv(image) * self.factor).mean((2, 3))


def computed(module, cases=8, dtype=torch.float32):
    """Return the graph, its feeds, its outputs in float64 and what torch makes of them in *dtype*."""
    graph = capture(module.eval(), (torch.randn(1, 3, 8, 8),), input_names=["image"], output_names=["logits"])
    random = np.random.default_rng(0)
    feeds = [{"image": random.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(cases)]
    exact, rounded = prepare(graph), prepare(graph, dtype=dtype)
    return graph, feeds, [exact(feed)["logits"] for feed in feeds], [rounded(feed)["logits"] for feed in feeds]


def test_an_ill_conditioned_network_cannot_be_proven():
    """sin(1e8 conv(x)) is noise in float32: neither torch's own result nor zeros pass, and the reason is said."""
    _, _, reference, rounding = computed(Sine(1e8))

    for candidate in (rounding, [np.zeros_like(value) for value in reference]):
        verdict = judge("logits", candidate, reference, rounding, FP32)
        assert not verdict.passed
        assert "cannot be proven: torch's own float32 reproduces the reference" in verdict.sentence()


def test_a_well_conditioned_network_is_judged_as_ever():
    """The negative: with k = 1 torch's own result passes, and zeros fail as different, not as unprovable."""
    _, _, reference, rounding = computed(Sine(1.0))

    assert judge("logits", rounding, reference, rounding, FP32).passed
    wrong = judge("logits", [np.zeros_like(value) for value in reference], reference, rounding, FP32)
    assert (False, None) == (wrong.passed, wrong.unproven)


def test_the_layer_where_precision_is_lost_is_named():
    """The product by 1e8 keeps its digits, the sine after it does not."""
    graph, feeds, _, _ = computed(Sine(1e8))
    reference = ReferenceLayers(graph)
    judged = LayerJudge(graph.layers, FP32)
    rounding = reference.rounding(FP32.storage, feeds, frozenset(reference.nodes))
    for feed in feeds:
        exact = reference.reference(feed)
        errors = reference.accumulated(feed, rounding, exact)
        for layer, value in exact.values.items():
            judged.add(judged.whole, layer, value, value, errors[layer])
    layers = ArtifactLayers(None, "net", judged.rows())

    assert "sin" == layers.precision_lost_at.operator
    assert layers.precision_lost_at.loses < 3
    assert [True, True] == [row.passed for row in layers.rows[:2]]
    assert None is layers.precision_lost_at.passed
    assert "nothing can be proven, first" in layers.sentence()


def test_zeroed_golden_outputs_prove_nothing():
    """Torch rounds what is not zero to what is not zero, so a reference of zeros is not its own."""
    _, _, reference, rounding = computed(Sine(1.0))
    zeros = [np.zeros_like(value) for value in reference]

    assert not judge("logits", zeros, zeros, rounding, FP32).passed


def test_a_rounding_file_of_huge_errors_excuses_nothing():
    """What would allow anything is taken for what cannot be proven."""
    _, _, reference, rounding = computed(Sine(1.0))
    huge = [value + 1.0 for value in rounding]

    assert not judge("logits", [np.zeros_like(value) for value in reference], reference, huge, FP32).passed


def test_an_output_that_is_zero_everywhere_is_reproduced():
    """A dead head gives exact zeros in any precision."""
    zeros = [np.zeros((1, 5))] * 4

    assert judge("logits", zeros, zeros, zeros, FP32).passed


@pytest.mark.parametrize(("images", "proven"), [((), True), ((True,) * 8, False)])
def test_a_case_that_torch_does_not_reproduce_is_set_aside(images, proven):
    """One made-up tensor (a constant image behind a normalisation by its own deviation, say) ends no verdict; a real
    image does.
    """
    random = np.random.default_rng(1)
    reference = [random.standard_normal((1, 6)) for _ in range(8)]
    rounding = [value + 1e-6 for value in reference]
    rounding[3] = random.standard_normal((1, 6))
    candidate = [value - 2e-6 for value in reference]
    candidate[3] = np.ones((1, 6))

    verdict = judge("logits", candidate, reference, rounding, FP32, images)

    assert (proven, (3,)) == (verdict.passed, verdict.set_aside)
    candidate[5] = candidate[5] + 1e-3
    assert not judge("logits", candidate, reference, rounding, FP32, images).passed


def test_most_cases_have_to_prove_something():
    """Five of eight made-up cases that torch does not reproduce are too many."""
    random = np.random.default_rng(1)
    reference = [random.standard_normal((1, 6)) for _ in range(8)]
    rounding = [random.standard_normal((1, 6)) if index < 5 else value for index, value in enumerate(reference)]

    assert conditioning(reference, rounding, FP32).problem is not None
    rounding[0] = reference[0]
    assert conditioning(reference, rounding, FP32).problem is None


def test_classes_that_torch_itself_confuses_prove_nothing():
    """Scores that differ in their last digits keep 120 dB and no class; equal scores are one class as well as the
    other.
    """
    random = np.random.default_rng(1)
    reference = [1e4 + 1e-4 * random.standard_normal((1, 10)) for _ in range(20)]
    rounding = [value.astype(np.float32) for value in reference]

    found = conditioning(reference, rounding, FP32)

    assert "names the reference's class" in found.problem
    assert 1.0 == classes_kept([np.array([[0.0, 1.0]])], [np.array([[2.0, 2.0]])])


def test_a_file_has_a_floor_beside_the_multiple():
    """Rounding that is great in one value of a thousand would allow a file that is off by as much in all of them."""
    random = np.random.default_rng(0)
    reference = [random.standard_normal((1, 1000)) for _ in range(6)]
    rounding = [value.copy() for value in reference]
    for value in rounding:
        value[0, 0] += 0.01
    candidate = [value + 0.15 for value in reference]

    verdict = judge("logits", candidate, reference, rounding, FP32)

    assert (False, 0, None) == (verdict.passed, verdict.mismatched, verdict.unproven)
    assert "36 dB needed whatever rounding costs" in verdict.sentence()
    assert judge("logits", candidate, reference, rounding, replace(FP32, floor_db=30.0)).passed


def test_a_half_of_float16_that_overflows_cannot_be_proven():
    """Torch's own float16 gives infinity, so a finite file is not held to anything."""
    reference = [np.full((1, 4), 1e5)] * 4
    rounding = [np.full((1, 4), np.inf)] * 4

    verdict = judge("logits", reference, reference, rounding, FP16)

    assert not verdict.passed
    assert "float16 storage reproduces the reference not at all" in verdict.sentence()


def test_random_weights_are_asked_for_less_in_float16_alone():
    """Float32 keeps the same floor; what somebody chose stays."""
    table = for_untrained(TOLERANCES)

    assert FP32 == table[Format.ONNX, "fp32"]
    assert table[Format.COREML, "fp16"].floor_db < FP16.floor_db
    chosen = replace(FP16, multiple=3.0)
    assert chosen == for_untrained({(Format.COREML, "fp16"): chosen})[Format.COREML, "fp16"]


def test_integers_that_nothing_could_reach_are_not_called_wrong():
    """Where float32 itself stays below what integers are asked for, the network is named, not the file."""
    _, _, reference, rounding = computed(Sine(1e8))
    integers = TOLERANCES[Format.ONNX, "static_wi8_ai8"]

    assert Precision.INT8 is integers.basis
    assert judge("logits", rounding, reference, rounding, integers).unproven is not None


def test_a_mask_names_classes_as_scores_do():
    """
    An output of yes and no, with a batch beside it, is compared without a subtraction of booleans.
    """
    mask = np.array([[True, False, True]])

    assert classes_kept([mask], [mask]) == 1.0
    assert classes_kept([~mask], [mask]) == 0.0
