"""Where logs and caches go."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from coordatt_deploy.errors import BundleError
from coordatt_deploy.logs import (
    KEPT_DAYS,
    cache_folder,
    captured,
    keep_running_log,
    log_folder,
    logged,
    remove_stale_logs,
)


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
    assert found == log_folder(), "one for all calls"


def test_somebody_elses_folder_of_that_name_is_not_written_to(monkeypatch, tmp_path):
    """
    The system's temporary folder is everybody's.
    """
    (tmp_path / "file").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"coordatt-deploy-logs-{os.getuid()}").symlink_to(tmp_path / "elsewhere")

    assert "elsewhere" != log_folder().resolve().name


@pytest.fixture
def logs(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return log_folder()


def test_a_log_is_kept_when_something_went_wrong(logs):
    """
    And only then; not where the user ended the command.
    """
    with logged("fine"):
        os.write(1, b"chatter")
    with pytest.raises(KeyboardInterrupt), logged("ended"):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="no"), logged("failed"):
        os.write(1, b"from C\n")
        raise ValueError("no")

    (kept,) = logs.iterdir()
    assert f"failed-{os.getpid()}.log" == kept.name
    assert "from C\n" == kept.read_text()


def test_what_killed_processes_were_writing_is_removed_and_what_errors_named_stays(logs):
    """
    For a month.
    """
    script = "import os; from coordatt_deploy.logs import *\nwith logged('killed'): os._exit(9)"
    subprocess.run([sys.executable, "-c", script], check=False)
    named, ancient = logs / "named-1.log", logs / "ancient-1.log"
    for log in (named, ancient):
        log.write_text("why")
    month = time.time() - (KEPT_DAYS + 1) * 86_400
    os.utime(ancient, (month, month))
    assert 3 == len(list(logs.iterdir()))
    with captured(logs / "mine.log"):
        remove_stale_logs()

        assert {"named-1.log", f"mine.log.{os.getpid()}.running"} == {log.name for log in logs.iterdir()}


def test_the_last_words_of_a_killed_process_can_be_kept(logs):
    """
    Before they are removed.
    """
    script = "import os; from coordatt_deploy.logs import *\nwith logged('killed'): os.write(1, b'ah'); os._exit(9)"
    process = subprocess.Popen([sys.executable, "-c", script])
    process.wait()
    log = keep_running_log(process.pid)
    remove_stale_logs()

    assert "ah" == log.read_text()
    assert [log] == list(logs.iterdir())


@pytest.mark.parametrize("call", [1, 2, 3, 4], ids=["way in", "inside of it", "way out", "at its end"])
def test_a_signal_on_the_way_in_or_out_leaves_neither_log_nor_darkness(tmp_path, call):
    """
    Both descriptors are the terminal's again, whichever call of the redirection the signal finds.
    """
    program = f"""
        import os, signal
        from pathlib import Path
        from coordatt_deploy.interruption import Terminated, handled
        from coordatt_deploy.logs import captured

        calls, real = [], os.dup2
        def dup2(*arguments):
            calls.append(arguments)
            real(*arguments)
            if len(calls) == {call}:
                os.kill(os.getpid(), signal.SIGTERM)
        os.dup2 = dup2
        try:
            with handled(), captured(Path("net.log")):
                print("into the log")
        except Terminated:
            print("ended", flush=True)
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=False, capture_output=True, text=True, cwd=tmp_path
    )

    assert (0, "ended\n") == (done.returncode, done.stdout), done.stderr
    assert [] == list(tmp_path.glob("*.running"))


@pytest.mark.parametrize(("printed", "kept"), [(b"", []), (b"why", ["why"])])
def test_a_mistake_that_printed_nothing_leaves_no_log(logs, printed, kept):
    """
    What a runtime printed before it stays.
    """
    with pytest.raises(BundleError), logged("report"):
        os.write(1, printed)
        raise BundleError("no bundle")

    assert kept == [log.read_text() for log in logs.iterdir()]
