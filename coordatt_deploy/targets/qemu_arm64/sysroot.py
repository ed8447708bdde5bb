"""The box: everything the emulated ARM64 machine consists of, in one folder, with the hash of each file.

    box.json    what is here: recipe, versions, hashes of downloads and files
    host/       QEMU and its libraries, for this machine
    arm64/      Python and its libraries, for the guest
    site/       the runtimes' wheels, for the guest
    cpus/NAME/  what Linux says of that CPU, below /proc and /sys
    qemu_icount.so   the instruction counter; absent where it could not be compiled

A box is checked as a whole before each use: it is 210 MB, which takes a second, and a run takes ten.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.files import sha256
from coordatt_deploy.logs import ENVIRONMENT, cache_folder
from coordatt_deploy.targets import TargetStatus
from coordatt_deploy.targets.board_modules import PACKAGE, board_files
from coordatt_deploy.targets.qemu_arm64.cpus import CPUS, Cpu, overlay
from coordatt_deploy.targets.qemu_arm64.packages import (
    GUEST_PACKAGES,
    GUEST_PYTHON,
    HOST_PACKAGES,
    RELEASE,
    installed_runtimes,
    known_runtimes,
)

NAME: Final = "qemu-arm64"
SETUP_COMMAND: Final = f"coordatt-deploy doctor --setup {NAME}"
MANIFEST: Final = "box.json"
SCHEMA_VERSION: Final = 1
LAYOUT: Final = 2  # of the folders; a box of another one is built again

ARM64: Final = "arm64"
OURS: Final = "coordatt-deploy"  # the folder below the guest's / with our code and the wheels
PLUGIN: Final = "qemu_icount.so"
PLUGIN_SOURCE: Final = Path(__file__).with_name("qemu_icount.c")


@dataclass(frozen=True, slots=True)
class Sysroot:
    """A box that was checked and can be used.

    Attributes:
        root: Its folder.
        runtimes: Versions of the packages inside.
        counting_problem: Why it has no instruction counter; None where it has one.
    """

    root: Path
    runtimes: Mapping[str, str]
    counting_problem: str | None = None

    def qemu(self, cpu: Cpu, view: Path, options: tuple[str, ...] = ()) -> list[str]:
        """Return the command line up to the guest's Python, for a program to follow.

        Args:
            cpu: What to emulate.
            view: A folder that ``make_view`` filled.
            options: Further ones of QEMU.
        """
        python = f"usr/bin/python{GUEST_PYTHON}"
        return [
            str(self.root / "host/usr/bin/qemu-aarch64"), "-cpu", cpu.qemu, *options,
            "-L", str(view), "-U", "LD_LIBRARY_PATH", "-0", f"/{python}", str(self.root / ARM64 / python),
        ]  # fmt: skip

    def make_view(self, cpu: Cpu, view: Path) -> None:
        """Fill *view* with what the guest finds below ``/`` instead of the host's files.

        QEMU looks each absolute path up there first. So the guest's paths are the same in every run and on every host,
        and with them the layout of Python's tables: counts repeat to the last digits.
        """
        ship_code(view / OURS / "code")
        (view / OURS / "site").symlink_to(self.root / "site")
        for folder in ((self.root / ARM64), (self.root / "cpus" / cpu.name)):
            for entry in folder.iterdir():
                (view / entry.name).symlink_to(entry)

    def plugin(self, rules: Path, out: Path) -> tuple[str, ...]:
        """Return QEMU's options that load the instruction counter."""
        parts = (str(self.root / PLUGIN), f"rules={rules}", f"out={out}")
        return ("-plugin", ",".join(part.replace(",", ",,") for part in parts))  # a comma in a path is doubled

    def environment(self, scratch: Path) -> dict[str, str]:
        """Return the environment of QEMU and guest; nothing of the caller's leaks in.

        Args:
            scratch: Becomes the guest's home: runtimes want to write there.
        """
        libraries = [str(path) for path in sorted((self.root / "host").glob("**/*-linux-gnu")) if path.is_dir()]
        return ENVIRONMENT | {
            "LD_LIBRARY_PATH": ":".join(libraries),
            "PYTHONPATH": f"/{OURS}/code:/{OURS}/site",
            "PYTHONHASHSEED": "0",  # the same order of everything, hence the same instructions
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "LANG": "C.UTF-8",
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        }


def sysroot_path(cache_dir: Path | None) -> Path:
    """Return where the box is, or would be."""
    return ((cache_dir or cache_folder()) / NAME).absolute()


