"""Write a module's files as an export does, and hold them against torch itself, without this project's parity."""

import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import torch

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import FORMATS, Format, Precision, TargetCpu
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.exported_program import program
from coordatt_deploy.graph.graph import tensor_outputs
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.graph.saved_graph import load_graph, save_graph
from coordatt_deploy.layer_map import restore
from coordatt_deploy.loading.io_names import output_names
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.tensors import decode, encode

FILES = (Format.ONNX, Format.TFLITE)
IMAGE = (1, 3, 16, 24)
MAPPED = 0.9  # share of the layers that a float artifact has to place
# The runtimes sum in other orders than torch: a few roundings of float32 per layer, relative to the largest value.
CLOSE = 2e-5


def captured(module, *shapes, dynamic=None, batch=None):
    """The captured graph of a module, under the names that the command line would give."""
    generator = torch.Generator().manual_seed(1)
    shapes = shapes or (IMAGE,)
    example = tuple(torch.randn(*shape, generator=generator) for shape in shapes)
    with torch.no_grad():
        names, _ = output_names(module.eval()(*example))
    inputs = ("image", *(f"input_{index}" for index in range(1, len(shapes))))
    return capture(module, example, input_names=inputs, output_names=names, dynamic=dynamic, batch=batch)


def saved(graph):
    """The folded graph as a bundle keeps it: written to a folder and read back."""
    with tempfile.TemporaryDirectory() as folder:
        save_graph(graph, Path(folder))
        return load_graph(Path(folder))


def check(
    module,
    *shapes,
    formats=FILES,
    dynamic=None,
    sizes=(),
    batch=None,
    batches=(),
    mapped=MAPPED,
    fold=lambda graph: fold_batchnorms(graph)[0],
):
    """Every file computes what the module does on random input, and every layer lies where its map says.

    Args:
        module: In evaluation mode.
        shapes: Of its inputs; ``IMAGE`` by default.
        formats: To write.
        dynamic: Bounds of a dynamic size.
        sizes: Further (H, W) to run the files at.
        batch: Bounds of a dynamic batch.
        batches: Further batches to run the files at, in each of the sizes.
        mapped: Share of the layers that each file has to place.
        fold: What is done to the captured graph before the files are written.

    Returns:
        The captured graph, and the layer map of each file.
    """
    graph = captured(module, *shapes, dynamic=dynamic, batch=batch)
    folded = saved(fold(graph))
    maps = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in formats:
            path = Path(folder) / f"small{FORMATS[kind].suffix}"
            places = tuple(product((None, *sizes), (None, *batches)))
            maps[kind] = _check_file(kind, path, module, graph, folded, places)
            absent = [item for item in maps[kind].layers if item.absent]
            assert maps[kind].coverage >= mapped, f"{kind}: {absent}"
    return graph, maps


def _check_file(kind, path, module, graph, folded, places):
    cpu = TargetCpu.ARM64 if FORMATS[kind].per_cpu else None
    lowered, _ = lower(folded, target_of(kind, cpu))
    height, width = graph.example[0].shape[-2:]
    request = ExportRequest(ModelSpec("small", Preprocessing((height, width))), Precision.FP32, path, cpu)
    exported = exporter(kind).export(lowered, request)
    artifact = Artifact("", kind, Precision.FP32, None, cpu, 0, "", exported.inputs, exported.outputs, "")
    for size, count in places:
        feeds = _feeds(graph, size, count)
        with torch.no_grad():
            expected = tensor_outputs(module(*(torch.from_numpy(feeds[spec.name]) for spec in graph.inputs)))
        results = _run(kind, path, artifact, feeds)
        for spec, reference in zip(exported.outputs, expected, strict=True):
            _hold(f"{kind} {spec.name} {size or ''} {count or ''}", reference.numpy(), decode(results[spec.name], spec))
        _check_layers(kind, path, artifact, exported.layers, graph, feeds)
    return exported.layers


