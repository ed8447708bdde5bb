"""Make the small network that a profile runs beside the artifacts, as ONNX and as TFLite: models/data/yardstick.*.xz.

It is MobileNetV2 at half width without a classifier, 160x160, with made-up weights that repeat every 61 numbers: a
megabyte for the runtime, a few kilobytes in the package. Make it anew only together with yardsticks.VERSION: profiles
that were measured beside another network cannot be compared.

    python benchmarks/make_yardsticks.py
"""

import lzma
import tempfile
from pathlib import Path

import litert_torch
import onnx
import torch
from torch import nn

TARGET = Path(__file__).parent.parent / "models" / "data"
SIZE = 160
# Expansion, channels, repeats, stride: table 2 of the MobileNetV2 paper, channels halved and rounded to eights.
STAGES = ((1, 8, 1, 1), (6, 16, 2, 2), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))


def convolution(channels: int, out: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    """Return a convolution with its activation."""
    return nn.Sequential(nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups), nn.ReLU6())


class InvertedResidual(nn.Module):
    """The block of MobileNetV2, BatchNorm folded."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.residual = stride == 1 and channels == out
        self.layers = nn.Sequential(
            *([convolution(channels, hidden, 1, 1)] if expansion > 1 else []),
            convolution(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, out, 1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, out, H / stride, W / stride)."""
        result: torch.Tensor = self.layers(features)
        return features + result if self.residual else result


def network() -> nn.Module:
    """Return the network, whose weights repeat and keep the activations between 0 and 6."""
    channels, layers = 16, [convolution(3, 16, 3, 2)]
    for expansion, out, repeats, stride in STAGES:
        for index in range(repeats):
            layers.append(InvertedResidual(channels, out, stride if index == 0 else 1, expansion))  # type: ignore[arg-type]
            channels = out
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.05)
                continue
            pattern = (torch.arange(parameter.numel()) % 61) / 30 - 1
            parameter.copy_((pattern * (2 / parameter[0].numel()) ** 0.5).reshape(parameter.shape))
    return model


def main() -> None:
    """Write both files."""
    model, image = network(), torch.rand(1, 3, SIZE, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "yardstick.onnx"
        torch.onnx.export(
            model, (image,), path, input_names=["image"], output_names=["features"], dynamo=True, external_data=False
        )
        proto = onnx.load(path)
        for node in proto.graph.node:
            del node.metadata_props[:]
        onnx.save(proto, path)
        nhwc = litert_torch.to_channel_last_io(model, args=[0]).eval()
        litert_torch.convert(nhwc, (image.permute(0, 2, 3, 1).contiguous(),)).export(str(path.with_suffix(".tflite")))
        for suffix in (".onnx", ".tflite"):
            packed = lzma.compress(path.with_suffix(suffix).read_bytes(), preset=9)
            (TARGET / f"yardstick{suffix}.xz").write_bytes(packed)
            print(f"yardstick{suffix}.xz: {len(packed)} bytes")


if __name__ == "__main__":
    main()
