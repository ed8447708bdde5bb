"""Open a bundle's files in an old runtime and hold what they give against the golden outputs.

    python3.11 -m venv old && old/bin/pip install onnxruntime==1.15.1 'numpy<2'
    old/bin/python benchmarks/open_in_old_runtime.py BUNDLE

Needs NumPy below 2 and ONNX Runtime or tflite-runtime, nothing of this package: whichever is installed opens its files.
Prints for each its signal-to-noise ratio over the golden images, or why it cannot be opened. Made-up tensors are left
out: calibration ends before them.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np


def onnx_runs(path):
    """Open an ONNX file; return the runtime's name, and what takes inputs by name and gives outputs by name."""
    # of the two runtimes one is there
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    version = f"onnxruntime {onnxruntime.__version__}"
    return version, lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def tflite_runs(path):
    """Open a TFLite file; see ``onnx_runs``."""
    # of the two runtimes one is there
    import tflite_runtime
    from tflite_runtime.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    signature = interpreter.get_signature_runner()
    return f"tflite-runtime {tflite_runtime.__version__}", lambda feeds: signature(**feeds)


RUNS = {"onnx": ("onnxruntime", onnx_runs), "tflite": ("tflite_runtime", tflite_runs)}


def main(folder):
    """Print a line for each file of the bundle that this runtime opens."""
    golden = {kind: np.load(folder / "golden" / f"{kind}.npz") for kind in ("inputs", "outputs")}
    manifest = json.loads((folder / "manifest.json").read_text())
    cases = [f"{index:03d}" for index, case in enumerate(manifest["golden"]) if case["image"]]
    for artifact in manifest["artifacts"]:
        package, runs = RUNS.get(artifact["format"], (None, None))
        if package is None or find_spec(package) is None:
            continue
        try:
            runtime, run = runs(folder / artifact["path"])
            print(f"{artifact['path']}: {runtime}: {decibels(artifact, golden, cases, run):.1f} dB")
        except Exception as error:  # noqa: BLE001 - old runtimes raise kinds of their own
            print(f"{artifact['path']}: {str(error).splitlines()[0]}")


def decibels(artifact, golden, cases, run):
    """Return the signal-to-noise ratio over these cases and all outputs."""
    signal = noise = 0.0
    for case in cases:
        feeds = {spec["name"]: encoded(golden["inputs"][f"{case}/{spec['name']}"], spec) for spec in artifact["inputs"]}
        found = run(feeds)
        for spec in artifact["outputs"]:
            expected = golden["outputs"][f"{case}/{spec['name']}"]
            value = decoded(found[spec["name"]], spec)
            signal, noise = signal + (expected**2).sum(), noise + ((expected - value) ** 2).sum()
    return 10 * np.log10(signal / noise)


def encoded(value, spec):
    """Bring a golden input into the layout and type of the file."""
    if spec["layout"] == "NHWC":
        value = value.transpose(0, 2, 3, 1)
    if spec.get("scale") is not None:
        limits = np.iinfo(spec["dtype"])
        value = np.clip(np.round(value / spec["scale"]) + spec["zero_point"], limits.min, limits.max)
    return np.ascontiguousarray(value, dtype=spec["dtype"])


def decoded(value, spec):
    """Bring an output back into the layout and type of the golden ones."""
    value = value.astype(np.float64)
    if spec.get("scale") is not None:
        value = (value - spec["zero_point"]) * spec["scale"]
    return value.transpose(0, 3, 1, 2) if spec["layout"] == "NHWC" else value


if __name__ == "__main__":
    main(Path(sys.argv[1]))
