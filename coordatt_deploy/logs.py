"""Keep the chatter of converters and runtimes off the screen: it goes to a log file that errors name.

They print from C++ as well as from Python, so the file descriptors themselves are redirected.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

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
        folder = Path(tempfile.mkdtemp(prefix="coordatt-deploy-logs-"))
    return folder


@contextmanager
def captured(log: Path) -> Iterator[None]:
    """Send everything that is written to stdout and stderr, from Python or C, to *log*."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, number in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)


@contextmanager
def logged(name: str) -> Iterator[None]:
    """Keep what runtimes print in a log, which is removed when nothing went wrong."""
    log = log_folder() / f"{name}-{os.getpid()}.log"
    with captured(log):
        yield
    log.unlink(missing_ok=True)
