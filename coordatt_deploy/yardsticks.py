"""The yardsticks of a profile: NumPy's, and a small network in each runtime that the artifacts use.

A network feels other load as a network does, in whichever runtime it runs; NumPy's workload does so only roughly, but
stays the same when a runtime is updated.
"""

import importlib.util
import lzma
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Final

import numpy as np

from coordatt_deploy.latency import YardstickKind
from coordatt_deploy.profile import Call, numpy_yardstick
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.specs import Artifact, Format, Precision, TensorSpec

# Of the network: benchmarks/make_yardsticks.py wrote it.
VERSION: Final = 1

NETWORKS: Final = {
    Format.ONNX: (
        TensorSpec("image", (1, 3, 160, 160), "float32", "NCHW"),
        TensorSpec("features", (1, 160), "float32", "NC"),
    ),
    Format.TFLITE: (
        TensorSpec("args_0", (1, 160, 160, 3), "float32", "NHWC"),
        TensorSpec("output_0", (1, 160), "float32", "NC"),
    ),
}


@contextmanager
def open_yardsticks(formats: Sequence[Format]) -> Iterator[Mapping[tuple[YardstickKind, str], Call]]:
    """Open NumPy's yardstick, and the network in the runtime of each of the *formats* that has it, on one thread."""
    with ExitStack() as stack:
        calls = dict(stack.enter_context(numpy_yardstick()))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for kind in formats:
            if kind not in NETWORKS:
                continue
            image, features = NETWORKS[kind]
            path = folder / f"yardstick.{kind}"
            path.write_bytes(network(kind))
            artifact = Artifact(
                path.name, kind, Precision.FP32, None, None, path.stat().st_size, "", (image,), (features,), ""
            )
            runner = stack.enter_context(runtime(kind).open_artifact(path, artifact))
            feeds = {image.name: np.full([length or 1 for length in image.shape], 0.5, np.float32)}
            calls[YardstickKind.NETWORK, f"{runner.runtime}, network {VERSION}"] = partial(runner.infer, feeds)
        yield calls


@cache
def network(kind: Format) -> bytes:
    """Return the network's file in format *kind*."""
    # The data lies with the models; that package itself needs torch, and is not imported.
    spec = importlib.util.find_spec("coordatt_deploy.models")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("coordatt_deploy.models is not installed; install coordatt-deploy again")
    folder = Path(spec.submodule_search_locations[0])
    return lzma.decompress((folder / "data" / f"yardstick.{kind}.xz").read_bytes())
