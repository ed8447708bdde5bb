"""Bundles of a network that names colours, and images for it."""

from functools import partial

import pytest
from colours import photo_writer, write_colours


@pytest.fixture
def bundle(tmp_path):
    """Writes a bundle with an ONNX artifact for each named weight."""
    return partial(write_colours, tmp_path / "bundle")


@pytest.fixture
def photos(tmp_path):
    """Writes a folder of images of one colour each, a little apart; returns it."""
    return photo_writer(tmp_path)
