"""Two artifacts on the same images: what a difference of accuracy is worth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from coordatt_deploy.evaluation.paired import NOT_FINITE, PairedDifference, classes_and_places, mid_p, score_interval


@given(gained=st.integers(0, 60), lost=st.integers(0, 60), agreed=st.integers(0, 2000))
def test_interval_holds_the_difference_and_is_a_mirror(gained, lost, agreed):
    """
    The interval lies within [-1, 1], around the difference itself, and exchanging the two turns it over.
    """
    images = gained + lost + agreed or 1
    low, high = score_interval(gained, lost, images)
    other_low, other_high = score_interval(lost, gained, images)

    assert -1 <= low <= (gained - lost) / images <= high <= 1
    assert math.isclose(low, -other_high, abs_tol=1e-9)
    assert math.isclose(high, -other_low, abs_tol=1e-9)


@given(gained=st.integers(0, 20), lost=st.integers(0, 20), agreed=st.integers(0, 500), more=st.integers(2, 20))
def test_more_images_of_the_same_kind_tell_more(gained, lost, agreed, more):
    """
    Every image several times over gives the same difference and a narrower interval.
    """
    images = gained + lost + agreed or 1
    few = score_interval(gained, lost, images)
    many = score_interval(gained * more, lost * more, images * more)

    assert many[1] - many[0] < few[1] - few[0]


def test_published_interval():
    """
    1 gained and 7 lost of 21: Tango's interval in Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014).
    """
    low, high = score_interval(1, 7, 21)

    assert (-0.517, -0.026) == (round(low, 3), round(high, 3))


@pytest.mark.parametrize("images", [1, 10, 360, 2000])
def test_without_a_difference_the_interval_still_has_a_width(images):
    """
    Where no image tells the two apart, the bounds are z² / (n + z²): few images prove little.
    """
    bound = 1.959964**2 / (images + 1.959964**2)

    assert score_interval(0, 0, images) == pytest.approx((-bound, bound), abs=1e-6)


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.01), (0.01, 0.01), (0.10, 0.02)])
def test_coverage_is_the_nominal_one(lost, gained):
    """
    Of many draws with a known difference, about 95 % of the intervals hold it, computed over all likely outcomes.
    """
    images = 300
    draws = np.random.default_rng(0).multinomial(images, [lost, gained, 1 - lost - gained], 2000)
    held = [low <= gained - lost <= high for b, c, _ in draws for low, high in [score_interval(c, b, images)]]

    assert 0.935 <= np.mean(held) <= 0.98


def test_mid_p_by_hand():
    """
    One of eight: 2 (P(0) + P(1) / 2) = 2 (1 + 4) / 256; even splits tell nothing.
    """
    assert mid_p(1, 7) == pytest.approx(10 / 256)
    assert mid_p(7, 1) == pytest.approx(10 / 256)
    assert 1.0 == mid_p(4, 4) == mid_p(0, 0)
    assert 0 < mid_p(0, 5000) < 1e-300 or mid_p(0, 5000) == 0.0


def test_drop_is_judged_exactly_at_the_limit():
    """
    Five of a thousand are half a point: within 0.5, beyond 0.49.
    """
    pair = PairedDifference(1000, lost=7, gained=2)

    assert -0.5 == pair.points
    assert not pair.exceeds(0.5)
    assert pair.exceeds(0.49)
    assert not PairedDifference(1000, lost=0, gained=9).exceeds(0.0)


@pytest.mark.parametrize("counts", [(0, 0, 0), (3, 2, 2), (3, -1, 0)])
def test_impossible_counts_are_refused(counts):
    """
    More differences than images, or none at all to count.
    """
    with pytest.raises(ValueError, match="cannot be"):
        PairedDifference(*counts)


def test_a_masked_class_is_never_named():
    """
    Minus infinity is less than every score; where all are, there is no class.
    """
    logits = np.array([[-np.inf, 1.0, 0.0], [-np.inf, 1.0, 0.0], [-np.inf, -np.inf, -np.inf]])
    classes, places = classes_and_places(logits, np.array([1, 0, 1]))

    assert [1, 1, NOT_FINITE] == classes.tolist()
    assert [0, 2, 3] == places.tolist()


def test_equal_logits_are_taken_in_order_and_nan_names_nothing():
    """
    As argmax does in an app; NaN and infinity are never right.
    """
    logits = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, np.nan, 9.0], [np.inf, 0.0, 0.0]])
    classes, places = classes_and_places(logits, np.array([0, 1, 2, 0]))

    assert [0, 0, NOT_FINITE, NOT_FINITE] == classes.tolist()
    assert [0, 1, 3, 3] == places.tolist()


@settings(max_examples=30)
@given(st.data())
def test_first_place_is_argmax(data):
    """
    The right class has place 0 exactly where argmax names it, ties included.
    """
    logits = np.array(data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1)), float)
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(logits), max_size=len(logits))))
    classes, places = classes_and_places(logits, labels)

    assert np.argmax(logits, axis=1).tolist() == classes.tolist()
    assert (classes == labels).tolist() == (places == 0).tolist()


@given(gained=st.integers(0, 60), lost=st.integers(0, 60))
def test_mid_p_is_scipys_binomial_test_less_half_the_split(gained, lost):
    """
    The exact two-sided test counts the split that was seen whole, on both of its sides; mid-p counts it half.
    """
    trials = gained + lost
    if gained == lost:
        assert mid_p(gained, lost) == 1
        return
    exact, seen = stats.binomtest(gained, trials).pvalue, stats.binom.pmf(gained, trials, 0.5)

    assert math.isclose(mid_p(gained, lost), exact - seen, rel_tol=1e-9)
