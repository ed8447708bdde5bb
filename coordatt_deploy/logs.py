"""Keep the chatter of converters and runtimes off the screen: it goes to a log file that errors name.

They print from C++ as well as from Python, so the file descriptors themselves are redirected. What is still being
written ends in ``.PROCESS.running``: whoever runs next removes it where that process is gone.
"""

import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

from coordatt_deploy.interruption import Terminated, undisturbed
from coordatt_deploy.locks import is_alive

RUNNING: Final = ".running"
KEPT_DAYS: Final = 30  # logs that an error named; who has not read one by then, will not
FALLBACK: Final = "coordatt-deploy-logs-"

# Read by the native libraries when they load. Telemetry of runtimes is switched off.
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "ORT_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "JAX_PLATFORMS": "cpu",
}


def set_environment() -> None:
    """Set what native libraries read at their loading; what the user has set stays."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def cache_folder() -> Path:
    """Return the user's folder for what can be built again; on Linux under XDG_CACHE_HOME, else ~/.cache."""
    return user_cache_path("coordatt-deploy", appauthor=False)


def log_folder() -> Path:
    """Return the folder for logs, which exists then: in ``cache_folder``, else in the system's temporary folder."""
    folder = cache_folder() / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = _fallback()
    return folder


def _fallback() -> Path:
    """One folder for all calls of this user; another where somebody else has made that."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"{FALLBACK}{user}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    there = folder.lstat()
    ours = not hasattr(os, "getuid") or (there.st_uid == os.getuid() and not there.st_mode & 0o022)
    return folder if folder.is_dir() and not folder.is_symlink() and ours else Path(tempfile.mkdtemp(prefix=FALLBACK))


def remove_stale_logs() -> None:
    """Remove logs of processes that were killed, and those that errors named a month ago."""
    with suppress(OSError):
        oldest = time.time() - KEPT_DAYS * 86_400
        for log in log_folder().iterdir():
            found = re.search(rf"\.(\d+){RUNNING}$", log.name)
            with suppress(OSError):
                if (found and not is_alive(int(found[1]))) or log.lstat().st_mtime < oldest:
                    log.unlink()


def keep_running_log(process: int) -> Path | None:
    """Keep what a process that died had written so far, and return its log; None where it had written none."""
    for running in log_folder().glob(f"*.{process}{RUNNING}"):
        return running.replace(running.with_name(running.name.removesuffix(f".{process}{RUNNING}")))
    return None


def remove_running_logs(process: int) -> None:
    """Remove what a process that was ended had written so far."""
    for running in log_folder().glob(f"*.{process}{RUNNING}"):
        running.unlink(missing_ok=True)


def write_traceback(error: BaseException, stage: str) -> Path:
    """Write the whole traceback to a file among the logs and return its path."""
    path = log_folder() / f"{stage}-{os.getpid()}.log"
    with path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write("".join(traceback.format_exception(error)))
    return path


@contextmanager
def captured(log: Path) -> Iterator[None]:
    """Send everything that is written to stdout and stderr, from Python or C, to *log*.

    When the user ends the command nothing went wrong, and nothing is kept.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    running = log.with_name(f"{log.name}.{os.getpid()}{RUNNING}")
    kept = True
    try:
        with running.open("ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        yield
    except (KeyboardInterrupt, Terminated):
        kept = False
        raise
    finally:
        with undisturbed():  # half of it would leave the screen dark
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, number in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            with suppress(FileNotFoundError):  # where one block lies in another of the same log
                if kept:
                    with running.open("rb") as written, log.open("ab") as whole:
                        shutil.copyfileobj(written, whole)
                running.unlink()


@contextmanager
def logged(name: str) -> Iterator[None]:
    """Keep what runtimes print in a log, which is removed when nothing went wrong, or nothing was printed."""
    log = log_folder() / f"{name}-{os.getpid()}.log"
    try:
        with captured(log):
            yield
    except BaseException:
        with suppress(FileNotFoundError):
            if not log.stat().st_size:
                log.unlink()
        raise
    log.unlink(missing_ok=True)
