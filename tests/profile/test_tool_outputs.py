"""What benchmark programs print, word for word, and what nobody should believe."""

import time
from contextlib import suppress

import pytest

from coordatt_deploy.profile.tool_outputs import ToolOutputError, read

BENCHMARK_MODEL = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [4]
INFO: Graph: [/data/local/tmp/net.tflite]
INFO: Loaded model /data/local/tmp/net.tflite
INFO: The input model file size (MB): 16.9008
INFO: Initialized session in 16.242ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=2 first=360262 curr=248950 min=248950 max=360262 avg=304606 std=55656

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=50 first=249042 curr=250889 min=247067 max=254474 avg=249684 std=1442

INFO: Inference timings in us: Init: 16242, First inference: 360262, Warmup (avg): 304606, Inference (avg): 249684
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual \
memory footprint of the model at runtime. Take the information at your discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=4.92969 overall=138.809
"""
QUANTILES = "std=1442 p5=247100 median=249000 p95=252000"

PERF_TEST = """\
Setting intra_op_num_threads to 1
Session creation time cost: 0.0508382 s
First inference time cost: 20 ms
Total inference time cost: 1.9918 s
Total inference requests: 100
Average inference time cost: 19.918 ms
Total inference run time: 1.99202 s
Number of inferences per second: 50.2002
Avg CPU usage: 12 %
Peak working set size: 109531136 bytes
Avg CPU usage:12
Peak working set size:109531136
Runs:100
Min Latency: 0.0197812 s
Max Latency: 0.0202704 s
P50 Latency: 0.0199047 s
P90 Latency: 0.0200251 s
P95 Latency: 0.0201534 s
P99 Latency: 0.0202704 s
P999 Latency: 0.0202704 s
"""
RESULT_FILE = "net,0.002,36696064,96,0\nnet,0.004,36696064,96,1\nnet,0.003,36696064,96,2\n"

EXECUTOR_RUNNER = """\
I 00:00:00.001000 executorch:executor_runner.cpp:300] Resetting threadpool with num threads = 4
I 00:00:00.003987 executorch:executor_runner.cpp:166] Model file /data/local/tmp/net.pte is loaded.
I 00:00:00.004058 executorch:executor_runner.cpp:175] Using method forward
I 00:00:00.005262 executorch:executor_runner.cpp:564] Model loaded in 7.85 ms.
I 00:00:00.006576 executorch:executor_runner.cpp:880] Iteration 1 of 3: 4.000000 ms
I 00:00:00.007576 executorch:executor_runner.cpp:880] Iteration 2 of 3: 2.000000 ms
I 00:00:00.008576 executorch:executor_runner.cpp:880] Iteration 3 of 3: 3.000000 ms
I 00:00:00.009576 executorch:executor_runner.cpp:889] Model executed successfully 3 time(s) in 9.000000 ms.
"""
ITERATIONS = [line for line in EXECUTOR_RUNNER.splitlines() if "Iteration" in line]


def without_iterations(text):
    return "\n".join(line for line in text.splitlines() if "Iteration" not in line)


def test_benchmark_model():
    """
    Microseconds; the measurement is the last count, and the warm-up is none.
    """
    told = read(BENCHMARK_MODEL)

    assert ("benchmark_model", "net.tflite", 16.9008, 4, 50) == (
        told.tool, told.file, told.size_mb, told.threads, told.calls,
    )  # fmt: skip
    figures = (told.mean_ms, told.min_ms, told.max_ms, told.std_ms, told.load_ms, told.first_inference_ms)
    assert pytest.approx((249.684, 247.067, 254.474, 1.442, 16.242, 360.262)) == figures
    assert (None, None, None, None) == (told.median_ms, told.p90_ms, told.p95_ms, told.p99_ms)


def test_benchmark_model_of_other_versions():
    """
    Newer ones tell quantiles, older ones no "INFO: ", a phone's log has the tool's name; a mean may be 1.24027e+06.
    """
    newer = read(BENCHMARK_MODEL.replace("std=1442", QUANTILES))
    assert pytest.approx((249.0, 252.0)) == (newer.median_ms, newer.p95_ms)
    assert read(BENCHMARK_MODEL) == read(BENCHMARK_MODEL.replace("INFO: ", ""))
    assert read(BENCHMARK_MODEL) == read(BENCHMARK_MODEL.replace("INFO: ", "I tflite  : ").replace("\n", "\r\n"))
    rounded = BENCHMARK_MODEL.replace("249684", "2.49684e+05")
    assert pytest.approx(249.684) == read(rounded).mean_ms
    timings = "Inference timings in us: Init: 1, First inference: 1, Warmup (avg): 1, Inference (avg): 2000"
    single = f"count=1 curr=2000\n{timings}"
    assert (1, 2.0, 2.0) == (read(single).calls, read(single).min_ms, read(single).mean_ms)


def test_perf_test():
    """
    Means in milliseconds, quantiles in seconds; which file it was it does not say.
    """
    told = read(PERF_TEST)

    assert ("onnxruntime_perf_test", None, 1, 100) == (told.tool, told.file, told.threads, told.calls)
    figures = (told.mean_ms, told.min_ms, told.median_ms, told.p90_ms, told.p95_ms, told.p99_ms, told.max_ms)
    assert pytest.approx((19.918, 19.7812, 19.9047, 20.0251, 20.1534, 20.2704, 20.2704)) == figures
    assert pytest.approx((50.8382, 20.0)) == (told.load_ms, told.first_inference_ms)
    newer = PERF_TEST.replace("Average inference time cost:", "Average inference time cost total:")
    assert told == read(newer.replace("time cost: 20 ms", "time cost: 20 ms "))
    assert read(PERF_TEST.replace("time cost: 20 ms", "time cost: 0 ms")).first_inference_ms is None


def test_result_file_of_perf_test():
    """
    A line a call, in seconds; one that holds two runs is refused, as the tool appends to it.
    """
    told = read(RESULT_FILE)

    assert ("onnxruntime_perf_test", "net", 3) == (told.tool, told.file, told.calls)
    assert pytest.approx((3.0, 3.0, 2.0, 4.0)) == (told.mean_ms, told.median_ms, told.min_ms, told.max_ms)
    with pytest.raises(ToolOutputError, match="several runs"):
        read(RESULT_FILE + RESULT_FILE)


def test_executor_runner():
    """
    The total over the number of calls; with times of single calls there are quantiles as well.
    """
    told = read(EXECUTOR_RUNNER)

    assert ("executor_runner", "net.pte", 4, 3) == (told.tool, told.file, told.threads, told.calls)
    figures = (told.mean_ms, told.median_ms, told.min_ms, told.max_ms, told.load_ms, told.first_inference_ms)
    assert pytest.approx((3.0, 3.0, 2.0, 4.0, 7.85, 4.0)) == figures
    older = read(without_iterations(EXECUTOR_RUNNER))
    assert (3.0, None, None) == (older.mean_ms, older.median_ms, older.first_inference_ms)


def test_a_hash_may_stand_in_the_text():
    """
    As sha256sum prints it, before or behind what the tool printed.
    """
    sha256 = "AB" * 32

    assert (("net.tflite", "ab" * 32),) == read(f"{sha256}  /data/local/tmp/net.tflite\n{BENCHMARK_MODEL}").sha256
    assert (("net.pte", "ab" * 32),) == read(f"{EXECUTOR_RUNNER}{sha256} *net.pte\n").sha256


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no output of benchmark_model"),
        ("latency: 3 ms", "no output of benchmark_model"),
        ("I] Execution of method forward failed with status 0x12", "no output of benchmark_model"),
        (BENCHMARK_MODEL + PERF_TEST, "several tools: benchmark_model and onnxruntime_perf_test"),
        (BENCHMARK_MODEL * 2, "holds 2 runs of benchmark_model"),
        (PERF_TEST * 3, "holds 3 runs of onnxruntime_perf_test"),
        (BENCHMARK_MODEL.replace("(avg): 249684", "(avg): nan"), "'nan' is no time"),
        (BENCHMARK_MODEL.replace("(avg): 249684", "(avg): inf"), "'inf' is no time"),
        (BENCHMARK_MODEL.replace("(avg): 249684", "(avg): -5"), "'-5' is no time"),
        (BENCHMARK_MODEL.replace("(avg): 249684", "(avg): 0"), "'0' is no time"),
        (BENCHMARK_MODEL.replace("(avg): 249684", "(avg): 1e300"), "'1e300' is no time"),
        (BENCHMARK_MODEL.replace("(avg): 249684", "(avg): fast"), "'fast' is no number"),
        (BENCHMARK_MODEL.replace("(avg): 249684", "(avg): 9"), "not between its fastest and slowest"),
        (BENCHMARK_MODEL.replace("min=247067", "min=-1"), "'-1' is no time"),
        (BENCHMARK_MODEL.replace("std=1442", "std=nan"), "'nan' is no time"),
        (BENCHMARK_MODEL.replace("count=50", "count=0"), "'0' calls"),
        (BENCHMARK_MODEL.replace("std=1442", "median=1 std=1"), "its min of 247.067 ms is above its median"),
        (PERF_TEST.replace("P90 Latency: 0.0200251", "P90 Latency: 9"), "its p90 of 9000 ms is above its p95"),
        (EXECUTOR_RUNNER.replace("successfully 3", "successfully 0"), "'0' calls"),
        (EXECUTOR_RUNNER.replace("successfully 3", "successfully 4"), "4 calls and lists 3"),
        (EXECUTOR_RUNNER.replace("in 9.0", "in -9.0"), "is no time"),
        (EXECUTOR_RUNNER.replace("in 9.000000", "in 90.0"), "not between its fastest and slowest"),
        (RESULT_FILE.replace("0.004", "nan"), "'nan' is no time"),
        (RESULT_FILE.replace("0.004", "-1"), "'-1' is no time"),
    ],
)
def test_what_cannot_be_is_refused(text, said):
    """
    With what was read, or what was expected.
    """
    with pytest.raises(ToolOutputError, match=said.replace("(", r"\(")):
        read(text)


def test_names_are_texts_and_never_paths():
    """
    Neither folders of any system, nor what a terminal would obey.
    """
    for path in ("../../etc/net.tflite", r"C:\models\net.tflite", "/net.tflite"):
        assert "net.tflite" == read(BENCHMARK_MODEL.replace("/data/local/tmp/net.tflite", path)).file
    hostile = read(BENCHMARK_MODEL.replace("net.tflite", "\x1b[2J<script>.tflite"))
    assert "x1b[2J<script>.tflite" == hostile.file
    assert read(BENCHMARK_MODEL.replace("net.tflite", "n" * 3000)).file is None


@pytest.mark.parametrize(
    "line",
    ["count=" + "9" * 4000, "count=1 " + "a" * 4000, "a" * 10_000_000, "Iteration 1 of " + "1" * 4000, "," * 4000,
     "Inference timings in us: Init: " + "1" * 4000, "f" * 64 + " " * 4000],
)  # fmt: skip
def test_long_lines_take_no_time(line):
    """
    Two hundred of them beside what is right, or one of ten megabytes: a second is far more than it takes.
    """
    begun = time.monotonic()
    text = "\n".join([line] * min(200, 10_000_000 // len(line)))
    with suppress(ToolOutputError):
        read(f"{text}\n{BENCHMARK_MODEL}")
    assert time.monotonic() - begun < 10
