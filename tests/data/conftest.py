"""Images that several test files label."""

import pytest
from colours import photo_writer


@pytest.fixture
def photos(tmp_path):
    """Writes a folder of images of one colour each, a little apart; returns it."""
    return photo_writer(tmp_path)
