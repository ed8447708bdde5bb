"""Kill commands at random moments: is the old or the new bundle there, and nothing else after the next run?

For ``export`` (into nothing and over a bundle), ``quantize``, ``parity`` and ``report`` on a small network, a process
gets SIGKILL or SIGTERM at a moment drawn evenly from its run. Then

* no process of its session is alive 5 seconds later,
* the bundle opens, every hash right, and is the old or the new one (or none where none was),
* after SIGTERM the exit code is 143, one line is said, and nothing is left over at once,
* after the next command nothing is left over: in the bundle, beside it, in the temporary folder, among the logs.

Processes are forked from this one, which has imported everything already: more of the moments fall into the work.

    python benchmarks/kills.py --moments 50
"""

import argparse
import atexit
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.bundle_writing import check_free
from coordatt_deploy.cli import main as command_line
from coordatt_deploy.errors import BundleError

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
"""
EXPORT = ("export", "--model", "net.py:make", "--input-size", "32x32", "--format", "onnx", "--output-dir", "net")
QUANTIZE = ("quantize", "net", "--format", "onnx", "--calibration-data", "calibration.npz")
ORPHANS_GONE_S = 5.0
SIGNALS = (signal.SIGKILL, signal.SIGTERM)

# Progress without a terminal, and a remark on few images.
IN_PASSING = re.compile(r"^\d+:\d\d |images: ranges are steadier")


@dataclass(frozen=True)
class Trial:
    """A command, and whether a bundle is there before."""

    name: str
    arguments: tuple[str, ...]
    fresh: bool = False


# What the forks are to have at hand. Not at the top of this file, which their workers import before they do anything.
IMPORTED = (
    "torch", "onnxruntime", "coordatt_deploy.conversion.export_run", "coordatt_deploy.conversion.golden",
    "coordatt_deploy.loading.load", "coordatt_deploy.conversion.quantize_run", "coordatt_deploy.parity.run",
    "coordatt_deploy.report.write",
)  # fmt: skip

TRIALS = (
    Trial("export", EXPORT, fresh=True),
    Trial("export again", EXPORT),
    Trial("quantize", QUANTIZE),
    Trial("parity", ("parity", "net")),
    Trial("report", ("report", "net")),
)


class Bench:
    """A folder to kill in, with a bundle to begin from."""

    def __init__(self, root: Path) -> None:
        """Export the bundle that every trial begins with, and judge it once."""
        for name in IMPORTED:
            import_module(name)
        self.root, self.work, self.base = root, root / "work", root / "base"
        self.work.mkdir(parents=True)
        self._clear()
        for arguments in (EXPORT, ("parity", "net")):
            code, said = self.run(arguments)
            if code:
                raise SystemExit(f"{arguments[0]} ended with {code}: {said}")
        (self.work / "net").rename(self.base)

    def _clear(self) -> None:
        shutil.rmtree(self.work)
        for folder in (self.work, self.work / "tmp", self.work / "cache"):
            folder.mkdir()
        (self.work / "net.py").write_text(NETWORK)
        noise = np.random.default_rng(0).uniform(-1.7, 2.2, (8, 3, 32, 32)).astype(np.float32)  # as normalised pixels
        np.savez(self.work / "calibration.npz", image=noise)

    def start(self, arguments: Sequence[str]) -> int:
        """Fork a process that is a command in a session of its own; return its id, which is also the session's."""
        return self._fork(lambda: command_line([*arguments]))

    def _fork(self, call: Callable[[], object]) -> int:
        sys.stdout.flush()
        process = os.fork()
        if process:
            return process
        code: object = 70
        try:
            os.setsid()
            os.chdir(self.work)
            os.environ |= {"TMPDIR": str(self.work / "tmp"), "XDG_CACHE_HOME": str(self.work / "cache")}
            tempfile.tempdir = None
            said = os.open(self.root / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)  # not a test's
            try:
                call()
                code = 0
            except SystemExit as end:
                code = end.code
            atexit._run_exitfuncs()
        except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(code if isinstance(code, int) else 1)

    def run(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Run a command to its end; return its exit code and what it said on stderr."""
        code = _exit_code(self.start(arguments))
        return code, self.said()

    def said(self) -> str:
        """Return what the last command said on stderr."""
        return (self.root / "said").read_text(errors="replace")

    def kill(self, trial: Trial, number: signal.Signals, seconds: float) -> tuple[str, list[str]]:
        """Run *trial*, send the signal after *seconds*; return which bundle is there, and what is wrong."""
        self._clear()
        bundle = self.work / "net"
        if not trial.fresh:
            shutil.copytree(self.base, bundle)
        process = self.start(trial.arguments)
        time.sleep(seconds)
        os.kill(process, number)  # where it has ended it is still to be waited for
        code = _exit_code(process)
        said, wrong = self.said(), []
        if number == signal.SIGTERM and code not in (0, 143, -signal.SIGTERM):
            wrong.append(f"exit code {code}: {said}")
        lines = [line for line in said.strip().splitlines() if line and not IN_PASSING.search(line)]
        if "Traceback" in said or (code == 143 and len(lines) != 1):
            wrong.append(f"it said {said!r}")
        deadline = time.monotonic() + ORPHANS_GONE_S
        while (alive := of_session(process)) and time.monotonic() < deadline:
            time.sleep(0.05)
        wrong += [f"process {item} lives on" for item in alive]
        if code == 143:  # with -SIGTERM it had not begun
            wrong += [f"left at once: {name}" for name in self.leftovers(made=trial.fresh)]
        state = self._state(bundle, trial, wrong)
        if state == "none":
            os.waitpid(self._fork(lambda: check_free(Path("net"))), 0)  # what an export begins with
            self.run(("report", "nowhere"))
        else:
            code, said = self.run(("report", "net"))
            wrong += [f"the next command ended with {code}: {said}"] if code and not trial.fresh else []
        wrong += [f"left after the next run: {name}" for name in self.leftovers(made=trial.fresh)]
        return ("ended " if code == 0 and number == signal.SIGTERM and state == "new" else "") + state, wrong

    def _state(self, bundle: Path, trial: Trial, wrong: list[str]) -> str:
        before = None if trial.fresh else (self.base / "manifest.json").read_bytes()
        try:
            open_bundle(bundle)
        except BundleError as error:
            if trial.fresh and ("does not exist" in str(error) or "has no manifest.json" in str(error)):
                return "none"
            wrong.append(str(error))
            return "neither"
        now = (bundle / "manifest.json").read_bytes()
        return "old" if now == before else "new"

    def leftovers(self, *, made: bool) -> list[str]:
        """Return what should not be there."""
        kept = {"net.py", "net", "calibration.npz", "tmp", "cache", "__pycache__"}
        found = [path for path in self.work.iterdir() if path.name not in kept]
        found += [path for path in (self.work / "tmp").iterdir() if path.name != "torchinductor_root"]
        found += (self.work / "cache" / "coordatt-deploy" / "logs").glob("*")
        if (self.work / "net").exists():
            found += [path for path in (self.work / "net").rglob("*") if path.name.startswith(".")]
            found += [path for path in (self.work / "net").rglob("*") if path.is_dir() and not any(path.iterdir())]
        elif not made:
            found.append(self.work / "net (missing)")
        return [str(path.relative_to(self.work)) for path in found]


def _exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def of_session(session: int) -> list[int]:
    """Return the processes of a session that are alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, *rest = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[2]) == session and state != "Z":
            found.append(int(folder.name))
    return found


