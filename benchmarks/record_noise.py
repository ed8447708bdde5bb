"""Record what latency noise looks like on a busy machine: the data that the comparison's error rates are tested on.

Each recorded profile is a process of its own, as two runs of ``coordatt-deploy profile`` would be. It opens every model
file twice, as artifacts that cannot differ, and measures them with the defaults.

    python benchmarks/record_noise.py --profiles 40 noise.npz mobilenet.onnx mobilenet.tflite
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.profile.latency import Latency, ProfileSettings
from coordatt_deploy.profile.rounds import Call, measure_openings


def open_onnx(path: Path) -> Call:
    """Open an ONNX file in ONNX Runtime, one thread, random input."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {item.name: np.random.default_rng(0).random(item.shape, np.float32) for item in session.get_inputs()}
    return lambda: session.run(None, feeds)


def open_tflite(path: Path) -> Call:
    """Open a TFLite file in LiteRT, one thread, random input."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    for item in interpreter.get_input_details():
        interpreter.set_tensor(item["index"], np.random.default_rng(0).random(item["shape"], np.float32))
    invoke: Call = interpreter.invoke
    return invoke


def record(models: list[Path], out: Path) -> None:
    """Measure one profile and save it: an array for each runner, the load average, and the time."""
    order = random.Random(0)  # noqa: S311
    opener = {".onnx": open_onnx, ".tflite": open_tflite}
    copies = [(f"{path.suffix[1:]}_{copy}", path) for path in models for copy in "ab"]

    @contextmanager
    def open_calls() -> Iterator[Mapping[str, Call]]:
        yield {name: opener[path.suffix](path) for name, path in order.sample(copies, len(copies))}

    measurement = measure_openings(open_calls, ProfileSettings(min_seconds=0.0))
    assert measurement.yardstick  # noqa: S101
    latencies = {name: measurement.latencies[name] for name, _ in copies} | {"yardstick": measurement.yardstick}
    arrays = {name: microseconds(latency) for name, latency in latencies.items()}
    told = {"load": np.array(os.getloadavg()[0]), "start": np.array(time.time())}
    np.savez(out, allow_pickle=False, **told, **arrays)


def microseconds(latency: Latency) -> NDArray[np.uint16]:
    """Return the samples, and the samples less lost time, in units of 10 us up to 0.6 s: (2, round, sample)."""
    values = np.stack([latency.rounds, np.nan_to_num(latency.undisturbed)])
    counts: NDArray[np.uint16] = np.minimum(np.rint(values / 1e4), np.iinfo(np.uint16).max).astype(np.uint16)
    return counts


def main() -> None:
    """Run as many profiles as asked for and gather them into one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--profiles", type=int, default=40)
    parser.add_argument("--one", action="store_true", help="measure a single profile in this process")
    arguments = parser.parse_args()
    if arguments.one:
        record(arguments.models, arguments.out)
        return
    profiles = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.profiles):
            part = Path(folder) / f"{number}.npz"
            subprocess.run([sys.executable, __file__, "--one", part, *arguments.models], check=True)  # noqa: S603
            profiles.append(dict(np.load(part)))
            medians = {key: float(np.median(value[0])) / 100 for key, value in profiles[-1].items() if value.ndim == 3}
            print(number, round(float(profiles[-1]["load"]), 1), medians, flush=True)
            # Gathered after each profile, so that an interrupted recording is kept.
            stacked = {key: np.stack([profile[key] for profile in profiles]) for key in profiles[0]}
            np.savez_compressed(arguments.out, allow_pickle=False, **stacked)


if __name__ == "__main__":
    main()
