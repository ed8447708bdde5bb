"""Run a file for the first time in a process that may die of it.

Runtimes in C++ trust a file in many places: one number changed, and they read memory that is not theirs, take more than
there is, or never end. So a file that this process is going to open was opened and run before in another one, which is
this module as well: it is started once, gets one file after another, and is started again when one has ended it. What
it survived is remembered by its hash, so a file costs one run.

A process that is there to die of files, a target's or that of a cold start, opens them at once (``trust_files``).
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

from coordatt_deploy.errors import BundleError, DeployError, UsageError
from coordatt_deploy.format_modules import Role, load
from coordatt_deploy.formats import FORMATS, Format
from coordatt_deploy.interruption import end_with_parent
from coordatt_deploy.runtimes.argument_checks import first_line
from coordatt_deploy.runtimes.bounded_memory import MEMORY_GB, bound_memory

if sys.platform != "win32":
    import resource

# What a file may take, beside so much for each byte of it. Who has larger ones says so in the environment.
MEMORY_PER_BYTE: Final = 8.0
SECONDS: Final = 15.0
SECONDS_PER_BYTE: Final = 1e-6
MEMORY_VARIABLE: Final = "COORDATT_DEPLOY_FILE_MEMORY_GB"
SECONDS_VARIABLE: Final = "COORDATT_DEPLOY_FILE_SECONDS"

READY: Final = b"ready\n"
SURVIVED: Final = "survived"
NO_MEMORY: Final = "no memory"
# How runtimes say that memory ran out.
_NO_MEMORY_WORDS: Final = (
    "bad_alloc",
    "bad allocation",
    "MemoryError",
    "allocate memory",
    "out of memory",
    "Unable to allocate",
)


class NativeRunner(Protocol):
    """What the runner module of a format offers whose runtime may die of a file."""

    def run_once(self, content: bytes) -> None:
        """Open the file in every way that it is opened here, and run it once on made-up inputs.

        Raises:
            Exception: Whatever the runtime raises; that is no death.
        """


@dataclass(slots=True)
class _Child:
    """The process that files are tried in, and what it survived."""

    process: "subprocess.Popen[bytes] | None" = None
    survived: set[bytes] = field(default_factory=set)
    loaded: set[Format] = field(default_factory=set)
    trusted: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, file_format: Format, content: bytes, seconds: float, memory: int) -> str:
        """Have one file run, and return the answer, or how the process ended."""
        process = self.start()
        self.load(file_format)
        assert process.stdin is not None  # noqa: S101 - opened with pipes
        assert process.stdout is not None  # noqa: S101
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(f"{file_format} {len(content)} {memory} {seconds:.0f}\n".encode() + content)
                process.stdin.flush()
            answer = process.stdout.readline().decode(errors="replace").strip()
        except BaseException:  # interrupted: its answer would be taken for the next file's
            process.kill()
            process.wait()
            self.process = None
            raise
        finally:
            timer.cancel()
        if answer:
            return answer
        code = process.wait()
        self.process = None
        if late.is_set():
            return f"it had not ended after {seconds:.0f} s"
        return f"{signal.Signals(-code).name} ended it" if code < 0 else f"it ended with exit status {code}"

    def load(self, file_format: Format) -> None:
        """Let the process load a runtime, which is not held against a file: torch alone takes seconds.

        Raises:
            DeployError: It ends there.
        """
        process = self.process
        if file_format in self.loaded or process is None:
            return
        assert process.stdin is not None  # noqa: S101 - opened with pipes
        assert process.stdout is not None  # noqa: S101
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(f"{file_format}\n".encode())
                process.stdin.flush()
            answer = process.stdout.readline()
        except BaseException:  # interrupted: its answer would be taken for the file's
            process.kill()
            process.wait()
            self.process = None
            raise
        if answer != READY:
            code = process.wait()
            self.process = None
            raise DeployError(
                f"the process that files are tried in ended as it loaded the runtime of {file_format} ({code})"
            )
        self.loaded.add(file_format)

    def start(self) -> "subprocess.Popen[bytes]":
        """Return the process, started if there is none.

        Raises:
            DeployError: It does not start.
        """
        if self.process is None or self.process.poll() is not None:
            # -P: what lies in the folder that the user happens to be in is not imported.
            command = [sys.executable, "-P", "-m", "coordatt_deploy.runtimes.first_run", str(os.getpid())]
            self.process = subprocess.Popen(  # noqa: S603 - this interpreter, this module
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self.loaded.clear()
            weakref.finalize(self.process, _close, self.process)
            assert self.process.stdout is not None  # noqa: S101 - opened with a pipe
            if self.process.stdout.readline() != READY:
                code = self.process.wait()
                self.process = None
                raise DeployError(
                    f"the process that files are tried in did not start (exit status {code}); does"
                    f" {sys.executable} -m coordatt_deploy.runtimes.first_run start here?"
                )
        return self.process


def _close(process: "subprocess.Popen[bytes]") -> None:
    """End it: it reads no more files."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


