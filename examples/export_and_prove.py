"""Take a network as it stands in this script to ONNX, TFLite and Core ML, and prove that all compute the same.

python examples/export_and_prove.py
"""

import torch
from torch import nn

import coordatt_deploy


class Network(nn.Module):
    """Yours: any torch.nn.Module."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image).mean((2, 3)))


bundle = coordatt_deploy.export(Network(), (torch.randn(1, 3, 64, 64),), "my_network", progress=True)
for file in bundle.artifacts:
    print(f"{file.path}: {file.bytes:,} bytes")
for refused in bundle.refused:
    print(f"not written: {refused}: {refused.reason}")

verdict = bundle.check_parity(progress=True)
for item in verdict.artifacts:
    print(f"{item.artifact.path}: {'the same function' if item.passed else 'NOT the same function'}")
raise SystemExit(0 if verdict.passed else 1)
