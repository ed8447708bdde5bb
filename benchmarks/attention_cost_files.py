"""The files that ``attention_cost`` compares: a network, plain and with attention, by every exporter, in a cache.

A file is converted again when the code of this project, a converter's version or the network changes.
"""

import dataclasses
import hashlib
import inspect
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import litert_torch
import numpy as np
import onnxruntime
import torch
from ai_edge_quantizer import quantizer, recipe
from torch import nn

import coordatt_deploy.exporters
import coordatt_deploy.models
from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.conversion import quantized_artifact as quantizing
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.logs import captured, log_folder
from coordatt_deploy.models import create_model
from coordatt_deploy.quantization.recipes import parse
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools
from coordatt_deploy.runtimes.tflite.runner import SIGNATURE, Interpreter

PLAIN: Final = "plain"
ATTENTION: Final = "attention"
IMAGES: Final = 8  # that int8 ranges are measured on; the cost does not depend on the ranges
# Rounding weights for accuracy takes minutes and leaves the operators as they are.
INT8: Final = dataclasses.replace(parse("static_wi8_ai8"), adjust=False)
CONVERTERS: Final = ("torch", "onnx", "onnxscript", "onnxsim", "litert-torch", "ai-edge-quantizer", "coremltools")


@dataclass(frozen=True, slots=True)
class Network:
    """What is compared: a model without and with attention, at one square input size."""

    models: tuple[tuple[str, str], tuple[str, str]]
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the input, (N, C, H, W)."""
        return (1, 3, self.size, self.size)


FULL: Final = Network(((PLAIN, "mobilenetv2_100"), (ATTENTION, "mobilenetv2_ca_100")), 224)
QUICK: Final = Network(((PLAIN, "mobilenetv2_035"), (ATTENTION, "mobilenetv2_ca_035")), 64)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to export: by whom, into what, for which CPU.

    Attributes:
        export: ``default`` (the official exporter, told no more than the input) or ``ours``.
        format: Of the file.
        precision: fp32, or int8 by the recipe ``static_wi8_ai8``.
        cpu: Whose form ours has; None where forms do not differ.
    """

    export: str
    format: Format
    precision: Precision = Precision.FP32
    cpu: TargetCpu | None = None

    def __str__(self) -> str:
        form = "" if self.cpu is None else f" {self.cpu}"
        return f"{self.format} {self.precision} {self.export}{form}"


WAYS: Final = (
    Way("default", Format.ONNX),
    Way("ours", Format.ONNX, cpu=TargetCpu.X86_64),
    Way("ours", Format.ONNX, cpu=TargetCpu.ARM64),
    Way("default", Format.TFLITE),
    Way("ours", Format.TFLITE),
    Way("default", Format.TFLITE, Precision.INT8),
    Way("ours", Format.TFLITE, Precision.INT8),
    Way("default", Format.COREML),
    Way("ours", Format.COREML),
)


def build(network: Network, folder: Path, ways: tuple[Way, ...] = WAYS) -> Iterator[tuple[Way, str, Path]]:
    """Yield every file, converted or from *folder*: way, ``plain`` or ``attention``, path."""
    for way in ways:
        for what, name in network.models:
            yield way, what, _file(way, name, network, folder)


def _file(way: Way, name: str, network: Network, folder: Path) -> Path:
    parts = (way.export, way.format, way.precision, way.cpu, name, network.size)
    stem = "_".join(str(part) for part in parts if part)
    path = folder / f"{stem}.{_key(way)}.{'mlpackage' if way.format is Format.COREML else way.format}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"converting {stem}", file=sys.stderr, flush=True)
        half = path.with_name(f"half_{path.name}")
        with captured(log_folder() / "attention_cost.log"):
            if way.export == "default":
                _default(way, name, network, folder, half)
            else:
                _ours(way, name, network, half)
        half.rename(path)
    return path