def duration(bench: Bench, trial: Trial) -> float:
    """Run a trial undisturbed; return its seconds."""
    bench._clear()
    if not trial.fresh:
        shutil.copytree(bench.base, bench.work / "net")
    start = time.monotonic()
    code, said = bench.run(trial.arguments)
    if code:
        raise SystemExit(f"{trial.name} ended with {code}: {said}")
    return time.monotonic() - start


def main() -> int:
    """Print a line per trial and signal; exit 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="for each command and signal")
    parser.add_argument("--only", action="append", choices=[trial.name for trial in TRIALS], help="repeatable")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)  # noqa: S311 - moments, not secrets
    failed = 0
    folder = Path(tempfile.mkdtemp())  # no TemporaryDirectory: the forks would remove it at their end
    bench = Bench(folder)
    for trial in [trial for trial in TRIALS if not options.only or trial.name in options.only]:
        seconds = duration(bench, trial)
        for number in SIGNALS:
            states: Counter[str] = Counter()
            for _ in range(options.moments):
                moment = draw.uniform(0, seconds)
                state, wrong = bench.kill(trial, number, moment)
                states[state] += 1
                failed += bool(wrong)
                for line in wrong:
                    print(f"{trial.name}, {number.name} after {moment:.3f} s: {line}", flush=True)
            print(f"{trial.name}, {number.name}, {options.moments} moments in {seconds:.1f} s: {dict(states)}",
                  flush=True)  # fmt: skip
    shutil.rmtree(folder)
    print(f"{failed} of them were wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
