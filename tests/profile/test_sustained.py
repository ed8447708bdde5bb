"""A run without a pause, by a clock that the test turns; and one on a real file."""

import pytest
from small_bundle import FLOAT_ONNX, float_bundle

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import UsageError
from coordatt_deploy.host import HostState
from coordatt_deploy.profile import machine_watch
from coordatt_deploy.profile.latency import ProfileSettings
from coordatt_deploy.profile.machine_watch import Look
from coordatt_deploy.profile.reports import read_reports
from coordatt_deploy.profile.rounds import Clocks
from coordatt_deploy.profile.sustained import MOST_WINDOWS, SustainedSettings, cool_down, run_for
from coordatt_deploy.profile.sustained_result import Cause, Course
from coordatt_deploy.profile.sustained_run import latency_of, measure_sustained
from coordatt_deploy.progress import Stages


class Device:
    """A machine whose CPU gets slower after a while, with its own clock; frequency and temperature go with it."""

    def __init__(self, slow_after_s=1e9, interrupted_after=None):
        self.now_ns, self.calls = 0, 0
        self.slow_after_s, self.interrupted_after = slow_after_s, interrupted_after

    @property
    def is_slow(self):
        return self.now_ns > self.slow_after_s * 1e9

    def call(self):
        self.calls += 1
        if self.calls == self.interrupted_after:
            raise KeyboardInterrupt
        self.now_ns += int(1e7 * (1.25 if self.is_slow else 1.0) * (1 + 0.01 * (self.calls % 5)))

    def watch(self):
        frequency, temperature = (1600.0, 80.0) if self.is_slow else (2000.0, 40.0)
        return Look(HostState(temperature_c=temperature), {0: frequency, 1: 900.0}, {7: (self.calls, 0)})

    def run(self, seconds):
        return run_for(self.call, seconds, threads=1, clocks=Clocks(wall_ns=lambda: self.now_ns), watch=self.watch)


def test_a_throttled_device_is_called_so(tmp_path):
    """
    A quarter slower from 100 s on, at a frequency that fell by a fifth of the core that it ran on.
    """
    seen = Device(slow_after_s=100).run(300)
    artifact = open_bundle(float_bundle(tmp_path / "net")).manifest.artifacts[0]
    found = latency_of(artifact, "runtime 1", seen, 300, 1)

    assert (Course.SLOWS_DOWN, Cause.THROTTLING) == (found.verdict.course, found.verdict.cause)
    assert found.verdict.since_s == pytest.approx(100, abs=2)
    assert found.verdict.ratio == pytest.approx(1.25, abs=0.01)
    assert "→ 1600 MHz (-20%)" in found.verdict.reason
    assert ((0,), ()) == (found.windows[0].cores, found.unreadable)


def test_a_day_takes_no_more_memory_than_a_minute():
    """
    Windows are as many as ever, each of more calls.
    """
    minute, hour = Device().run(60), Device().run(3600)

    assert MOST_WINDOWS == len(hour.windows) >= len(minute.windows)
    assert hour.windows[0].calls > 50 * minute.windows[0].calls
    assert minute.lasted_s == pytest.approx(60, rel=0.02)


def test_an_interruption_keeps_whole_windows():
    """
    The one in the midst of which it came leaves no trace; before the first there is nothing to keep.
    """
    seen = Device(interrupted_after=1000).run(60)

    assert seen.interrupted
    assert 0 < sum(window.calls for window in seen.windows) < 1000
    with pytest.raises(KeyboardInterrupt):
        Device(interrupted_after=15).run(60)


