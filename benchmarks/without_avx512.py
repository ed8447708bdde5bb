"""Run a benchmark as on a CPU with AVX2 and no AVX-512: what a kernel set is worth, on one machine in one hour.

    python benchmarks/without_avx512.py -m coordatt_deploy attention-cost --attention ca --input-size 224

ONNX Runtime and LiteRT ask the CPU what it has and offer no switch. So their libraries are copied to a temporary
folder, every ``cpuid`` in the copies becomes an invalid instruction, and a preloaded handler answers in its place, with
AVX-512, VNNI and AMX left out. The kernels then run at full speed; nothing is emulated. For x86-64 Linux, with gcc and
binutils. What the benchmark says of its host is not changed.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

LIBRARIES: Final = {
    "onnxruntime": ("capi/onnxruntime_pybind11_state*.so",),
    "ai_edge_litert": ("libpywrap_litert_common.so", "libLiteRt.so"),
}
CPUID, INVALID = b"\x0f\xa2", b"\x0f\x0b"


def replace_cpuid(path: Path) -> int:
    """Make every ``cpuid`` of the library at *path* an invalid instruction; return how many there were."""
    listing = _output("objdump", "--disassemble", "--section=.text", "--no-show-raw-insn", str(path))
    addresses = [int(found, 16) for found in re.findall(r"^\s*([0-9a-f]+):\s+cpuid\b", listing, re.MULTILINE)]
    section = re.search(r"\s\.text\s+PROGBITS\s+([0-9a-f]+)\s+([0-9a-f]+)", _output("readelf", "-SW", str(path)))
    if section is None:
        raise SystemExit(f"{path.name} has no .text section")
    shift = int(section[2], 16) - int(section[1], 16)  # from addresses to positions in the file
    with path.open("r+b") as file:
        for address in addresses:
            file.seek(address + shift)
            if file.read(2) != CPUID:
                raise SystemExit(f"{path.name}: no cpuid at {address:#x}")
            file.seek(address + shift)
            file.write(INVALID)
    return len(addresses)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own words


def main() -> int:
    """Copy, edit, compile, run the rest of the command line."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        handler = Path(folder) / "without_avx512.so"
        source = Path(__file__).with_suffix(".c")
        _output("gcc", "-O2", "-shared", "-fPIC", "-o", str(handler), str(source))
        for package, patterns in LIBRARIES.items():
            found = importlib.util.find_spec(package)
            if found is None or not found.submodule_search_locations:
                raise SystemExit(f"{package} is not installed")
            copy = Path(shutil.copytree(found.submodule_search_locations[0], Path(folder) / package))
            for path in (path for pattern in patterns for path in sorted(copy.glob(pattern))):
                print(f"{path.name}: {replace_cpuid(path)} times", file=sys.stderr)
        environment = os.environ | {"LD_PRELOAD": str(handler), "PYTHONPATH": folder}
        return subprocess.run([sys.executable, *sys.argv[1:]], env=environment, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
