"""Each kind of budget is kept, exceeded and undecided; in the exit code, JUnit and annotations."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from latencies import quiet
from small_bundle import float_bundle

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.documents import dump
from coordatt_deploy.formats import Format
from coordatt_deploy.kept_results import read_results
from coordatt_deploy.parity import reports as parity_reports
from coordatt_deploy.parity.run import ParityPlan, check_parity
from coordatt_deploy.profile import reports as profile_reports
from coordatt_deploy.profile.latency import Latency, ProfileSettings
from coordatt_deploy.profile.result import latency_record
from coordatt_deploy.profile.run import measure_latency
from coordatt_deploy.progress import Stages
from coordatt_deploy.release.check import check
from coordatt_deploy.release.result import BudgetVerdict

WITHIN, EXCEEDED, UNDECIDED = BudgetVerdict.WITHIN, BudgetVerdict.EXCEEDED, BudgetVerdict.UNDECIDED


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A bundle that was judged and timed."""
    bundle = open_bundle(float_bundle(tmp_path_factory.mktemp("measured") / "net.bundle"))
    check_parity(bundle, ParityPlan(layers=False), Stages())
    measure_latency(bundle, Stages(), ProfileSettings(samples=60, openings=4, min_seconds=0.0))
    time_anew(bundle, quiet())
    return bundle


def time_anew(bundle, samples):
    """Put samples in the place of those that this machine, busy or not, has taken."""
    path = bundle.root / "reports" / "profile.json"
    reports = profile_reports.read_reports(path.read_text())
    runs = []
    for run in reports.runs:
        found = run.result.latency()
        latency = Latency(tuple(int(sample) for sample in samples), found.latency.warmups_ns, openings=10)
        runs.append(replace(run, result=latency_record(replace(found, latency=latency))))
    path.write_text(dump(replace(reports, runs=tuple(runs))))


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory):
    """A bundle as it was written."""
    return open_bundle(float_bundle(tmp_path_factory.mktemp("unmeasured") / "net.bundle"))


def held(bundle, folder, text):
    path = folder / "budgets.toml"
    path.write_text(text)
    return check(bundle, path)


def verdicts(result):
    return [item.verdict for item in result.results]


@pytest.mark.parametrize(
    ("section", "kept", "exceeded"),
    [
        ("size", "1 MB", "10 B"),
        ("latency", "100 s", "0.000001 us"),
        ("cold_start", "1000 s", "0.000001 us"),
        ("memory", "10 GB", None),
        ("operators", "1", "0"),
    ],
)
def test_a_kind_is_kept_exceeded_and_undecided(measured, unmeasured, tmp_path, section, kept, exceeded):
    """
    Undecided where nothing was measured; size and operators are always known.
    """
    assert [WITHIN] == verdicts(held(measured, tmp_path, f"[{section}]\nall = '{kept}'"))
    if exceeded is not None:
        assert [EXCEEDED] == verdicts(held(measured, tmp_path, f"[{section}]\nall = '{exceeded}'"))
    found = held(unmeasured, tmp_path, f"[{section}]\nall = '{kept}'")
    if section in ("size", "operators"):
        assert [WITHIN] == verdicts(found)
    else:
        assert [UNDECIDED] == verdicts(found)
        assert f"{unmeasured.root}" in found.results[0].reason


@pytest.mark.parametrize("section", ["instructions", "accuracy", "partitions"])
def test_what_was_not_found_out_is_undecided(measured, tmp_path, section):
    """
    No target has counted, nothing was evaluated, and of ONNX files no partitions are known.
    """
    limit = {"instructions": "1 M", "accuracy": "97 %", "partitions": "1"}[section]

    assert [UNDECIDED] == verdicts(held(measured, tmp_path, f"[{section}]\nall = '{limit}'"))


def test_a_latency_whose_interval_holds_the_limit_is_undecided(measured, tmp_path):
    """
    And the reason says how to decide it.
    """
    median = read_results(measured).profile.runs[0].result.median_ms
    (row,) = held(measured, tmp_path, f"[latency]\nall = '{median:.9f} ms'").results

    assert UNDECIDED is row.verdict
    assert "--min-seconds" in row.reason


@pytest.mark.parametrize(("limit", "verdict"), [("1 s", WITHIN), ("9 ms", UNDECIDED), ("1 ms", UNDECIDED)])
def test_an_unusable_figure_can_be_within_a_budget_and_never_beyond_it(measured, tmp_path, limit, verdict):
    """
    Other load only adds time: what is fast enough beside it is fast enough.
    """
    time_anew(measured, quiet(spread=0.01) * np.random.default_rng(1).lognormal(1.0, 1.0, 400))
    try:
        found = held(measured, tmp_path, f"[latency]\nall = '{limit}'")
    finally:
        time_anew(measured, quiet())

    assert [verdict] == verdicts(found)


def test_parity_is_the_verdict_and_the_least_sqnr(measured, tmp_path):
    """
    A file that failed keeps no budget of parity, whatever its SQNR.
    """
    path = measured.root / "reports" / "parity.json"
    before = path.read_text()
    reports = parity_reports.read_reports(before)
    run = reports.runs[0]

    def of(**changes):
        path.write_text(dump(replace(reports, runs=(replace(run, result=replace(run.result, **changes)),))))
        return verdicts(held(measured, tmp_path, "[parity]\nall = '30 dB'"))

    try:
        found = [
            of(exact=False, sqnr_db=35.0),
            of(exact=False, sqnr_db=25.0),
            of(exact=False, sqnr_db=35.0, passed=False),
        ]
    finally:
        path.write_text(before)

    assert [[WITHIN], [EXCEEDED], [EXCEEDED]] == found


