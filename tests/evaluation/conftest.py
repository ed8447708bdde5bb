"""Bundles of a network that names colours, and images for it."""

import pytest
import torch
from colours import COLOURS, IMAGE, LOGITS, RIGHT, Colours, photo_writer, save_onnx

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.saved_graph import save_graph
from coordatt_deploy.manifest import Manifest


@pytest.fixture
def bundle(tmp_path):
    """Writes a bundle with an ONNX artifact for each named weight."""

    def write(labels=tuple(COLOURS), *, reference=True, outputs=(LOGITS,), **weights):
        spec = ModelSpec("colours", Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3), labels, source_sha256="0" * 64)
        graph = capture(Colours().eval(), (torch.rand(1, 3, 8, 8),), input_names=["image"], output_names=["logits"])
        with writing(tmp_path / "bundle", spec.source_sha256) as staging:
            (staging / "onnx").mkdir(exist_ok=True)
            if reference:
                (staging / "reference").mkdir(exist_ok=True)
                save_graph(graph, staging / "reference")
            artifacts = []
            for name, weight in (weights or {"right": RIGHT}).items():
                path = staging / "onnx" / f"{name}.onnx"
                save_onnx(path, weight)
                path.with_suffix(".layers.json").write_text("{}")
                artifacts.append(
                    Artifact(
                        f"onnx/{name}.onnx", Format.ONNX, Precision.FP32, None, None, path.stat().st_size,
                        sha256(path), (IMAGE,), (LOGITS,), f"onnx/{name}.layers.json",
                    )
                )  # fmt: skip
            finish(staging, Manifest(spec, (IMAGE,), outputs, tuple(artifacts)))
        return open_bundle(tmp_path / "bundle")

    return write


@pytest.fixture
def photos(tmp_path):
    """Writes a folder of images of one colour each, a little apart; returns it."""
    return photo_writer(tmp_path)