_CHILD: Final = _Child()


def trust_files() -> None:
    """Open files at once from now on: this process is there to die of them."""
    _CHILD.trusted = True


def survives(file_format: Format, content: bytes, name: str) -> None:
    """Run a file once in another process, unless it survived that before.

    Args:
        file_format: Of the file; its runner has ``run_once``.
        content: Of the file.
        name: Of the file, for the error.

    Raises:
        BundleError: The process died of it, or it takes more time or memory than a file may.
        DeployError: The process does not start here.
    """
    digest = hashlib.sha256(content).digest()
    with _CHILD.lock:
        if _CHILD.trusted or digest in _CHILD.survived:
            return
        gigabytes = _limit(MEMORY_VARIABLE, MEMORY_GB) + MEMORY_PER_BYTE * len(content) / 1e9
        seconds = _limit(SECONDS_VARIABLE, SECONDS) + SECONDS_PER_BYTE * len(content)
        answer = _CHILD.ask(file_format, content, seconds, int(gigabytes * 1e9))
        if answer == SURVIVED:
            _CHILD.survived.add(digest)
            return
    title = FORMATS[file_format].title
    if answer == NO_MEMORY:
        answer = f"it takes more than {gigabytes:.1f} GB of memory"
    raise BundleError(
        f"{name} is refused: opened and run once in a process of its own, {answer}; the {title} file is damaged or"
        f" hostile, or larger than {MEMORY_VARIABLE} and {SECONDS_VARIABLE} allow"
    )


def _limit(variable: str, default: float) -> float:
    text = os.environ.get(variable, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise UsageError(f"{variable} is {text!r}, expected a number above 0")
    return value


# The other process ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Read files from stdin and run them, until it ends, or the process named as the only argument does."""
    end_with_parent(int(sys.argv[1]))
    # Runtimes print from C++ as well: the answers get a descriptor of their own, and stdout becomes stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent; its end closes stdin
    trust_files()
    answers.write(READY.decode())
    answers.flush()
    while line := sys.stdin.buffer.readline():
        name, *numbers = line.decode().split()
        if numbers:
            size, memory, seconds = map(int, numbers)
            answers.write(_tried(Format(name), sys.stdin.buffer.read(size), memory, seconds) + "\n")
        else:
            load(Format(name), Role.RUNNER)
            answers.write(READY.decode())
        answers.flush()


def _tried(file_format: Format, content: bytes, memory: int, seconds: int) -> str:
    runner = cast("NativeRunner", load(file_format, Role.RUNNER))
    _bound(memory, seconds)
    try:
        runner.run_once(content)
    except DeployError:
        return SURVIVED
    except MemoryError:
        return NO_MEMORY
    except Exception as error:  # noqa: BLE001 - a runtime may raise anything; who opens the file here hears it again
        return NO_MEMORY if any(words in first_line(error) for words in _NO_MEMORY_WORDS) else SURVIVED
    return SURVIVED


def _bound(memory: int, seconds: int) -> None:
    """Bound what this process may take from now on, where the system can; a parent that dies leaves none running."""
    bound_memory(memory)
    if sys.platform != "win32":
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        spent = int(usage.ru_utime + usage.ru_stime) + seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (spent if hard < 0 else min(spent, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dump in the user's folder


if __name__ == "__main__":
    main()
