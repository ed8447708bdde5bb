"""Latency over time and imported latencies, as they are shown: terminal at every width, Markdown, page."""

import re
from dataclasses import replace

import numpy as np
import pytest
from small_bundle import FLOAT_ONNX, float_bundle

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import BundleError
from coordatt_deploy.host import Host
from coordatt_deploy.profile.imported_result import HeldBy, ImportedLatency, ImportResult
from coordatt_deploy.profile.machine_watch import Look
from coordatt_deploy.profile.reports import ProfileReports, session_of, sustained_runs_of
from coordatt_deploy.profile.result import ProfileResult, SettingsRecord
from coordatt_deploy.profile.sustained import Seen
from coordatt_deploy.profile.sustained_result import Course, Window
from coordatt_deploy.profile.sustained_run import latency_of
from coordatt_deploy.report import sustained_texts as texts
from coordatt_deploy.report.page.plots import WIDTH
from coordatt_deploy.report.page.sustained_plot import sustained_plot
from coordatt_deploy.report.profile_summary import imported_markdown, profile_junit, profile_markdown
from coordatt_deploy.report.terminal.console import recorded
from coordatt_deploy.report.terminal.imported import show_imported
from coordatt_deploy.report.terminal.sustained import show_sustained
from coordatt_deploy.report.write import write_page

HOSTILE = "<script>alert('x')</script>|`\x1b[2J"
COUNT, AT = 120, 50


@pytest.fixture
def bundle(tmp_path):
    return open_bundle(float_bundle(tmp_path / "net"))


def measured(bundle, size=1.2, *, told=True, **changes):
    """A file that is slower from the fiftieth window on, and what the machine told of it."""
    rng = np.random.default_rng(0)
    windows = []
    for at in range(COUNT):
        slow = at >= AT
        value = 2.0 * (size if slow else 1.0) * float(np.exp(0.01 * rng.standard_normal()))
        facts = {"frequency_mhz": 2000.0 if slow else 2400.0, "temperature_c": 80.0 if slow else 50.0} if told else {}
        windows.append(Window(5.0 * at, 1000, value, value * 0.98, value * 1.05, value * 3, cores=(4, 5), **facts))
    seen = Seen(tuple(windows), Look(), Look(), 5.0 * COUNT)
    item = latency_of(bundle.manifest.artifacts[0], "runtime 1", seen, 600.0, 1)
    return replace(item, unreadable=() if told else ("frequency", "temperature"), **changes)


def document(*items):
    host = Host("Cortex", "aarch64", (), 8, 8, "Debian", "3.11", {})
    return ProfileResult(
        host, SettingsRecord(sustained_s=600.0), (), (), inputs={"image": (1, 3, 8, 8)}, sustained=items
    )


def taken(**changes):
    item = ImportedLatency(
        path=FLOAT_ONNX, format="onnx", precision="fp32", target_cpu=None, tool="onnxruntime_perf_test",
        held_by=HeldBy.NAME, source="log.txt", source_sha256="0" * 64, threads=4, calls=100, mean_ms=19.9,
        median_ms=19.8, min_ms=19.7, max_ms=20.2,
    )  # fmt: skip
    return ImportResult("pixel7", (replace(item, **changes),), "reports/latency-pixel7.json")


def shown(show, *arguments, width):
    with recorded(width) as console:
        show(*arguments)
    return console.export_text()


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_everything_fits_on_the_terminal(bundle, width):
    """
    Verdicts, curves and tables, of what slows down, of what is steady and of what was imported.
    """
    items = measured(bundle), replace(measured(bundle, 1.0, told=False, warm=True), threads=2)
    told = shown(show_sustained, bundle, document(*items), width=width)
    told += shown(show_imported, bundle, taken(), width=width)

    assert max(map(len, told.splitlines())) <= width
    words = " ".join(told.split())
    assert "slows down: " in words
    assert "throttling: frequency 2400 → 2000 MHz (-17%)" in words
    assert "frequency and temperature are not readable on this machine" in words
    assert "1 file started warm, right after another" in words
    assert "its name alone" in words


