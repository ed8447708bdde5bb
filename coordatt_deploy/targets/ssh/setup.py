"""``doctor --setup ssh://…``: a virtual environment with this package on another machine, made from wheels.

Where the machine reaches an index of its own, pip fetches there what it needs; else the wheels for its Python and its
CPU are downloaded here and sent. This package itself is always sent: the other machine runs the same one. A new
environment is made beside the old one, and takes its place when it is whole.
"""

import json
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final
from uuid import uuid4

from coordatt_deploy import __version__
from coordatt_deploy.documents import DocumentError, from_json, parse
from coordatt_deploy.errors import MissingDependencyError, TargetError
from coordatt_deploy.files import sha256, size_bytes
from coordatt_deploy.logs import log_folder
from coordatt_deploy.plurals import counted
from coordatt_deploy.progress import Stages
from coordatt_deploy.scratch import Scratch
from coordatt_deploy.targets.ssh.connection import Connection, shortened
from coordatt_deploy.targets.ssh.files import RemoteFiles

TOOL: Final = "venv/bin/coordatt-deploy"  # below the data folder there
OLDEST: Final = (3, 11)
INSTALL_S: Final = 1800.0  # for pip on a slow card
OLDEST_GLIBC: Final = 17  # of manylinux: 2.17
PACKAGE: Final = "coordatt-deploy"
SOURCES: Final = ("pyproject.toml", "LICENSE", "coordatt_deploy", "exporters", "models")  # what a wheel is made of

_ASK: Final = (
    "import json, platform, sys; print(json.dumps({'version': list(sys.version_info[:2]), 'machine':"
    " platform.machine(), 'system': sys.platform, 'libc': list(platform.libc_ver())}))"
)
_SWITCH: Final = r"""
cd "$1" || exit 1
rm -f link.new
ln -s "$2" link.new || exit 1
mv -fT link.new venv 2>/dev/null || { rm -rf venv && mv -f link.new venv; } || exit 1
for old in venv-*; do [ "$old" = "$2" ] || rm -rf "$old"; done
"""


@dataclass(frozen=True, slots=True)
class PythonThere:
    """The Python of another machine.

    Attributes:
        version: Major and minor.
        machine: ``aarch64``.
        system: As ``sys.platform`` has it.
        libc: Name and version of the C library; empty texts where it is not glibc.
    """

    version: tuple[int, int]
    machine: str
    system: str
    libc: tuple[str, str]

    @property
    def platforms(self) -> tuple[str, ...]:
        """The tags of wheels that it takes, as pip names them; none where that is not known."""
        found = re.fullmatch(r"2\.(\d{1,3})", self.libc[1])
        if self.system != "linux" or found is None or not re.fullmatch(r"[a-z0-9_]+", self.machine):
            return ()
        newest = int(found[1])
        numbers = [f"manylinux_2_{minor}_{self.machine}" for minor in range(newest, OLDEST_GLIBC - 1, -1)]
        return (*numbers, f"manylinux2014_{self.machine}")


def set_up(connection: Connection, stages: Stages) -> tuple[str, ...]:
    """Make the environment, and return what was done, a line each.

    Raises:
        TargetError: The machine cannot be reached, lacks Python, or a step failed there; which, why, and what to do.
        MissingDependencyError: pip is missing here, or finds no wheels.
    """
    address = connection.address
    files = RemoteFiles(connection)
    python = ask_python(connection)
    done = [f"{address} has Python {python.version[0]}.{python.version[1]} on {python.machine}"]
    with Scratch() as folder:
        with stages.stage("wheel of this package"):
            wheel = own_wheel(folder)
        done.append(f"made {wheel.name} here")
        name = f"venv-{uuid4().hex[:16]}"  # never that of the one that is in use, also of the same wheel
        environment = files.folders.data / name
        try:
            with stages.stage(f"virtual environment on {address}"):
                _make_environment(connection, environment)
            wheels = files.folders.cache / "wheels"
            done += _install(files, environment, wheels, wheel, python, stages)
            tool = environment / PurePosixPath(TOOL).relative_to("venv")
            said = connection.check([str(tool), "--version"], "run what was installed")
            version = said.decode("utf-8", "replace").strip()
            if __version__ not in version:
                raise TargetError(
                    f"{address} runs {shortened(version)!r} in the place of version {__version__}; set it up again"
                )
        except BaseException:
            with suppress(TargetError):
                files.remove(environment)
            raise
    connection.check(["sh", "-c", _SWITCH, "sh", str(files.folders.data), name], "switch to the new environment")
    files.remove(wheels)
    done.append(f"{files.folders.data / TOOL} is version {__version__}")
    return tuple(done)


