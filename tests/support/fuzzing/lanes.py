"""Run cases, each in a process of its own that is forked from one that has imported everything."""

import os
import pickle
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from fuzzing import cases, outcome
from fuzzing.cases import Case
from fuzzing.outcome import Ended, Outcome

HANG_S = 20.0
MOST_BYTES = 4 << 30
GUARD_BYTES = 10 << 30  # beyond what this process maps already, so that a case cannot take the machine with it
TRACEBACK = 99


def run_all(seeds: Sequence[int], root: Path, work: Path, lanes: int) -> list[Outcome]:
    """Run the cases of *seeds* on copies of *root*, several at a time; in the order of *seeds*."""
    known = forked(lambda: outcome.answers_of(root / "bundle"))
    files = [work / f"lane-{lane}" for lane in range(lanes)]
    children = []
    for lane, file in enumerate(files):
        if (pid := os.fork()) == 0:
            try:
                mine = [run_one(cases.make(seed, root), root, work, known) for seed in seeds[lane::lanes]]
                file.write_bytes(pickle.dumps(mine))
            except BaseException:  # noqa: BLE001 - a forked process must not go on with the tests
                traceback.print_exc()
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    found = [item for file in files for item in pickle.loads(file.read_bytes())]  # noqa: S301 - written above
    return sorted(found, key=lambda item: seeds.index(item.case.seed))


def run_one(case: Case, root: Path, work: Path, known: outcome.Answers) -> Outcome:
    """Run one case in a folder of its own, which is removed unless something is wrong."""
    place = work / f"case-{case.seed}"
    shutil.copytree(root, place)
    (place / "canary").mkdir()
    (place / "canary/kept").write_text("kept")
    cases.apply(case, place)
    before = outcome.state(place)
    ended = _run_forked(case, place)
    found = outcome.judge(case, ended, place, before)
    if case.artifact is not None and case.command[0] == "parity" and ended.code == 0:
        changed = forked(lambda: outcome.changed(case.artifact, root / "bundle", place / "bundle", known))
        found = Outcome(case, ended, (*found.problems, *([changed] if changed else [])))
    if not found.problems:
        shutil.rmtree(place)
    return found


def forked(work: Callable[[], object]) -> object:
    """Return what *work* returns, called in a forked process; a text where it dies."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(read)
        try:
            _quiet(os.devnull)
            answer = work()
        except BaseException as error:  # noqa: BLE001 - told as a text
            answer = f"{type(error).__name__}: {error}"
        with os.fdopen(write, "wb") as stream:
            stream.write(pickle.dumps(answer))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        answer = stream.read()
    os.waitpid(pid, 0)
    return pickle.loads(answer) if answer else "the runtime died of it"  # noqa: S301


def _run_forked(case: Case, place: Path) -> Ended:
    log = place / "output"
    begun = time.monotonic()
    if (pid := os.fork()) == 0:
        _child(case, place, log)
    limit = HANG_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # others use this machine as well
    status, usage = None, None
    while status is None:
        done, found, spent = os.wait4(pid, os.WNOHANG)
        if done:
            status, usage = found, spent
        elif time.monotonic() - begun > limit:
            os.killpg(pid, signal.SIGKILL)
            _, _, usage = os.wait4(pid, 0)
            break
        else:
            time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it started
    code = None if status is None else os.waitstatus_to_exitcode(status)
    text = log.read_bytes().decode(errors="backslashreplace") if log.exists() else ""
    return Ended(code, code == TRACEBACK, usage.ru_maxrss * 1024, time.monotonic() - begun, text)


def _child(case: Case, place: Path, log: Path) -> None:
    code = TRACEBACK
    try:
        os.setsid()
        os.chdir(place)
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")
        _quiet(log)
        with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123
            mapped = int(stream.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + GUARD_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = cases.run(case)
    except BaseException:  # noqa: BLE001 - judged by the parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _quiet(log: str | Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - the test runner's are others
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
