"""A program that several test files look at."""

import pytest

pytest.register_assert_rewrite("mil_programs")

from mil_programs import noise, save, small  # noqa: E402 - after its asserts are to be explained


@pytest.fixture
def package(tmp_path):
    return save(tmp_path, small, [noise(1, 3, 6, 6)])
