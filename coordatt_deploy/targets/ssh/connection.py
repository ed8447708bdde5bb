"""One connection to a machine, made by the system's own ``ssh``: its configuration, keys, agent and known hosts rule.

Nobody is ever asked for anything (``BatchMode``), and no host key is taken that the user has not accepted. The first
command opens the connection, the others go through it (``ControlMaster``). It ends with this process, however that
ends: what keeps it open waits for the end of a pipe.
"""

import os
import re
import selectors
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self
from uuid import uuid4

from coordatt_deploy.errors import LostConnectionError, MissingDependencyError, TargetError
from coordatt_deploy.plain_text import plain
from coordatt_deploy.scratch import Scratch
from coordatt_deploy.targets.ssh.address import SshAddress

CONFIG: Final = "COORDATT_DEPLOY_SSH_CONFIG"
"""An environment variable: a file for ``ssh -F`` in place of the user's own configuration."""

CONNECT_S: Final = 15
ALIVE_S: Final = 10  # how often a silent connection is tried
SILENCES: Final = 3  # after so many without an answer it counts as cut
USUAL_S: Final = 120.0
USUAL_BYTES: Final = 1 << 20
LONGEST_REASON: Final = 300  # characters of what the other side said
SSH_FAILED: Final = 255
BLOCK: Final = 1 << 16
POLL_S: Final = 0.3  # how often a command looks whether it is to end

