"""A small network of two outputs as an ExecuTorch file, float and int8."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.exporters import Exported, ExportRequest, exporter, quantizer
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import Graph
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.models.coordatt import CoordAtt
from coordatt_deploy.quantization.ranges import input_range, measure
from coordatt_deploy.quantization.recipes import parse
from coordatt_deploy.runtimes import runtime

KIND = Format.EXECUTORCH
SIZE = (16, 24)


class Small(nn.Module):
    """Convolutions, coordinate attention, a residual sum, a linear layer; logits and a map."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.attention = CoordAtt(16)
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        x = self.stem(image)
        y = x + self.attention(self.depthwise(x))
        return self.head(y.mean((2, 3))), y


@dataclass
class Made:
    """A file with what it was made from."""

    path: Path
    artifact: Artifact
    exported: Exported
    graph: Graph
    module: nn.Module

    def open(self, **options):
        return runtime(KIND).open_artifact(self.path, self.artifact, **options)


def images(count=1, seed=3):
    """Images as the network takes them."""
    return np.random.default_rng(seed).standard_normal((count, 3, *SIZE)).astype(np.float32)


def made(folder, module=None, name="small", integer=False):
    """Export a network; ``Small`` by default."""
    module = (Small() if module is None else module).eval()
    graph = fold_batchnorms(capture(module, (torch.from_numpy(images()),)))[0]
    lowered, _ = lower(graph, target_of(KIND, integer=integer))
    request = ExportRequest(ModelSpec(name, Preprocessing(SIZE)), Precision.FP32, folder / f"{name}.pte")
    exported = exporter(KIND).export(lowered, request)
    artifact = Artifact(name, KIND, Precision.FP32, None, None, 0, "", exported.inputs, exported.outputs, "")
    return Made(request.path, artifact, exported, lowered, module)


def quantized(source, folder, **changed):
    """Quantize a file with the ranges of eight images."""
    recipe = replace(parse("static_wi8_ai8"), **changed)
    batch = images(8)
    wanted = quantizer(KIND).activations(source.path, source.exported)
    with source.open(tensors=wanted) as runner:
        ranges = measure(
            lambda: ({name: runner.infer({"image": image[None]})[name] for name in wanted} for image in batch),
            recipe.ranges,
        )
    ranges["image"] = input_range(batch)
    request = ExportRequest(ModelSpec("small", Preprocessing(SIZE)), Precision.INT8, folder / "int8.pte")
    exported = quantizer(KIND).quantize(source.path, source.exported, recipe, ranges, request)
    artifact = replace(source.artifact, inputs=exported.inputs, outputs=exported.outputs, precision=Precision.INT8)
    return Made(request.path, artifact, exported, source.graph, source.module)
