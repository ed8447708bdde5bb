"""One grid for parts of different scale: what it carries of each."""

from dataclasses import replace

import numpy as np
import pytest

from coordatt_deploy.artifact_specs import OutputRegion
from coordatt_deploy.formats import Format
from coordatt_deploy.output_grids import channel_axis, coarse_parts, grid_step, part_of
from coordatt_deploy.parity.outputs import judge
from coordatt_deploy.parity.tolerances import TOLERANCES, for_untrained

BOXES = OutputRegion("boxes", (None, (0, 1, 2, 3), None))
SCORES = OutputRegion("scores", (None, (4, 5), None), "sigmoid")
INT8 = TOLERANCES[Format.TFLITE, "static_wi8_ai8"]


def detections(seed=0, side=64.0, cases=6):
    """Boxes of 0...side and scores of 0...0.6, (1, 6, 50) in each case."""
    random = np.random.default_rng(seed)
    return [
        np.concatenate([random.uniform(0, side, (1, 4, 50)), random.uniform(0, 0.6, (1, 2, 50))], 1)
        for _ in range(cases)
    ]


def snapped(values, step):
    return [np.round(value / step) * step for value in values]


def verdict(candidate, reference, regions, tolerance=INT8):
    return judge("output", candidate, reference, reference, tolerance, (), regions)


def test_scores_on_the_grid_of_boxes_carry_nothing():
    """48 dB over the whole output, and every score one of three values: not passed, and the part is named."""
    reference = detections()
    candidate = snapped(reference, 64 / 255)

    found = verdict(candidate, reference, (BOXES, SCORES))

    assert found.sqnr_db > 45
    assert not found.passed
    assert "carries nothing: scores: 4.0 steps of the output's grid, 64 needed" in found.sentence()


def test_scores_on_a_grid_of_their_own_pass():
    """The negative: a concatenation in float."""
    reference = detections()
    candidate = [
        np.concatenate([b, s], 1)
        for b, s in zip(
            snapped([v[:, :4] for v in reference], 64 / 255),
            snapped([v[:, 4:] for v in reference], 1 / 256),
            strict=True,
        )
    ]

    assert verdict(candidate, reference, (BOXES, SCORES)).passed


def test_scores_that_are_wrong_fail_beside_boxes_that_are_right():
    """No grid is to blame, and the whole output still has 40 dB; scores exchanged between classes are named."""
    reference = detections()
    candidate = [np.concatenate([v[:, :4], v[:, :3:-1]], 1) for v in reference]

    found = verdict(candidate, reference, (BOXES, SCORES))

    assert found.sqnr_db > 40
    assert "scores: SQNR" in found.sentence()


def test_scores_of_images_without_objects_are_no_fault():
    """All below 1e-4, and 0 in integers on a grid of 1/256: that is what a score's grid gives."""
    reference = [np.concatenate([v[:, :4], v[:, 4:] * 1e-4], 1) for v in detections()]
    candidate = [np.concatenate([v[:, :4], np.round(v[:, 4:] * 256) / 256], 1) for v in reference]

    assert verdict(candidate, reference, (BOXES, SCORES)).passed


@pytest.mark.parametrize("axis", [1, 2])
def test_channels_of_one_maker_that_differ_in_scale_are_named(axis):
    """A convolution that gives pixels and metres at once; channels on the second or on the last axis."""
    random = np.random.default_rng(0)
    reference = [random.uniform(0, 1, (1, 3, 40)) * np.array([640.0, 640.0, 1.0])[None, :, None] for _ in range(4)]
    region = OutputRegion("head", (None, (0, 1, 2), None))
    if axis == 2:
        reference = [np.swapaxes(value, 1, 2) for value in reference]
        region = replace(region, axes=(None, None, (0, 1, 2)))

    (part,) = coarse_parts(reference, (region,), 640 / 255)

    assert (2,) == part.channels
    assert axis == channel_axis(region)
    assert not verdict(snapped(reference, 640 / 255), reference, (region,)).passed


def test_a_channel_that_is_constant_in_float_carries_nothing_anyway():
    """A dead channel beside a wide one is no fault of the grid."""
    random = np.random.default_rng(0)
    reference = [random.uniform(0, 640, (1, 3, 40)) for _ in range(4)]
    for value in reference:
        value[:, 2] = 0.25

    assert () == coarse_parts(reference, (), 640 / 255)


def test_an_output_that_hardly_changes_is_left_to_the_layers():
    """Random weights: logits of 1 with digits behind it; no finer grid for some of them would show more."""
    reference = [1.0 + 1e-3 * value for value in detections(side=1.0)]

    assert () == coarse_parts(reference, (), 1 / 255)
    assert verdict(
        snapped(reference, 1 / 255), reference, (), for_untrained(TOLERANCES)[Format.TFLITE, "static_wi8_ai8"]
    ).passed


@pytest.mark.parametrize("step", [1 / 256, 0.25, 2.51])
def test_the_step_of_a_grid_is_read_off_its_values(step):
    """Dequantized in float32, with most steps never met."""
    values = [np.float32(value) for value in snapped(detections(side=100.0), step)]

    assert step == pytest.approx(grid_step(values), rel=1e-3)


def test_floats_lie_on_no_grid():
    """Nor does a value that never changes."""
    assert grid_step(detections()) is None
    assert grid_step([np.zeros((1, 8))]) is None


@pytest.mark.parametrize("axes", [(None, (6,), None), (None, (-1,), None), (None, (0,)), (None, (), None)])
def test_parts_of_another_output_are_refused(axes):
    """A manifest may say anything."""
    with pytest.raises(ValueError, match="part made by head"):
        part_of(detections()[0], OutputRegion("head", axes))
