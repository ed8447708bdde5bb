"""Where logs and caches go."""

from pathlib import Path

import pytest

from coordatt_deploy.logs import cache_folder, log_folder


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("/somewhere/else", "/somewhere/else/coordatt-deploy"),
        ("", "/home/me/.cache/coordatt-deploy"),
        (None, "/home/me/.cache/coordatt-deploy"),
    ],
)
def test_caches_are_where_linux_has_them(monkeypatch, variable, expected):
    """
    Below XDG_CACHE_HOME, else below ~/.cache: where every earlier version has put them.
    """
    monkeypatch.setenv("HOME", "/home/me")
    if variable is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", variable)

    assert Path(expected) == cache_folder()


def test_logs_lie_in_the_cache(monkeypatch, tmp_path):
    """
    The folder is made.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert tmp_path / "coordatt-deploy/logs" == log_folder()
    assert log_folder().is_dir()


def test_a_cache_that_cannot_be_made_is_no_reason_to_fail(monkeypatch, tmp_path):
    """
    Logs go to a temporary folder then.
    """
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    found = log_folder()

    assert found.is_dir()
    assert found.name.startswith("coordatt-deploy-logs-")
