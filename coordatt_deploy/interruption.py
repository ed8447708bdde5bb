"""Being ended: Ctrl-C, SIGTERM, and a parent that is gone.

SIGINT raises KeyboardInterrupt, as always in Python. SIGTERM and SIGHUP raise ``Terminated``, so that every ``finally``
and ``with`` on the way out is run. What must not be torn in two is put into ``undisturbed``. While a native module is
loaded a signal waits: an exception in the midst of its C++ ended one in 200 of such commands by SIGSEGV or SIGABRT.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Final

ENDING: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
ALARM: Final = (signal.SIGALRM,) if hasattr(signal, "SIGALRM") else ()  # nor that one
AGAIN_S: Final = 0.01  # when a signal that came while a native module was loaded is looked at again
POLL_S: Final = 1.0  # how often a process looks whether its parent is there; orphans are to be gone within 5 s


class Terminated(BaseException):
    """The process was asked to end. No Exception, and no KeyboardInterrupt: some code goes on after that one.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        """Keep the signal."""
        super().__init__(signal.Signals(number).name)
        self.number = number


class _State:
    """Of this process.

    Attributes:
        received: The last signal that arrived.
        held: How many blocks must not be disturbed.
        waiting: The signal that arrived in one of them.
        later: The signal that arrived while a native module was loaded.
    """

    received: int | None = None
    held = 0
    waiting: int | None = None
    later: int | None = None


@contextmanager
def handled() -> Iterator[None]:
    """Turn signals that end a process into exceptions, in the block; what was ignored stays ignored (``nohup``)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.received = None
    before = {number: signal.getsignal(number) for number in (*ENDING, *ALARM)}
    for number in ENDING:
        if before[number] in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _arrived)
    try:
        yield
    finally:
        late = _State.later
        if late is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            _State.later = None
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        if late is not None:  # no native module is being loaded here any more
            _raise(late)


def received() -> int | None:
    """Return the signal that ``handled`` met last; None without any."""
    return _State.received


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold signals back until the block has ended: for what takes a moment and must be done as a whole."""
    if threading.current_thread() is not threading.main_thread():  # signals are raised in the main one alone
        yield
        return
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
        if not _State.held and _State.waiting is not None:
            number, _State.waiting = _State.waiting, None
            _raise(number)


def _arrived(number: int, frame: FrameType | None) -> None:
    _State.received = number
    if _State.held:
        _State.waiting = number
    elif ALARM and _loads_native_code(frame):
        _State.later = number
        signal.signal(ALARM[0], _again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
    else:
        _raise(number)


def _again(_: int, frame: FrameType | None) -> None:
    number, _State.later = _State.later, None
    if number is not None:
        _arrived(number, frame)


def _loads_native_code(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in ("create_module", "exec_module") and isinstance(
            frame.f_locals.get("self"), ExtensionFileLoader
        ):
            return True
        frame = frame.f_back
    return False


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(number)


def end_with_parent(parent: int, *, watch: bool = True) -> None:
    """End this process when *parent*, which started it, ends; also when that is killed.

    Args:
        parent: Its process id.
        watch: Whether a thread looks after it as well; where Linux does so by itself, a process whose time is taken
            does without.
    """
    # only the workers need it, and this module is loaded for every --help
    import ctypes

    asked = False
    if sys.platform == "linux":
        asked = ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)
    if watch or not asked:
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="parent watch").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)
