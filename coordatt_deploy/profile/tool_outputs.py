r"""What the runtimes' own benchmark programs print, read back: latencies that somebody measured by hand on a phone.

Lines are found wherever they stand, so that a prefix of ``adb logcat`` or of the tool (``INFO: ``) does no harm. The
formats, by the sources of the tools; ``[…]`` is not in all versions:

``benchmark_model``, microseconds; the last ``count=`` line is the measurement, those before it are warm-ups::

    Num threads: [4]
    Graph: [/data/local/tmp/net.tflite]
    The input model file size (MB): 16.9008
    count=50 first=249042 curr=250889 min=247067 max=254474 avg=249684 std=1442[ p5=247100 median=249000 p95=252000]
    Inference timings in us: Init: 16242, First inference: 360262, Warmup (avg): 304586, Inference (avg): 249684

``onnxruntime_perf_test``, and with its result file (a line a call; seconds, peak memory, CPU use, number of the call)::

    Setting intra_op_num_threads to 1
    Session creation time cost: 0.0102016 s
    First inference time cost: 2 ms
    Total inference requests: 100
    Average inference time cost[ total]: 1.85739 ms
    Min Latency: 0.00183404 s
    P50 Latency: 0.00185674 s
    net,0.00183404,36696064,96,0

``executor_runner``; times of single calls are in newer versions::

    Resetting threadpool with num threads = 4
    Model file net.pte is loaded.
    [Model loaded in 7.85 ms.]
    [Iteration 1 of 10: 1.62 ms]
    Model executed successfully 10 time(s) in 16.2 ms.

The text may come from anybody: figures must be finite, above zero and in order, names are texts and never paths.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath, PureWindowsPath
from typing import Final

import numpy as np

from coordatt_deploy.plain_text import plain
from coordatt_deploy.profile.imported_result import ToolFigures

BENCHMARK_MODEL: Final = "benchmark_model"
PERF_TEST: Final = "onnxruntime_perf_test"
EXECUTOR_RUNNER: Final = "executor_runner"

LONGEST_LINE: Final = 4096  # what is longer is no line of these tools
LONGEST_NAME: Final = 255
MOST_CALLS: Final = 10_000_000
LONGEST_MS: Final = 86_400_000.0  # of a call: a day

# A figure that is a mean of rounded ones may lie so much beyond them.
ROUNDING: Final = 1e-4

NUMBER: Final = r"([-+.\w]{1,40})"
SHA256: Final = re.compile(r"(?:^|\s)([0-9a-fA-F]{64}) [ *](\S.*)$")
GRAPH: Final = re.compile(r"Graph: \[([^\]]*)\]")
MODEL_FILE: Final = re.compile(r"Model file (.+) is loaded\.")
RESULT_ROW: Final = re.compile(rf"([^,]*),{NUMBER},(\d{{1,15}}),(-?\d{{1,6}}),(\d{{1,9}})")


class ToolOutputError(ValueError):
    """What is wrong with a text that is to be the output of a benchmark program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutput(ToolFigures):
    """What a tool told; None for what it did not.

    Attributes:
        tool: Its name.
        file: Name of the file that was timed, without its folder.
        size_mb: Of that file, in millions of bytes and with six digits.
        sha256: By the name of a file, where the text has lines of ``sha256sum``.
    """

    tool: str
    file: str | None = None
    size_mb: float | None = None
    sha256: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Refuse figures that cannot be of one measurement.

        Raises:
            ToolOutputError: A quantile is out of order, or the mean is beyond the fastest or the slowest call.
        """
        names = ("min_ms", "median_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")
        known = [(name, value) for name in names if (value := getattr(self, name)) is not None]
        for (lower, low), (upper, high) in pairwise(known):
            if low > high:
                raise ToolOutputError(f"its {_words(lower)} of {low:g} ms is above its {_words(upper)} of {high:g} ms")
        low, high = self.min_ms or 0.0, math.inf if self.max_ms is None else self.max_ms
        if not low * (1 - ROUNDING) <= self.mean_ms <= high * (1 + ROUNDING):
            raise ToolOutputError(f"its mean of {self.mean_ms:g} ms is not between its fastest and slowest call")


def _words(name: str) -> str:
    return name.removesuffix("_ms")


def read(text: str) -> ToolOutput:
    """Read what one run of one of the tools printed.

    Raises:
        ToolOutputError: It is of none of them, of several runs, or holds figures that no clock gives.
    """
    lines = [plain(line) for line in text.splitlines() if len(line) <= LONGEST_LINE]
    found = [output for reader in READERS if (output := reader(lines)) is not None]
    if len(found) > 1:
        raise ToolOutputError(f"it is of several tools: {' and '.join(item.tool for item in found)}; give one a file")
    if not found:
        raise ToolOutputError(
            f"it is no output of {BENCHMARK_MODEL} ('Inference timings in us: …'), {PERF_TEST} ('Average inference time"
            f" cost: … ms', or its result file) or {EXECUTOR_RUNNER} ('Model executed successfully … time(s) in … ms')"
        )
    return found[0]


def _benchmark_model(lines: Sequence[str]) -> ToolOutput | None:
    summary = _only(
        lines,
        rf"Inference timings in us: Init: {NUMBER}, First inference: {NUMBER}, Warmup \(avg\): {NUMBER},"
        rf" Inference \(avg\): {NUMBER}",
        BENCHMARK_MODEL,
    )
    if summary is None:
        return None
    init, first, _, mean = (_milliseconds(text, 1e-3) for text in summary)
    counts = [line for line in lines if re.search(r"\bcount=\d", line)]
    told = dict(re.findall(rf"\b(\w+)={NUMBER}", counts[-1])) if counts else {}
    calls = _whole(told["count"]) if "count" in told else None
    if calls == 1 and "curr" in told:  # of a single call it prints nothing else
        told |= {"min": told["curr"], "max": told["curr"]}

    def value(name: str) -> float | None:
        return _milliseconds(told[name], 1e-3) if name in told else None

    return ToolOutput(
        tool=BENCHMARK_MODEL,
        mean_ms=mean,
        calls=calls,
        threads=_count(lines, r"Num threads: \[(\d{1,4})\]", r"#threads used for CPU inference: \[(\d{1,4})\]"),
        median_ms=value("median"),
        min_ms=value("min"),
        max_ms=value("max"),
        std_ms=_milliseconds(told["std"], 1e-3, or_zero=True) if "std" in told else None,
        p95_ms=value("p95"),
        load_ms=init,
        first_inference_ms=first,
        file=_file(lines, GRAPH),
        size_mb=_optional(lines, rf"The input model file size \(MB\): {NUMBER}", 1.0),
        sha256=_hashes(lines),
    )


def _perf_test(lines: Sequence[str]) -> ToolOutput | None:
    mean = _only(lines, rf"Average inference time cost(?: total)?: {NUMBER} ms", PERF_TEST)
    rows = [found for line in lines if (found := RESULT_ROW.fullmatch(line.strip()))]
    if mean is None and not rows:
        return None
    if [int(row[5]) for row in rows] != list(range(len(rows))):
        raise ToolOutputError("its result file holds several runs, as the tool appends to it; delete it and run again")
    samples = [_milliseconds(row[2], 1e3) for row in rows]
    names = {row[1] for row in rows}
    if mean is None:
        return _of_samples(PERF_TEST, samples, _name(names.pop()) if len(names) == 1 else None, _hashes(lines))

    def latency(name: str) -> float | None:
        return _optional(lines, rf"\b{name} Latency: {NUMBER} s\b", 1e3)

    return ToolOutput(
        tool=PERF_TEST,
        mean_ms=_milliseconds(mean[0], 1.0),
        calls=_count(lines, r"Total inference requests: (\d{1,9})\b"),
        threads=_count(lines, r"Setting intra_op_num_threads to (\d{1,4})\b"),
        median_ms=latency("P50"),
        min_ms=latency("Min"),
        max_ms=latency("Max"),
        p90_ms=latency("P90"),
        p95_ms=latency("P95"),
        p99_ms=latency("P99"),
        load_ms=_optional(lines, rf"Session creation time cost: {NUMBER} s", 1e3),
        # whole milliseconds, cut off: 0 of a small network says nothing
        first_inference_ms=_optional(lines, rf"First inference time cost: {NUMBER} ms", 1.0, or_zero=True),
        sha256=_hashes(lines),
    )


def _executor_runner(lines: Sequence[str]) -> ToolOutput | None:
    done = _only(lines, rf"Model executed successfully (\d{{1,9}}) time\(s\) in {NUMBER} ms\.", EXECUTOR_RUNNER)
    if done is None:
        return None
    calls, total = _whole(done[0]), _milliseconds(done[1], 1.0)
    iterations = [match[1] for line in lines if (match := re.search(rf"Iteration \d+ of \d+: {NUMBER} ms", line))]
    samples = [_milliseconds(text, 1.0) for text in iterations]
    if samples and len(samples) != calls:
        raise ToolOutputError(f"it tells of {calls} calls and lists {len(samples)}; give the whole text")
    known = _of_samples(EXECUTOR_RUNNER, samples, None, ()) if samples else None
    return ToolOutput(
        tool=EXECUTOR_RUNNER,
        mean_ms=total / calls,
        calls=calls,
        threads=_count(lines, r"Resetting threadpool with num threads = (\d{1,4})\b"),
        median_ms=known.median_ms if known else None,
        min_ms=known.min_ms if known else None,
        max_ms=known.max_ms if known else None,
        std_ms=known.std_ms if known else None,
        p90_ms=known.p90_ms if known else None,
        p95_ms=known.p95_ms if known else None,
        p99_ms=known.p99_ms if known else None,
        load_ms=_optional(lines, rf"Model loaded in {NUMBER} ms\.", 1.0),
        first_inference_ms=samples[0] if samples else None,
        file=_file(lines, MODEL_FILE),
        sha256=_hashes(lines),
    )


READERS: Final[tuple[Callable[[Sequence[str]], ToolOutput | None], ...]] = (
    _benchmark_model,
    _perf_test,
    _executor_runner,
)


def _of_samples(
    tool: str, samples: Sequence[float], file: str | None, hashes: tuple[tuple[str, str], ...]
) -> ToolOutput:
    low, p50, p90, p95, p99, high = (float(value) for value in np.quantile(samples, (0, 0.5, 0.9, 0.95, 0.99, 1)))
    return ToolOutput(
        tool=tool, mean_ms=float(np.mean(samples)), calls=len(samples), median_ms=p50, min_ms=low, max_ms=high,
        std_ms=float(np.std(samples)), p90_ms=p90, p95_ms=p95, p99_ms=p99, file=file, sha256=hashes,
    )  # fmt: skip


def _only(lines: Sequence[str], pattern: str, tool: str) -> tuple[str, ...] | None:
    """The groups of the one line that tells the result; None without such a line."""
    found = [match.groups() for line in lines if (match := re.search(pattern, line))]
    if len(found) > 1:
        raise ToolOutputError(f"it holds {len(found)} runs of {tool}; give a file for each")
    return found[0] if found else None


def _optional(lines: Sequence[str], pattern: str, factor: float, *, or_zero: bool = False) -> float | None:
    for line in lines:
        if match := re.search(pattern, line):
            if or_zero and _number(match[1]) == 0:
                return None
            return _milliseconds(match[1], factor)
    return None


def _count(lines: Sequence[str], *patterns: str) -> int | None:
    found = (match for pattern in patterns for line in lines if (match := re.search(pattern, line)))
    match = next(found, None)
    return None if match is None or match[1] == "0" else int(match[1])


def _whole(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= MOST_CALLS:
        raise ToolOutputError(f"it tells of {text!r} calls; expected a whole number from 1 up")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ToolOutputError(f"{text!r} is no number") from None


def _milliseconds(text: str, factor: float, *, or_zero: bool = False) -> float:
    value = _number(text) * factor
    if not math.isfinite(value) or value < 0 or (value == 0 and not or_zero) or value > LONGEST_MS:
        raise ToolOutputError(f"{text!r} is no time that a call can take; expected a number above 0")
    return value


def _file(lines: Sequence[str], pattern: re.Pattern[str]) -> str | None:
    return next((_name(match[1]) for line in lines if (match := pattern.search(line))), None)


def _hashes(lines: Sequence[str]) -> tuple[tuple[str, str], ...]:
    found = (match for line in lines if (match := SHA256.search(line)))
    return tuple((name, match[1].lower()) for match in found if (name := _name(match[2])) is not None)


def _name(path: str) -> str | None:
    """The name of a file of Linux, Android or Windows, without its folder."""
    name = PureWindowsPath(PurePosixPath(path.strip()).name).name
    return name if 0 < len(name) <= LONGEST_NAME else None
