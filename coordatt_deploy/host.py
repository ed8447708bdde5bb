"""What a latency was measured on: the CPU and what it can do, its limits, and its state before and after.

Everything is read from text files below a root folder (``/proc``, ``/sys``, ``/etc``) or from the output of ``sysctl``,
so that recorded texts of other machines can be read as well. What a machine does not tell is None, never a guess.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from coordatt_deploy import __version__
from coordatt_deploy.formats import FORMATS, Format

ROOT: Final = Path("/")
# The features that decide which kernels ONNX Runtime and XNNPACK pick, by the names Linux gives them in /proc/cpuinfo:
# https://docs.kernel.org/arch/arm64/elf_hwcaps.html and arch/x86/include/asm/cpufeatures.h.
X86_FEATURES: Final = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "avx_vnni", "avx_vnni_int8", "amx_tile", "amx_int8", "amx_bf16", "hypervisor",
)  # fmt: skip
ARM_FEATURES: Final = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "sme", "sme2")

# sysctl hw.optional.* on Apple silicon, leaf7_features on Intel Macs, in Linux's words.
DARWIN_FEATURES: Final = {
    "hw.optional.neon": "asimd",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.arm.FEAT_SME2": "sme2",
    "hw.optional.sse4_2": "sse4_2",
    "hw.optional.avx1_0": "avx",
    "hw.optional.f16c": "f16c",
    "hw.optional.fma": "fma",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512bw": "avx512bw",
    "hw.optional.avx512vl": "avx512vl",
    "hw.optional.avx512vnni": "avx512_vnni",
}

# (implementer, part) of an ARM core: arch/arm64/include/asm/cputype.h.
ARM_CORES: Final = {
    (0x41, 0xD03): "Cortex-A53", (0x41, 0xD04): "Cortex-A35", (0x41, 0xD05): "Cortex-A55", (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72", (0x41, 0xD09): "Cortex-A73", (0x41, 0xD0A): "Cortex-A75", (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1", (0x41, 0xD0D): "Cortex-A77", (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78", (0x41, 0xD42): "Cortex-A78AE", (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510", (0x41, 0xD47): "Cortex-A710", (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse-N2", (0x41, 0xD4B): "Cortex-A78C", (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3", (0x41, 0xD4F): "Neoverse-V2", (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720", (0x41, 0xD82): "Cortex-X4", (0x41, 0xD84): "Neoverse-V3",
    (0x41, 0xD85): "Cortex-X925", (0x41, 0xD87): "Cortex-A725", (0x41, 0xD8E): "Neoverse-N3",
    (0x46, 0x001): "A64FX",
}  # fmt: skip

# What took part in a measurement, if it is installed.
PACKAGES: Final = (
    "coordatt-deploy",
    "numpy",
    *(name for file_format in Format for name in FORMATS[file_format].runtimes),
)


# What can have a hand in an artifact or a figure.
@dataclass(frozen=True, slots=True)
class HostState:
    """What changes while one measures; the difference of two states says who else was at work.

    Attributes:
        governor: Name of the frequency governor; several joined with ``/`` where the cores differ.
        frequency_mhz: Current frequency per core.
        temperature_c: The hottest CPU sensor, in degrees Celsius.
        load_average: Over 1, 5 and 15 minutes.
        busy_ms: CPU time that all processes took since boot, all cores together.
        stolen_ms: CPU time that the hypervisor gave to other machines since boot.
        own_ms: CPU time of this process.
        throttled_ms: Time that a container's CPU quota held its processes back.
        throttle_events: Times that the CPU slowed down because of heat, since boot.
        uptime_ms: A clock to divide by.
    """

    governor: str | None = None
    frequency_mhz: tuple[float, ...] = ()
    temperature_c: float | None = None
    load_average: tuple[float, float, float] | None = None
    busy_ms: float | None = None
    stolen_ms: float | None = None
    own_ms: float | None = None
    throttled_ms: float | None = None
    throttle_events: int | None = None
    uptime_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """The machine of a measurement.

    Attributes:
        cpu: Its name; for ARM the kinds of cores with their numbers.
        board: What the device tree calls the board.
        features: Instruction sets that matter to neural networks, in Linux's words: ``asimddp`` is dotprod, ``asimdhp``
            is fp16. A feature counts if every core has it.
        cores: Logical cores of the machine.
        cores_available: How many of them this process may use: affinity and container quota.
        cpu_limit: Quota of the container, in cores.
        memory_bytes: Main memory.
        memory_limit_bytes: Limit of the container.
        container: What kind of container this process runs in.
        versions: Of the packages that take part.
        before, after: State at the beginning and the end of the measurement.
    """

    cpu: str
    architecture: str
    features: tuple[str, ...]
    cores: int
    cores_available: int
    os: str
    python: str
    versions: Mapping[str, str]
    board: str | None = None
    cpu_limit: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    container: str | None = None
    before: HostState | None = None
    after: HostState | None = None

    def same_machine(self, other: "Host") -> bool:
        """Whether *other* is a machine of the same kind: latencies of different ones are not compared."""
        return all(getattr(self, key) == getattr(other, key) for key in ("cpu", "architecture", "features", "cores"))


def describe(root: Path = ROOT) -> Host:
    """Return this machine, without ``before`` and ``after``."""
    text = _sysctl() if sys.platform == "darwin" else _read(root / "proc/cpuinfo") or ""
    cpu, features = (parse_sysctl if sys.platform == "darwin" else parse_cpuinfo)(text)
    return Host(
        cpu=cpu or platform.processor() or "unknown",
        architecture=platform.machine(),
        features=features,
        cores=os.cpu_count() or 1,
        cores_available=available_cores(root),
        os=_os_name(root),
        python=platform.python_version(),
        versions=package_versions(),
        board=(_read(root / "proc/device-tree/model") or "").strip("\0\n") or None,
        cpu_limit=cpu_limit(root),
        memory_bytes=_sysctl_int(text, "hw.memsize") if sys.platform == "darwin" else memory_size(root),
        memory_limit_bytes=memory_limit(root),
        container=container(root),
    )


def state(root: Path = ROOT) -> HostState:
    """Return what the machine is doing right now."""
    busy_ms, stolen_ms = cpu_times(_read(root / "proc/stat") or "")
    times = os.times()
    uptime = _read(root / "proc/uptime")
    return HostState(
        governor=governor(root),
        frequency_mhz=frequencies(root),
        temperature_c=temperature(root),
        load_average=os.getloadavg() if hasattr(os, "getloadavg") else None,
        busy_ms=busy_ms,
        stolen_ms=stolen_ms,
        own_ms=(times.user + times.system) * 1e3,
        throttled_ms=quota_throttled(root),
        throttle_events=throttle_events(root),
        uptime_ms=float(uptime.split()[0]) * 1e3 if uptime else None,
    )


def parse_cpuinfo(text: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the CPU's name and features from the text of ``/proc/cpuinfo``, x86 or ARM."""
    cores = [dict(_fields(block)) for block in re.split(r"\n\s*\n", text) if block.strip()]
    flags = [set(value.split()) for core in cores for key in ("flags", "Features") if (value := core.get(key))]
    common = set.intersection(*flags) if flags else set()
    features = tuple(name for name in dict.fromkeys((*X86_FEATURES, *ARM_FEATURES)) if name in common)
    names = [core["model name"] for core in cores if "model name" in core]
    arm = [_arm_core(core) for core in cores if "CPU part" in core]
    if arm:
        counts = {name: arm.count(name) for name in dict.fromkeys(arm)}
        return " + ".join(f"{count} x {name}" for name, count in counts.items()), features
    return (names[0] if names else None), features


