"""Ship weights of your own training: build the network, load them, export, and put class names into the files.

python examples/own_checkpoint.py
"""

from pathlib import Path

import torch

import coordatt_deploy
from coordatt_deploy.models.factory import create_model

LABELS = ["cat", "dog", "neither"]

trained = create_model("mobilenetv2_ca_035", num_classes=len(LABELS))  # stands for your training
torch.save({"state_dict": trained.state_dict()}, "checkpoint.pth")

network = create_model("mobilenetv2_ca_035", num_classes=len(LABELS))
network.load_state_dict(torch.load("checkpoint.pth", weights_only=True)["state_dict"])
bundle = coordatt_deploy.export(
    network,
    (torch.zeros(1, 3, 96, 96),),
    "pets",
    formats=["onnx"],
    labels=LABELS,
    preprocessing={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "input_range": [0, 1]},
    name="pets",
)
assert bundle.manifest.model.labels == tuple(LABELS)
print(Path(bundle.root, "manifest.json").read_text(encoding="utf-8")[:300], "...")
raise SystemExit(0 if bundle.check_parity().passed else 1)
