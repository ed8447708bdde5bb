"""Whatever is changed in a file: one line, no signal, no hang, nothing outside, and what is wrong is never passed."""

import os

import pytest
import torch
from fuzzing import bases, lanes

LANES = 2
MANY = int(os.environ.get("FUZZ_CASES", "200"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))


@pytest.fixture(autouse=True)
def one_thread():
    """Pools of threads do not survive a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wrong(tmp_path, root, seeds):
    work = tmp_path / "work"
    work.mkdir()
    found = lanes.run_all(seeds, root, work, LANES)
    assert len(seeds) == len(found)
    assert any(item.ended.code == 0 for item in found)  # some changes are no harm
    assert any(item.ended.code == 2 for item in found)
    return "\n".join(str(item) for item in found if item.problems)


def test_20_cases_on_a_bundle_without_converters(tmp_path):
    """
    Documents, archives, an ONNX file, checkpoints and what else users give.
    """
    root = tmp_path / "root"
    root.mkdir()
    bases.prepare(root, whole=False)

    assert "" == wrong(tmp_path, root, range(20))


@pytest.mark.slow
def test_cases_on_a_bundle_of_every_format(tmp_path):
    """
    ``make fuzz`` runs 2,000.
    """
    root = tmp_path / "root"
    root.mkdir()
    bases.prepare(root, whole=True)

    assert "" == wrong(tmp_path, root, range(FIRST, FIRST + MANY))


def test_the_fuzzer_sees_what_is_wrong(tmp_path, monkeypatch):
    """
    The negative: a signal, a traceback, a forged line, a file outside and a hang are each told.
    """
    (tmp_path / "root/bundle").mkdir(parents=True)
    (tmp_path / "root/user").mkdir()
    case = lanes.Case(0, "user/a", (":fault",))
    monkeypatch.setattr(lanes.cases, "apply", lambda *_: None)
    monkeypatch.setattr(lanes, "HANG_S", 0.5)
    faults = {
        "signal 9": lambda _: os.kill(os.getpid(), 9),
        "a traceback": lambda _: 1 / 0,
        "exit code 7": lambda _: os._exit(7),
        "a file outside": lambda _: open("canary/kept", "w").close(),  # noqa: PTH123
        "left x": lambda _: open("x", "w").close(),  # noqa: PTH123
        "had not ended": lambda _: lanes.time.sleep(600),
        "2 error lines": lambda _: os.write(2, b"Error: one\nError: two\n"),
    }
    for number, (said, fault) in enumerate(faults.items()):
        monkeypatch.setitem(lanes.cases.FUNCTIONS, ":fault", fault)
        work = tmp_path / str(number)
        work.mkdir()

        found = lanes.run_one(case, tmp_path / "root", work, {})

        assert said in "; ".join(found.problems), (said, found)
