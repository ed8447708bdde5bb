import dataclasses
import json
import os

import pytest

from coordatt_deploy import host
from coordatt_deploy.documents import from_json, to_json
from coordatt_deploy.host import Host, HostState

# As an EPYC server writes it.
CPUINFO = """\
processor\t: 0
model name\t: AMD EPYC
cpu MHz\t\t: 2596.140

processor\t: 1
model name\t: AMD EPYC
cpu MHz\t\t: 2601.002
"""


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({}, None, None),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None),
        ({"cpu.max": "150000 100000\n", "memory.max": "536870912\n"}, 1.5, 536870912),
    ],
    ids=["none", "unlimited", "limited"],
)
def test_limits_of_control_groups_v2(tmp_path, files, cores, memory):
    """
    Quota over period gives cores; "max" is no limit.
    """
    write(tmp_path, {"proc/self/cgroup": "0::/pod\n"} | {f"sys/fs/cgroup/pod/{k}": v for k, v in files.items()})

    assert cores == host.cpu_limit(tmp_path)
    assert memory == host.memory_limit(tmp_path)


def test_limits_of_control_groups_v1(tmp_path):
    """
    Version 1 has a folder per controller, and the narrowest limit on the way up counts.
    """
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/a\n2:cpu,cpuacct:/docker/a\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.stat": "nr_periods 5\nnr_throttled 2\nthrottled_time 7000000\n",
            "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/docker/memory.limit_in_bytes": "1073741824\n",
        },
    )

    assert 0.5 == host.cpu_limit(tmp_path)
    assert 1 << 30 == host.memory_limit(tmp_path)
    assert 7.0 == host.quota_throttled(tmp_path)


def test_a_path_from_outside_the_container_is_no_trap(tmp_path):
    """
    A container often sees the host's path, which does not exist inside: the top of the mount is what is left.
    """
    write(tmp_path, {"proc/self/cgroup": "0::/../outside\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"})

    assert 0.5 == host.cpu_limit(tmp_path)


@pytest.mark.parametrize(("quota", "expected"), [("max", None), ("10000", 1)], ids=["free", "a-tenth"])
def test_available_cores_are_whole_and_at_least_one(tmp_path, quota, expected):
    """
    A tenth of a core still runs one thread; without a quota the affinity decides.
    """
    write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})

    assert (expected or len(os.sched_getaffinity(0))) == host.available_cores(tmp_path)


def test_state_reads_governor_frequency_and_temperature(tmp_path):
    """
    Governors of unlike cores are joined, the hottest CPU sensor counts, and other sensors do not.
    """
    cpu = "sys/devices/system/cpu"
    write(
        tmp_path,
        {
            f"{cpu}/cpu0/cpufreq/scaling_governor": "performance\n",
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
            f"{cpu}/cpu10/cpufreq/scaling_governor": "schedutil\n",
            f"{cpu}/cpu10/cpufreq/scaling_cur_freq": "2400000\n",
            f"{cpu}/cpu2/cpufreq/scaling_governor": "performance\n",
            f"{cpu}/cpu2/cpufreq/scaling_cur_freq": "408000\n",
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "3\n",
            f"{cpu}/cpu0/thermal_throttle/package_throttle_count": "4\n",
            "sys/class/thermal/thermal_zone0/type": "bigcore0-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "61500\n",
            "sys/class/thermal/thermal_zone1/type": "battery\n",
            "sys/class/thermal/thermal_zone1/temp": "99000\n",
            "sys/class/hwmon/hwmon0/name": "coretemp\n",
            "sys/class/hwmon/hwmon0/temp1_input": "58000\n",
            "proc/stat": "cpu  100 10 50 800 5 1 2 30 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n",
            "proc/uptime": "12.50 20.00\n",
        },
    )

    state = host.state(tmp_path)

    assert "performance/schedutil" == state.governor
    assert (1800.0, 408.0, 2400.0) == state.frequency_mhz
    assert 61.5 == state.temperature_c
    assert 7 == state.throttle_events
    assert (1630.0, 300.0, 12500.0) == (state.busy_ms, state.stolen_ms, state.uptime_ms)


def test_a_machine_that_tells_nothing_gives_none(tmp_path):
    """
    What cannot be read is None, not zero.
    """
    state = host.state(tmp_path)

    assert (None, (), None, None) == (state.governor, state.frequency_mhz, state.temperature_c, state.throttle_events)
    assert (None, None, None) == (state.busy_ms, state.stolen_ms, state.throttled_ms)


def test_frequency_falls_back_to_cpuinfo(tmp_path):
    """
    Virtual machines have no cpufreq, but x86 tells its frequency elsewhere.
    """
    write(tmp_path, {"proc/cpuinfo": CPUINFO})

    assert (2596.140, 2601.002) == host.frequencies(tmp_path)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": ""}, "podman"),
        ({"proc/1/cgroup": "0::/kubepods/besteffort/pod1\n"}, "kubepods"),
        ({"proc/1/cgroup": "0::/init.scope\n"}, None),
        ({"data/data/com.termux/files/usr/bin/sh": ""}, "Termux on Android"),
        ({"data/data/com.termux/files/usr/bin/sh": "", "etc/os-release": ""}, None),
    ],
    ids=["docker", "podman", "kubernetes", "none", "termux", "a folder of that name"],
)
def test_container_is_recognised(tmp_path, files, kind):
    """
    Each kind of container leaves a mark; a plain machine has none.
    """
    write(tmp_path, files)

    assert kind == host.container(tmp_path, release="6.1.0-21-arm64")


def test_a_debian_in_termux_is_recognised(tmp_path):
    """
    By the release of the kernel that proot-distro makes programs see.
    """
    write(tmp_path, {"etc/os-release": "", "data/data/com.termux/files/usr/bin/sh": ""})

    assert "proot, in Termux on Android" == host.container(tmp_path, release="6.17.0-PRoot-Distro")


def test_this_machine_describes_itself_in_strict_json():
    """
    The real description survives the way through JSON, and names what is installed here.
    """
    described = host.describe()
    whole = dataclasses.replace(described, before=host.state())

    again = from_json(Host, json.loads(json.dumps(to_json(whole), allow_nan=False)))

    assert whole == again
    assert whole.after is None
    assert whole.versions["numpy"]
    assert 1 <= whole.cores_available <= whole.cores


def test_state_survives_json():
    """
    Unknown values stay unknown.
    """
    for state in (HostState(), host.state()):
        assert state == from_json(HostState, json.loads(json.dumps(to_json(state), allow_nan=False)))


def test_a_host_that_is_damaged_says_where():
    """
    A ValueError with the path to what is wrong, at any depth.
    """
    whole = to_json(dataclasses.replace(host.describe(), before=HostState()))
    whole["before"]["load_average"] = ["busy", 0, 0]

    with pytest.raises(ValueError, match=r"Expected `float`, got `str` - at `\$\.before\.load_average\[0\]`"):
        from_json(Host, whole)


def test_machines_of_one_kind_are_told_from_others():
    """
    Another CPU is another machine; another state or kernel is not.
    """
    here = host.describe()
    other_kernel = dataclasses.replace(here, os="other")
    other_cpu = dataclasses.replace(here, cpu="1 x Cortex-A72")

    assert here.same_machine(other_kernel)
    assert not here.same_machine(other_cpu)


def test_versions_name_only_what_is_installed():
    """
    A package that is not here is left out.
    """
    assert {"numpy"} == set(host.package_versions(("numpy", "no-such-package-here")))
