"""Imported latencies: held to the bundle's files, marked wherever they are shown."""

import json
import os
import re

import pytest
from click.testing import CliRunner
from small_bundle import float_bundle

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.formats import Format
from coordatt_deploy.imported_results import MOST_BYTES

PERF_TEST = """\
Session creation time cost: 0.0508382 s
Total inference requests: 100
Average inference time cost: 19.918 ms
Min Latency: 0.0197812 s
Max Latency: 0.0202704 s
P50 Latency: 0.0199047 s
"""
BENCHMARK_MODEL = """\
Num threads: [4]
Graph: [/data/local/tmp/net.tflite]
The input model file size (MB): 1e-05
count=50 first=249042 curr=250889 min=247067 max=254474 avg=249684 std=1442
Inference timings in us: Init: 16242, First inference: 360262, Warmup (avg): 304606, Inference (avg): 249684
"""
ONNX = "onnx/net.onnx"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a bundle of an ONNX file and a TFLite file of ten bytes."""
    monkeypatch.chdir(tmp_path)
    float_bundle(tmp_path / "net", also=(Format.TFLITE,))
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def imported(folder, text, *arguments, name="log.txt", place="pixel7"):
    (folder / name).write_text(text)
    return call("profile", "net", "--import", name, "--as", place, *arguments)


def kept(folder, place="pixel7"):
    return json.loads((folder / f"net/reports/latency-{place}.json").read_text())


def sha256(folder, path=ONNX):
    found = {item.path: item.sha256 for item in open_bundle(folder / "net").manifest.artifacts}
    return found[path]


def test_an_import_is_a_run_of_its_place(folder):
    """
    Of the artifact's bytes, without a session of ours and without samples.
    """
    result = imported(folder, PERF_TEST, "--artifact", ONNX)

    assert 0 == result.exit_code
    (run,) = kept(folder)["imported"]
    assert ("imported", ONNX, sha256(folder), "pixel7") == tuple(
        run[key] for key in ("kind", "artifact", "sha256", "place")
    )
    found = run["result"]
    assert ("onnxruntime_perf_test", "name", "log.txt", 19.918) == tuple(
        found[key] for key in ("tool", "held_by", "source", "mean_ms")
    )
    assert (None, None) == (found["p99_ms"], found["threads"])
    assert [[], []] == [kept(folder)[key] for key in ("runs", "sessions")]


def test_it_is_marked_wherever_it_is_shown(folder):
    """
    On the terminal, in the document, in Markdown and on the page, beside what it is held by; nothing has an interval.
    """
    shown = imported(folder, PERF_TEST, "--artifact", ONNX, "--markdown", "told.md").stdout
    document = json.loads(imported(folder, PERF_TEST, "--artifact", ONNX, "--json").stdout)
    assert 0 == call("report", "net").exit_code
    page = (folder / "net/reports/report.html").read_text()
    section = page[page.index('<section id="imported">') :].partition("</section>")[0]

    assert 0 == call("schema", "import-result").exit_code
    assert "pixel7" == document["place"]
    for text in (shown, (folder / "told.md").read_text(), section):
        words = " ".join(text.split())
        assert "mported" in words
        assert "19.918" in words
        assert "its bytes were not checked" in words
        assert "no intervals" in words
        assert "95 %" not in words


def test_a_hash_in_the_text_is_checked(folder):
    """
    The right one is said; of another one nothing is kept.
    """
    told = f"{sha256(folder)}  /data/local/tmp/net.onnx\n{PERF_TEST}"
    assert 0 == imported(folder, told, "--artifact", ONNX).exit_code
    assert "hash" == kept(folder)["imported"][0]["result"]["held_by"]
    renamed = f"{sha256(folder)}  model.onnx\n{PERF_TEST}"
    assert 0 == imported(folder, renamed, "--artifact", ONNX).exit_code
    result = imported(folder, f"{'0' * 64}  net.onnx\n{PERF_TEST}", "--artifact", ONNX, place="other")

    assert 2 == result.exit_code
    assert f"other bytes: sha256 000000000000, {ONNX} has {sha256(folder)[:12]}" in result.output
    assert not (folder / "net/reports/latency-other.json").exists()


def test_a_hash_of_a_file_that_was_not_timed_holds_nothing(folder):
    """
    The tool timed a file of another name, and the hash is not of that one: the size alone is left.
    """
    path = "tflite/net.tflite"
    timed = BENCHMARK_MODEL.replace("net.tflite", "copy.tflite")
    for name, expected in (("net.tflite", "size"), ("copy.tflite", "hash")):
        told = f"{sha256(folder, path)}  /data/local/tmp/{name}\n{timed}"
        assert 0 == imported(folder, told, "--artifact", path).exit_code
        assert expected == kept(folder)["imported"][0]["result"]["held_by"]


def test_the_file_and_its_size_are_those_of_the_text(folder):
    """
    A name finds the artifact; a size of other bytes is refused.
    """
    assert 0 == imported(folder, BENCHMARK_MODEL).exit_code
    found = kept(folder)["imported"][0]
    assert ("tflite/net.tflite", "size") == (found["artifact"], found["result"]["held_by"])
    result = imported(folder, BENCHMARK_MODEL.replace("1e-05", "16.9008"))

    assert 2 == result.exit_code
    assert "is of a file of 16.9008 MB, tflite/net.tflite has 1e-05 MB" in result.output


def test_later_imports_take_the_place_of_what_they_answer(folder):
    """
    The same file, tool and threads; another number of threads, or another tool, stands beside it.
    """
    imported(folder, PERF_TEST, "--artifact", ONNX)
    imported(folder, PERF_TEST.replace("19.918", "19.8"), "--artifact", ONNX)
    imported(folder, f"Setting intra_op_num_threads to 2\n{PERF_TEST}", "--artifact", ONNX)
    imported(folder, BENCHMARK_MODEL)

    assert [19.8, 19.918, 249.684] == [run["result"]["mean_ms"] for run in kept(folder)["imported"]]


def test_figures_of_older_bytes_are_not_on_the_page(folder):
    """
    The document keeps them, the page does not believe them.
    """
    imported(folder, PERF_TEST, "--artifact", ONNX)
    path = folder / "net/reports/latency-pixel7.json"
    path.write_text(path.read_text().replace(sha256(folder), "0" * 64))
    assert 0 == call("report", "net").exit_code

    assert 'id="imported"' not in (folder / "net/reports/report.html").read_text()


def test_what_a_machine_measured_and_what_was_imported_stand_side_by_side(folder):
    """
    In one document of that place, whichever came first; an imported one cannot be passed on as measured.
    """
    quick = ("--format", "onnx", "--samples", "20", "--min-seconds", "0", "--output", "other.json")
    assert 0 == call("profile", "net", *quick).exit_code
    imported(folder, PERF_TEST, "--artifact", ONNX)
    assert 0 == call("report", "net", "--add", "other.json", "--as", "pixel7").exit_code
    assert (1, 1) == (len(kept(folder)["runs"]), len(kept(folder)["imported"]))

    result = call("report", "net", "--add", "net/reports/latency-pixel7.json", "--as", "elsewhere")
    assert 2 == result.exit_code
    assert "were imported" in result.output


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (PERF_TEST, (), f"does not say which file it timed; give --artifact with one of: {ONNX}"),
        (PERF_TEST, ("--artifact", "none.onnx"), "'none.onnx', and net has no such file"),
        (PERF_TEST, ("--artifact", "net.tflite"), "onnxruntime_perf_test, which does not run tflite/net.tflite"),
        (BENCHMARK_MODEL, ("--artifact", ONNX), "benchmark_model, which does not run onnx/net.onnx"),
        (BENCHMARK_MODEL.replace("net.tflite", "other.tflite"), (), "'other.tflite', and net has no such file"),
        ("Model executed successfully 1 time(s) in 2 ms.", (), "net has no file for executor_runner"),
        ("nothing of that kind", (), "no output of benchmark_model"),
        (PERF_TEST.replace("19.918", "nan"), ("--artifact", ONNX), "'nan' is no time"),
    ],
)
def test_what_does_not_fit_is_refused(folder, text, arguments, said):
    """
    Exit 2, one line, and nothing is kept.
    """
    result = imported(folder, text, *arguments)

    assert 2 == result.exit_code
    assert said in " ".join(result.output.split())
    assert not (folder / "net/reports/latency-pixel7.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--import", "log.txt"), "name that with --as"),
        (("--as", "pixel7"), "--as is for what --import takes over"),
        (("--artifact", "x"), "--artifact is for what --import takes over"),
        (("--import", "a", "--import", "b", "--as", "p", "--artifact", "x"), "one FILE"),
        (("--import", "a", "--as", "p", "--threads", "1"), "--threads is for measuring here"),
        (("--import", "a", "--as", "p", "--ops"), "--ops is for measuring here"),
        (("--import", "a", "--as", "p", "--sustained", "1m"), "--sustained is for measuring here"),
        (("--import", "a", "--as", "p", "--target", "qemu-arm64"), "--target is for measuring here"),
        (("--import", "a", "--as", "../up"), "'../up' is no name for a machine"),
        (("--import", "a", "--as", "here"), "'here' is no name for a machine"),
        (("--import", "missing.txt", "--as", "p"), "missing.txt cannot be read: No such file"),
        (("--import", "net", "--as", "p"), "net is no file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder, arguments, said):  # noqa: ARG001 (it makes the bundle)
    """
    Exit 2, with the reason.
    """
    result = call("profile", "net", *arguments)

    assert 2 == result.exit_code
    assert said in " ".join(result.output.split())


def test_hostile_texts_are_harmless(folder):
    """
    Too much, a pipe, bytes that are no text, a name that is markup or that steers a terminal.
    """
    (folder / "huge.txt").write_bytes(b"x" * (MOST_BYTES + 1))
    os.mkfifo(folder / "pipe")
    for name in ("huge.txt", "pipe"):
        assert 2 == call("profile", "net", "--import", name, "--as", "p", "--artifact", ONNX).exit_code
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\x00" + PERF_TEST.encode())
    assert 0 == call("profile", "net", "--import", "bytes.txt", "--as", "p", "--artifact", ONNX).exit_code
    name = "\x1b[2J<script>alert(1)<.txt"
    result = imported(folder, PERF_TEST, "--artifact", ONNX, name=name)
    assert 0 == result.exit_code
    hostile = BENCHMARK_MODEL.replace("net.tflite", "\x1b[2J<script>")
    refused = imported(folder, hostile)
    assert 2 == refused.exit_code
    assert 0 == call("report", "net").exit_code

    assert "\x1b[2J" not in result.output + refused.output
    assert re.search("<script", (folder / "net/reports/report.html").read_text()) is None


def test_a_file_apart_instead_of_the_bundle(folder):
    """
    With --output the bundle stays as it is.
    """
    result = imported(folder, PERF_TEST, "--artifact", ONNX, "--output", "apart.json")

    assert 0 == result.exit_code
    assert not (folder / "net/reports/latency-pixel7.json").exists()
    assert "pixel7" == json.loads((folder / "apart.json").read_text())["imported"][0]["place"]
