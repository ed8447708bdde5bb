"""Labelled images: folders, labels, and what is left out."""

import pytest
from colours import COLOURS
from PIL import Image

from coordatt_deploy.data import digits
from coordatt_deploy.data.dataset import LabelsBy
from coordatt_deploy.data.digits import read_all
from coordatt_deploy.data.labelled import open_dataset
from coordatt_deploy.errors import MissingDependencyError, UsageError


def test_folders_are_labels_whatever_their_writing(photos):
    """
    Case, blanks and underscores make no difference; the order is that of the labels, not of the folders.
    """
    folder = photos(1, names=("RED", "Green", "deep_blue"))
    found = open_dataset(str(folder), tuple(COLOURS), 3)

    assert LabelsBy.NAME is found.labels_by
    assert {"RED/0.png": 0, "Green/0.png": 1, "deep_blue/0.png": 2} == {i.name: i.label for i in found.images}


def test_without_labels_folders_are_taken_in_order(photos):
    """
    Sorted as text, as torchvision's ImageFolder does.
    """
    found = open_dataset(str(photos(1)), None, 3)

    assert LabelsBy.ORDER is found.labels_by
    assert {"deep blue/0.png": 0, "green/0.png": 1, "red/0.png": 2} == {i.name: i.label for i in found.images}


def test_numbered_folders_are_not_guessed(tmp_path):
    """
    Eleven numbered folders without labels mean two things; each is had by asking for it.
    """
    for name in map(str, range(11)):
        (tmp_path / name).mkdir()
        Image.new("L", (2, 2)).save(tmp_path / name / "0.png")
    with pytest.raises(UsageError, match="--labels-by index"):
        open_dataset(str(tmp_path), None, 11)

    by_index = open_dataset(str(tmp_path), None, 11, LabelsBy.INDEX).images
    by_order = open_dataset(str(tmp_path), None, 11, LabelsBy.ORDER).images
    assert {"10/0.png": 10, "2/0.png": 2}.items() <= {image.name: image.label for image in by_index}.items()
    assert {"10/0.png": 2, "2/0.png": 3}.items() <= {image.name: image.label for image in by_order}.items()


@pytest.mark.parametrize(
    ("names", "labels", "classes", "way", "answer"),
    [
        (("red", "grean", "deep blue"), tuple(COLOURS), 3, None, "'grean': did you mean green"),
        (("0", "1", "7"), None, 3, LabelsBy.INDEX, "numbered 0 to 2"),
        (("a", "b", "c"), None, 4, None, "3 class folders (a, b, c), the model 4 classes"),
        (("a", "b", "c"), None, 3, LabelsBy.NAME, "no labels"),
        (("0", "1", "x"), tuple(COLOURS), 3, LabelsBy.INDEX, "no class of the model (x)"),
    ],
)
def test_labels_that_do_not_fit(photos, names, labels, classes, way, answer):
    """
    Named, with what the model has.
    """
    folder = photos(1, names=names)
    with pytest.raises(UsageError) as caught:
        open_dataset(str(folder), labels, classes, way)
    assert answer in str(caught.value)


def test_what_is_no_dataset(tmp_path):
    """
    A path that is not there, a file, an empty folder, images without class folders: each has its own answer.
    """
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "flat" / "a.png")
    for name, answer in (("none", "there is no dataset"), ("empty", "holds no image"), ("flat", "flat/CLASS/a.png"),
                         ("flat/a.png", "is a file")):  # fmt: skip
        with pytest.raises(UsageError, match=answer):
            open_dataset(str(tmp_path / name), None, 3)


def test_nothing_is_left_out_silently(photos):
    """
    Images outside class folders, folders without images, other files and classes without images are all told.
    """
    folder = photos(2, names=("red", "green"))
    Image.new("L", (2, 2)).save(folder / "stray.png")
    (folder / "notes.txt").write_text("later")
    (folder / "later").mkdir()
    text = "\n".join(open_dataset(str(folder), tuple(COLOURS), 3).notes)

    for part in ("stray.png", "later", "1 file does not end like an image", "1 of 3 classes has no image here: deep b"):
        assert part in text


def test_limit_draws_the_same_images_for_the_same_seed(photos):
    """
    And others for another seed.
    """
    whole = open_dataset(str(photos(20)), tuple(COLOURS), 3)
    names = [tuple(image.name for image in whole.limited(12, seed).images) for seed in (0, 0, 1)]

    assert names[0] == names[1] != names[2]
    assert 12 == len(set(names[0]))
    assert whole.limited(60, 0) is whole


def test_packaged_digits_fit_digits_only():
    """
    The held-out 360, or all; a model of other labels is refused.
    """
    assert 360 == len(open_dataset("digits", digits.LABELS, 10))
    everything = open_dataset("digits:all", None, 10)
    assert (1797, read_all().labels.tolist()) == (len(everything), everything.labels.tolist())
    assert "trained" in everything.notes[0]
    with pytest.raises(UsageError, match="labels 0 to 9"):
        open_dataset("digits", tuple(COLOURS), 3)


def test_all_digits_without_scikit_learn(monkeypatch):
    """
    Exit code 3, with the line that installs it.
    """

    def missing(name):
        raise ModuleNotFoundError(name=name.partition(".")[0])

    monkeypatch.setattr(digits, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"sklearn.*pip install 'coordatt-deploy"):
        open_dataset("digits:all", None, 10)
