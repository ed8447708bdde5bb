"""What is said while a command works: plain lines where there is no terminal, as much as was asked for."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_bundle import float_bundle

from coordatt_deploy.progress import VERBOSITY, Stages, Verbosity
from coordatt_deploy.report.terminal.console import Lines, bars, new_console


def lines_of(*, verbose: bool, seconds_a_step: float = 4.0) -> list[str]:
    """What a stage of six steps says on a clock that moves with every look at it."""
    stream = io.StringIO()
    now = [0.0]

    def clock() -> float:
        return now[0]

    stages = Stages(Lines(stream, verbose=verbose, clock=clock))
    with stages.stage("layers net.onnx", 6) as step:
        for _ in range(6):
            now[0] += seconds_a_step
            step()
    stages.note("grey images")
    return stream.getvalue().splitlines()


def test_a_long_stage_says_how_far_it_is():
    """
    At its begin and about every ten seconds: a log is never silent for a minute.
    """
    assert [
        "0:00 layers net.onnx", "0:12 layers net.onnx: 3 of 6", "0:24 layers net.onnx: 6 of 6",
        "0:24 note: grey images",
    ] == lines_of(verbose=False)  # fmt: skip


def test_a_short_stage_is_one_line():
    """
    With --verbose two: what it took as well.
    """
    assert ["0:00 layers net.onnx", "0:00 note: grey images"] == lines_of(verbose=False, seconds_a_step=0.1)
    assert "0:00 layers net.onnx: done in 0.6 s" in lines_of(verbose=True, seconds_a_step=0.1)


@pytest.mark.parametrize(("level", "said"), [(Verbosity.QUIET, 0), (Verbosity.USUAL, 1), (Verbosity.VERBOSE, 2)])
def test_as_much_as_was_asked_for(capfd, level, said):
    """
    Nothing, what begins, and what it took.
    """
    token = VERBOSITY.set(level)
    try:
        with bars() as stages, stages.stage("capture"):
            pass
    finally:
        VERBOSITY.reset(token)

    assert said == len(capfd.readouterr().err.splitlines())


def test_columns_says_how_wide_a_piped_table_is(monkeypatch):
    """
    Without it tables are wide.
    """
    monkeypatch.setenv("COLUMNS", "70")
    assert 70 == new_console().width
    monkeypatch.delenv("COLUMNS")
    assert 160 == new_console().width


def tool(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [str(Path(sys.executable).with_name("coordatt-deploy")), *map(str, arguments)]
    names = {key: value for key, value in os.environ.items() if key not in ("PYTHONUTF8", "PYTHONIOENCODING")}
    return subprocess.run(command, env=names | environment, capture_output=True, check=False)


def test_ascii_is_enough(tmp_path):
    """
    A terminal of the C locale gets tables of plus and minus, and what looks alike for every other sign.
    """
    root = float_bundle(tmp_path / "net")

    found = tool("parity", root, "--outputs-only", "--verbose", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    help_ = tool("evaluate", "--help", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")

    assert (0, 0) == (found.returncode, help_.returncode), found.stderr
    for text in (found.stdout, found.stderr, help_.stdout):
        text.decode("ascii")
    assert b"16 x torch-float32's own rounding error" in found.stdout
    assert b"Traceback" not in found.stderr


def test_progress_quiet_and_colour_in_a_pipe(tmp_path):
    """
    Lines on stderr without a terminal, none with -q, no escape with NO_COLOR; stdout holds the result alone.
    """
    root = float_bundle(tmp_path / "net")

    usual = tool("parity", root, "--outputs-only", NO_COLOR="1", FORCE_COLOR="1")
    quiet = tool("parity", root, "--outputs-only", "-q")

    assert b"parity net.onnx" in usual.stderr
    assert b"" == quiet.stderr
    assert b"\x1b[3" not in usual.stdout + usual.stderr
    contradiction = tool("parity", root, "-q", "-v")
    assert (2, True) == (contradiction.returncode, b"give one" in contradiction.stderr)
