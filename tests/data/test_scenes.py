"""Digits on photographs: the same every time, with masks that are right, and nothing of training is held out."""

import numpy as np
import pytest

from coordatt_deploy.data import scenes
from coordatt_deploy.data.labelled import open_dataset
from coordatt_deploy.data.scenes import GOLDEN, IGNORED, LABELS, golden_scenes, make_scene, scene_source
from coordatt_deploy.errors import MissingDependencyError, UsageError


def test_a_scene_is_a_function_of_its_number():
    """
    The same arguments give the same pixels; another number, seed or split gives others.
    """
    first, again = make_scene("train", 3), make_scene("train", 3)
    others = make_scene("train", 4), make_scene("train", 3, seed=1), make_scene("held_out", 3)

    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.mask, again.mask)
    assert ("train_003", (96, 96, 3), (96, 96)) == (first.name, first.pixels.shape, first.mask.shape)
    assert not any(np.array_equal(first.pixels, other.pixels) for other in others)


def test_golden_scenes_are_the_first_that_are_held_out():
    """
    The packaged ones are what the package makes.
    """
    golden = golden_scenes()

    assert GOLDEN == len(golden)
    for number, scene in enumerate(golden):
        made = make_scene("held_out", number)
        assert made.name == scene.name
        assert np.array_equal(made.pixels, scene.pixels)
        assert np.array_equal(made.mask, scene.mask)


def test_nothing_of_training_is_held_out():
    """
    No digit is in both splits, and the photographs are cut apart.
    """
    train, held_out = scene_source("train"), scene_source("held_out")

    assert not set(train.digits.indices.tolist()) & set(held_out.digits.indices.tolist())
    assert (1437, 360) == (len(train.digits), len(held_out.digits))
    assert [640, 640] == [
        left.shape[1] + right.shape[1] for left, right in zip(train.photographs, held_out.photographs, strict=True)
    ]


def test_masks_name_digits_and_their_rims():
    """
    Every scene has a digit; background, digits and ignored pixels are all there is, and each class occurs.
    """
    made = [make_scene("train", number) for number in range(60)]
    counts = np.bincount(np.stack([scene.mask for scene in made]).ravel(), minlength=256)

    assert all(np.any((scene.mask > 0) & (scene.mask < len(LABELS))) for scene in made)
    assert counts.sum() == counts[: len(LABELS)].sum() + counts[IGNORED]
    assert np.all(counts[: len(LABELS)] > 0)
    assert 0.6 < counts[0] / counts.sum() < 0.95


def test_a_digit_stands_out_where_the_mask_has_it():
    """
    Inside of it pixels are of nearly one colour: they differ less from their mean than the background does.
    """
    inside, outside = [], []
    for number in range(20):
        scene = make_scene("held_out", number)
        (label,) = np.unique(scene.mask[(scene.mask > 0) & (scene.mask < IGNORED)])[:1]
        inside.append(scene.pixels[scene.mask == label].std(axis=0).mean())
        outside.append(scene.pixels[scene.mask == 0].std(axis=0).mean())

    assert np.mean(inside) < np.mean(outside)


def test_the_dataset_of_evaluate_is_what_is_held_out():
    """
    Three hundred images with masks, for a model with these labels.
    """
    found = open_dataset("scenes", LABELS, None)

    assert (300, "masks") == (len(found), found.labelled_by)
    assert np.array_equal(make_scene("held_out", 7).mask, found.images[7].truth)
    with pytest.raises(UsageError, match="scenes has the labels background, 0, 1"):
        open_dataset("scenes", ("cat", "dog"), None)


def test_without_scikit_learn_the_line_that_installs_it(monkeypatch):
    """
    Exit code 3; the golden scenes need nothing.
    """

    def missing(name):
        raise ModuleNotFoundError(name=name.partition(".")[0])

    scene_source.cache_clear()
    monkeypatch.setattr(scenes, "import_module", missing)
    with pytest.raises(MissingDependencyError, match="pip install 'coordatt-deploy"):
        make_scene("held_out", 0)
    assert GOLDEN == len(golden_scenes())
