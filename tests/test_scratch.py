"""Temporary folders that end with their process."""

import os
import subprocess
import sys

import pytest

from coordatt_deploy.scratch import PREFIX, Scratch, remove_stale_scratch


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_folder_ends_with_its_block(tmp_path):
    """
    With everything in it.
    """
    with Scratch() as folder:
        (folder / "deep" / "er").mkdir(parents=True)
        assert folder.name.startswith(PREFIX)
        assert tmp_path == folder.parent

    assert [] == list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(tmp_path):
    """
    It is the lock that tells: process ids come again.
    """
    script = f"import os, tempfile; tempfile.tempdir = {str(tmp_path)!r}; from coordatt_deploy.scratch import Scratch;"
    subprocess.run(
        [sys.executable, "-c", f"{script} s = Scratch(); (s.folder / 'x').touch(); os._exit(9)"], check=False
    )
    (tmp_path / "coordatt-deploy-logs-0").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "coordatt-deploy-logs-0")
    (stale,) = (path for path in tmp_path.iterdir() if path.name.startswith(PREFIX) and not path.is_symlink())
    with Scratch() as used:
        remove_stale_scratch()

        assert not stale.exists()
        assert used.exists()
    assert {"coordatt-deploy-logs-0", f"{PREFIX}link"} == {path.name for path in tmp_path.iterdir()}


def test_a_folder_goes_with_the_process(tmp_path):
    """
    Where nobody has removed it.
    """
    script = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}; from coordatt_deploy.scratch import Scratch;"
    subprocess.run([sys.executable, "-c", f"{script} kept = Scratch(); assert kept.folder.exists()"], check=True)

    assert [] == list(tmp_path.iterdir())


def test_a_fork_does_not_remove_its_parents_folder():
    """
    Only the process that made it.
    """
    with Scratch() as folder:
        process = os.fork()
        if process == 0:
            sys.exit = os._exit
            import weakref

            weakref.finalize._exitfunc()
            os._exit(0)
        os.waitpid(process, 0)

        assert folder.exists()
