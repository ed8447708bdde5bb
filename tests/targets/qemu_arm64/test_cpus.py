from coordatt_deploy.targets.qemu_arm64 import cpus


def test_each_cpu_has_the_part_number_of_its_core():
    """
    As in the kernel's cputype.h; a wrong one picks another core's kernels.
    """
    parts = {name: cpu.part for name, cpu in cpus.CPUS.items()}

    assert parts == {
        "cortex-a53": 0xD03, "cortex-a55": 0xD05, "cortex-a72": 0xD08, "cortex-a76": 0xD0B, "neoverse-n1": 0xD0C,
        "max": 0xD48,
    }  # fmt: skip


def test_max_is_never_plain():
    """
    QEMU 7.2 computes SME's integer products wrongly.
    """
    assert "sme=off" in cpus.CPUS["max"].qemu
    assert not any(feature.startswith(("sme", "sve")) for cpu in cpus.CPUS.values() for feature in cpu.features)


def test_features_promise_what_the_core_has():
    """
    Dot products from the ARMv8.2 cores on, matrix products on max alone.
    """
    with_dot = {name for name, cpu in cpus.CPUS.items() if "asimddp" in cpu.features}

    assert with_dot == {"cortex-a55", "cortex-a76", "neoverse-n1", "max"}
    assert [name for name, cpu in cpus.CPUS.items() if "i8mm" in cpu.features] == ["max"]


def test_the_guest_sees_one_arm_core():
    """
    /proc/cpuinfo in the kernel's form, and a topology of one CPU.
    """
    files = cpus.overlay(cpus.CPUS["cortex-a72"])

    fields = dict(line.split(":") for line in files["proc/cpuinfo"].strip().splitlines())
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    assert fields["processor"] == "0"
    assert fields["CPU implementer"] == "0x41"
    assert fields["CPU part"] == "0xd08"
    assert "asimd" in fields["Features"].split()
    assert files["sys/devices/system/cpu/possible"] == "0\n"
    assert files["sys/devices/system/cpu/cpu0/topology/core_siblings"] == "1\n"
