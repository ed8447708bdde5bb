"""Processes beside this one: for converters, whose chatter goes to a log, and for images; ended with the command."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from coordatt_deploy.errors import DeployError, InternalError, UsageError, WorkerDiedError, error_named
from coordatt_deploy.interruption import end_with_parent, undisturbed
from coordatt_deploy.logs import keep_running_log, log_folder, remove_running_logs, set_environment, write_traceback
from coordatt_deploy.scratch import Scratch

if TYPE_CHECKING:
    from multiprocessing.popen_spawn_posix import Popen  # what the types of the standard library say of it

_FAILED_TO_BEGIN: Final = 86  # any that nothing else ends with; what was wrong is in the process's note
POLL_S: Final = 0.01
END_S: Final = 5.0  # how long a process may take to die of a signal before it is ended by force

A = TypeVar("A")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@contextmanager
def workers(jobs: int, *, most: int | None = None, begin: "Begin | None" = None) -> Iterator["Pool"]:
    """Give a pool of processes; an error in the block ends what still runs.

    Their temporary files lie in a folder of this process's, which is removed at the end.

    Args:
        jobs: How many there are to do: there are no more processes than that.
        most: Processes at most; None for one per core.
        begin: Called in each process before its first job; it is pickled.

    Raises:
        WorkerDiedError: A process was ended; the text says in what.
    """
    _start_tracker()
    with Scratch() as scratch:
        pool = Pool(max(1, min(jobs, most or os.cpu_count() or 1)), scratch, begin)
        try:
            yield pool
            for _ in pool.completed(pool.calls):
                pass
            pool.executor.shutdown()
        except BaseException:
            with undisturbed():
                _end(pool.executor)
            raise


def _start_tracker() -> None:
    """Start the process in which Python keeps account of semaphores, without its warnings.

    It removes what a worker that was ended has left, as is meant, and would print on the user's screen that it did.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


class _WorkerProcess(SpawnProcess):
    """A process that does not import the caller's script, which may be without a guard and call us again."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> "Popen":  # noqa: N802 - the standard library calls it so
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")  # without a file, nothing is imported
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class _SpawnWithoutMain(SpawnContext):
    Process = _WorkerProcess


class Begin(Protocol):
    """What a process does before its first job."""

    def __call__(self) -> object:
        """Do it."""


@dataclass(frozen=True, slots=True)
class Task(Generic[A, R]):
    """A function for a worker, with words for what it does.

    Attributes:
        doing: E.g. ``exporting onnx/net_fp32.onnx``.
        function: At the top of a module, so that it can be pickled.
    """

    doing: str
    function: Callable[[A], R]

    def __call__(self, argument: A) -> R:
        """Run it.

        Raises:
            DeployError: As the function raises it.
            InternalError: It raised something else; the traceback is in a log.
        """
        _note().write_text(self.doing, encoding="utf-8", errors="backslashreplace")
        try:
            return self.function(argument)
        except DeployError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug: only its text reaches the parent whole
            raise internal_error(error, self.doing) from None


class Call(Generic[R_co]):
    """A task that a pool was given; ``future`` is another one after a process of the pool has died."""

    def __init__(self, pool: "Pool", doing: str, start: Callable[[ProcessPoolExecutor], Future[R_co]]) -> None:
        self._pool, self.doing, self.start = pool, doing, start
        self.future: Future[R_co] = Future()

    def result(self) -> R_co:
        """Return what the task returned, once it has ended.

        Raises:
            DeployError: As the task raised it; ``WorkerDiedError`` where its process was ended.
        """
        for _ in self._pool.completed([self]):
            pass
        return self.future.result()

    @property
    def lost(self) -> bool:
        """Whether it has not ended, or only because another task's process has died."""
        return not self.future.done() or isinstance(self.future.exception(), BrokenProcessPool)


class Pool:
    """Processes for tasks. One that dies takes its own task with it; what the others were at is begun again.

    Attributes:
        calls: All that it was given.
        executor: The processes; others after one of them has died.
    """

    def __init__(self, size: int, scratch: Path, begin: Begin | None) -> None:
        self._size, self._scratch, self._begin = size, scratch, begin
        self.calls: list[Call[object]] = []
        self.executor = self._started()

    def submit(self, task: Task[A, R], argument: A) -> Call[R]:
        """Begin a task as soon as a process is free.

        Raises:
            WorkerDiedError: A process has died, and it cannot be told in which task.
        """
        call = Call(self, task.doing, lambda executor: executor.submit(task, argument))
        self.calls.append(call)
        try:
            call.future = call.start(self.executor)
        except BrokenProcessPool:
            self._restart()
        return call

    def completed(self, calls: Sequence[Call[R]]) -> Iterator[Call[R]]:
        """Yield the calls as they end, well or not.

        Raises:
            WorkerDiedError: A process has died, and it cannot be told in which task.
        """
        waiting = list(calls)
        while waiting:
            wait([call.future for call in waiting], return_when=FIRST_COMPLETED)
            if any(call.future.done() and call.lost for call in waiting):
                self._restart()
            ended = [call for call in waiting if not call.lost]
            waiting = [call for call in waiting if call not in ended]
            yield from ended

    def stream(self, task: Task[A, R], arguments: Iterable[A], most: int) -> Iterator[Call[R]]:
        """Yield the calls of a task for all *arguments* as they end, well or not; none is kept any longer.

        Args:
            task: What to do.
            arguments: Taken when there is room.
            most: Calls that are on their way at the same time.

        Raises:
            WorkerDiedError: A process has died, and it cannot be told in which task.
        """
        source, waiting = iter(arguments), list[Call[R]]()
        while True:
            for argument in islice(source, most - len(waiting)):
                waiting.append(self.submit(task, argument))
            if not waiting:
                return
            ended = next(self.completed(waiting))
            waiting.remove(ended)
            self.calls.remove(ended)
            yield ended

    def _started(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self._size,
            mp_context=_SpawnWithoutMain(),
            initializer=_begin,
            initargs=(os.getpid(), self._scratch, self._begin),
        )

    def _restart(self) -> None:
        """Take new processes after one has died: its task has failed, the other ones are begun again.

        Each time one task is done with, so that this ends.
        """
        ended = list((self.executor._processes or {}).values())
        _end(self.executor)
        doing, error = _death(ended, self._scratch)
        lost = [call for call in self.calls if call.lost]
        failed = [call for call in lost if call.doing == doing]
        if len(failed) != 1:
            raise error
        failed[0].future = Future()
        failed[0].future.set_exception(error)
        self.executor = self._started()
        for call in lost:
            if call is not failed[0]:
                call.future = call.start(self.executor)


