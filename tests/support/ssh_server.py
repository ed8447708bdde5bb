"""A real sshd on this machine for the tests: keys, configuration and home folder of its own, all in one folder."""

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
PRIVILEGE_SEPARATION = Path("/run/sshd")

needs_sshd = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh-keygen") is None, reason="openssh-server is not installed: make system-packages"
)


class SshServer:
    """A machine on the loopback that this user can log in to.

    Attributes:
        folder: Holds everything of it.
        home: Where a login finds itself.
        port: That it answers at.
        config: For ``ssh -F``: the key to use and the host keys that are known.
    """

    def __init__(self, folder: Path, *, home: str = "home", path: str | None = None, env: dict[str, str] | None = None):
        """Start it.

        Args:
            folder: An empty one.
            home: Name of the home folder in it.
            path: PATH there; None for the one here.
            env: More variables of the login.
        """
        self.folder = folder
        self.home = folder / home
        self.home.mkdir(parents=True)
        self.port = _free_port()
        self.config = folder / "config"
        self.variables = {"HOME": str(self.home), "PATH": path or os.environ["PATH"]} | (env or {})
        for name in ("host", "user", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        self.know_host("host")
        self.write_login()
        self.config.write_text(
            f"Host *\nIdentityFile {folder}/user\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\nUser {getpass.getuser()}\n"
            f"StrictHostKeyChecking yes\nHost board\nHostName 127.0.0.1\nPort {self.port}\n"
        )
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\n"
            f"ForceCommand /bin/sh {folder}/login\n"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        """As ``--target`` takes it."""
        return f"ssh://127.0.0.1:{self.port}"

    def write_login(self, **variables: str) -> None:
        """Write what every command of a login goes through: it sets the home folder, as no account of ours has it."""
        self.variables |= variables
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.variables.items()]
        (self.folder / "login").write_text(
            "\n".join([
                "unset XDG_CACHE_HOME XDG_DATA_HOME COORDATT_DEPLOY_CACHE COORDATT_DEPLOY_SSH_CONFIG",
                *lines,
                'cd "$HOME" || exit 1',
                'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"',
                "",
            ])
        )  # fmt: skip

    def know_host(self, key: str | None) -> None:
        """Let the user know this host key, ``host`` for the right one; None for no key at all."""
        known = "" if key is None else f"[127.0.0.1]:{self.port} {(self.folder / f'{key}.pub').read_text()}"
        (self.folder / "known_hosts").write_text(known)

    def install(self, *, without: tuple[str, ...] = (), script: str | None = None) -> Path:
        """Put this program on the PATH of the machine.

        Args:
            without: Packages that are not there, whatever this Python has.
            script: What ``coordatt-deploy`` is instead.

        Returns:
            Where it is.
        """
        tools, hidden = self.folder / "bin", self.folder / "hidden"
        tools.mkdir(exist_ok=True)
        hidden.mkdir(exist_ok=True)
        (hidden / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({without!r}))\n")
        tool = tools / "coordatt-deploy"
        own = f'PYTHONPATH={shlex.quote(str(hidden))} exec {shlex.quote(sys.executable)} -m coordatt_deploy "$@"\n'
        tool.write_text(f"#!/bin/sh\n{own if script is None else script}")
        tool.chmod(0o755)
        self.write_login(PATH=f"{tools}:{os.environ['PATH']}")
        return tool

    def start(self) -> None:
        """Let it answer."""
        if os.geteuid() == 0:
            PRIVILEGE_SEPARATION.mkdir(exist_ok=True)
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(SSHD), "-D", "-e", "-f", self.folder / "sshd_config"], stdin=subprocess.DEVNULL, stderr=log
            )
        deadline = time.monotonic() + 10
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd does not start: {(self.folder / 'sshd.log').read_text()}")
            time.sleep(0.02)

    def cut(self) -> int:
        """Kill what serves the connections, as a cable that is pulled would; what runs for them goes on.

        Returns:
            How many connections there were.
        """
        serving = [child for child in self._children() if _name(child) in ("sshd", "sshd-session")]
        below = [item for child in serving for item in _children(child) if _name(item) in ("sshd", "sshd-session")]
        for process in (*serving, *below):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return len(serving)

    def stop(self) -> None:
        """Let it answer no more, and cut what is open."""
        if self._process is not None:
            self.cut()
            self._process.kill()
            self._process.wait()
            self._process = None

    def _children(self) -> list[int]:
        return [] if self._process is None else _children(self._process.pid)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _children(process: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(folder.name))
    return found


def _name(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/comm").read_text().strip()
    return ""