def recipe() -> str:
    """Return a hash of everything in this package that decides what a box holds."""
    document = {
        "layout": LAYOUT,
        "packages": [RELEASE, HOST_PACKAGES, GUEST_PACKAGES],
        "cpus": {cpu.name: [cpu.qemu, overlay(cpu)] for cpu in CPUS.values()},
        "plugin": PLUGIN_SOURCE.read_text(encoding="utf-8"),
        "host": platform.machine(),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def hashes(root: Path) -> dict[str, str]:
    """Return the hash of every file below *root*, and the target of every link, by relative path."""
    found = {}
    for path in walk(root):
        name = path.relative_to(root).as_posix()
        if name != MANIFEST:
            found[name] = f"-> {path.readlink()}" if path.is_symlink() else sha256(path)
    return found


def walk(folder: Path) -> Iterator[Path]:
    """Yield every file and link below *folder* in a fixed order; links are not followed."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from walk(entry)
        else:
            yield entry


@dataclass(frozen=True, slots=True)
class SysrootManifest:
    """What a box says of itself: what is read of its ``box.json``.

    Attributes:
        recipe: Hash of what decides what it holds; see ``recipe``.
        runtimes: Versions of the packages inside.
        counting_problem: Why it has no instruction counter; None where it has one.
        bytes: Size of all files.
        files: Hash of every file and target of every link, by relative path.
    """

    recipe: str
    runtimes: Mapping[str, str]
    counting_problem: str | None
    bytes: int
    files: Mapping[str, str]


def read_manifest(root: Path) -> SysrootManifest:
    """Return the manifest of the box at *root*.

    Raises:
        ValueError: It is no JSON object of this schema, or lacks an entry.
    """
    document = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"its schema_version is not {SCHEMA_VERSION}")
    for key, kind in (("recipe", str), ("runtimes", dict), ("files", dict), ("bytes", int)):
        if not isinstance(document.get(key), kind):
            raise ValueError(f"it has no {key}")
    return SysrootManifest(
        recipe=document["recipe"],
        runtimes=document["runtimes"],
        counting_problem=document.get("no_counts_because"),
        bytes=document["bytes"],
        files=document["files"],
    )


def examine(cache_dir: Path | None = None) -> TargetStatus:
    """Look at the box, file by file, and say whether it can be used."""
    root = sysroot_path(cache_dir)
    if not root.exists():
        return _status(root, "missing", f"there is no {root}")
    try:
        manifest = read_manifest(root)
    except (OSError, ValueError) as error:
        return _status(root, "damaged", f"{root / MANIFEST} cannot be used: {error}")
    difference = _other_versions(manifest)
    if difference is not None:
        return _status(root, "outdated", difference, manifest)
    damage = _damage(root, manifest.files)
    if damage is not None:
        return _status(root, "damaged", damage, manifest)
    return _status(root, "ready", None, manifest)


def open_sysroot(cache_dir: Path | None = None) -> Sysroot:
    """Return the box, checked.

    Raises:
        MissingDependencyError: It is not built, damaged, or of other versions; the text holds the line that builds it.
    """
    found = examine(cache_dir)
    if found.state != "ready":
        what = {"missing": "is not built", "damaged": "is damaged", "outdated": "is of other versions"}[found.state]
        raise MissingDependencyError(f"the box of target {NAME} {what}: {found.reason}; run: {SETUP_COMMAND}")
    return Sysroot(Path(found.path), found.runtimes, found.counting_problem)


def _status(root: Path, state: str, reason: str | None, manifest: SysrootManifest | None = None) -> TargetStatus:
    why = None if manifest is None else manifest.counting_problem
    return TargetStatus(
        name=NAME,
        state=state,
        path=str(root),
        reason=reason,
        counts=state == "ready" and why is None,
        counting_problem=why,
        runtimes={} if manifest is None else dict(manifest.runtimes),
        bytes=0 if manifest is None else manifest.bytes,
        command=SETUP_COMMAND,
    )


def _other_versions(manifest: SysrootManifest) -> str | None:
    here, inside = installed_runtimes(), manifest.runtimes
    names = [name for name in known_runtimes() if here.get(name) != inside.get(name)]
    if names:
        pairs = (f"{name} {inside.get(name, 'missing')} inside, {here.get(name, 'missing')} here" for name in names)
        return f"it was built with {', '.join(pairs)}"
    if manifest.recipe != recipe():
        return "it was built by another version of coordatt-deploy"
    return None


def _damage(root: Path, expected: Mapping[str, str]) -> str | None:
    found = {name: _hash(root / name) for name in expected}
    missing = [name for name, digest in found.items() if digest is None]
    changed = [name for name, digest in found.items() if digest not in (None, expected[name])]
    parts = [
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''} {what}"
        for names, what in ((missing, "missing"), (changed, "changed since it was built"))
        if names
    ]
    return "; ".join(parts) or None


def _hash(path: Path) -> str | None:
    try:
        return f"-> {path.readlink()}" if path.is_symlink() else sha256(path)
    except OSError:
        return None


def ship_code(into: Path) -> None:
    """Copy the half of this package that travels below *into*, which goes on the guest's path.

    Compiled files go along: the guest runs the same Python release where the host has it, and compiling is slow there.
    """
    tag = f"cpython-{GUEST_PYTHON.replace('.', '')}"
    for name in board_files():
        source, target = PACKAGE.parent / name, into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(source, target)
        compiled = Path("__pycache__", f"{source.stem}.{tag}.pyc")
        if sys.implementation.cache_tag == tag and (source.parent / compiled).exists():
            (target.parent / compiled).parent.mkdir(exist_ok=True)
            _copy(source.parent / compiled, target.parent / compiled)


def _copy(source: Path, target: Path) -> None:
    """Copy contents and times; the times are what ties a compiled file to its source."""
    status = source.stat()
    target.write_bytes(source.read_bytes())
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
