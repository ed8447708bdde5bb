"""A Dask scheduler and its workers as processes of this machine, on ports that the system chooses."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from coordatt_deploy.interruption import PR_SET_PDEATHSIG

WAIT_S = 60

# What a worker does before it starts, twice at that; for workers that are not as they should be.
OTHER_VERSION = """
import coordatt_deploy.host as host
def other(*names, told=host.package_versions):
    found = told(*names)
    return found | {"onnxruntime": "0.1"} if "onnxruntime" in found else found
host.package_versions = other
"""
NOT_INSTALLED = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "coordatt_deploy":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""
OTHER_CPU = """
from dataclasses import replace
import coordatt_deploy.host as host
def other(*root, described=host.describe):
    return replace(described(*root), cpu="Abacus", architecture="riscv64")
host.describe = other
"""

DEADLY = """
import os
from PIL import Image
def fatal(stream, opened=Image.open):
    image = opened(stream)
    return os._exit(1) if image.size == (9, 9) else image
Image.open = fatal
"""


class LoopbackCluster:
    """Processes that the test may kill or stop; the rest end with the block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self._logs: dict[int, Path] = {}
        self.scheduler, log = self._start("scheduler", "--port", "0", "--no-dashboard", "--no-show")
        self.address = self._found(log, r"Scheduler at:\s+(tcp://\S+)")

    def worker(self, before: str = "", threads: int = 1) -> subprocess.Popen[bytes]:
        """Start a worker without a nanny, so that a killed one stays dead; *before* is run in it first."""
        number = len(self.processes)
        options = ["--no-nanny", "--no-dashboard", "--nthreads", str(threads), "--local-directory", str(self.folder)]
        if before:
            preload = self.folder / f"before_{number}.py"
            preload.write_text(before)
            options += ["--preload", str(preload)]
        process, log = self._start("worker", self.address, "--host", "127.0.0.1", *options)
        self._found(log, r"Registered to:\s+(tcp://\S+)")
        return process

    def _start(self, what: str, *options: str) -> tuple["subprocess.Popen[bytes]", Path]:
        log = self.folder / f"{what}-{len(self.processes)}.log"
        host = ["--host", "127.0.0.1"] if what == "scheduler" else []
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + what, *host, *options],
                stdout=stream, stderr=stream, preexec_fn=_end_with_us,
                env=os.environ | {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false"},
            )  # fmt: skip
        self.processes.append(process)
        self._logs[process.pid] = log
        return process, log

    def log(self, process: "subprocess.Popen[bytes]") -> str:
        """What a process has said so far."""
        return self._logs[process.pid].read_text(errors="replace")

    def _found(self, log: Path, pattern: str) -> str:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            found = re.search(pattern, log.read_text(errors="replace"))
            if found:
                return found[1]
            time.sleep(0.05)
        raise AssertionError(f"{log.name}: {log.read_text(errors='replace')[-2000:]}")

    def end(self) -> None:
        """End all processes, stopped ones as well."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
        for process in self.processes:
            process.wait()

    def __enter__(self) -> "LoopbackCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _end_with_us() -> None:
    """A test that is killed leaves no process, not even a stopped one; other systems than Linux do without."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
