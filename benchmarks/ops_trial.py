"""A layer made dearer: how far its row of ``profile --ops`` rises, against the same layer timed by the file's latency.

Two networks differ in one layer: a convolution of 64 channels runs once, or three times in a row under one module.

    python -m benchmarks.ops_trial --format onnx --format tflite --times 3
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

from coordatt_deploy import export
from coordatt_deploy.api import Bundle

CHANNELS, SIZE = 64, 56


class Repeated(nn.Module):
    """The same convolution, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to its own result."""
        for _ in range(self.times):
            x = self.conv(x) * 0.5
        return x


class Network(nn.Module):
    """Four layers, of which *middle* is the one that is made dearer."""

    def __init__(self, times: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.ReLU())
        self.middle = Repeated(times)
        self.last = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(self.last(self.middle(self.stem(image))).mean((2, 3)))


def main() -> None:
    """Print, for each format, the time of each module in both networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", action="append", default=[], help="Repeatable.  [default: onnx, tflite]")
    parser.add_argument("--times", type=int, default=3, help="How many times dearer.")
    arguments = parser.parse_args()
    formats = arguments.format or ["onnx", "tflite"]
    with tempfile.TemporaryDirectory() as folder:
        bundles = [_exported(times, formats, Path(folder)) for times in (1, arguments.times)]
        for name in formats:
            _print(name, bundles, arguments.times)


def _exported(times: int, formats: list[str], folder: Path) -> Bundle:
    example = torch.randn(1, 3, 2 * SIZE, 2 * SIZE)
    return export(Network(times).eval(), (example,), folder / f"times_{times}", formats=formats)


def _print(name: str, bundles: list[Bundle], times: int) -> None:
    tables = [bundle.measure_latency(formats=[name], samples=60, operators=True).operators[0] for bundle in bundles]
    print(f"{name}, by {tables[0].method}")
    for module in ("stem", "middle", "last", "head"):
        once, more = (
            sum(row.ms for row in table.rows if (row.layer or "").partition(".")[0].partition(":")[0] == module)
            for table in tables
        )
        print(f"  {module:<8} {once:8.3f} ms {more:8.3f} ms   x {more / once if once else float('nan'):.2f}")
    once, more = (table.whole_ms for table in tables)
    explained = " and ".join(f"{table.explained:.1%}" for table in tables)
    print(f"  {'file':<8} {once:8.3f} ms {more:8.3f} ms   explained {explained}; middle was made x {times} dearer")


if __name__ == "__main__":
    main()
