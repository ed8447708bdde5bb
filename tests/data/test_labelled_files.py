"""Datasets of other kinds than class folders: what is read, what is left out, what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from coordatt_deploy.artifact_specs import Preprocessing, TensorSpec
from coordatt_deploy.data.dataset import LabelKind, LabelsBy
from coordatt_deploy.data.labelled import open_dataset
from coordatt_deploy.data.labelled_files import of_archive, of_labels_file, of_masks
from coordatt_deploy.data.masks import fitted_mask, sampled
from coordatt_deploy.errors import UsageError

IMAGE = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")
PIXELS = np.zeros((2, 8, 8, 3), np.uint8)
RULE = Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3)


def picture(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


@pytest.mark.parametrize(
    ("arrays", "kind", "labels"),
    [
        ({"images": PIXELS, "labels": np.array([0, 2])}, LabelKind.CLASSES, [0, 2]),
        ({"images": PIXELS, "labels": np.array([0.5, 2.0])}, LabelKind.VALUES, [-1, -1]),
        ({"images": PIXELS[..., 0], "labels": np.zeros((2, 5, 4))}, LabelKind.VALUES, [-1, -1]),
        ({"images": PIXELS, "masks": np.zeros((2, 8, 8), np.uint8)}, LabelKind.MASKS, [-1, -1]),
        ({"image": np.zeros((2, 3, 8, 8), np.float32), "labels": np.array([1, 1])}, LabelKind.CLASSES, [1, 1]),
    ],
)
def test_archives_say_by_their_arrays_what_is_known(tmp_path, arrays, kind, labels):
    """
    Whole numbers are classes, masks are masks, anything else is for a metric; images or tensors stand beside them.
    """
    np.savez(tmp_path / "set.npz", **arrays)
    found = open_dataset(str(tmp_path / "set.npz"), None, 3, tensor=IMAGE)

    assert (kind, labels) == (found.kind, found.labels.tolist())
    tensor, size = found.images[0].tensor(RULE)
    assert ((3, 8, 8), (8, 8)) == (tensor.shape, size)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PIXELS}, "beside the images it must hold labels, or masks"),
        ({"images": PIXELS, "labels": np.zeros(2), "masks": np.zeros((2, 8, 8), int)}, "must hold labels, or masks"),
        ({"images": PIXELS, "labels": np.zeros(3, int)}, r"2 images and labels of shape \(3,\)"),
        ({"images": PIXELS, "labels": np.array([0, 3])}, "labels from 0 to 3; the model's 3 classes"),
        ({"images": PIXELS, "masks": np.zeros((2, 8, 8))}, "masks are float64"),
        ({"images": PIXELS / 255, "labels": np.zeros(2)}, r"expected 'images' of uint8, or 'image'"),
        ({"images": PIXELS.transpose(0, 3, 1, 2), "labels": np.zeros(2)}, "their channels come last"),
        ({"image": np.zeros((2, 3, 9, 8), np.float32), "labels": np.zeros(2)}, r"the model takes \(1, 3, 8, 8\)"),
        ({"image": np.full((2, 3, 8, 8), np.nan), "labels": np.zeros(2)}, "NaN"),
        ({"photos": PIXELS, "labels": np.zeros(2)}, r"holds photos \(uint8\), labels \(float64\)"),
        ({"images": PIXELS, "labels": np.array([[1], [1, 2]], object)}, "different lengths go into a labels.json"),
    ],
)
def test_archives_that_do_not_fit(tmp_path, arrays, message):
    """
    Each is refused by what it holds, with what is expected.
    """
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        of_archive(tmp_path / "set.npz", 3, IMAGE)


def test_images_and_masks_are_paired_by_their_names(tmp_path):
    """
    Whatever the endings and in folders below; what has no partner is named.
    """
    for name in ("images/a.jpg", "images/b/c.png", "images/d.png", "masks/a.png", "masks/b/c.png", "masks/e.png"):
        picture(tmp_path / name)
    found = open_dataset(str(tmp_path), None, None)

    assert ["images/a.jpg", "images/b/c.png"] == [image.name for image in found.images]
    assert [tmp_path / "masks/a.png", tmp_path / "masks/b/c.png"] == [image.truth for image in found.images]
    assert {"1 image has no mask and is left out: d", "1 mask has no image and is left out: e"} == set(found.notes)


def test_no_pair_is_no_dataset(tmp_path):
    """
    Names that differ are shown.
    """
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "masks" / "a_mask.png")
    with pytest.raises(UsageError, match="a and a_mask are called otherwise"):
        of_masks(tmp_path)


def test_rows_of_an_image_belong_together(tmp_path):
    """
    A labels.csv has a row per box; numbers are numbers, words are words.
    """
    picture(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image,kind,left\na.png,cat,1\na.png,dog,2.5\nb.png,cat,3\n")
    found = of_labels_file(tmp_path / "labels.csv")

    assert ["a.png", "b.png"] == [image.name for image in found.images]
    assert [{"kind": "cat", "left": 1.0}, {"kind": "dog", "left": 2.5}] == found.images[0].truth


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.json", "{", "cannot be read"),
        ("labels.json", "[1]", "must hold an object"),
        ("labels.json", "{}", "names no image"),
        ("labels.json", '{"../a.png": 1}', r"names \.\./a.png; images are named by their path below"),
        ("labels.json", '{"b.png": 1}', "none of the 1 image .* b.png"),
        ("labels.json", '{"a.png": 1, "a.png": 2}', "cannot be read"),
        ("labels.csv", "image\na.png\n", "names of its columns"),
        ("labels.csv", "image,x\na.png\n", "line 2: expected 2 values, image, x"),
        ("labels.csv", "image,x\na.png,1,2\n", "line 2: expected 2 values"),
    ],
)
def test_labels_files_that_do_not_fit(tmp_path, name, text, message):
    """
    Each is refused with its line or its key.
    """
    picture(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        open_dataset(str(tmp_path), None, None)


def test_two_labels_files_are_one_too_many(tmp_path):
    """
    Nobody can know which is meant; nor what --labels-by means without class folders.
    """
    picture(tmp_path / "a.png")
    (tmp_path / "labels.json").write_text(json.dumps({"a.png": 1}))
    with pytest.raises(UsageError, match="--labels-by says how folders name classes"):
        open_dataset(str(tmp_path), None, 3, LabelsBy.INDEX)
    (tmp_path / "labels.csv").write_text("image,x\na.png,1\n")
    with pytest.raises(UsageError, match=r"labels\.json and labels\.csv"):
        open_dataset(str(tmp_path), None, None)


def test_what_is_laid_around_a_mask_is_ignored(tmp_path):
    """
    An image laid on a colour has pixels that nobody labelled.
    """
    picture(tmp_path / "images" / "a.png", (8, 4))
    Image.new("L", (8, 4), 2).save(tmp_path / "images" / "a_mask.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "images" / "a_mask.png").rename(tmp_path / "masks" / "a.png")
    image = of_masks(tmp_path).images[0]
    border = fitted_mask(image, (4, 8), Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3, crop="border"))
    stretched = fitted_mask(image, (4, 8), RULE)

    assert [255, 255, 2, 2, 2, 2, 255, 255] == border[:, 0].tolist()
    assert {2} == set(stretched.ravel().tolist())


def test_a_coarser_output_takes_the_pixels_under_its_centres():
    """
    Of 4x4 pixels those of each quarter's centre, rounded towards the end.
    """
    mask = np.arange(16).reshape(4, 4)

    assert [[5, 7], [13, 15]] == sampled(mask, (2, 2)).tolist()
    assert mask.tolist() == sampled(mask, (4, 4)).tolist()
    assert mask.repeat(2, 0).repeat(2, 1).tolist() == sampled(mask, (8, 8)).tolist()