def _feeds(graph, size, batch=None):
    generator = np.random.default_rng(7)
    shapes = {spec.name: tuple(tensor.shape) for spec, tensor in zip(graph.inputs, graph.example, strict=True)}
    resized = {name: shape if size is None else (*shape[:2], *size) for name, shape in shapes.items()}
    once = graph.example[0].shape[:1]
    several = {
        name: shape if batch is None or shape[:1] != once else (batch, *shape[1:]) for name, shape in resized.items()
    }
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in several.items()}


def _run(kind, path, artifact, feeds, tensors=()):
    given = {spec.name: encode(feeds[spec.name], spec) for spec in artifact.inputs}
    with runtime(kind).open_artifact(path, artifact, tensors=tensors) as opened:
        return opened.infer(given)


def _check_layers(kind, path, artifact, layers, graph, feeds):
    """Hold the value of every layer in the file against that of the captured graph in float64."""
    held = [layer for layer in layers.layers if layer.parts]
    names = {layer.layer_id: layer.parts[0].tensor for layer in graph.layers.layers}
    values = run(graph, feeds, nodes=frozenset(names.values()))
    results = _run(kind, path, artifact, feeds, tuple({part.tensor for layer in held for part in layer.parts}))
    for layer in held:
        _hold(f"{kind} layer {layer.layer_id}", values[names[layer.layer_id]], restore(layer, results))


def _hold(what, expected, actual):
    assert expected.shape == actual.shape, f"{what}: {actual.shape} instead of {expected.shape}"
    wanted = np.asarray(expected, np.float64)  # numpy subtracts no booleans
    scale = float(np.max(np.abs(wanted), initial=0.0)) or 1.0
    worst = float(np.max(np.abs(actual - wanted), initial=0.0)) / scale
    assert worst <= CLOSE, f"{what} is {worst:.1e} of its greatest value away"


class Spelled(torch.nn.Module):
    """A convolution, and a function of its eight channels that stands for a spelling."""

    def __init__(self, function, channels=8):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.function = torch.nn.Conv2d(3, channels, 3, 2, 1), function

    def forward(self, image):
        return self.function(self.stem(image))


class AllOf(torch.nn.Module):
    """A convolution, and each of several functions of its eight channels as an output of its own."""

    def __init__(self, functions):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.functions = torch.nn.Conv2d(3, 8, 3, 2, 1), dict(functions)

    def forward(self, image):
        features = self.stem(image)
        return {name: function(features) for name, function in self.functions.items()}


def randomised(module, seed=0):
    """The module in evaluation, with running statistics and weights of its normalisations that are worth folding."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._NormBase) and layer.running_mean is not None:
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.3, 2.0, generator=generator)
            if layer.affine:
                torch.nn.init.normal_(layer.weight, generator=generator)
                torch.nn.init.normal_(layer.bias, generator=generator)
    return module.eval()


def graphs(module, *shapes, dynamic=None, batch=None):
    """The captured graph, and the folded one as it is read back from a bundle and exported again."""
    graph = captured(module, *shapes, dynamic=dynamic, batch=batch)
    folded = saved(fold_batchnorms(graph)[0])
    program(folded)
    return graph, folded


def holds(module, graph, size=None, batch=None):
    """Whether the graph computes in float64 what the module does, on random input of the captured size or another."""
    feeds = _feeds(graph, size, batch)
    with torch.no_grad():
        tensors = [torch.from_numpy(feeds[spec.name]).double() for spec in graph.inputs]
        expected = tensor_outputs(module.double()(*tensors))
    module.float()
    results = run(graph, feeds)
    for name, reference in zip(graph.outputs, expected, strict=True):
        scale = float(reference.abs().max()) or 1.0
        if results[name].shape != tuple(reference.shape):
            return False
        if float(np.max(np.abs(results[name] - reference.numpy()), initial=0.0)) > 1e-6 * scale:
            return False
    return True
