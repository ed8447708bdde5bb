"""A CPU's name and what it can do, from what the system says of it: ``/proc/cpuinfo`` on Linux, ``sysctl`` on macOS."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

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


def parse_cpuinfo(text: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the CPU's name and features from the text of ``/proc/cpuinfo``, x86 or ARM."""
    cores = [dict(key_values(block)) for block in re.split(r"\n\s*\n", text) if block.strip()]
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
    fields = dict(key_values(text))
    found = {DARWIN_FEATURES[key] for key, value in fields.items() if key in DARWIN_FEATURES and value == "1"}
    features = tuple(name for name in dict.fromkeys((*X86_FEATURES, *ARM_FEATURES)) if name in found)
    return fields.get("machdep.cpu.brand_string"), features


def key_values(text: str) -> Iterator[tuple[str, str]]:
    """Yield key and value of each line ``key : value``, as both sources write them."""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


def _arm_core(core: Mapping[str, str]) -> str:
    implementer, part = int(core.get("CPU implementer", "0"), 0), int(core["CPU part"], 0)
    return ARM_CORES.get((implementer, part), f"ARM core {implementer:#04x}/{part:#05x}")
