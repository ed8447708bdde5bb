"""What the torch-free half takes on a board, and that it works there: installed from the wheel in the ARM64 box.

    python -m benchmarks.board_install BUNDLE [--runtime tflite-runtime 'numpy<2']

Wheels for ARM64 are fetched here; the emulated machine's own Python runs pip, which installs ours with ``[runtime]``
from them, without a network. Then parity and profile are run there on BUNDLE, as a board would. With --runtime, that
takes the place of the runtimes of the extra. The box is that of ``coordatt-deploy doctor --setup qemu-arm64``.
"""

import argparse
import csv
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

from coordatt_deploy.scratch import Scratch
from coordatt_deploy.targets.qemu_arm64.build import GLIBC_MINORS
from coordatt_deploy.targets.qemu_arm64.cpus import CPUS, DEFAULT_CPU
from coordatt_deploy.targets.qemu_arm64.packages import GUEST_PYTHON
from coordatt_deploy.targets.qemu_arm64.sysroot import ARM64, Sysroot, open_sysroot

ROOT: Final = Path(__file__).parents[1]
MOST_MB: Final = 60  # beyond NumPy and the runtimes
# The limits of a file's first run are for real machines.
SLOW: Final = {"COORDATT_DEPLOY_FILE_SECONDS": "600", "COORDATT_DEPLOY_FILE_MEMORY_GB": "16"}
START: Final = (
    "import runpy, sys; sys.executable = sys.argv[1]; del sys.argv[:2]; module = sys.argv[0];"
    " runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
NOT_COUNTED: Final = ("numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime")


def main() -> int:
    """Print the sizes and what the commands said; 1 if they are too large, or a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--runtime", nargs="+", help="requirements in place of the extra, such as tflite-runtime 'numpy<2'"
    )
    parser.add_argument("--format", default="tflite", help="of the artifacts that are run there")
    options = parser.parse_args()
    with Scratch() as scratch:
        wheels, site = scratch / "wheels", scratch / "site"
        wanted = fetch(wheels, options.runtime)
        guest = Guest(open_sysroot(), scratch)
        pip = next(wheels.glob("pip-*.whl"))
        guest.run([str(pip)], "pip", "install", "--quiet", "--no-cache-dir", "--no-index", "--no-compile",
                  "--root-user-action=ignore", f"--find-links={wheels}", f"--target={site}", *wanted)  # fmt: skip
        beyond = show_sizes(site)
        bundle = str(options.bundle.resolve())
        said = [
            guest.run([str(site)], "coordatt_deploy", *words, "--output", str(scratch / f"{words[0]}.json"))
            for words in (
                ("parity", bundle, "--outputs-only", "--format", options.format),
                ("profile", bundle, "--format", options.format, "--samples", "20", "--warmups", "1"),
            )
        ]
        print("\n".join(said))
    return 0 if beyond <= MOST_MB else 1


def fetch(wheels: Path, runtime: list[str] | None) -> list[str]:
    """Build our wheel, fetch for ARM64 what it needs there, and return what is to be installed."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT], check=True)  # noqa: S603
    own = next(wheels.glob("coordatt_deploy-*.whl"))
    wanted = [f"{own}[runtime]"] if runtime is None else [str(own), *runtime]
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC_MINORS]
    subprocess.run(  # noqa: S603
        [*pip, "download", "--only-binary=:all:", "--implementation=cp", f"--python-version={GUEST_PYTHON}", *platforms,
         "--platform=manylinux2014_aarch64", "--platform=any", "-d", wheels, *wanted, "pip"],
        check=True,
    )  # fmt: skip
    return wanted


class Guest:
    """The emulated machine, with nothing of this package in it yet."""

    def __init__(self, box: Sysroot, scratch: Path) -> None:
        """Give it the box's Python and libraries, and a home folder."""
        self._cpu, self._view, self._home = CPUS[DEFAULT_CPU], scratch / "view", scratch / "home"
        self._view.mkdir()
        self._home.mkdir()
        for folder in (box.root / ARM64, box.root / "cpus" / self._cpu.name):
            for entry in folder.iterdir():
                (self._view / entry.name).symlink_to(entry)
        self._env = box.environment(self._home) | SLOW
        self._command = box.qemu(self._cpu, self._view)
        # What the guest starts is started by this machine's kernel, which has no ARM64: so it is QEMU once more.
        self._python = scratch / "python"
        libraries = shlex.quote(self._env["LD_LIBRARY_PATH"])
        self._python.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {shlex.join(self._command)} "$@"\n')
        self._python.chmod(0o755)

    def run(self, path: list[str], module: str, *words: str) -> str:
        """Run a module there with *path* as Python's, and return what it printed.

        Raises:
            SystemExit: It failed.
        """
        env = self._env | {"PYTHONPATH": ":".join(path)}
        command = [*self._command, "-c", START, str(self._python), module, *words]
        done = subprocess.run(command, env=env, cwd=self._home, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise SystemExit(f"{module} {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout


def show_sizes(site: Path) -> float:
    """Print the size of each distribution, and return the megabytes beyond NumPy and the runtimes."""
    sizes = {}
    for record in site.glob("*.dist-info/RECORD"):
        with record.open(newline="") as rows:
            files = [site / row[0] for row in csv.reader(rows)]
        sizes[record.parent.name.partition("-")[0]] = sum(file.stat().st_size for file in files if file.exists()) / 1e6
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{name:24}{size:8.1f} MB")
    beyond = sum(size for name, size in sizes.items() if name.lower() not in NOT_COUNTED)
    print(f"{'all':24}{sum(sizes.values()):8.1f} MB\n{'beyond NumPy and runtimes':24}{beyond:7.1f} MB")
    return beyond


if __name__ == "__main__":
    sys.exit(main())