def ask_python(connection: Connection) -> PythonThere:
    """Ask a machine for its Python.

    Raises:
        TargetError: It has none, or one that is too old.
    """
    answer = connection.run(["python3", "-c", _ASK])
    install = "install it there, such as with: apt-get install python3 python3-venv"
    if answer.status:
        raise TargetError(f"{connection.address} has no python3 that works ({answer.reason}); {install}")
    try:
        python = from_json(PythonThere, parse(answer.stdout.decode("utf-8", "replace")))
    except DocumentError as error:
        raise TargetError(f"{connection.address}: its python3 does not say what it is ({error}); {install}") from None
    if python.version < OLDEST:
        has, needed = (".".join(map(str, version)) for version in (python.version, OLDEST))
        raise TargetError(f"{connection.address} has Python {has}, and {needed} or later is needed; {install}")
    return python


def own_wheel(folder: Path) -> Path:
    """Make a wheel of this package in *folder*: of its sources where they are here, else from the index.

    Raises:
        MissingDependencyError: pip is missing, or cannot make it.
    """
    root = Path(__file__).parents[3]
    if (root / "pyproject.toml").is_file():
        # From a copy: a build leaves files beside its sources, and takes up those of the one before.
        copy = folder / "sources"
        for name in SOURCES:
            if (root / name).is_dir():
                shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                copy.mkdir(exist_ok=True)
                shutil.copy(root / name, copy / name)
        words = ["wheel", "--no-deps", "--wheel-dir", str(folder / "own"), str(copy)]
    else:
        words = ["download", "--no-deps", "--dest", str(folder / "own"), f"{PACKAGE}=={__version__}"]
    _pip(words, "make a wheel of this package")
    return next((folder / "own").glob("*.whl"))


def wheels_for(python: PythonThere, wheel: Path, folder: Path) -> list[Path]:
    """Download what the ``[runtime]`` half needs on another machine's Python and CPU.

    Raises:
        MissingDependencyError: pip is missing, the index cannot be reached, or it has no wheels for that machine.
    """
    platforms = [word for tag in python.platforms for word in ("--platform", tag)]
    if not platforms:
        libc = " ".join(python.libc).strip() or "no glibc"
        raise MissingDependencyError(
            f"no wheels are known for {python.system} on {python.machine} with {libc}; install there by hand:"
            f" pip install '{PACKAGE}[runtime]'"
        )
    version = ".".join(map(str, python.version))
    _pip(
        ["download", "--only-binary=:all:", "--implementation", "cp", "--python-version", version, *platforms, "--dest",
         str(folder / "wheels"), f"{wheel}[runtime]"],
        f"download wheels for Python {version} on {python.machine}",
    )  # fmt: skip
    return sorted((folder / "wheels").glob("*.whl"))


def _make_environment(connection: Connection, environment: PurePosixPath) -> None:
    answer = connection.run(["python3", "-m", "venv", str(environment)], timeout_s=INSTALL_S)
    if answer.status:
        raise TargetError(
            f"{connection.address} cannot make a virtual environment: {answer.reason}; install venv there, such as"
            " with: apt-get install python3-venv"
        )


def _install(
    files: RemoteFiles,
    environment: PurePosixPath,
    wheels: PurePosixPath,
    wheel: Path,
    python: PythonThere,
    stages: Stages,
) -> list[str]:
    """Install the package and what it needs: from the machine's own index, or else from wheels that are sent."""
    connection = files.connection
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _send(files, [wheel], wheels, stages)
    what = f"{wheels / wheel.name}[runtime]"
    with stages.stage(f"install on {connection.address}"):
        quickly = ["--retries", "1", "--timeout", "15", "--only-binary=:all:"]
        answer = connection.run([*pip, *quickly, what], timeout_s=INSTALL_S)
    if not answer.status:
        return ["pip there installed it with what it needs, from the index that it has there"]
    with Scratch() as folder:
        with stages.stage(f"download wheels for {python.machine}"):
            found = wheels_for(python, wheel, folder)
        sent = _send(files, found, wheels, stages)
        with stages.stage(f"install on {connection.address}"):
            connection.check(
                [*pip, "--no-index", "--find-links", str(wheels), what], "install the wheels", timeout_s=INSTALL_S
            )
        total = sum(size_bytes(path) for path in found)
    return [
        f"pip there had no success by itself ({answer.reason})",
        f"downloaded {counted(len(found), 'wheel')} here, {total / 1e6:.1f} MB; {sent / 1e6:.1f} MB had to be sent",
        "installed them there without an index",
    ]


def _send(files: RemoteFiles, paths: list[Path], folder: PurePosixPath, stages: Stages) -> int:
    """Put files into a folder there, and return how many bytes travelled."""
    hashes = {path.name: sha256(path) for path in paths}
    sent = files.send({hashes[path.name]: path for path in paths}, stages)
    files.place(hashes, folder, linked=True)
    return sent.bytes


def _pip(words: list[str], what: str) -> None:
    """Run pip here.

    Raises:
        MissingDependencyError: It is not there, or fails.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603 - pip
    if done.returncode:
        log = log_folder() / "setup-pip.log"
        log.write_text(f"{json.dumps(command)}\n{done.stdout}\n{done.stderr}", encoding="utf-8")
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = shortened(lines[0]) if lines else f"exit status {done.returncode}"
        raise MissingDependencyError(f"pip cannot {what}: {reason}; see {log}")
