"""Converters work in processes of their own: side by side, with their chatter in a log, ended with the command."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from coordatt_deploy.logs import log_folder, set_environment


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Give a pool for *jobs* jobs, one process per core at most; an error in the block ends what still runs."""
    with ProcessPoolExecutor(
        max_workers=max(1, min(jobs, os.cpu_count() or 1)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
    ) as pool:
        try:
            yield pool
        except BaseException:
            _end(pool)
            raise


def job_log(stage: str, path: Path) -> Path:
    """Return the log file of the job that writes *path*."""
    return log_folder() / f"{stage}-{path.stem}-{os.getpid()}.log"


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends its workers
    set_environment()


def _end(pool: ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
