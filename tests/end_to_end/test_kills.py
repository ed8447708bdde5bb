"""Whole commands, killed: the old or the new bundle, nothing left over after the next run, no orphan.

A few moments of each here; ``make kills`` takes fifty.
"""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kills():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        from benchmarks import kills

        yield kills
    sys.modules.pop("benchmarks.kills")


@pytest.fixture(scope="module")
def bench(kills, tmp_path_factory):
    return kills.Bench(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("name", ["export", "export again", "quantize", "parity", "report"])
def test_a_command_that_is_ended_leaves_a_whole_bundle(kills, bench, name, number):
    """
    Early, in the midst and late, by a signal that can be handled and by one that cannot.
    """
    (trial,) = (trial for trial in kills.TRIALS if trial.name == name)
    seconds = kills.duration(bench, trial)
    for share in (0.2, 0.6, 0.95):
        state, wrong = bench.kill(trial, number, share * seconds)

        assert [] == wrong
        assert state.removeprefix("ended ") in ({"none", "new"} if trial.fresh else {"old", "new"})


def test_of_two_writers_at_once_one_ends_at_once(kills, bench):
    """
    It says who is first; the other one's artifact is there in the end, and nothing else.
    """
    kills.duration(bench, next(trial for trial in kills.TRIALS if trial.name == "report"))  # a bundle to begin from
    first = bench.start(kills.QUANTIZE)
    while not any((bench.work / "net").glob(".staging-*")):
        time.sleep(0.01)
    code, said = bench.run(kills.QUANTIZE)

    assert os.waitpid(first, os.WNOHANG) == (0, 0), "the first one is still at work"
    assert 2 == code
    assert f"is being written by process {first}" in said
    assert 1 == len(said.strip().splitlines())
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    assert any("static_wi8_ai8" in path.name for path in (bench.work / "net" / "onnx").iterdir())
    assert [] == bench.leftovers(made=False)
