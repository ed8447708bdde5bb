"""Worker processes: what kills one is told in a line, and none outlives the process that it works for."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from coordatt_deploy.errors import ConversionError, DeployError, InternalError, UsageError, WorkerDiedError
from coordatt_deploy.logs import captured, log_folder
from coordatt_deploy.processes import Task, how_it_ended, job_log, workers

ORPHANS_GONE_S = 5.0


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """Logs and temporary folders of this test alone, for its workers as well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()


def temporary_folder(_):
    return tempfile.mkdtemp(), os.environ["TMPDIR"]


def end_by(number):
    with captured(log_folder() / "quantize-net.log"):
        os.write(1, b"the converter's last words\n")
        os.kill(os.getpid(), number)


def raise_it(error):
    raise error


def sleep(seconds):
    time.sleep(seconds)


def fail_to_begin():
    raise ValueError("no such weights")


def refuse_to_begin():
    raise UsageError("no such bundle")


def do(function, argument):
    with workers(1) as pool:
        return pool.submit(Task("making net.onnx", function), argument).result()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "was ended by SIGKILL, perhaps because memory ran out"),
        (signal.SIGSEGV, "was ended by SIGSEGV: a library in it crashed"),
    ],
)
def test_a_worker_that_is_killed_is_told_in_one_line(number, said):
    """
    What it did, how it ended, and where its last words are; not a broken pool.
    """
    with pytest.raises(WorkerDiedError, match=f"the process that was making net.onnx {said}") as caught:
        do(end_by, number)
    log = Path(str(caught.value).rpartition(" ")[2])

    assert 2 == caught.value.exit_code
    assert "\n" not in str(caught.value)
    assert "the converter's last words\n" == log.read_text()
    assert [log] == list(log.parent.iterdir())


def test_a_bug_in_a_worker_is_one_line_with_a_log():
    """
    As in the command line.
    """
    with pytest.raises(
        InternalError, match=r"making net\.onnx failed: ZeroDivisionError: by zero; .* a fault"
    ) as caught:
        do(raise_it, ZeroDivisionError("by zero\nof course"))
    log = Path(str(caught.value).rpartition(" ")[2])

    assert 70 == caught.value.exit_code
    assert "in raise_it" in log.read_text()


def test_an_error_that_a_user_can_act_on_arrives_as_it_is():
    """
    The negative.
    """
    with pytest.raises(ConversionError, match=r"^the converter refused it$"):
        do(raise_it, ConversionError("the converter refused it"))


def negative(number):
    return -number


def test_a_process_that_dies_takes_only_its_own_task_with_it():
    """
    What waited, what another process was at, and what is submitted afterwards is done all the same.
    """
    with workers(2) as pool:
        calls = [pool.submit(Task(f"counting {number}", negative), number) for number in range(4)]
        bad = pool.submit(Task("making net.tflite", end_by), signal.SIGSEGV)
        calls += [pool.submit(Task(f"counting {number}", negative), number) for number in range(4, 8)]
        with pytest.raises(WorkerDiedError, match=r"making net\.tflite was ended by SIGSEGV"):
            bad.result()
        calls.append(pool.submit(Task("counting 8", negative), 8))

        assert {-number for number in range(9)} == {call.result() for call in pool.completed(calls)}


def test_of_two_tasks_that_cannot_be_told_apart_none_is_taken_for_the_dead_one():
    """
    The negative: then all of them fail.
    """
    with pytest.raises(WorkerDiedError), workers(1) as pool:
        calls = [pool.submit(Task("the same", end_by), signal.SIGKILL) for _ in range(2)]
        calls[1].result()


@pytest.mark.parametrize(
    ("begin", "kind", "said"),
    [
        (fail_to_begin, InternalError, "starting a worker process failed: ValueError: no such weights"),
        (refuse_to_begin, UsageError, "^no such bundle$"),
    ],
)
def test_a_worker_that_cannot_begin_says_why(begin, kind, said, capfd):
    """
    And prints no traceback.
    """
    with pytest.raises(DeployError, match=said) as caught, workers(1, begin=begin) as pool:
        pool.submit(Task("waiting", sleep), 0).result()

    assert kind is type(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_temporary_files_of_workers_go_with_the_pool(tmp_path):
    """
    Those that a worker forgets as well: they lie in a folder of the parent's.
    """
    made, told = do(temporary_folder, None)

    assert told == str(Path(made).parent)
    assert Path(made).is_relative_to(tmp_path / "temporary")
    assert [] == list((tmp_path / "temporary").iterdir())


def test_an_interruption_ends_the_workers(tmp_path):
    """
    At once, with their logs and temporary files.
    """
    with pytest.raises(KeyboardInterrupt), workers(1) as pool:
        pool.submit(Task("sleeping", sleep), 600)
        process = wait_for_worker(pool)
        raise KeyboardInterrupt

    assert not process.is_alive()
    assert [] == list((tmp_path / "temporary").iterdir())


def wait_for_worker(pool):
    while not pool.executor._processes:
        time.sleep(0.01)
    (process,) = pool.executor._processes.values()
    return process


def running(mark: str) -> set[int]:
    """The processes with *mark* in their environment."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and "Z" != (folder / "stat").read_text().split()[2]:
                found.add(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("by_the_kernel", [True, False])
def test_no_worker_outlives_its_parent(tmp_path, number, by_the_kernel):
    """
    Killed, or ended by a signal that it has no handler for; by Linux itself, and where a thread must look after it.
    """
    (tmp_path / "marking.py").write_text(
        f"from pathlib import Path\n\ndef begin():\n    Path({str(tmp_path / 'began')!r}).touch()\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
        import time
        from coordatt_deploy import interruption
        from coordatt_deploy.processes import Task, workers
        if not {by_the_kernel}:
            interruption.PR_SET_PDEATHSIG = 0

        from marking import begin

        if __name__ == "__main__":
            with workers(2, begin=begin) as pool:
                for _ in range(2):
                    pool.submit(Task("sleeping", time.sleep), 600)
                time.sleep(600)
        """)
    )
    mark = f"MARK_{os.getpid()}_{number}_{by_the_kernel}"
    parent = subprocess.Popen([sys.executable, str(script)], env=os.environ | {mark: "1"})
    while not (tmp_path / "began").exists():
        assert parent.poll() is None
        time.sleep(0.02)
    assert len(running(mark)) >= 2
    parent.send_signal(number)
    parent.wait()
    deadline = time.monotonic() + ORPHANS_GONE_S
    while running(mark) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert set() == running(mark)


def test_an_exit_status_is_told_in_words():
    """
    Signals by name, others by number.
    """
    assert "ended with exit status 3" == how_it_ended(3)
    assert "was ended by SIGTERM" == how_it_ended(-signal.SIGTERM)
    assert "was ended by signal 99" == how_it_ended(-99)


def test_the_log_of_a_job_has_its_name():
    """
    And that of the process that planned it.
    """
    assert f"export-net_fp32-{os.getpid()}.log" == job_log("export", Path("onnx/net_fp32.onnx")).name
