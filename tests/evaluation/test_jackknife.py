"""What a difference of two scores is worth: the jackknife by hand, against scipy, and how often it holds the truth."""

import numpy as np
import pytest
from scipy import stats

from coordatt_deploy.evaluation.jackknife import (
    ScoreDifference,
    difference,
    groups_of,
    jackknife_deviation,
    student,
)


def without_each(values):
    """The means of (2, N) scores without each image."""
    return (values.sum(axis=1, keepdims=True) - values) / (values.shape[1] - 1)


def test_of_means_it_is_students_paired_interval():
    """
    Scores that are means over images get the interval of scipy's paired t test.
    """
    values = np.random.default_rng(0).normal(size=(2, 37))
    found = difference(*values.mean(axis=1), without_each(values), per_image=values[1] - values[0])
    expected = stats.ttest_rel(values[1], values[0]).confidence_interval(0.95)

    assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert (values[1] > values[0]).sum() == found.greater
    assert (values[1] < values[0]).sum() == found.lower


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 19, 20, 359, 2000, 2001, 50_000])
def test_students_quantile_is_scipys(freedom):
    """
    From one degree of freedom to many.
    """
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-6)


def test_without_a_difference_there_is_no_interval():
    """
    Images that tell nothing apart do not say how far others would; nor does one image alone.
    """
    same = np.ones((2, 5)) * 0.7

    assert difference(0.7, 0.7, same).interval is None
    assert difference(0.5, 0.7, np.zeros((2, 0))).interval is None
    assert jackknife_deviation(np.array([1.0])) is None
    assert jackknife_deviation(np.array([1.0, np.nan, 2.0])) is None


def test_groups_hold_each_image_once():
    """
    Twenty of nearly equal size; as many as there are images where there are fewer.
    """
    groups = groups_of(103)

    assert 20 == len(groups)
    assert {5, 6} == {len(group) for group in groups}
    assert list(range(103)) == sorted(np.concatenate(groups))
    assert 7 == len(groups_of(7))


def test_grouped_interval_of_a_ratio_holds_the_truth_as_often_as_it_says():
    """
    Of many draws of a score that is no mean, about 95 % of the intervals hold the difference of the populations.
    """
    generator, held = np.random.default_rng(1), []
    for _ in range(300):
        weights = generator.gamma(3.0, size=200)
        scores = np.stack([weights * generator.normal(0.5, 0.2, 200), weights * generator.normal(0.45, 0.2, 200)])
        rows = np.arange(200)
        parts = [np.setdiff1d(rows, group) for group in groups_of(200)]
        without = np.stack([[score[part].sum() / weights[part].sum() for part in parts] for score in scores])
        low, high = difference(*(scores.sum(axis=1) / weights.sum()), without).interval
        held.append(low <= -0.05 <= high)

    assert 0.91 <= np.mean(held) <= 0.985


@pytest.mark.parametrize(("value", "higher", "beyond"), [(-0.1, True, True), (0.1, True, False), (0.1, False, True)])
def test_a_drop_is_a_drop_whichever_way_is_better(value, higher, beyond):
    """
    A lower score where higher is better, a higher one where it is not; exact at the limit itself.
    """
    found = ScoreDifference(value, None)

    assert beyond == found.exceeds(0.09, higher_is_better=higher)
    assert not found.exceeds(0.1, higher_is_better=higher)
