"""What the machine tells between two windows of a long measurement: frequency, temperature, who else was at work.

Everything is read from text files below a root folder, as in ``host``. What a machine does not tell is None.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from coordatt_deploy import host
from coordatt_deploy.host import HostState

FREQUENCY: Final = "frequency"
TEMPERATURE: Final = "temperature"


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the machine.

    Attributes:
        state: Of the machine; its ``frequency_mhz`` may be nominal, see ``frequencies``.
        frequencies: Current frequency of each core in MHz, by number; empty where that cannot be known.
        core_times: CPU time of each thread of this process in clock ticks, and the core it was last on, by thread id.
    """

    state: HostState = field(default_factory=HostState)
    frequencies: Mapping[int, float] = field(default_factory=dict)
    core_times: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Which of frequency and temperature the machine does not tell."""
        known = {FREQUENCY: bool(self.frequencies), TEMPERATURE: self.state.temperature_c is not None}
        return tuple(name for name, readable in known.items() if not readable)

    def cores_since(self, earlier: "Look") -> tuple[int, ...]:
        """Return the cores on which threads of this process were last seen that did something since *earlier*."""
        found = {
            core
            for thread, (ticks, core) in self.core_times.items()
            if ticks > earlier.core_times.get(thread, (0, 0))[0]
        }
        return tuple(sorted(found))

    def frequency_of(self, cores: tuple[int, ...]) -> float | None:
        """Return the mean frequency in MHz of the *cores*, or of all where these are not known."""
        known = [self.frequencies[core] for core in cores if core in self.frequencies]
        known = known or list(self.frequencies.values())
        return sum(known) / len(known) if known else None


def look(root: Path = host.ROOT) -> Look:
    """Return what the machine tells right now."""
    return Look(host.state(root), frequencies(root), core_times(root))


def frequencies(root: Path = host.ROOT) -> dict[int, float]:
    """Return the current frequency of each core in MHz, by its number.

    From ``cpufreq``, or from ``/proc/cpuinfo`` of an x86 machine that is no virtual one: those are told a nominal
    frequency, which never changes.
    """
    found = {}
    for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
        text = _read(path)
        if text.isdigit():
            found[int(path.parts[-3].removeprefix("cpu"))] = int(text) / 1e3
    if found:
        return found
    text = _read(root / "proc/cpuinfo")
    if "hypervisor" in text:
        return {}
    core = None
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor" and value.isdigit():
            core = int(value)
        elif key == "cpu MHz" and core is not None:
            found[core] = float(value)
    return found


def core_times(root: Path = host.ROOT) -> dict[int, tuple[int, int]]:
    """Return CPU time in clock ticks and last core of each thread of this process, by thread id; proc(5)."""
    if sys.platform != "linux" and root == host.ROOT:
        return {}
    found = {}
    for path in (root / "proc/self/task").glob("[0-9]*/stat"):
        # the name, in brackets, may hold anything; the fields behind it begin with the third
        fields = _read(path).rpartition(")")[2].split()
        if len(fields) > 36:
            found[int(path.parts[-2])] = int(fields[11]) + int(fields[12]), int(fields[36])
    return found


def _read(path: Path) -> str:
    """The text of a small system file; empty if there is none or it refuses to be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
