"""Locks that end with their process."""

import errno
import os
import platform
import subprocess
import sys

import pytest

from coordatt_deploy import locks
from coordatt_deploy.locks import LOCK, holder, is_alive, take_lock


@pytest.fixture(params=["flock", "file"])
def way(request, monkeypatch):
    """By the kernel; and where it has no locks, by a file."""
    if request.param == "file":

        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(locks.fcntl, "flock", refuse)
    return request.param


def test_a_lock_is_held_once_and_leaves_nothing(way, tmp_path):
    """
    Whoever comes second gets None, and who holds it is told.
    """
    lock = take_lock(tmp_path)

    assert take_lock(tmp_path) is None
    assert f"process {os.getpid()} (" in holder(tmp_path)
    assert (way == "file") == (tmp_path / LOCK).exists()
    lock.release()
    assert [] == list(tmp_path.iterdir())
    with take_lock(tmp_path):
        assert take_lock(tmp_path) is None


def test_a_lock_ends_with_its_process(way, tmp_path):
    """
    However it ends; the file of a process that is gone counts no more.
    """
    process = os.fork()
    if process == 0:
        os._exit(0 if take_lock(tmp_path) is not None else 1)

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert (way == "file") == (tmp_path / LOCK).exists()
    with take_lock(tmp_path):
        assert take_lock(tmp_path) is None
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("owner", ["another-machine 1", f"{platform.node()} {os.getppid()}", "", "nonsense"])
def test_a_file_of_a_process_that_may_be_alive_counts(tmp_path, monkeypatch, owner):
    """
    On another machine nobody can tell.
    """

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    (tmp_path / LOCK).write_text(owner)

    assert take_lock(tmp_path) is None
    assert (tmp_path / LOCK).exists()


def test_a_folder_that_was_removed_is_not_locked(tmp_path, monkeypatch):
    """
    A lock on what has that name no more would keep nobody out.
    """
    place = tmp_path / "net"
    place.mkdir()
    flock = locks.fcntl.flock

    def replace(*arguments):
        place.rename(tmp_path / "aside")
        place.mkdir()
        flock(*arguments)

    monkeypatch.setattr(locks.fcntl, "flock", replace)

    assert take_lock(place) is None


def test_what_is_not_there_is_an_error(tmp_path):
    """
    And no lock.
    """
    with pytest.raises(FileNotFoundError):
        take_lock(tmp_path / "nowhere")


def test_nobody_holds_what_is_free(tmp_path):
    """
    Nothing is made up.
    """
    assert "another process" == holder(tmp_path)


def test_a_process_is_alive_until_it_ends():
    """
    As far as this machine can tell.
    """
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_alive(process.pid)
    process.communicate()
    assert not is_alive(process.pid)
