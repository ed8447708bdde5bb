"""Does the profile's median agree with LiteRT's own benchmark program, and what does the harness cost?

LiteRT's program is the one that the ai-edge-litert wheel brings along. It runs in a process of its own and calls
``CompiledModel.run`` on buffers that stay where they are; ours goes through the runner that every command uses, which
copies the input in and the output out. Both take their turns in shuffled order, so that other load hits both alike.

    python benchmarks/latency_agreement.py mobilenet.tflite --rounds 12
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from coordatt_deploy.artifact_specs import Artifact, TensorSpec
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.profile import rounds, statistics
from coordatt_deploy.profile.cold_start import random_input
from coordatt_deploy.profile.latency import Latency, ProfileSettings
from coordatt_deploy.profile.rounds import Call, measure_openings
from coordatt_deploy.runtimes.tflite.runner import SIGNATURE, open_artifact

RUNS = 400


def described(path: Path) -> Artifact:
    """Describe a TFLite file by itself: no bundle is needed here."""
    runner = Interpreter(str(path)).get_signature_runner(SIGNATURE)
    inputs, outputs = (
        tuple(
            TensorSpec(name, tuple(map(int, item["shape"])), np.dtype(item["dtype"]).name, "NHWC"[: len(item["shape"])])
            for name, item in details.items()
        )
        for details in (runner.get_input_details(), runner.get_output_details())
    )
    return Artifact(path.name, Format.TFLITE, Precision.FP32, None, None, 0, "", inputs, outputs, "")


def ours(path: Path, artifact: Artifact, threads: int) -> Latency:
    """Measure the file as ``coordatt-deploy profile`` does."""

    @contextmanager
    def open_calls() -> Iterator[Mapping[str, Call]]:
        with open_artifact(path, artifact, threads=threads) as runner:
            feeds = {spec.name: random_input(spec, (224, 224)) for spec in artifact.inputs}
            yield {"model": lambda: runner.infer(feeds)}

    settings = ProfileSettings(samples=RUNS, min_seconds=0.0)
    return measure_openings(open_calls, settings, threads=threads).latencies["model"]


def theirs(path: Path, threads: int) -> tuple[float, float]:
    """Run LiteRT's program; return its median and its 5 % quantile in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "ai_edge_litert.tools.benchmark_litert_model", f"--model={path}"]
        options = [f"--num_runs={RUNS}", "--warmup_runs=40", f"--num_threads={threads}", f"--result_json={result}"]
        subprocess.run([*command, *options], check=True, capture_output=True)  # noqa: S603
        latency = json.loads(result.read_text())["latency"]
    return latency["median_ms"], latency["p5_ms"]


def nothing() -> None:
    """Take no time."""


def harness_cost_ns() -> float:
    """Return the CPU time that the harness adds to each sample: of calls and a yardstick that do nothing."""
    settings = ProfileSettings(samples=20_000, openings=1, min_seconds=0.0)
    costs = []
    with mock.patch.object(rounds, "yardstick", return_value=nothing):
        for _ in range(5):
            start = time.thread_time_ns()
            result = rounds.measure({"nothing": nothing}, settings)
            spent = time.thread_time_ns() - start
            assert result.yardstick  # noqa: S101
            latencies = (result.latencies["nothing"], result.yardstick)
            costs.append(spent / sum(len(latency.samples_ns) for latency in latencies))
    return float(np.median(costs))


def main() -> None:
    """Print one line per round, then the ratio with its interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    cost = harness_cost_ns()
    print(f"the harness spends {cost / 1e3:.2f} us per sample: {cost / 5e6:.3%} of a model of 5 ms", flush=True)
    artifact = described(arguments.model)
    order, rows, verdict = random.Random(0), [], None  # noqa: S311
    for number in range(arguments.rounds):
        row: dict[str, tuple[float, float]] = {}
        for side in order.sample(["ours", "theirs"], 2):
            if side == "ours":
                latency = ours(arguments.model, artifact, arguments.threads)
                row[side] = latency.median_ms, latency.quantile_ms(0.05)
                verdict = latency.verdict
            else:
                row[side] = theirs(arguments.model, arguments.threads)
        rows.append([*row["ours"], *row["theirs"]])
        print(
            f"{number:3d}  ours {rows[-1][0]:.3f} ms  LiteRT's {rows[-1][2]:.3f} ms  {verdict and verdict.level}",
            flush=True,
        )
    table = np.array(rows)[:, None, :]
    for what, column in (("median", 0), ("5 % quantile", 1)):
        ratio = statistics.median_ratio(table[..., column], table[..., column + 2])
        print(f"{what}: ours / LiteRT's = {ratio.value:.3f}, 95 % interval {ratio.low:.3f} to {ratio.high:.3f}")


if __name__ == "__main__":
    main()
