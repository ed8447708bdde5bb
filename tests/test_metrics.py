import math

import numpy as np
import pytest

from coordatt_deploy.metrics import (
    BoxForm,
    box_form,
    box_ious,
    intersection_over_union,
    mask_counts,
    sqnr_db,
    sqnr_db_of_energies,
)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100.0, 1.0, 20.0),
        (1.0, 1.0, 0.0),
        (1.0, 0.0, math.inf),
        (0.0, 0.0, math.inf),
        (math.nan, 0.0, math.inf),
        (0.0, 1.0, -math.inf),
        (0.0, math.nan, -math.inf),
        (math.nan, 1.0, -math.inf),
        (1.0, math.nan, math.nan),
        (1.0, math.inf, math.nan),
        (math.inf, 1.0, math.inf),
        (math.inf, math.inf, math.nan),
    ],
)
def test_the_ratio_of_energies(signal, noise, expected):
    """
    Decibels; without noise, without a signal and with what is not finite there are fixed answers.
    """
    assert sqnr_db_of_energies(signal, noise) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("signal", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_arrays_that_are_not_finite_have_no_ratio(signal, bad):
    """
    Whatever the signal.
    """
    assert math.isnan(sqnr_db([np.array([bad])], [np.array([signal])]))


def test_the_energies_of_all_cases_are_added_up():
    """
    One ratio over the cases, not the mean of theirs.
    """
    reference = [np.array([3.0, 4.0]), np.array([0.0])]
    candidate = [np.array([3.0, 4.0]), np.array([0.5])]

    assert sqnr_db(candidate, reference) == sqnr_db_of_energies(25.0, 0.25)


def test_boxes_are_corners_or_have_a_centre():
    """
    By their numbers alone; offsets that are still to be decoded are neither.
    """
    random = np.random.default_rng(0)
    centre = [np.concatenate([random.uniform(0, 1, (1, 50, 2)), random.uniform(0.1, 0.3, (1, 50, 2))], axis=2)]
    half = centre[0][..., 2:] / 2
    corners = [np.concatenate([centre[0][..., :2] - half, centre[0][..., :2] + half], axis=2)]

    assert (BoxForm.CORNERS, -1) == box_form(corners)
    assert (BoxForm.CENTRE, -1) == box_form(centre)
    assert (BoxForm.CENTRE, 1) == box_form([value.transpose(0, 2, 1) for value in centre])
    assert box_form([random.normal(size=(1, 50, 4))]) is None
    assert box_form([random.normal(size=(1, 50, 5))]) is None
    moved = [value + np.array([0.05, 0, 0.05, 0]) for value in corners]
    by_centre = [value + np.array([0.05, 0, 0, 0]) for value in centre]
    np.testing.assert_allclose(box_ious(moved, corners), box_ious(by_centre, centre), atol=1e-12)


def test_overlap_of_boxes_by_hand():
    """
    Half of a box on the other one is a third of both together; beside it nothing; NaN is no overlap.
    """
    reference = [np.array([[[0.0, 0.0, 2.0, 2.0]] * 5])]
    candidate = [np.array([[[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [0, 0, np.nan, 2], [2, 2, 0, 0]]], np.float64)]

    assert [1.0, pytest.approx(1 / 3), 0.0, 0.0, 0.0] == box_ious(candidate, reference).tolist()
    point = [np.zeros((1, 1, 4))]
    assert [1.0] == box_ious(point, point).tolist()


def test_counts_of_a_mask_by_hand():
    """
    Right, found and should of each class; what is ignored is in none, and what is no class is not found.
    """
    truth = np.array([[0, 0, 1, 255], [1, 1, 0, 255]])
    found = np.array([[0, 1, 1, 0], [1, -1, 0, 1]])
    counts = mask_counts(found, truth, 3, ignored=255)

    assert [[2, 2, 0], [2, 3, 0], [3, 3, 0]] == counts.tolist()
    ious = intersection_over_union(counts)
    assert [2 / 3, 0.5] == ious[:2].tolist()
    assert np.isnan(ious[2])