@pytest.mark.parametrize(
    ("cool_c", "readings", "expected"),
    [(None, [], 40.0), (50.0, [60.0] * 10 + [51.0] * 40, 25.0), (50.0, [60.0] * 40, 40.0), (50.0, [None] * 40, 40.0),
     (50.0, [51.0] * 8 + [60.0] + [51.0] * 40, 24.0)],
    ids=["not readable", "comes back", "stays hot", "stops telling", "not for good"],
)  # fmt: skip
def test_a_cool_down_ends_when_it_has_been_cool_for_a_while(cool_c, readings, expected):
    """
    Fifteen seconds in a row, and never later than was asked for.
    """
    left = iter(readings)
    slept, shares = [], []
    waited = cool_down(40.0, cool_c, temperature=lambda: next(left), sleep=slept.append, on_progress=shares.append)

    assert expected == waited == sum(slept)
    assert shares == sorted(shares)


@pytest.mark.parametrize(("seconds", "cool_down_s"), [(0.5, 0), (86_401, 0), (float("nan"), 0), (60, -1), (60, 1e9)])
def test_times_that_make_no_sense_are_refused(seconds, cool_down_s):
    """
    With what is possible.
    """
    with pytest.raises(UsageError, match="between"):
        SustainedSettings(seconds, cool_down_s)


def test_frequencies_of_a_virtual_machine_are_not_believed(tmp_path):
    """
    They are nominal; cpufreq is believed anywhere, and numbers are those of the cores.
    """
    (tmp_path / "proc").mkdir()
    cpuinfo = "processor\t: 0\ncpu MHz\t\t: 2400.5\nflags\t\t: avx2{}\n\nprocessor\t: 1\ncpu MHz\t\t: 1200.0\n"
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo.format(""))
    assert {0: 2400.5, 1: 1200.0} == machine_watch.frequencies(tmp_path)
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo.format(" hypervisor"))
    assert {} == machine_watch.frequencies(tmp_path)
    for core, text in ((0, "1800000\n"), (10, "600000\n"), (2, "<unknown>\n")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(text)
    assert {0: 1800.0, 10: 600.0} == machine_watch.frequencies(tmp_path)


def test_cores_are_those_of_threads_that_did_something(tmp_path):
    """
    A thread's name may hold brackets and blanks; what slept since does not count.
    """
    for thread, name, ticks, core in ((5, "py) 1 (x", 10, 3), (6, "pool", 0, 1)):
        folder = tmp_path / f"proc/self/task/{thread}"
        folder.mkdir(parents=True)
        fields = ["R", *["0"] * 10, str(ticks), "2", *["0"] * 23, str(core), "0"]
        (folder / "stat").write_text(f"{thread} ({name}) {' '.join(fields)}\n")
    now = Look(core_times=machine_watch.core_times(tmp_path), frequencies={3: 2000.0, 1: 500.0})

    assert {5: (12, 3), 6: (2, 1)} == now.core_times
    assert (3,) == now.cores_since(Look(core_times={6: (2, 0), 5: (4, 0)}))
    assert 2000.0 == now.frequency_of((3,))
    assert 1250.0 == now.frequency_of(())
    assert ("temperature",) == now.unreadable


def test_runs_accumulate_beside_latencies_and_come_back(tmp_path):
    """
    A real file for a second: its windows are in reports/profile.json, a second call takes their place, and a document
    that holds nothing else has no latency.
    """
    bundle = open_bundle(float_bundle(tmp_path / "net"))
    for _ in range(2):
        result = measure_sustained(bundle, Stages(), SustainedSettings(1.0), ProfileSettings())
    text = (bundle.root / "reports/profile.json").read_text()
    reports = read_reports(text)

    (run,) = reports.sustained
    assert (FLOAT_ONNX, bundle.manifest.artifacts[0].sha256) == (run.artifact, run.sha256)
    assert result.sustained == (run.result,)
    assert Course.UNDECIDED is run.result.verdict.course  # four windows a second are too few
    assert run.result.calls == sum(window.calls for window in run.result.windows) > 10
    assert (1, ()) == (len(reports.sessions), reports.runs)
    assert reports.result() is None
    assert dump(reports, indent=None) == text
