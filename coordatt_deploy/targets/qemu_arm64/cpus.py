"""The ARM64 CPUs that QEMU 7.2 can stand for, and what Linux would say of them.

QEMU 7.2 shows its guest the host's /proc/cpuinfo, which ONNX Runtime's and XNNPACK's CPU detection cannot read (it
crashes) and which would name the wrong kernels. So the guest finds files of its own there. Their part number picks
the kernels tuned for that core, hence it must fit the instructions that QEMU's ``-cpu`` executes: a part that promises
more ends in an illegal instruction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ARMV8_0: Final = ("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid")
ARMV8_2: Final = (*ARMV8_0, "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "dcpop", "asimddp")
ARMV8_6: Final = (*ARMV8_2, "jscvt", "fcma", "sha3", "sha512", "asimdfhm", "flagm", "i8mm", "bf16")

ARM_LIMITED: Final = 0x41


@dataclass(frozen=True, slots=True)
class Cpu:
    """One CPU of the target.

    Attributes:
        name: As the user writes it.
        qemu: Argument of QEMU's ``-cpu``.
        part: Part number of the main ID register: which core it claims to be.
        features: In the words of /proc/cpuinfo.
        note: What the reader of a report should know about it.
    """

    name: str
    qemu: str
    part: int
    features: tuple[str, ...]
    note: str


CPUS: Final[Mapping[str, Cpu]] = {
    cpu.name: cpu
    for cpu in (
        Cpu("cortex-a53", "cortex-a53", 0xD03, ARMV8_0, "no dot product, no half precision"),
        # QEMU 7.2 has no Cortex-A55; the A76 executes the same instructions, the part number picks the A55's kernels.
        Cpu("cortex-a55", "cortex-a76", 0xD05, ARMV8_2, "dot product and half precision"),
        Cpu("cortex-a72", "cortex-a72", 0xD08, ARMV8_0, "no dot product, no half precision"),
        Cpu("cortex-a76", "cortex-a76", 0xD0B, ARMV8_2, "dot product and half precision"),
        Cpu("neoverse-n1", "neoverse-n1", 0xD0C, ARMV8_2, "dot product and half precision; a server's Cortex-A76"),
        # Never plain "max": QEMU 7.2 computes SME's integer products wrongly, and LiteRT's int8 kernels use them.
        Cpu("max", "max,sme=off,sve=off", 0xD48, ARMV8_6, "8-bit matrix products as well; no SVE, no SME"),
    )
}
DEFAULT_CPU: Final = "neoverse-n1"


def cpuinfo(cpu: Cpu) -> str:
    """Return /proc/cpuinfo of a machine with one core of this kind."""
    return (
        "processor\t: 0\n"
        "BogoMIPS\t: 50.00\n"
        f"Features\t: {' '.join(cpu.features)}\n"
        f"CPU implementer\t: 0x{ARM_LIMITED:02x}\n"
        "CPU architecture: 8\n"
        "CPU variant\t: 0x0\n"
        f"CPU part\t: 0x{cpu.part:03x}\n"
        "CPU revision\t: 1\n\n"
    )


def overlay(cpu: Cpu) -> dict[str, str]:
    """Return the files that the guest must find instead of the host's, by their path below its root."""
    system = "sys/devices/system/cpu"
    files = {"proc/cpuinfo": cpuinfo(cpu), f"{system}/kernel_max": "0\n"}
    files |= {f"{system}/{name}": "0\n" for name in ("possible", "present", "online")}
    topology = f"{system}/cpu0/topology"
    files |= {f"{topology}/{name}": "0\n" for name in ("physical_package_id", "core_id", "cluster_id")}
    for group in ("core_siblings", "thread_siblings", "package_cpus", "core_cpus", "cluster_cpus"):
        files |= {f"{topology}/{group}": "1\n", f"{topology}/{group}_list": "0\n"}
    return files
