import dataclasses
import json

import numpy as np
import pytest

from coordatt_deploy import host
from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.documents import dump, load
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.profile.latency import ColdStart, Latency
from coordatt_deploy.profile.noise import Evidence
from coordatt_deploy.profile.reports import ProfileReports, load_profile, read_reports, runs_of, session_of
from coordatt_deploy.profile.result import ArtifactLatency, Profile, ProfileResult, SettingsRecord, profile_result
from coordatt_deploy.report.terminal.console import host_line
from coordatt_deploy.run_records import NotRun

RNG = np.random.default_rng(0)
KEYS = [
    *("path", "format", "precision", "target_cpu", "runtime", "origin", "threads"),
    *("median_ms", "p90_ms", "p95_ms", "p99_ms", "iqr_ms", "ci95_ms", "verdict", "reason"),
    *("load_ms", "first_inference_ms", "peak_memory_bytes", "warning", "samples_ns", "warmups_ns"),
]


def latency(centre_ms, threads=1, **more):
    samples = tuple(int(value) for value in centre_ms * 1e6 * RNG.normal(1, 0.01, 60))
    return Latency(samples, warmups_ns=(9_000_000, 6_000_000), threads=threads, **more)


def result(path, centre_ms, threads=1, origin=Origin.MEASURED, cold=None, **more):
    return ArtifactLatency(
        path, Format.ONNX, Precision.FP32, TargetCpu.ARM64, "onnxruntime 1.31.1", origin,
        latency(centre_ms, threads, **more), cold,
    )  # fmt: skip


SETTINGS = SettingsRecord((1,), 5, 600, 10, 1.0, (), 0)


@pytest.fixture
def profile():
    here = dataclasses.replace(host.describe(), before=host.state(), after=host.state())
    return Profile(
        host=here,
        results=(
            result("onnx/a.onnx", 5.0, cold=ColdStart(31.5, 9.25, 1 << 24), lost_ns=(0, None, 7) * 20),
            result("onnx/b.onnx", 10.0, evidence=Evidence(stolen=0.1)),
            result("onnx/a.onnx", 3.0, threads=2),
            result("coreml/c.mlpackage", 500.0, origin=Origin.EVALUATED),
        ),
        yardsticks={1: latency(1.5), 2: latency(1.6)},
        settings=SETTINGS,
        skipped=(NotRun("tflite/d.tflite", "no runtime"),),
        interrupted=True,
    )


def test_a_profile_survives_its_document(profile):
    """
    What was measured comes back from strict JSON as it was, and so do the figures derived from it.
    """
    result = profile_result(profile)

    again = load(ProfileResult, dump(result))

    assert result == again
    assert profile == again.profile()
    assert result == profile_result(again.profile())


def test_the_document_holds_what_was_promised(profile):
    """
    Every key of the schema is there, the version comes first, and the figures are those of the samples.
    """
    document = json.loads(dump(profile_result(profile)))
    first, second = document["results"][:2]

    assert ("schema_version", 1) == next(iter(document.items()))
    assert {"host", "results", "ratios", "interrupted"} <= set(document)
    assert KEYS == list(first)[: len(KEYS)]
    assert np.median(first["samples_ns"]) / 1e6 == first["median_ms"]
    assert first["ci95_ms"][0] <= first["median_ms"] <= first["ci95_ms"][1]
    assert first["p90_ms"] <= first["p95_ms"] <= first["p99_ms"]
    assert (31.5, 9.25, 1 << 24) == (first["load_ms"], first["first_inference_ms"], first["peak_memory_bytes"])
    assert (None, None, None) == (second["load_ms"], second["first_inference_ms"], second["peak_memory_bytes"])
    assert ("noisy", True) == (second["verdict"], "hypervisor" in second["reason"])
    assert document["interrupted"] is True


def test_ratios_are_of_artifacts_that_took_turns(profile):
    """
    One pair shares threads and origin; its ratio is a over b, with an interval around it.
    """
    (ratio,) = profile_result(profile).ratios

    assert ("onnx/a.onnx", "onnx/b.onnx", 1) == (ratio.a, ratio.b, ratio.threads)
    assert ratio.ratio == pytest.approx(0.5, rel=0.02)
    assert ratio.ci95[0] < ratio.ratio < ratio.ci95[1]


def test_a_file_is_read_back(profile, tmp_path):
    """
    The file that a bundle keeps gives the same profile.
    """
    path = tmp_path / "profile.json"
    path.write_text(dump(profile_result(profile)))

    assert profile == load_profile(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document.update(schema_version=3), "schema_version is 3"),
        (lambda document: document.pop("schema_version"), "schema_version is None"),
        (lambda document: document.pop("results"), "missing required field `results`"),
        (lambda document: document["results"][0].update(samples_ns=[1, -2]), "positive"),
        (lambda document: document["results"][0].update(samples_ns=[]), "no samples"),
        (lambda document: document["results"][0].update(origin="guessed"), "guessed"),
        (lambda document: document["results"][0].update(median_ms=float("nan")), "NaN is not JSON"),
    ],
    ids=["other schema", "no schema", "no results", "impossible sample", "no sample", "origin", "NaN"],
)
def test_a_damaged_document_is_refused(profile, tmp_path, change, words):
    """
    Each damage is told with the command that measures again, exit code 2.
    """
    document = json.loads(dump(profile_result(profile)))
    change(document)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document))

    with pytest.raises(UsageError, match=words) as refused:
        load_profile(path)

    assert "coordatt-deploy profile" in str(refused.value)
    assert 2 == refused.value.exit_code


