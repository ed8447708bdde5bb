"""A network whose answers are known: it names the colour that fills an image."""

import json

import numpy as np
import onnx
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.cli import main
from coordatt_deploy.documents import dump
from coordatt_deploy.evaluation.reports import read_reports
from coordatt_deploy.evaluation.run import EvaluationPlan, evaluate_bundle
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.saved_graph import save_graph
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.progress import Stages

COLOURS = {"red": (200, 10, 20), "green": (10, 200, 20), "deep blue": (10, 20, 200)}
IMAGE = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")
LOGITS = TensorSpec("logits", (1, 3), "float32", "NC")
RIGHT = np.eye(3, dtype=np.float32)
BLIND_TO_BLUE = np.diag([1.0, 1.0, 0.0]).astype(np.float32)


class Colours(nn.Module):
    """Logits are the mean of each channel, weighted."""

    def __init__(self, weight=RIGHT):
        super().__init__()
        self.head = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))

    def forward(self, image):
        return self.head(image.mean((2, 3)))


def save_onnx(path, weight):
    """Write the same network as an ONNX file."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, IMAGE.shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, LOGITS.shape)],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def write_colours(folder, labels=tuple(COLOURS), *, reference=True, outputs=(LOGITS,), **weights):
    """Write a bundle with an ONNX artifact for each named weight, and return it opened."""
    spec = ModelSpec("colours", Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3), labels, source_sha256="0" * 64)
    graph = capture(Colours().eval(), (torch.rand(1, 3, 8, 8),), input_names=["image"], output_names=["logits"])
    with writing(folder, spec.source_sha256) as staging:
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
    return open_bundle(folder)


def evaluated(bundle, dataset, **options):
    return evaluate_bundle(bundle, EvaluationPlan(str(dataset), workers=1, **options), Stages())


def reported(root):
    """What the bundle's report knows, as the command prints it."""
    reports = read_reports((root / "reports" / "evaluate.json").read_text())
    return json.loads(dump(reports.result()))


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def photo_writer(folder):
    """Return what writes a folder of images of one colour each, a little apart, below *folder*, and returns it."""

    def write(each=4, names=tuple(COLOURS)):
        generator = np.random.default_rng(0)
        for name, colour in zip(names, COLOURS.values(), strict=False):
            (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
            for index in range(each):
                pixels = np.clip(np.array(colour) + generator.integers(-9, 9, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / name / f"{index}.png")
        return folder / "photos"

    return write