# What ssh says, what it means, and what to do. The first that is found counts.
_CAUSES: Final = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one that is known",
        "find out why before you go on; if it was set up anew: ssh-keygen -R {host}, then ssh {words} once by hand",
    ),
    (
        "Host key verification failed|host key is known for|authenticity of host",
        "its host key is not known",
        "compare and accept it once by hand: ssh {words}",
    ),
    (
        "Could not resolve hostname|Name or service not known",
        "no machine of this name is known",
        "look at the spelling, or at Host in ~/.ssh/config",
    ),
    (
        "Permission denied",
        "it lets nobody in with the keys that ssh has",
        "let it know yours: ssh-copy-id {words}; a passphrase has to be given to ssh-agent before: ssh-add",
    ),
    (
        "Connection refused",
        "nothing answers at its port",
        "is sshd running there, and the port right?",
    ),
    (
        "timed out|No route to host|Network is unreachable|Host is down",
        "it does not answer",
        "is it switched on and on this network?",
    ),
    ("Too many authentication failures", "it refuses after too many keys", "name one: IdentityFile in ~/.ssh/config"),
    ("Bad owner or permissions|Bad configuration option|terminating, .* bad configuration", "ssh refuses its own"
     " configuration", "repair it"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command left behind.

    Attributes:
        status: As its shell gave it; 128 and the number of a signal that ended it.
        stdout: All of it.
        stderr: Its last part, as text. Both are words of another machine: nothing in them is to be trusted.
    """

    status: int
    stdout: bytes
    stderr: str

    @property
    def reason(self) -> str:
        """The last thing that the command said of why it failed, on one line."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return shortened(lines[-1]) if lines else f"it ended with exit status {self.status} and said nothing"


class Connection:
    """A connection to one machine. Use as a context manager, or ``close`` it; not to be shared by threads.

    Attributes:
        address: Of the machine.
    """

    def __init__(
        self, address: SshAddress, *, connect_s: int = CONNECT_S, stopped: threading.Event | None = None
    ) -> None:
        """Keep the address; the first command connects.

        Args:
            address: Of the machine.
            connect_s: Seconds after which it counts as unreachable.
            stopped: Set, from any thread, when what runs is to be given up.
        """
        self._stopped = stopped or threading.Event()
        self.address = address
        self._connect_s = connect_s
        self._scratch = Scratch()
        self._begins = f"coordatt-deploy-{uuid4().hex}\n".encode()
        self._master: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> tuple[str, ...]:
        """The words for ssh that name another configuration than the user's; none as a rule."""
        path = os.environ.get(CONFIG)
        return ("-F", path) if path else ()

    def connect(self) -> None:
        """Connect where there is no connection.

        Raises:
            TargetError: It cannot be reached, or lets nobody in; the text says why and what to do.
            MissingDependencyError: There is no ssh here.
        """
        if self._master is not None:
            if self._master.poll() is None:
                return
            self.disconnect()
        script = f"{self._announced}; exec cat >/dev/null"
        with (self._scratch.folder / "ssh.log").open("w+b") as log:
            self._master = self._start(("-o", "ControlMaster=yes"), ("sh", "-c", script), subprocess.PIPE, log)
            said = self._read_until_ready(self._master)
            if said is None:
                return
            master, self._master = self._master, None
            _end(master)
            log.seek(0)
            text = log.read(USUAL_BYTES).decode("utf-8", "replace")
        raise self._unreachable(text or said)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Path | None = None,
        timeout_s: float = USUAL_S,
        most_bytes: int = USUAL_BYTES,
        last: bool = False,
    ) -> Answer:
        """Run a command there, each word as it stands here: nothing in it is read by a shell.

        Args:
            argv: The command and its arguments.
            stdin: What it reads, or a file of it; nothing by default.
            timeout_s: Seconds after which it is given up.
            most_bytes: Of its stdout.
            last: Whether it is to be run even when the rest was given up.

        Raises:
            TargetError: The machine cannot be reached, the command takes too long, or says too much.
            LostConnectionError: The connection was cut meanwhile; whether the command goes on is not known.
            MissingDependencyError: There is no ssh here.
        """
        self.connect()
        # 255 is how ssh says that it failed itself.
        script = f"{self._announced}; {shlex.join(argv)}; s=$?; [ $s -eq {SSH_FAILED} ] && s=254; exit $s"
        with self._input(stdin) as source:
            process = self._start(("-o", "ControlMaster=no"), ("sh", "-c", script), source, subprocess.PIPE)
        try:
            begun, stdout, stderr = self._drained(process, timeout_s, most_bytes, argv[0], last=last)
        finally:
            _end(process)
        text = stderr.decode("utf-8", "replace")
        if process.returncode == SSH_FAILED or process.returncode < 0:
            raise self._lost(text)
        if not begun:
            lines = [*text.splitlines(), *stdout.decode("utf-8", "replace").splitlines()]
            said = shortened(next((line.strip() for line in reversed(lines) if line.strip()), "nothing"))
            raise TargetError(
                f"{self.address} did not run {plain(argv[0])}: its login shell said {said!r} and ended; look at what it"
                f" runs at its start (~/.bashrc, ~/.profile): ssh {self._by_hand} true"
            )
        return Answer(process.returncode, stdout, text)

    def check(
        self,
        argv: Sequence[str],
        what: str,
        *,
        stdin: bytes | Path | None = None,
        timeout_s: float = USUAL_S,
        most_bytes: int = USUAL_BYTES,
    ) -> bytes:
        """Run a command there that has to succeed, and return its stdout; see ``run``.

        Args:
            argv: The command and its arguments.
            what: What it does, for the message: ``cannot {what}``.
            stdin: What it reads.
            timeout_s: Seconds after which it is given up.
            most_bytes: Of its stdout.

        Raises:
            TargetError: It fails, or see ``run``.
        """
        answer = self.run(argv, stdin=stdin, timeout_s=timeout_s, most_bytes=most_bytes)
        if answer.status:
            raise TargetError(f"{self.address} cannot {what}: {answer.reason}")
        return answer.stdout

    @contextmanager
    def held(self, argv: Sequence[str], *, timeout_s: float = USUAL_S) -> Iterator[str]:
        """Keep a command running there for as long as the block, and give the first line that it says.

        It is to end when what it reads does, which is when the block ends, or the connection.

        Args:
            argv: The command and its arguments.
            timeout_s: Seconds that it may take for its first line.

        Raises:
            TargetError: The machine cannot be reached, or the command says nothing in time.
            LostConnectionError: The connection was cut before the first line.
        """
        self.connect()
        script = f"{self._announced}; exec {shlex.join(argv)}"
        process = self._start(
            ("-o", "ControlMaster=no"), ("sh", "-c", script), subprocess.PIPE, subprocess.STDOUT
        )  # fmt: skip
        try:
            yield self._first_line(process, timeout_s)
        finally:
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(ALIVE_S)
            _end(process)

    @property
    def _announced(self) -> str:
        """What says there where a command's own words begin: a login shell may greet before, on the same stdout."""
        return f"echo {self._begins.decode().strip()}"

    def _first_line(self, process: "subprocess.Popen[bytes]", timeout_s: float) -> str:
        said = b""
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            stdout = _pipe(process.stdout)
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in said.partition(self._begins)[2] and len(said) < USUAL_BYTES:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TargetError(f"{self.address} said nothing in {timeout_s:g} s; is it busy? Try again")
                block = os.read(stdout.fileno(), BLOCK)
                if not block:
                    if process.wait(ALIVE_S) == SSH_FAILED:
                        raise self._lost(said.decode("utf-8", "replace"))
                    break
                said += block
        _, begun, own = said.partition(self._begins)
        return (own if begun else said).partition(b"\n")[0].decode("utf-8", "replace")

    def disconnect(self) -> None:
        """Let the connection go; the next command makes a new one."""
        if self._master is not None:
            master, self._master = self._master, None
            if master.stdin is not None:
                with suppress(OSError):
                    master.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                master.wait(1)
            _end(master)
        (self._scratch.folder / "ssh").unlink(missing_ok=True)

    def close(self) -> None:
        """End it."""
        self.disconnect()
        self._scratch.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(
        self, options: Sequence[str], argv: Sequence[str], stdin: IO[bytes] | int, out: IO[bytes] | int
    ) -> "subprocess.Popen[bytes]":
        ssh = shutil.which("ssh")
        if ssh is None:
            raise MissingDependencyError(
                f"{self.address} needs ssh, which is not installed here; install OpenSSH's client:"
                " apt-get install openssh-client"
            )
        own = {
            "BatchMode": "yes",
            "ConnectTimeout": self._connect_s,
            "ServerAliveInterval": ALIVE_S,
            "ServerAliveCountMax": SILENCES,
            "ControlPath": self._scratch.folder / "ssh",
            "ControlPersist": "no",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "RequestTTY": "no",
            "LogLevel": "ERROR",
        }
        words = [word for name, value in own.items() for word in ("-o", f"{name}={value}")]
        if self.address.port is not None:
            words += ["-p", str(self.address.port)]
        if self.address.user is not None:
            words += ["-l", self.address.user]
        command = [ssh, *self.config, *options, *words, "--", self.address.host, shlex.join(argv)]
        # A session of its own: Ctrl-C is ours to act on, and there is no terminal that a question could go to.
        return subprocess.Popen(  # noqa: S603 - the system's ssh; the address was checked, each word is quoted
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=out,
            start_new_session=True,
            env=os.environ | {"LC_ALL": "C", "SSH_ASKPASS_REQUIRE": "never"},
        )

    def _input(self, stdin: bytes | Path | None) -> IO[bytes]:
        if isinstance(stdin, Path):
            return stdin.open("rb")
        path = self._scratch.folder / "stdin"
        path.write_bytes(stdin or b"")
        return path.open("rb")

    def _read_until_ready(self, master: "subprocess.Popen[bytes]") -> str | None:
        """Wait for the line that says that commands are run there; None when it came, else what came instead.

        What the login shell says before, such as of the weather, is passed over.
        """
        said = b""
        deadline = time.monotonic() + 2 * self._connect_s
        with selectors.DefaultSelector() as selector:
            stdout = _pipe(master.stdout)
            selector.register(stdout, selectors.EVENT_READ)
            while self._begins not in said:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return "Connection timed out"
                block = os.read(stdout.fileno(), BLOCK)
                if not block or len(said) > USUAL_BYTES:
                    return f"it runs no command: {said[-LONGEST_REASON:].decode('utf-8', 'replace')}"
                said += block
        return None

    def _drained(
        self, process: "subprocess.Popen[bytes]", timeout_s: float, most_bytes: int, name: str, *, last: bool
    ) -> tuple[bool, bytes, bytes]:
        """Read both pipes up to their end, and wait for the process.

        Returns:
            Whether the command began; what it said on stdout, or else what came in its place; the end of stderr.
        """
        begun, stdout, stderr = False, bytearray(), bytearray()
        deadline = time.monotonic() + timeout_s
        late = TargetError(
            f"{self.address} did not finish {plain(name)} in {timeout_s:g} s; is it busy or its disk slow? Try again"
        )
        with selectors.DefaultSelector() as selector:
            selector.register(_pipe(process.stdout), selectors.EVENT_READ, stdout)
            selector.register(_pipe(process.stderr), selectors.EVENT_READ, stderr)
            while selector.get_map():
                left = deadline - time.monotonic()
                ready = selector.select(max(0.0, min(left, POLL_S)))
                if self._stopped.is_set() and not last:
                    raise TargetError(f"{self.address}: {plain(name)} was ended with the rest")
                if not ready and left <= 0:
                    raise late
                for key, _ in ready:
                    block = os.read(key.fd, BLOCK)
                    if not block:
                        selector.unregister(key.fileobj)
                    key.data.extend(block)
                del stderr[:-BLOCK]
                if not begun and (at := stdout.find(self._begins)) >= 0:
                    begun = True
                    del stdout[: at + len(self._begins)]
                most = most_bytes if begun else USUAL_BYTES
                if len(stdout) > most:
                    raise TargetError(
                        f"{self.address} answered {plain(name)} with more than {most:,} bytes, expected fewer;"
                        " what runs there is not what it should be"
                    )
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise late from None
        return begun, bytes(stdout), bytes(stderr)

    @property
    def _by_hand(self) -> str:
        """The machine in words for ssh."""
        return _login(self.address) if self.address.port is None else f"-p {self.address.port} {_login(self.address)}"

    def _unreachable(self, said: str) -> TargetError:
        words = self._by_hand
        for pattern, cause, remedy in _CAUSES:
            if re.search(pattern, said):
                return TargetError(
                    f"{self.address} cannot be used: {cause}; {remedy.format(words=words, host=_known(self.address))}"
                )
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        reason = shortened(lines[-1]) if lines else "ssh ended and said nothing"
        return TargetError(f"{self.address} cannot be used: {reason}; try by hand: ssh {words}")

    def _lost(self, said: str) -> LostConnectionError:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        reason = f" ({shortened(lines[-1])})" if lines else ""
        return LostConnectionError(
            f"{self.address}: the connection was lost{reason}; nothing half done is kept; try again when it is back"
        )


def shortened(text: str) -> str:
    """Return words of another machine on one line that no terminal obeys, cut where they are too many."""
    text = plain(text)
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 1]}…"


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise RuntimeError("the process was started without this pipe")
    return stream


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process that is not needed any more, and close its pipes."""
    if process.poll() is None:
        process.kill()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    process.wait()


def _login(address: SshAddress) -> str:
    return address.host if address.user is None else f"{address.user}@{address.host}"


def _known(address: SshAddress) -> str:
    """As ssh's known_hosts calls the machine."""
    return address.host if address.port is None else f"'[{address.host}]:{address.port}'"