@pytest.mark.parametrize("text", [None, "", "[]", "{"])
def test_what_is_no_document_is_refused(tmp_path, text):
    """
    No file, no JSON, no object.
    """
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)

    with pytest.raises(UsageError):
        load_profile(path)


def test_the_report_of_the_first_schema_is_read(profile):
    """
    What an older version wrote is the one session that it knew.
    """
    result = profile_result(profile)

    reports = read_reports(dump(result))

    assert result == reports.result()
    assert reports == read_reports(dump(reports))


def test_runs_accumulate(profile):
    """
    A later measurement of one artifact takes its own place alone, and each run knows its session.
    """
    result = profile_result(profile)
    first = ProfileReports(runs_of(result, {}, {}, "2026-01-01"), (session_of(result, "2026-01-01"),))
    again = dataclasses.replace(result, results=(dataclasses.replace(result.results[1], median_ms=7.0),), ratios=())

    reports = first.with_session(
        runs_of(again, {"onnx/b.onnx": "ab"}, {}, "2026-01-02"), session_of(again, "2026-01-02")
    )

    found = {(run.artifact, run.result.threads): run for run in reports.runs}
    assert 4 == len(reports.runs) == len(found)
    assert ("2026-01-02", "ab", 7.0) == (
        found["onnx/b.onnx", 1].time, found["onnx/b.onnx", 1].sha256, found["onnx/b.onnx", 1].result.median_ms,
    )  # fmt: skip
    assert "2026-01-01" == found["onnx/a.onnx", 2].time
    assert ["2026-01-01", "2026-01-02"] == [session.time for session in reports.sessions]


def test_a_handful_of_samples_replaces_no_measurement(profile):
    """
    A run of three samples is not kept beside one with enough; one with enough takes the place of three.
    """
    result = profile_result(profile)
    few = dataclasses.replace(
        result, ratios=(), results=tuple(dataclasses.replace(item, samples_ns=item.samples_ns[:3])
                                         for item in result.results)
    )  # fmt: skip

    def after(first, second):
        reports = ProfileReports(runs_of(first, {}, {}, "1"), (session_of(first, "1"),))
        return reports.with_session(runs_of(second, {}, {}, "2"), session_of(second, "2"))

    assert result.results == after(result, few).result().results
    assert result.results == after(few, result).result().results
    assert ["2"] == [session.time for session in after(few, result).sessions]


def test_another_machines_measurement_stands_beside_this_ones(profile):
    """
    Both are kept, and what is shown is of the last machine alone.
    """
    result = profile_result(profile)
    board = dataclasses.replace(result, host=dataclasses.replace(result.host, cpu="Cortex-A53"))
    reports = ProfileReports(runs_of(result, {}, {}, "1"), (session_of(result, "1"),))

    both = reports.with_session(runs_of(board, {}, {}, "2"), session_of(board, "2"))

    assert 2 * len(result.results) == len(both.runs)
    assert ("Cortex-A53", len(result.results)) == (both.result().host.cpu, len(both.result().results))


def test_a_handful_of_samples_has_no_interval(profile):
    """
    Neither of the median nor of a ratio; what is shown has a dash, and the verdict says that they are too few.
    """
    few = tuple(
        dataclasses.replace(
            item, latency=dataclasses.replace(item.latency, samples_ns=(3, 9, 15), lost_ns=(), per_round=1)
        )
        for item in profile.results
    )
    result = profile_result(dataclasses.replace(profile, results=few))

    assert {None} == {item.ci95_ms for item in result.results} | {item.ci95 for item in result.ratios}
    assert all("only 3 samples" in item.reason and "modes" not in item.reason for item in result.results)
    assert result == ProfileReports(runs_of(result, {}, {}, "1"), (session_of(result, "1"),)).result()
    assert read_reports(dump(result)).result() == result


def test_what_was_fed_is_said(profile):
    """
    Of a dynamic network the size that was timed: in the document, through the report, on the terminal.
    """
    timed = profile_result(dataclasses.replace(profile, inputs={"image": (1, 3, 96, 128)}))

    kept = ProfileReports(runs_of(timed, {}, {}, "1"), (session_of(timed, "1"),))

    assert {"image": (1, 3, 96, 128)} == load(ProfileReports, dump(kept)).result().inputs
    assert "latency: one image of 96x128 on" in host_line(timed)
    several = dataclasses.replace(timed, inputs={"image": (2, 3, 8, 8), "prior": (2, 4)})
    assert "latency: image 2x3x8x8 and prior 2x4 on" in host_line(several)
    assert "latency: one image on" in host_line(dataclasses.replace(timed, inputs={}))
