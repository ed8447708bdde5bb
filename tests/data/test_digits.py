"""The packaged digits and what the embedded default makes of them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from coordatt_deploy import models
from coordatt_deploy.data.digits import LABELS, DigitSplit, read_all, read_split, render, write_split
from coordatt_deploy.data.images import preprocess
from coordatt_deploy.models import train_digits

NAME = "mobilenetv2_ca_035.digits"
REQUIRED_ACCURACY = 0.985


@pytest.fixture(scope="module")
def predictions() -> np.ndarray:
    """The class that the packaged network gives each packaged held-out image."""
    images, _ = train_digits.to_tensors(read_split("held_out"))
    return train_digits.predict(models.create_model(NAME), images)


def test_held_out_accuracy_is_the_recipes(predictions):
    """
    The packaged weights reach 98.5 % on images they never saw, and exactly what the recipe claims.
    """
    held_out = read_split("held_out")
    correct = int((predictions == held_out.labels).sum())
    claimed = models.model_card(NAME).recipe()["accuracy"]["held_out"]

    assert correct / len(held_out) >= REQUIRED_ACCURACY
    assert {"correct": correct, "images": len(held_out), "top1": correct / len(held_out)} == claimed


def test_permuted_labels_lose_the_accuracy(predictions):
    """
    With every label moved by one the same predictions are nearly all wrong: the measure can fail.
    """
    permuted = (read_split("held_out").labels + 1) % 10

    assert (predictions == permuted).mean() < 0.05


def test_fresh_weights_know_nothing():
    """
    The same network without its trained weights guesses: the accuracy comes from the file.
    """
    images, labels = train_digits.to_tensors(read_split("calibration"))
    guesses = train_digits.predict(models.create_model(NAME, pretrained=False), images)

    assert (guesses == labels.numpy()).mean() < 0.4


@pytest.mark.parametrize(("name", "count"), [("golden", 20), ("held_out", 360), ("calibration", 200)])
def test_packaged_images_are_scikit_learns(name, count):
    """
    Every packaged image is the row of load_digits that it claims to be, in 8 bits, with its label.
    """
    source = load_digits()
    split = read_split(name)

    assert count == len(split) == len(set(split.indices))
    np.testing.assert_array_equal(split.labels, source.target[split.indices])
    np.testing.assert_array_equal(split.pixels, np.rint(source.images[split.indices] * 255 / 16))


def test_splits_do_not_leak():
    """
    Golden is part of the held-out images, and none of those is among the calibration images.
    """
    golden, held_out, calibration = (
        set(read_split(name).indices.tolist()) for name in ("golden", "held_out", "calibration")
    )

    assert golden < held_out
    assert not held_out & calibration


def test_training_reproduces_the_packaged_splits():
    """
    The training script, with the recipe's seed, holds out the packaged images and calibrates on training images alone.
    """
    recipe = models.model_card(NAME).recipe()
    train, held_out = train_digits.split_source(read_all(), recipe["settings"]["seed"])

    np.testing.assert_array_equal(held_out.indices, read_split("held_out").indices)
    assert set(read_split("calibration").indices) <= set(train.indices)
    assert 1797 == len(set(train.indices) | set(held_out.indices))
    assert recipe["data"]["train"]["sha256"] == train_digits.fingerprint(train)
    assert recipe["data"]["held_out"]["sha256"] == train_digits.fingerprint(held_out)


def test_every_digit_is_represented():
    """
    Golden holds two and calibration twenty of each digit; the card's labels name them in order.
    """
    assert [2] * 10 == np.bincount(read_split("golden").labels).tolist()
    assert [20] * 10 == np.bincount(read_split("calibration").labels).tolist()
    assert LABELS == models.model_card(NAME).labels


def test_png_gives_the_same_tensor_at_either_size():
    """
    Through a PNG file, the 96x96 rendering and the 8x8 original give the same tensor bit for bit.
    """
    preprocessing = models.model_card(NAME).preprocessing
    for pixels in read_split("golden").pixels[:4]:
        tensors = []
        for image in (render(pixels), Image.fromarray(pixels)):
            file = io.BytesIO()
            image.save(file, "PNG")
            tensors.append(preprocess(Image.open(file), preprocessing))

        assert (3, 96, 96) == tensors[0].shape
        assert np.float32 == tensors[0].dtype
        np.testing.assert_array_equal(tensors[0], tensors[1])


def test_full_ink_is_one_and_paper_is_minus_one():
    """
    The preprocessing spreads the 256 grey levels over [-1, 1] in three equal channels.
    """
    preprocessing = models.model_card(NAME).preprocessing
    ink, paper = (render(np.full((8, 8), level, np.uint8)) for level in (255, 0))

    np.testing.assert_array_equal(preprocess(ink, preprocessing), np.ones((3, 96, 96), np.float32))
    np.testing.assert_array_equal(preprocess(paper, preprocessing), -np.ones((3, 96, 96), np.float32))


def test_split_survives_writing(tmp_path):
    """
    A split comes back as it was written, and the same split gives the same bytes.
    """
    golden = read_split("golden")
    first = write_split("calibration", golden, folder=tmp_path).read_bytes()
    second = write_split("calibration", golden, folder=tmp_path).read_bytes()
    again = read_split("calibration", folder=tmp_path)

    assert first == second
    np.testing.assert_array_equal(golden.pixels, again.pixels)
    np.testing.assert_array_equal(golden.labels, again.labels)
    np.testing.assert_array_equal(golden.indices, again.indices)


def test_split_of_unequal_parts_is_refused():
    """
    Fewer labels than images is a mistake that shows at once.
    """
    with pytest.raises(ValueError, match="labels"):
        DigitSplit(np.zeros((2, 8, 8), np.uint8), np.zeros(1, np.int64), np.arange(2))


def test_distortion_keeps_range_and_paper():
    """
    Distorted images stay within the input range, differ from the originals, and come out the same for the same seed.
    """
    images, _ = train_digits.to_tensors(read_split("golden"))
    settings = train_digits.Settings()
    first, again = (train_digits.distort(images, settings, torch.Generator().manual_seed(1)) for _ in range(2))

    assert torch.equal(first, again)
    assert not torch.equal(first, images)
    assert first.min() >= -1 - 1e-6
    assert first.max() <= 1 + 1e-6
    assert bool((first.amin(dim=(1, 2, 3)) < -0.99).all())


@pytest.mark.slow
def test_training_script_writes_what_the_package_holds(tmp_path):
    """
    One epoch into another folder writes all four files; the digits in them are the packaged ones.
    """
    train_digits.main(["--epochs", "1", "--threads", "1", "--output", str(tmp_path)])

    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert {
        "data/digits_held_out.npz",
        "data/digits_calibration.npz",
        f"weights/{NAME}.safetensors",
        f"weights/{NAME}.json",
    } == written
    for name in ("held_out", "calibration"):
        packaged, fresh = read_split(name), read_split(name, folder=tmp_path / "data")
        np.testing.assert_array_equal(packaged.indices, fresh.indices)
        np.testing.assert_array_equal(packaged.pixels, fresh.pixels)
