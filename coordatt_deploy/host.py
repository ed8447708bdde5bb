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
from coordatt_deploy.cpu import key_values, parse_cpuinfo, parse_sysctl
from coordatt_deploy.formats import FORMATS, Format

ROOT: Final = Path("/")

# What took part in a measurement, if it is installed.
PACKAGES: Final = (
    "coordatt-deploy",
    "numpy",
    *(name for file_format in Format for name in FORMATS[file_format].runtimes),
)

ANDROID_PROOT: Final = "proot, in Termux on Android"
ANDROID_TERMUX: Final = "Termux on Android"
TERMUX: Final = "data/data/com.termux/files/usr"

# What can have a hand in an artifact or a figure.
TOOLS: Final = (
    "torch",
    *(package.distribution for file_format in Format for package in FORMATS[file_format].packages),
    "numpy",
    "Pillow",
)


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


def container(root: Path = ROOT, release: str | None = None) -> str | None:
    """Return the kind of container this process runs in, by the marks that the common ones leave.

    Args:
        root: Where files are read.
        release: What ``uname -r`` says; None to ask. proot-distro, which runs a Linux inside Termux, an app of Android,
            has it end in ``PRoot-Distro``; Termux itself has its files below ``TERMUX``.
    """
    if (platform.release() if release is None else release).endswith("PRoot-Distro"):
        return ANDROID_PROOT
    if (root / TERMUX).exists() and not (root / "etc/os-release").exists():
        return ANDROID_TERMUX
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
    value = dict(key_values(text)).get(key)
    return int(value) if value else None


def tool_versions() -> dict[str, str]:
    """Return the versions of everything that can have a hand in an artifact or a figure."""
    ours = {"coordatt-deploy": __version__, "python": platform.python_version()}
    return dict(sorted((ours | package_versions(TOOLS)).items()))


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as the user would type it again."""
    return shlex.join(["coordatt-deploy", *arguments])