def internal_error(error: Exception, doing: str) -> DeployError:
    """Write the traceback of *error* to a log and return what the user is told."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    log = write_traceback(error, "fault")
    if isinstance(error, MemoryError):
        return UsageError(f"{doing} failed: memory ran out; where is in {log}")
    return InternalError(
        f"{doing} failed: {text}; this is a fault of coordatt-deploy, please report it with the log {log}"
    )


def job_log(stage: str, path: Path) -> Path:
    """Return the log file of the job that writes *path*."""
    return log_folder() / f"{stage}-{path.stem}-{os.getpid()}.log"


def _note() -> Path:
    """Where a worker writes down what it does, for the case that it dies of it."""
    return Path(tempfile.gettempdir()) / f"{os.getpid()}.doing"


def _begin(parent: int, scratch: Path, begin: Begin | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends its workers
    end_with_parent(parent)
    tempfile.tempdir = str(scratch)
    os.environ["TMPDIR"] = str(scratch)  # for native libraries, and programs that converters start
    set_environment()
    if begin is not None:
        try:
            begin()
        except Exception as error:  # noqa: BLE001 - the pool would only say that it is broken
            told = error if isinstance(error, DeployError) else internal_error(error, "starting a worker process")
            text = f"{type(told).__name__}\n{told}"
            _note().write_text(text, encoding="utf-8", errors="backslashreplace")
            sys.stderr.flush()
            os._exit(_FAILED_TO_BEGIN)


def _death(ended: Sequence[BaseProcess], scratch: Path) -> tuple[str | None, DeployError]:
    """Say in what task a process died, where it was in one, and of what.

    The pool ends the others by SIGTERM when one has died, so the one is that which ended otherwise.
    """
    died = [process for process in ended if process.exitcode not in (None, 0)]
    died.sort(key=lambda process: process.exitcode == -signal.SIGTERM)
    if not died:
        return None, WorkerDiedError("a worker process ended before its time, perhaps for want of memory")
    process = died[0]
    note = scratch / f"{process.pid}.doing"
    doing = note.read_text(encoding="utf-8") if note.exists() else None
    if process.exitcode == _FAILED_TO_BEGIN:
        name, _, text = (doing or "").partition("\n")
        return None, error_named(name, InternalError)(text)
    log = keep_running_log(process.pid or 0)
    for other in died[1:]:
        remove_running_logs(other.pid or 0)
    return doing, WorkerDiedError(
        f"the process that was {doing or 'starting'} {how_it_ended(process.exitcode or 0)}"
        f"{f'; what it said before is in {log}' if log is not None and log.stat().st_size else ''}"
    )


def how_it_ended(code: int) -> str:
    """Say what an exit status means: ``was ended by SIGKILL, perhaps because memory ran out``."""
    if code >= 0:
        return f"ended with exit status {code}"
    name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
    if name == "SIGKILL":
        return "was ended by SIGKILL, perhaps because memory ran out"
    crashes = {"SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE"}
    return f"was ended by {name}" + (": a library in it crashed" if name in crashes else "")


def _end(pool: ProcessPoolExecutor) -> None:
    """End the processes now, and see to it that they are gone."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        ours = not _ended(process, END_S)
        if ours:
            process.kill()
            process.join()
        # the log of one that died before stays: it is what is told
        if (ours or process.exitcode in (0, -signal.SIGTERM)) and process.pid is not None:
            remove_running_logs(process.pid)


def _ended(process: BaseProcess, seconds: float) -> bool:
    """Wait for a process to end, and for its exit status to be known.

    The pool's own thread waits for it as well. Whoever of both comes second is told at once that there is no such
    process, while the first has not yet written down how it ended.
    """
    deadline = time.monotonic() + seconds
    while process.exitcode is None and time.monotonic() < deadline:
        process.join(POLL_S)
        time.sleep(POLL_S if process.exitcode is None else 0.0)
    return process.exitcode is not None
