"""Build the box of the emulated ARM64 machine, without root, from Debian's packages and the runtimes' wheels.

It is built beside its place and renamed when whole: an interrupted build leaves none, or the old one.
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from coordatt_deploy.errors import DeployError, MissingDependencyError
from coordatt_deploy.files import sha256
from coordatt_deploy.logs import log_folder
from coordatt_deploy.progress import Progress, Silent, Stages
from coordatt_deploy.targets import TargetStatus
from coordatt_deploy.targets.qemu_arm64 import apt
from coordatt_deploy.targets.qemu_arm64.cpus import CPUS, DEFAULT_CPU, overlay
from coordatt_deploy.targets.qemu_arm64.packages import (
    GUEST_PACKAGES,
    GUEST_PYTHON,
    HOST_PACKAGES,
    RELEASE,
    closure,
    installed_runtimes,
    opened_formats,
)
from coordatt_deploy.targets.qemu_arm64.session import start
from coordatt_deploy.targets.qemu_arm64.sysroot import (
    ARM64,
    MANIFEST,
    NAME,
    PLUGIN,
    PLUGIN_SOURCE,
    SCHEMA_VERSION,
    SETUP_COMMAND,
    Sysroot,
    examine,
    hashes,
    recipe,
    sysroot_path,
    walk,
)

# Debian 12 has glibc 2.36; wheels for any earlier one run there.
GLIBC_MINORS: Final = range(17, 37)
STEP_TIMEOUT_S: Final = 900.0
NEEDS: Final = "gcc libc6-dev"


class _StepFailedError(Exception):
    """A command of a step failed; the text says why, in the words of its last error lines."""


@dataclass
class _Builder:
    """A build in progress.

    Attributes:
        root: The unfinished box.
        work: Temporary files that do not become part of it.
        log: Takes everything that the commands print.
        etc: The system's configuration of apt.
        extra: The user's own source of Debian packages, if there is one.
        downloads: What came from elsewhere, with its hash, for the manifest.
    """

    root: Path
    work: Path
    log: IO[bytes]
    etc: Path
    extra: Path
    downloads: list[dict[str, str]] = field(default_factory=list)

    def run(self, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        """Run a command into the log.

        Raises:
            _StepFailedError: It failed.
        """
        self.log.write(f"$ {' '.join(argv)}\n".encode())
        self.log.flush()
        begin = self.log.tell()
        try:
            code = subprocess.run(  # noqa: S603 - arguments are our own, no shell
                argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, check=False,
                env=None if env is None else dict(env), cwd=cwd, timeout=STEP_TIMEOUT_S,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            raise _StepFailedError(f"{Path(argv[0]).name} did not end within {STEP_TIMEOUT_S:g} s") from None
        if code != 0:
            raise _StepFailedError(f"{Path(argv[0]).name} ended with exit status {code}: {self._last_words(begin)}")

    def _last_words(self, begin: int) -> str:
        """Return what a failed command said last, error lines first."""
        text = Path(self.log.name).read_bytes()[begin:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith(("E:", "Err:", "ERROR", "fatal")) or " error: " in line]
        return " | ".join((telling or lines)[-3:]) or "it printed nothing"

    # The steps, in their order.

    def packages(self) -> None:
        """Download Debian's packages, for this machine and for the guest, and unpack what is needed of them."""
        architecture = subprocess.run(  # noqa: S603
            [apt.command("dpkg", "dpkg"), "--print-architecture"], capture_output=True, text=True, check=True
        ).stdout.strip()
        settings = subprocess.run(  # noqa: S603
            [apt.command("apt-config", "apt"), "dump"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        architectures = tuple(dict.fromkeys((architecture, ARM64)))
        config = apt.prepare(self.work / "apt", architectures, RELEASE, settings, self.etc, self.extra)
        env = apt.environment(config, os.environ)
        apt_get = apt.command("apt-get", "apt")
        trouble = ""
        try:
            self.run([apt_get, "update", "-q"], env)
        except _StepFailedError as error:  # one source of several may be down: see whether the rest has everything
            trouble = f"; before that, {error}"
        wanted = [f"{name}:{architecture}" for name in HOST_PACKAGES]
        wanted += [f"{name}:{ARM64}" for name in GUEST_PACKAGES]
        debs = self.work / "debs"
        debs.mkdir()
        try:
            self.run([apt_get, "download", "-q", *dict.fromkeys(wanted)], env, cwd=debs)
        except _StepFailedError as error:
            raise _StepFailedError(f"{error}{trouble}") from None
        self._unpack(debs, architecture)

    def _unpack(self, debs: Path, architecture: str) -> None:
        unpack = [apt.command("dpkg-deb", "dpkg"), "--extract"]
        host, guest = self.work / "host", self.root / ARM64
        for deb in sorted(debs.iterdir()):
            package, version_, built_for = apt.deb_version(deb)
            self.downloads.append(
                {"package": package, "version": version_, "architecture": built_for, "sha256": sha256(deb)}
            )
            for_host = built_for == architecture and package in HOST_PACKAGES
            if for_host:
                self.run([*unpack, str(deb), str(host)])
            if built_for == ARM64 and package in GUEST_PACKAGES:
                self.run([*unpack, str(deb), str(guest)])
        shutil.rmtree(guest / "usr/share", ignore_errors=True)
        emulator = self.root / "host/usr/bin/qemu-aarch64"
        emulator.parent.mkdir(parents=True)
        (host / "usr/bin/qemu-aarch64").rename(emulator)
        for folder in sorted(host.glob("**/*-linux-gnu")):
            folder_in_box = self.root / "host" / folder.relative_to(host)
            folder_in_box.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(folder, folder_in_box, symlinks=True)

    def wheels(self) -> None:
        """Install the runtimes' wheels for the guest, in the versions that are installed here."""
        constraints = self.work / "constraints.txt"
        runtimes = installed_runtimes()
        lines = (f"{name}=={known}\n" for name, known in closure().items() if name not in runtimes)
        constraints.write_text("".join(lines), encoding="utf-8")
        report = self.work / "pip.json"
        platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC_MINORS]
        self.run(
            [
                sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--no-compile",
                "--target", str(self.root / "site"), "--only-binary=:all:", "--implementation=cp",
                f"--python-version={GUEST_PYTHON}", *platforms, "--platform=manylinux2014_aarch64",
                "--report", str(report), "--constraint", str(constraints),
                *(f"{name}=={known}" for name, known in runtimes.items()),
            ]
        )  # fmt: skip
        for item in json.loads(report.read_text(encoding="utf-8"))["install"]:
            known = item["download_info"].get("archive_info", {}).get("hashes", {})
            self.downloads.append(
                {
                    "wheel": item["metadata"]["name"],
                    "version": item["metadata"]["version"],
                    "file": item["download_info"]["url"].rpartition("/")[2],
                    "sha256": known.get("sha256", ""),
                }
            )
        for folder in sorted((self.root / "site/numpy").glob("**/tests")):
            shutil.rmtree(folder)

    def cpus(self) -> None:
        """Write what Linux would say of each CPU."""
        for cpu in CPUS.values():
            for name, text in overlay(cpu).items():
                path = self.root / "cpus" / cpu.name / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")

    def plugin(self) -> str | None:
        """Compile the instruction counter; return why there is none, where that fails."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            return f"there was no C compiler when the box was built; install Debian's packages {NEEDS}"
        try:
            self.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(self.root / PLUGIN), str(PLUGIN_SOURCE)])
        except _StepFailedError as error:
            return f"it could not be compiled ({error}); install Debian's packages {NEEDS}"
        return None

    def try_out(self, counting_problem: str | None) -> str | None:
        """Start the guest, import its runtimes, compare their versions, and see whether the counter counts.

        Python's modules are compiled on the way: that takes seconds at each start otherwise.
        """
        runtimes = installed_runtimes()
        box = Sysroot(self.root, runtimes, counting_problem)
        with start(box, CPUS[DEFAULT_CPU], compiling=True, timeout_s=STEP_TIMEOUT_S) as guest:
            inside = guest.versions(runtimes, opened_formats(runtimes))
        if inside != runtimes:
            raise _StepFailedError(f"the guest has {inside}, expected {runtimes}")
        if counting_problem is None:
            try:
                with start(box, CPUS[DEFAULT_CPU], counting=True, timeout_s=STEP_TIMEOUT_S) as guest:
                    guest.versions((), ())
            except DeployError as error:
                return f"QEMU does not load it ({error})"
        return counting_problem


def setup(cache_dir: Path | None = None, progress: Progress | None = None, *, etc: Path = apt.ETC_APT) -> TargetStatus:
    """Build the box, or find that it is there and whole; see ``targets.Target``.

    Args:
        cache_dir: Folder for boxes; None for the user's cache.
        progress: Shows the steps.
        etc: The system's configuration of apt.

    Raises:
        MissingDependencyError: A step failed; the text says which, why, and where the log is.
    """
    root = sysroot_path(cache_dir)
    if not opened_formats(installed_runtimes()):
        raise MissingDependencyError(
            f"target {NAME} runs the runtimes that are installed here, and there is none;"
            " run: pip install 'coordatt-deploy[runtime]'"
        )
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MissingDependencyError(f"the cache folder {root.parent} cannot be made: {error.strerror}") from None
    with _locked(root):
        found = examine(cache_dir)
        compiler = shutil.which("gcc") or shutil.which("cc")
        if found.state == "ready" and (found.counts or compiler is None):
            return found
        _build(root, Stages(progress or Silent()), etc)
        return examine(cache_dir)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keep two builds of one box apart; the second finds the first one's result."""
    with (root.parent / f".{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(root: Path, stages: Stages, etc: Path) -> None:
    staging = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}.partial-"))
    log_path = log_folder() / f"{NAME}-setup.log"
    step = "preparation"
    try:
        with log_path.open("w+b") as log:
            builder = _Builder(staging / "box", staging / "work", log, etc, root.parent / "debian.sources")
            builder.root.mkdir()
            builder.work.mkdir()
            step = "Debian packages"
            with stages.stage(step):
                builder.packages()
            step = "wheels of the runtimes"
            with stages.stage(step):
                builder.wheels()
            step = "CPU descriptions"
            builder.cpus()
            step = "instruction counter"
            with stages.stage(step):
                counting_problem = builder.plugin()
            step = "trial run"
            with stages.stage(step):
                counting_problem = builder.try_out(counting_problem)
            step = "manifest"
            with stages.stage(step):
                _write_manifest(builder, stages, counting_problem)
        _take_place(builder.root, root, staging)
    except (_StepFailedError, DeployError, OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise MissingDependencyError(
            f"the box of target {NAME} was not built: step {step!r} failed: {error};"
            f" the log is {log_path}; when that is mended, run: {SETUP_COMMAND}"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_manifest(builder: _Builder, stages: Stages, counting_problem: str | None) -> None:
    document = {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe(),
        "runtimes": installed_runtimes(),
        "no_counts_because": counting_problem,
        "host": platform.machine(),
        "bytes": sum(path.lstat().st_size for path in walk(builder.root)),
        "stages": {stage.name: stage.seconds for stage in stages.taken},
        "downloads": builder.downloads,
        "files": hashes(builder.root),
    }
    (builder.root / MANIFEST).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _take_place(new: Path, root: Path, staging: Path) -> None:
    if root.exists():
        root.rename(staging / "old")
    new.rename(root)
