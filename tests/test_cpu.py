import pytest

from coordatt_deploy.cpu import parse_cpuinfo, parse_sysctl

EPYC = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model name\t: AMD EPYC
cpu MHz\t\t: 2596.140
flags\t\t: fpu sse4_2 avx f16c fma avx2 hypervisor avx512f avx512bw avx512vl avx512_bf16 avx512_vnni

processor\t: 1
vendor_id\t: AuthenticAMD
cpu family\t: 25
model name\t: AMD EPYC
cpu MHz\t\t: 2601.002
flags\t\t: fpu sse4_2 avx f16c fma avx2 hypervisor avx512f avx512bw avx512vl avx512_bf16 avx512_vnni
"""

# An RK3588: four small cores and four big ones.
ARM_FLAGS = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
RK3588 = "\n".join(
    f"processor\t: {index}\nBogoMIPS\t: 48.00\nFeatures\t: {ARM_FLAGS}\nCPU implementer\t: 0x41\n"
    f"CPU architecture: 8\nCPU variant\t: 0x2\nCPU part\t: {part}\nCPU revision\t: 0\n"
    for index, part in enumerate(["0xd05"] * 4 + ["0xd0b"] * 4)
)
PI_4 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""

M1 = """\
hw.ncpu: 8
hw.memsize: 17179869184
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 0
hw.optional.arm.FEAT_I8MM: 0
hw.optional.arm.FEAT_FP16: 1
hw.optional.neon: 1
machdep.cpu.brand_string: Apple M1
"""


@pytest.mark.parametrize(
    ("text", "name", "has", "lacks"),
    [
        (EPYC, "AMD EPYC", {"avx2", "fma", "f16c", "avx512_vnni"}, {"avx_vnni", "asimd"}),
        (RK3588, "4 x Cortex-A55 + 4 x Cortex-A76", {"asimd", "asimddp", "asimdhp"}, {"i8mm", "bf16", "sve"}),
        (PI_4, "1 x Cortex-A72", {"asimd"}, {"asimddp", "asimdhp"}),
    ],
    ids=["x86", "big-little", "pi-4"],
)
def test_cpuinfo_names_the_cpu_and_its_features(text, name, has, lacks):
    """
    The name and the features that decide over kernels are found, and none is made up.
    """
    cpu, features = parse_cpuinfo(text)

    assert name == cpu
    assert has <= set(features)
    assert not lacks & set(features)


def test_a_feature_of_some_cores_does_not_count():
    """
    Where cores differ, a thread may land on one that lacks the instruction.
    """
    mixed = RK3588.replace(" asimddp", "", 1)

    assert "asimddp" in parse_cpuinfo(RK3588)[1]
    assert "asimddp" not in parse_cpuinfo(mixed)[1]


def test_an_unknown_arm_core_keeps_its_numbers():
    """
    A core that the table does not hold is shown by implementer and part.
    """
    assert "1 x ARM core 0x51/0x001" == parse_cpuinfo("CPU implementer : 0x51\nCPU part : 0x001\n")[0]


def test_an_empty_cpuinfo_says_nothing():
    """
    No text, no name, no features.
    """
    assert (None, ()) == parse_cpuinfo("")


def test_sysctl_speaks_linux():
    """
    Apple's words for features become Linux's; a 0 is no feature.
    """
    assert ("Apple M1", ("asimd", "asimdhp", "asimddp")) == parse_sysctl(M1)
