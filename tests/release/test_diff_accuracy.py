"""Accuracy in ``diff``: by running both, by what evaluate left image by image, and by its counts."""

import numpy as np
import pytest
from click.testing import CliRunner
from colours import BLIND_TO_BLUE, RIGHT, evaluated, photo_writer, write_colours

from coordatt_deploy.cli import main
from coordatt_deploy.errors import UsageError
from coordatt_deploy.evaluation.paired import PairedDifference
from coordatt_deploy.progress import Stages
from coordatt_deploy.release.accuracy_change import independent_interval
from coordatt_deploy.release.diff import DiffPlan, diff
from coordatt_deploy.release.diff_result import Change, ChangeKind, DiffSettings

SWAPPED = RIGHT[[1, 0, 2]]  # red is called green, and green red


@pytest.fixture
def bundles(tmp_path):
    """Two bundles whose only file has the weights given."""
    return lambda a, b: tuple(
        write_colours(tmp_path / name, net=np.ascontiguousarray(weight)) for name, weight in (("a", a), ("b", b))
    )


@pytest.fixture
def photos(tmp_path):
    return photo_writer(tmp_path)


def accuracy(pair, **plan):
    result = diff(pair[0].root, pair[1].root, DiffPlan(latency=False, **plan), Stages())
    (row,) = (row for row in result.rows if row.kind is ChangeKind.ACCURACY)
    return row


@pytest.mark.parametrize(
    ("weights", "verdict", "lost", "gained"),
    [
        ((RIGHT, BLIND_TO_BLUE), Change.REGRESSION, 40, 0),
        ((BLIND_TO_BLUE, RIGHT), Change.IMPROVEMENT, 0, 40),
        ((BLIND_TO_BLUE, SWAPPED), Change.REGRESSION, 80, 40),
    ],
)
def test_both_are_run_on_the_same_images(bundles, photos, weights, verdict, lost, gained):
    """
    Every image is a pair: how many were lost and how many gained.
    """
    row = accuracy(bundles(*weights), dataset=str(photos(each=40)))

    assert (verdict, lost, gained) == (row.verdict, row.accuracy.lost, row.accuracy.gained)
    assert row.accuracy.paired
    assert PairedDifference(120, lost, gained).interval_points == row.accuracy.interval


def test_too_few_images_do_not_exclude_a_drop(bundles, photos):
    """
    Equal answers on twelve images: inconclusive, with how many images would decide; with a wide limit no difference.
    """
    pair, folder = bundles(RIGHT, 2 * RIGHT), str(photos())
    few = accuracy(pair, dataset=folder)
    wide = accuracy(pair, dataset=folder, settings=DiffSettings(max_drop=50.0))

    assert Change.INCONCLUSIVE is few.verdict
    assert few.accuracy.images_needed > 200
    assert f"{few.accuracy.images_needed:,} images" in few.reason
    assert Change.NO_DIFFERENCE is wide.verdict


def test_what_evaluate_left_is_paired_where_every_changed_image_is_named(bundles, photos):
    """
    Twelve images, of which the four blue ones are lost: the same pairs as if both had been run.
    """
    pair, folder = bundles(RIGHT, BLIND_TO_BLUE), photos()
    for bundle in pair:
        evaluated(bundle, folder)
    kept, run = accuracy(pair), accuracy(pair, dataset=str(folder))

    assert kept.accuracy.paired
    assert (4, 0) == (kept.accuracy.lost, kept.accuracy.gained)
    assert (run.verdict, run.accuracy) == (kept.verdict, kept.accuracy)


def test_counts_alone_give_a_wider_interval(bundles, photos):
    """
    Of forty lost images a report names twenty; what is said then holds for other images each.
    """
    pair, folder = bundles(RIGHT, BLIND_TO_BLUE), photos(each=40)
    for bundle in pair:
        evaluated(bundle, folder)
    kept, run = accuracy(pair), accuracy(pair, dataset=str(folder))

    assert (Change.REGRESSION, False) == (kept.verdict, kept.accuracy.paired)
    assert kept.accuracy.points == pytest.approx(run.accuracy.points)
    assert np.ptp(kept.accuracy.interval) > np.ptp(run.accuracy.interval)


def test_one_side_alone_and_other_images_decide_nothing(bundles, photos, tmp_path):
    """
    Both are inconclusive, and the reason says what decides.
    """
    pair = bundles(RIGHT, BLIND_TO_BLUE)
    evaluated(pair[0], photos())
    one = accuracy(pair)
    evaluated(pair[1], photo_writer(tmp_path / "others")())
    other = accuracy(pair)

    assert [Change.INCONCLUSIVE] * 2 == [one.verdict, other.verdict]
    assert "only one" in one.reason
    assert "other images" in other.reason
    assert "--dataset" in one.reason
    assert "--dataset" in other.reason


def test_classes_of_other_names_have_no_images_in_common(tmp_path, photos):
    """
    A dataset whose folders name the classes fits one of the two at most.
    """
    a = write_colours(tmp_path / "a", net=RIGHT)
    b = write_colours(tmp_path / "b", labels=("red", "green", "blue"), net=RIGHT)

    with pytest.raises(UsageError, match="name classes otherwise"):
        diff(a.root, b.root, DiffPlan(latency=False, dataset=str(photos())), Stages())


def test_a_regression_of_accuracy_fails_the_command(bundles, photos):
    """
    Unless it is accepted.
    """
    a, b = bundles(RIGHT, BLIND_TO_BLUE)
    words = ["diff", str(a.root), str(b.root), "--no-latency", "--dataset", str(photos(each=40))]

    assert 1 == CliRunner().invoke(main, words).exit_code
    assert 0 == CliRunner().invoke(main, [*words, "--accept", "accuracy"]).exit_code


def test_the_interval_of_counts_is_newcombes():
    """
    9 of 10 against 3 of 10: 0.1705 to 0.8090 (Newcombe 1998, table II, method 10).
    """
    assert (0.1705, 0.8090) == pytest.approx(independent_interval(9, 3, 10), abs=5e-5)
    low, high = independent_interval(3, 9, 10)
    assert (-0.8090, -0.1705) == pytest.approx((low, high), abs=5e-5)


def test_draws_of_images_are_not_taken_for_the_same_ones(bundles, photos):
    """
    Six of twelve images each, drawn by other seeds: the lists are whole and say nothing of the other's images.
    """
    pair, folder = bundles(RIGHT, BLIND_TO_BLUE), photos()
    for seed, bundle in enumerate(pair):
        evaluated(bundle, folder, limit=6, seed=seed)

    assert not accuracy(pair).accuracy.paired
