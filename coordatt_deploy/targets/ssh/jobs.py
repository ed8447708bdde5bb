"""Commands on another machine that outlive the connection: started once, waited for over as many as it takes.

A job is a folder there: ``pid``, ``stdout``, ``stderr``, and once it has ended ``exit`` with its exit code, which
appears as a whole. A connection that is cut is made again, a bounded number of times; a job that was ended from
outside, by a reboot say, has no exit code and is told as such.
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Final, TypeVar

from coordatt_deploy.errors import LostConnectionError, TargetError
from coordatt_deploy.targets.ssh.connection import Connection, shortened

WAITS_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)  # before each further try to connect
POLLS: Final = 25  # of a fifth of a second or, where sleep knows whole ones only, of a second
POLL_S: Final = 120.0
FETCH_S: Final = 1800.0  # for a document on a slow line
MOST_SAID: Final = 1 << 16

T = TypeVar("T")

# Run as: sh -c SCRIPT sh FOLDER COMMAND…; a second call for the same folder starts nothing.
_START: Final = r"""
cd "$1" || exit 1
shift
mkdir started 2>/dev/null || exit 0
work='echo $$ >pid.new && mv pid.new pid
"$@" >stdout 2>stderr </dev/null
echo $? >exit.new && mv exit.new exit'
if command -v setsid >/dev/null 2>&1
then setsid sh -c "$work" sh "$@" >/dev/null 2>&1 </dev/null &
else nohup sh -c "$work" sh "$@" >/dev/null 2>&1 </dev/null &
fi
"""
_LOOK: Final = r"""
cd "$1" || exit 1
runs() {
  pid=$(cat pid 2>/dev/null) || return 1
  case $(cat "/proc/$pid/stat" 2>/dev/null) in *') Z '*) return 1 ;; esac
  kill -0 "$pid" 2>/dev/null
}
polls=0 absent=0
while [ "$polls" -lt "$2" ]; do
  if [ -f exit ]; then echo "ended $(cat exit)"; exit 0; fi
  if runs; then absent=0; else absent=$((absent + 1)); fi
  if [ "$absent" -gt 10 ]; then echo gone; exit 0; fi
  polls=$((polls + 1))
  sleep 0.2 2>/dev/null || sleep 1
done
echo runs
"""
# The length of what it said, what it said, and the document.
_RESULT: Final = r"""
cd "$1" || exit 1
tail -c "$3" stderr >said && wc -c <said && cat said || exit 1
if [ -f "$2" ]; then cat "$2"; fi
"""
_END: Final = r"""
cd "$1" || exit 0
pid=$(cat pid 2>/dev/null) || exit 0
kill -TERM "-$pid" 2>/dev/null || kill -TERM "$pid" 2>/dev/null
exit 0
"""


class Job:
    """A command that runs in a folder of its own on another machine.

    Attributes:
        folder: That it runs in.
    """

    def __init__(self, connection: Connection, folder: PurePosixPath, stopped: threading.Event | None = None) -> None:
        """Keep what it needs.

        Args:
            connection: To the machine.
            folder: That is there already, for this job alone.
            stopped: Set when the work is to end.
        """
        self._connection, self.folder = connection, folder
        self._stopped = stopped or threading.Event()

    def start(self, argv: Sequence[str]) -> None:
        """Start the command, unless this job was started before.

        Raises:
            TargetError: It could not be started.
        """
        command = ["sh", "-c", _START, "sh", str(self.folder), *argv]
        persistently(self._connection, lambda: self._connection.check(command, "start a command"), self._stopped)

    def wait(self) -> int:
        """Wait for the end and return the exit code.

        Raises:
            TargetError: The machine is gone for good, or the command was ended from outside.
        """
        command = ["sh", "-c", _LOOK, "sh", str(self.folder), str(POLLS)]
        while True:
            if self._stopped.is_set():
                self.end()
                raise TargetError("it was ended with the rest")
            answer = persistently(
                self._connection,
                lambda: self._connection.check(command, "look after its command", timeout_s=POLL_S, most_bytes=1000),
                self._stopped,
            )
            words = answer.decode("utf-8", "replace").split()
            if words == ["gone"]:
                raise TargetError(
                    f"{self._connection.address}: the command was ended from outside before it was done; was there"
                    " memory enough, or a reboot? Try again"
                )
            if len(words) == 2 and words[0] == "ended" and words[1].isdecimal() and len(words[1]) < 4:
                return int(words[1])
            if words != ["runs"]:
                raise TargetError(
                    f"{self._connection.address} says {shortened(' '.join(words))!r} of its command; expected whether"
                    " it runs or has ended"
                )

    def end(self) -> None:
        """End the command where it still runs; nothing is raised for a machine that is gone."""
        try:
            self._connection.run(["sh", "-c", _END, "sh", str(self.folder)], timeout_s=10, last=True)
        except TargetError:
            return

    def result(self, document: str, most_bytes: int) -> tuple[str, bytes | None]:
        """Return the end of what the command said on stderr, and a file of its folder; None where it wrote none.

        Args:
            document: Name of the file.
            most_bytes: That it may have.

        Raises:
            TargetError: The machine is gone for good, or the file is greater.
        """
        command = ["sh", "-c", _RESULT, "sh", str(self.folder), document, str(MOST_SAID)]
        answer = persistently(
            self._connection,
            lambda: self._connection.check(
                command, "give back what a command wrote", timeout_s=FETCH_S, most_bytes=most_bytes + MOST_SAID
            ),
            self._stopped,
        )
        length, _, rest = answer.partition(b"\n")
        end = int(length) if length.strip().isdigit() and len(length) < 8 else 0
        return rest[:end].decode("utf-8", "replace"), rest[end:] or None


def persistently(connection: Connection, work: Callable[[], T], stopped: threading.Event | None = None) -> T:
    """Do *work* over *connection*, again where that is cut, until it was tried as often as ``WAITS_S`` has waits.

    What is done twice so must come to the same as once.

    Raises:
        TargetError: The last try failed as well, *work* failed by itself, or *stopped* was set.
    """
    lost: TargetError | None = None
    for wait in (0.0, *WAITS_S):
        if stopped is None:
            time.sleep(wait)
        elif stopped.wait(wait):
            break
        try:
            if lost is not None:
                connection.disconnect()
                connection.connect()
        except TargetError as error:
            lost = error
            continue
        try:
            return work()
        except LostConnectionError as error:
            lost = error
    raise lost or TargetError("it was ended with the rest")