def test_figures_of_other_bytes_decide_nothing(measured, tmp_path):
    """
    The file was written again since it was timed.
    """
    path = measured.root / "reports" / "profile.json"
    reports = profile_reports.read_reports(path.read_text())
    before = path.read_text()
    path.write_text(dump(replace(reports, runs=tuple(replace(run, sha256="0" * 64) for run in reports.runs))))
    try:
        found = held(measured, tmp_path, "[latency]\nall = '100 s'")
    finally:
        path.write_text(before)

    assert [UNDECIDED] == verdicts(found)


def test_the_narrowest_line_holds(measured, tmp_path):
    """
    The path before the format, the format before all.
    """
    text = "[size]\nall = '10 B'\nonnx = '20 B'\n'onnx/net.onnx' = '1 MB'"

    found = held(measured, tmp_path, text)
    assert [("size.onnx/net.onnx", WITHIN)] == [(item.budget, item.verdict) for item in found.results]


@pytest.mark.parametrize(("limit", "verdict"), [("1.0", WITHIN), ("0.99", EXCEEDED)])
def test_a_size_relative_to_the_baseline(measured, unmeasured, tmp_path, limit, verdict):
    """
    The same file of another bundle.
    """
    text = f"baseline = '{unmeasured.root}'\n[size]\nall = '{limit} x baseline'"

    assert [verdict] == verdicts(held(measured, tmp_path, text))


def test_a_latency_relative_to_a_baseline_that_was_not_timed_is_undecided(measured, unmeasured, tmp_path):
    """
    What is missing of the other bundle is said.
    """
    (row,) = held(measured, tmp_path, f"baseline = '{unmeasured.root}'\n[latency]\nall = '1.1 x baseline'").results

    assert UNDECIDED is row.verdict
    assert f"{unmeasured.root}" in row.reason


@pytest.mark.parametrize(("limit", "verdict"), [("10", WITHIN), ("0.01", EXCEEDED), ("1.0", UNDECIDED)])
def test_a_latency_relative_to_itself(measured, tmp_path, limit, verdict):
    """
    Equal files are within ten times, beyond a hundredth, and undecided at their own: the interval holds 1.
    """
    (row,) = held(measured, tmp_path, f"[latency]\nall = '{limit} x onnx.fp32'").results

    assert verdict is row.verdict, row.reason


def test_a_file_that_the_bundle_lacks(measured, tmp_path):
    """
    A format without a file is undecided; a path that is not there is a mistake, with the nearest.
    """
    assert [UNDECIDED] == verdicts(held(measured, tmp_path, "[size]\ntflite = '2 MB'"))
    path = tmp_path / "budgets.toml"
    path.write_text("[size]\n'onnx/nit.onnx' = '2 MB'")
    result = CliRunner().invoke(main, ["check", str(measured.root), "--budgets", str(path)])

    assert 2 == result.exit_code
    assert "did you mean onnx/net.onnx" in result.output


@pytest.mark.parametrize(
    ("text", "code", "tag", "command"),
    [
        ("[size]\nall = '1 MB'", 0, None, None),
        ("[size]\nall = '10 B'", 1, "failure", "::error file="),
        ("[instructions]\nall = '1 M'", 1, "failure", "::error file="),
        ("undecided = 'pass'\n[instructions]\nall = '1 M'", 0, "skipped", "::warning file="),
    ],
)
def test_exit_code_junit_and_annotation_agree(measured, tmp_path, text, code, tag, command):
    """
    What undecided counts as is the same in all three.
    """
    path, junit = tmp_path / "budgets.toml", tmp_path / "budgets.xml"
    path.write_text(text)
    result = CliRunner().invoke(
        main, ["check", str(measured.root), "--budgets", str(path), "--junit", str(junit), "--annotations"]
    )
    root = ElementTree.fromstring(junit.read_text())  # noqa: S314 - our own
    annotated = [line for line in result.output.splitlines() if line.startswith("::")]

    assert code == result.exit_code, result.output
    assert ([] if tag is None else [tag]) == [item.tag for item in root.iter() if item.tag in ("failure", "skipped")]
    assert (command is None) == (not annotated)
    assert all(line.startswith(command) and f",line={2 + text.startswith('u')}," in line for line in annotated)


def test_json_is_one_document_and_annotations_stay_out_of_it(measured, tmp_path, monkeypatch):
    """
    On a runner of GitHub they go to stderr then.
    """
    path = tmp_path / "budgets.toml"
    path.write_text("[size]\nall = '10 B'")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = CliRunner().invoke(main, ["check", str(measured.root), "--budgets", str(path), "--json"])

    document = json.loads(result.stdout)
    assert (1, False, "exceeded") == (result.exit_code, document["passed"], document["results"][0]["verdict"])
    assert "::error" in result.stderr


@pytest.mark.parametrize("columns", [80, 160])
def test_the_table_breaks_no_word(measured, tmp_path, monkeypatch, columns):
    """
    At 80 columns with fewer columns.
    """
    monkeypatch.setenv("COLUMNS", str(columns))
    path = tmp_path / "budgets.toml"
    path.write_text("[size]\nonnx.fp32 = '1 MB'\n[instructions]\nall = '1 M'")
    output = CliRunner().invoke(main, ["check", str(measured.root), "--budgets", str(path)]).output

    assert all(len(line) <= columns for line in output.splitlines())
    assert "size.onnx.fp32" in output
    assert "undecided" in output
    assert Format.ONNX.value in output
