"""What the cases start from: a bundle, and the files that a user gives beside one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from small_network import ONNX, Small, image_of, onnx_model
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.cli import main
from coordatt_deploy.conversion.golden import GoldenInputs, write_golden
from coordatt_deploy.files import sha256
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.saved_graph import save_graph
from coordatt_deploy.layer_map import LayerMap, Part
from coordatt_deploy.manifest import GoldenCase, Manifest
from coordatt_deploy.models.coordatt import CoordAtt

CLASSES = 5
PLACES = {"conv2d": "convolution", "relu6": "clip", "hardtanh": "clip", "mean": "mean", "linear": "logits"}


class Whole(nn.Module):
    """A stem, coordinate attention and a head: small, and what exporters write for it has every kind of operator."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.attention = CoordAtt(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image):
        return self.head(self.attention(self.stem(image)).mean((2, 3)))


def build():
    """The factory that the fuzzer's user names."""
    torch.manual_seed(3)
    return Whole().eval()


def small_bundle(folder: Path) -> Path:
    """Put a bundle of an ONNX file together, without any converter."""
    spec = ModelSpec("small", Preprocessing((6, 8)), source_sha256="0" * 64)
    graph = capture(Small().eval(), (torch.from_numpy(image_of(0)),), output_names=["logits"])
    images = [image_of(seed) for seed in range(3)]
    cases = tuple(GoldenCase(f"noise_{index}") for index in range(len(images)))
    with writing(folder / "small", spec.source_sha256) as staging:
        for name in ("onnx", "reference"):
            (staging / name).mkdir()
        path = staging / "onnx/small_fp32.onnx"
        model = onnx_model()
        onnx.helper.set_model_props(model, {"source_sha256": spec.source_sha256})
        onnx.save(model, path)
        layers = [replace(layer, parts=(Part(PLACES[layer.operator]),), absent=None) for layer in graph.layers.layers]
        path.with_suffix(".layers.json").write_text(LayerMap(tuple(layers)).dump())
        save_graph(graph, staging / "reference")
        write_golden(staging, GoldenInputs(cases, {"image": images}, ()), graph, Small().double().eval())
        artifact = replace(ONNX, path="onnx/small_fp32.onnx", sha256=sha256(path), bytes=path.stat().st_size,
                           layers="onnx/small_fp32.layers.json")  # fmt: skip
        finish(staging, Manifest(spec, graph.inputs, ONNX.outputs, (artifact,), golden=cases))
    _run("parity", folder / "small", "--outputs-only")
    return folder / "small"


def whole_bundle(folder: Path) -> Path:
    """Export a network with every converter, quantize it, and leave reports in the bundle."""
    bundle, photos = folder / "whole", folder / "photos"
    _images(photos, 24, folders=False)
    _run("export", "--model", f"{__file__}:build", "--input-size", "24x32", "--golden", photos, "--output-dir", bundle)
    _run("quantize", bundle, "--recipe", "static_wi8_ai8", "--calibration-data", photos)
    _run("parity", bundle)
    _run("profile", bundle, "--samples", "20", "--warmups", "1", "--min-seconds", "0")
    _run("evaluate", bundle, "--dataset", _images(folder / "labelled", 10), "--labels-by", "index", "--workers", "1")
    return bundle


def user_files(folder: Path, size: tuple[int, int]) -> Path:
    """Write what users give beside a bundle: checkpoints, images, arrays, recipes, tolerances, preprocessing."""
    folder.mkdir()
    state = build().state_dict()
    torch.save(state, folder / "weights.pth")
    torch.save({"model_ema": state, "epoch": 3}, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "weights.safetensors")
    _images(folder / "labelled", 10, size=size)
    pixels = np.random.default_rng(5).normal(0, 1, (12, 3, *size)).astype(np.float32)
    np.savez(folder / "inputs.npz", image=pixels[:2])
    np.savez_compressed(folder / "calibration.npz", image=pixels)
    (folder / "recipe.json").write_text(json.dumps({"schema_version": 1, "recipe": "static_wi8_ai8", "io": "fp32"}))
    (folder / "preprocessing.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3, "resize": "bilinear"}))
    (folder / "labels.json").write_text(json.dumps([f"class {index}" for index in range(CLASSES)]))
    (folder / "tolerance.toml").write_text('reason = "lab"\n\n[onnx.fp32]\nmultiple = 16.0\n')
    (folder / "tolerance.json").write_text(json.dumps({"onnx": {"fp32": {"multiple": 16.0}}}))
    return folder


def rehash(bundle: Path, name: str) -> None:
    """Make the hash of a file or artifact true again in the manifest, where it stands there."""
    manifest = bundle / "manifest.json"
    document = json.loads(manifest.read_text())
    for entry in document["artifacts"]:
        if entry["path"] == name:
            entry["sha256"] = sha256(bundle / name)
    if name in document["files"]:
        document["files"][name] = sha256(bundle / name)
    manifest.write_text(json.dumps(document))


def _images(folder: Path, count: int, size: tuple[int, int] = (24, 32), *, folders: bool = True) -> Path:
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
        place = folder / str(index % CLASSES) if folders else folder
        place.mkdir(parents=True, exist_ok=True)
        suffix = ("png", "jpg", "bmp", "webp")[index % 4 if folders else 0]
        Image.fromarray(pixels).save(place / f"{index}.{suffix}")
    return folder


def _run(*arguments: object) -> None:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def prepare(root: Path, *, whole: bool) -> Path:
    """Make ``bundle`` and ``user`` in *root*, of the whole network or of the small one."""
    made = root.parent / "made"
    made.mkdir(exist_ok=True)
    (whole_bundle if whole else small_bundle)(made).rename(root / "bundle")
    user_files(root / "user", (24, 32) if whole else (6, 8))
    return root
