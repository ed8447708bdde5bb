"""How far sigmoid, tanh and softmax are off in float32: in ONNX Runtime, LiteRT and torch, against float64.

    python -m benchmarks.function_accuracy

Two figures each: the greatest error anywhere, and the greatest where the value itself is below 1e-6. A function whose
error there is as great as elsewhere is approximated to an absolute error (``parity.tolerances.APPROXIMATED``).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import FORMATS, Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.tensors import decode, encode

SIZE: Final = (800, 800)
TINY: Final = 1e-6
FUNCTIONS: Final[Mapping[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda value: torch.softmax(value, 1),
}


class _Net(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.function(image)


def by_runtime(name: str, image: torch.Tensor, file_format: Format, folder: Path) -> NDArray[np.float64]:
    """Return what a runtime makes of *image*, (1, 3, H, W)."""
    graph = capture(_Net(FUNCTIONS[name]).eval(), (image,), input_names=["image"], output_names=["output"])
    path = folder / f"{name}{FORMATS[file_format].suffix}"
    request = ExportRequest(ModelSpec(name, Preprocessing(SIZE)), Precision.FP32, path)
    exported = exporter(file_format).export(lower(graph, target_of(file_format))[0], request)
    with runtime(file_format).open_artifact(path, exported.described(request, folder)) as runner:
        (given,), (made,) = runner.inputs, runner.outputs
        return decode(runner.infer({given.name: encode(image.numpy(), given)})[made.name], made)


def main() -> None:
    """Print a line for each function and place."""
    side = np.linspace(-30.0, 30.0, 3 * SIZE[0] * SIZE[1]).astype(np.float32).reshape(1, 3, *SIZE)
    spread = np.random.default_rng(0).normal(0.0, 20.0, side.shape).astype(np.float32)
    with TemporaryDirectory() as folder:
        for name, function in FUNCTIONS.items():
            image = torch.from_numpy(spread if name == "softmax" else side)
            exact = function(image.double()).numpy()
            values = {"torch": function(image).numpy()}
            values |= {str(item): by_runtime(name, image, item, Path(folder)) for item in (Format.ONNX, Format.TFLITE)}
            for place, value in values.items():
                error, tiny = np.abs(value - exact), np.abs(exact) < TINY
                below = f"{error[tiny].max():.2g} where it is below {TINY:g}" if tiny.any() else "never below"
                print(f"{name:8} {place:7} off by {error.max():.2g} at most, {below}")


if __name__ == "__main__":
    main()