def test_a_curve_rises_where_the_latency_does(bundle):
    """
    It begins at the fastest; what differs by a hundredth looks flat, and a window is a bar at most.
    """
    curve = texts.curve(measured(bundle), 24)

    assert (24, "▁", "█") == (len(curve), curve[0], curve[-1])
    assert set(texts.curve(measured(bundle, 1.0), 24)) <= set("▁▂▃")
    assert COUNT == len(texts.curve(measured(bundle), 500))
    assert "" == texts.curve(replace(measured(bundle), windows=()), 10)


def test_summaries_say_the_verdict(bundle):
    """
    In Markdown as a row, in JUnit as a case that neither passes nor fails; an undecided one is skipped.
    """
    undecided = replace(measured(bundle), verdict=replace(measured(bundle).verdict, course=Course.UNDECIDED))
    told = document(measured(bundle), undecided)

    markdown = profile_markdown(told, "net")
    assert "| slows down: 2" in markdown
    assert "throttling: frequency 2400 → 2000 MHz" in markdown
    assert '<testsuite name="onnx/net.onnx" tests="2" failures="0" skipped="1">' in profile_junit(told)
    assert "Imported latency of net on pixel7" in imported_markdown(taken(), "net")


@pytest.mark.parametrize("told", [True, False], ids=["with frequency", "without"])
def test_the_plot_marks_where_it_became_slower(bundle, told):
    """
    Frequency and temperature have panels where they are known; nothing lies outside of the drawing.
    """
    plot = str(sustained_plot(7, "net", "in words", measured(bundle, told=told)))

    assert 1 == plot.count('class="limit"')
    assert "slower from 4:10 min on" in plot
    assert (told, told) == ("MHz of the cores" in plot, "°C of the hottest" in plot)
    height = float(re.search(r'viewBox="0 0 \d+ (\d+)"', plot)[1])
    points = [tuple(map(float, found)) for found in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", plot)]
    assert len(points) >= 3 * COUNT
    assert all(0 <= x <= WIDTH and 0 <= y <= height for x, y in points)


def test_names_and_reasons_are_texts_wherever_they_are_shown(bundle):
    """
    A document that somebody else wrote may say anything: no markup, no cell of a table, nothing that a terminal obeys.
    """
    item = measured(bundle)
    item = replace(item, runtime=HOSTILE, verdict=replace(item.verdict, reason=HOSTILE))
    told = document(item)
    hashes = {artifact.path: artifact.sha256 for artifact in bundle.manifest.artifacts}
    time = "2026-01-01T00:00:00+00:00"
    reports = ProfileReports((), (session_of(told, time),), (), sustained_runs_of(told, hashes, {}, time))
    with bundle.reporting():
        bundle.write_report("latency-p.json", dump(reports.moved("p")))
    page = write_page(bundle).read_text()

    assert "Latency under sustained load" in page
    assert ", on p" in page
    assert "<script" not in page
    assert "\x1b[2J" not in shown(show_sustained, bundle, told, width=100)
    assert "|`" not in profile_markdown(told, "net")
    assert "<script" not in imported_markdown(taken(tool=HOSTILE), HOSTILE)


def test_a_document_without_windows_is_refused(bundle):
    """
    The page says which command writes it again.
    """
    told = document(replace(measured(bundle), windows=()))
    hashes = {artifact.path: artifact.sha256 for artifact in bundle.manifest.artifacts}
    reports = ProfileReports((), (session_of(told, "t"),), (), sustained_runs_of(told, hashes, {}, "t"))
    with bundle.reporting():
        bundle.write_report("profile.json", dump(reports))

    with pytest.raises(BundleError, match="coordatt-deploy profile"):
        write_page(bundle)
