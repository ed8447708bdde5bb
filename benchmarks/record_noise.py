"""Record what latency noise looks like on a busy machine: the data that the comparison's error rates are tested on.

Each recorded profile is a process of its own, as two runs of ``coordatt-deploy profile`` would be. It opens every model
file twice, as artifacts that cannot differ, and measures them with the defaults. A recording that exists is added to.

    python benchmarks/record_noise.py --profiles 40 noise.npz mobilenet.onnx mobilenet.tflite

The archive holds, for profile 7, ``007/mobilenet.onnx_a`` (samples and samples less lost time; rounds; calls a round),
the same of copy ``b`` and of the ``yardstick``, and ``007/told``: load average, cores that other processes kept busy,
start in seconds since 1970.
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
    """Measure one profile and save it."""
    order = random.Random(0)  # noqa: S311
    opener = {".onnx": open_onnx, ".tflite": open_tflite}
    copies = [(f"{path.name}_{copy}", path) for path in models for copy in "ab"]

    @contextmanager
    def open_calls() -> Iterator[Mapping[str, Call]]:
        yield {name: opener[path.suffix](path) for name, path in order.sample(copies, len(copies))}

    load, start = os.getloadavg()[0], time.time()
    measurement = measure_openings(open_calls, ProfileSettings())
    assert measurement.yardstick  # noqa: S101
    latencies = {name: measurement.latencies[name] for name, _ in copies} | {"yardstick": measurement.yardstick}
    arrays = {name: microseconds(latency) for name, latency in latencies.items()}
    told = np.array([load, measurement.yardstick.evidence.other_cores or 0.0, start])
    np.savez(out, allow_pickle=False, told=told, **arrays)


def microseconds(latency: Latency) -> NDArray[np.float16]:
    """Return the samples, and the samples less lost time, in microseconds to 0.05 %: (2, round, sample).

    Seven hundredths of a second is the most; NaN is lost time that nobody measured.
    """
    values = np.stack([latency.rounds, latency.undisturbed]) / 1e3
    return np.minimum(values, np.finfo(np.float16).max).astype(np.float16)


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
    recorded = {}
    if arguments.out.exists():
        with np.load(arguments.out, allow_pickle=False) as earlier:
            recorded = {key: earlier[key] for key in earlier.files}
    known = len({key.partition("/")[0] for key in recorded})
    with tempfile.TemporaryDirectory() as folder:
        for number in range(known, known + arguments.profiles):
            part = Path(folder) / f"{number}.npz"
            subprocess.run([sys.executable, __file__, "--one", part, *arguments.models], check=True)  # noqa: S603
            profile = dict(np.load(part))
            shown = [f"{key} {np.median(value[0]) / 1e3:.3f}" for key, value in profile.items() if value.ndim == 3]
            print(f"{number}: load {profile['told'][0]:.1f}; median ms: {', '.join(shown)}", flush=True)
            # Gathered after each profile, so that an interrupted recording is kept.
            recorded |= {f"{number:03d}/{key}": value for key, value in profile.items()}
            np.savez_compressed(arguments.out, allow_pickle=False, **recorded)


if __name__ == "__main__":
    main()