def parse_sysctl(text: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the CPU's name and features from the output of ``sysctl hw machdep.cpu`` on macOS."""
    fields = dict(_fields(text))
    found = {DARWIN_FEATURES[key] for key, value in fields.items() if key in DARWIN_FEATURES and value == "1"}
    features = tuple(name for name in dict.fromkeys((*X86_FEATURES, *ARM_FEATURES)) if name in found)
    return fields.get("machdep.cpu.brand_string"), features


def available_cores(root: Path = ROOT) -> int:
    """Return how many cores this process may use: its affinity, and the container's quota rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit(root)
    return affinity if limit is None else max(1, min(affinity, -int(-limit // 1)))


def cpu_limit(root: Path = ROOT) -> float | None:
    """Return the CPU quota of the control group and its parents (v1 or v2), in cores."""
    limits = []
    for folder in _cgroups(root, "cpu"):
        v2 = (_read(folder / "cpu.max") or "max").split()
        quota, period = (v2[0], v2[1]) if len(v2) == 2 else (None, None)
        quota = quota or _read(folder / "cpu.cfs_quota_us")
        period = period or _read(folder / "cpu.cfs_period_us")
        if quota and period and quota.strip() != "max" and int(quota) > 0:
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Return the memory limit of the control group and its parents (v1 or v2), in bytes."""
    limits = []
    for folder in _cgroups(root, "memory"):
        text = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes") or "max").strip()
        # Version 1 writes "no limit" as the greatest multiple of the page size that fits in 63 bits.
        if text != "max" and int(text) < 1 << 60:
            limits.append(int(text))
    return min(limits, default=None)


def memory_size(root: Path = ROOT) -> int | None:
    """Return the main memory in bytes."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def quota_throttled(root: Path = ROOT) -> float | None:
    """Return for how long the CPU quota held this control group back so far, in milliseconds."""
    for folder in _cgroups(root, "cpu"):
        text = _read(folder / "cpu.stat") or ""
        if found := re.search(r"^throttled_usec (\d+)", text, re.MULTILINE):
            return int(found[1]) / 1e3
        if found := re.search(r"^throttled_time (\d+)", text, re.MULTILINE):
            return int(found[1]) / 1e6
    return None


def cpu_times(stat: str, tick_hz: int = 100) -> tuple[float | None, float | None]:
    """Return busy and stolen CPU time in milliseconds from the text of ``/proc/stat``; USER_HZ is 100 everywhere."""
    for line in stat.splitlines():
        if line.startswith("cpu "):
            user, nice, system, _idle, _wait, irq, softirq, steal, *_ = (int(word) for word in line.split()[1:])
            return (user + nice + system + irq + softirq) * 1e3 / tick_hz, steal * 1e3 / tick_hz
    return None, None


def governor(root: Path = ROOT) -> str | None:
    """Return the frequency governor; several joined with ``/`` where the cores differ."""
    texts = [_read(path) for path in _sorted(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")]
    return "/".join(dict.fromkeys(text.strip() for text in texts if text)) or None


def frequencies(root: Path = ROOT) -> tuple[float, ...]:
    """Return the current frequency of each core in MHz; empty where the machine does not tell."""
    texts = [_read(path) for path in _sorted(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    if any(texts):
        return tuple(int(text) / 1e3 for text in texts if text)
    found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _read(root / "proc/cpuinfo") or "", re.MULTILINE)
    return tuple(float(value) for value in found)


def temperature(root: Path = ROOT) -> float | None:
    """Return the temperature of the hottest CPU sensor in degrees Celsius."""
    zones = _sorted(root, "sys/class/thermal/thermal_zone*")
    kind = re.compile(r"cpu|soc|pkg|core|big|little|cluster", re.IGNORECASE)
    readings = [_read(zone / "temp") for zone in zones if kind.search(_read(zone / "type") or "")]
    for folder in _sorted(root, "sys/class/hwmon/hwmon*"):
        if (_read(folder / "name") or "").strip() in ("coretemp", "k10temp", "zenpower", "cpu_thermal"):
            readings += [_read(path) for path in _sorted(folder, "temp*_input")]
    return max((int(text) / 1e3 for text in readings if text), default=None)


def throttle_events(root: Path = ROOT) -> int | None:
    """Return how often the CPU slowed down because of heat since boot (Intel tells, others do not)."""
    pattern = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"
    counts = [int(text) for path in _sorted(root, pattern) if (text := _read(path))]
    return sum(counts) if counts else None


def container(root: Path = ROOT) -> str | None:
    """Return the kind of container this process runs in, by the marks that the common ones leave."""
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    groups = _read(root / "proc/1/cgroup") or ""
    return next((kind for kind in ("kubepods", "docker", "lxc", "containerd") if kind in groups), None)


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions of those of the packages *names* that are installed, without importing them."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _arm_core(core: Mapping[str, str]) -> str:
    implementer, part = int(core.get("CPU implementer", "0"), 0), int(core["CPU part"], 0)
    return ARM_CORES.get((implementer, part), f"ARM core {implementer:#04x}/{part:#05x}")


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yield this process's control group and its parents, for *controller* (v1) and unified (v2)."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounts = (controllers, controller) if controllers else ("", "unified")
        for mount in dict.fromkeys(mounts):
            top = root / "sys/fs/cgroup" / mount
            # In a container the path is often that of the host and does not exist here: then only the top is left.
            group = top / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top) and folder.is_dir())


def _os_name(root: Path) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read(root / "etc/os-release") or "", re.MULTILINE)
    kernel = f"{platform.system()} {platform.release()}"
    return f"{found[1]} ({kernel})" if found else f"macOS {platform.mac_ver()[0]}" if platform.mac_ver()[0] else kernel


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


def _sorted(folder: Path, pattern: str) -> list[Path]:
    """Return what matches, cores in the order of their numbers."""
    return sorted(folder.glob(pattern), key=lambda path: [int(word) for word in re.findall(r"\d+", str(path))])


def _read(path: Path) -> str | None:
    """Return the text of a small system file; None if there is none or it refuses to be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _sysctl() -> str:
    command = ["/usr/sbin/sysctl", "hw", "machdep.cpu"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603 - nothing of a user's


def _sysctl_int(text: str, key: str) -> int | None:
    value = dict(_fields(text)).get(key)
    return int(value) if value else None


TOOLS: Final = (
    "torch",
    *(package.distribution for file_format in Format for package in FORMATS[file_format].packages),
    "numpy",
    "Pillow",
)


def tool_versions() -> dict[str, str]:
    """Return the versions of everything that can have a hand in an artifact or a figure."""
    ours = {"coordatt-deploy": __version__, "python": platform.python_version()}
    return dict(sorted((ours | package_versions(TOOLS)).items()))


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as the user would type it again."""
    return shlex.join(["coordatt-deploy", *arguments])
