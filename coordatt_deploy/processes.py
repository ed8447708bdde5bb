"""Processes beside this one: for converters, whose chatter goes to a log, and for images; ended with the command."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from coordatt_deploy.logs import log_folder, set_environment


@contextmanager
def workers(jobs: int, *, most: int | None = None, begin: "Begin | None" = None) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of processes; an error in the block ends what still runs.

    Args:
        jobs: How many there are to do: there are no more processes than that.
        most: Processes at most; None for one per core.
        begin: Called in each process before its first job; it is pickled.
    """
    with ProcessPoolExecutor(
        max_workers=max(1, min(jobs, most or os.cpu_count() or 1)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(begin,),
    ) as pool:
        try:
            yield pool
        except BaseException:
            _end(pool)
            raise


class Begin(Protocol):
    """What a process does before its first job."""

    def __call__(self) -> object:
        """Do it."""


def job_log(stage: str, path: Path) -> Path:
    """Return the log file of the job that writes *path*."""
    return log_folder() / f"{stage}-{path.stem}-{os.getpid()}.log"


def _begin(begin: Begin | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends its workers
    set_environment()
    if begin is not None:
        begin()


def _end(pool: ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
