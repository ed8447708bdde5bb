"""Natural golden images for networks of the user's own."""

import sys

import numpy as np
import pytest

from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.data.digits import read_split
from coordatt_deploy.data.photographs import photograph_parts
from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.loading.load import golden_images

RGB = Preprocessing((64, 64))
GREY = Preprocessing((64, 64), (0.5,), (0.5,), "GREY")


def test_parts_are_the_same_each_time_and_all_different():
    """
    Coloured squares of both photographs, named after them.
    """
    one, again = photograph_parts(6), photograph_parts(6)

    assert [name for name, _ in one] == ["china_00", "flower_01", "china_02", "flower_03", "china_04", "flower_05"]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(one, again, strict=True))
    assert 6 == len({image.tobytes() for _, image in one})
    for _, image in one:
        pixels = np.asarray(image, np.int64)
        assert image.size[0] == image.size[1] >= 112
        assert np.ptp(pixels, axis=2).max() > 30  # colours, not grey


def test_a_users_network_of_colours_gets_photographs():
    """
    An embedded one what it knows, and a grey one digits; the text says which.
    """
    count = len(read_split("golden").labels)

    text, images = golden_images(None, RGB)
    assert f"{count} parts of the two photographs that scikit-learn brings" == text
    assert (count, {None}) == (len(images), {label for _, _, label in images})
    assert "handwritten digits" in golden_images("digits", RGB)[0]
    assert "handwritten digits" in golden_images(None, GREY)[0]
    assert "scenes" in golden_images("scenes", RGB)[0]


def test_without_scikit_learn_there_are_digits(monkeypatch):
    """
    They are packaged; asked for the photographs themselves, what to install is said.
    """
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    assert "handwritten digits" in golden_images(None, RGB)[0]
    with pytest.raises(MissingDependencyError, match="pip install"):
        photograph_parts(1)