def _key(way: Way) -> str:
    """Hash of everything that a file depends on."""
    digest = hashlib.sha256(repr([(name, version(name)) for name in CONVERTERS]).encode())
    digest.update("".join(map(inspect.getsource, (module, images, _default, _ours))).encode())
    root = Path(coordatt_deploy.__file__).parent
    models, exporters = (
        Path(package.__file__ or "").parent for package in (coordatt_deploy.models, coordatt_deploy.exporters)
    )
    sources = [*models.glob("*.py")]
    if way.export == "ours":
        sources += (root / "graph").rglob("*.py")
        sources += exporters.rglob("*.py")
    if way.export == "ours" and way.precision is Precision.INT8:
        sources += [root / "conversion" / "quantized_artifact.py", *(root / "quantization").glob("*.py")]
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:10]


def module(name: str) -> nn.Module:
    """Build a model with fresh weights and statistics of BatchNorm that are not the identity."""
    built = create_model(name)
    generator = torch.Generator().manual_seed(1)
    for layer in built.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0.0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return built


def images(network: Network, count: int = 1) -> torch.Tensor:
    """Return noise with the statistics of preprocessed images, (count, C, H, W)."""
    return torch.randn((count, *network.shape[1:]), generator=torch.Generator().manual_seed(7))


def _default(way: Way, name: str, network: Network, folder: Path, path: Path) -> None:
    """Export as the official converter does without being told more than the input."""
    net, image = module(name), images(network)
    if way.format is Format.ONNX:
        torch.onnx.export(net, (image,), path, dynamo=True, external_data=False, verbose=False)
    elif way.precision is Precision.INT8:
        source = _file(Way("default", Format.TFLITE), name, network, folder)
        engine = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
        cases = [{"args_0": case[None].permute(0, 2, 3, 1).numpy()} for case in images(network, IMAGES)]
        result = engine.calibrate({SIGNATURE: cases})
        engine.quantize(result).export_model(str(path), overwrite=True)
    elif way.format is Format.TFLITE:
        moved = litert_torch.to_channel_last_io(net, args=[0])
        litert_torch.convert(moved, (image.permute(0, 2, 3, 1).contiguous(),)).export(str(path))
    else:
        program = torch.export.export(net, (image,)).run_decompositions({})
        converted = coremltools.convert(program, skip_model_load=True)
        converted.save(str(path.with_suffix(".mlpackage")))


def _ours(way: Way, name: str, network: Network, path: Path) -> None:
    """Export as ``coordatt-deploy export`` does, and quantize as ``coordatt-deploy quantize`` does."""
    spec = ModelSpec(name, Preprocessing((network.size, network.size)))
    graph = capture(module(name), (torch.zeros(network.shape),))
    if way.precision is Precision.INT8:
        arrays = {"image": images(network, IMAGES).numpy()}
        data = CalibrationSet("noise", arrays, tuple(map(str, range(IMAGES))), 0)
        with tempfile.TemporaryDirectory() as folder:
            prepared = quantizing.prepare(graph, INT8, way.format, spec, Path(folder), data=data)
            quantizing.write(prepared, INT8, quantizing.measure_ranges(prepared, INT8, data), path, spec)
        return
    graph, _ = fold_batchnorms(graph)
    graph, _ = lower(graph, target_of(way.format, way.cpu))
    exporter(way.format).export(graph, ExportRequest(spec, Precision.FP32, path, way.cpu))


def described(path: Path, way: Way) -> Artifact:
    """Describe a file by itself: the official exporters write no bundle."""
    if way.format is Format.ONNX:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        inputs, outputs = (
            tuple(TensorSpec(item.name, tuple(item.shape), "float32", "NCHW"[: len(item.shape)]) for item in items)
            for items in (session.get_inputs(), session.get_outputs())
        )
    else:
        runner = Interpreter(str(path)).get_signature_runner(SIGNATURE)
        inputs, outputs = (
            tuple(_tensor(name, item) for name, item in details.items())
            for details in (runner.get_input_details(), runner.get_output_details())
        )
    return Artifact(path.name, way.format, way.precision, None, None, 0, "", inputs, outputs, "")


def _tensor(name: str, detail: dict[str, object]) -> TensorSpec:
    shape = tuple(int(size) for size in detail["shape"])  # type: ignore[attr-defined]
    return TensorSpec(name, shape, np.dtype(detail["dtype"]).name, "NHWC" if len(shape) == 4 else "NC")
