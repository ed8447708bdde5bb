"""Exporters: each module writes one format through its official converter, all under one protocol."""

if __name__ != "coordatt_deploy.exporters":
    raise ImportError("import coordatt_deploy.exporters; the folder at the top of the repository is only its place")

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final, Protocol, cast

from coordatt_deploy.bundle import sha256, size_bytes
from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.layers import LayerMap
from coordatt_deploy.quantization.ranges import Range
from coordatt_deploy.quantization.recipes import Recipe
from coordatt_deploy.specs import Artifact, Format, ModelSpec, Precision, TargetCpu, TensorSpec

if TYPE_CHECKING:
    from coordatt_deploy.graph.capture import Graph


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to write and where.

    Attributes:
        spec: Goes into the artifact's metadata: preprocessing, labels, provenance.
        path: The file (or ``.mlpackage`` folder) to write; its parent exists.
        target_cpu: The CPU family whose form the graph already has; for the metadata. None where forms do not differ.
    """

    spec: ModelSpec
    precision: Precision
    path: Path
    target_cpu: TargetCpu | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the tensors a caller meets, and where the graph's layers are in it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: LayerMap

    def described(self, request: ExportRequest, folder: Path, recipe: str | None = None) -> Artifact:
        """Write the layer map beside the file and return the manifest's entry.

        Args:
            request: What was asked for; the file is at its path.
            folder: That paths are relative to.
            recipe: Name of the quantization recipe; None for float.
        """
        layers = request.path.with_name(f"{request.path.stem}.layers.json")
        layers.write_text(self.layers.dump(), encoding="utf-8")
        return Artifact(
            path=request.path.relative_to(folder).as_posix(),
            format=FORMATS[request.path.suffix],
            precision=request.precision,
            recipe=recipe,
            target_cpu=request.target_cpu,
            bytes=size_bytes(request.path),
            sha256=sha256(request.path),
            inputs=self.inputs,
            outputs=self.outputs,
            layers=layers.relative_to(folder).as_posix(),
        )


class Exporter(Protocol):
    """What each module of this folder offers (PEP 544: a module can satisfy a protocol)."""

    def export(self, graph: "Graph", request: ExportRequest) -> Exported:
        """Write *graph* to ``request.path``; the same graph and request give the same bytes.

        Raises:
            ConversionError: The converter refused the graph.
        """


class Quantizer(Protocol):
    """What each module of the second table offers: a stage on the float artifact that an exporter wrote."""

    def activations(self, source: Path, exported: Exported) -> tuple[str, ...]:
        """Return the names of the tensors in the float artifact at *source* whose ranges a static recipe needs."""

    def quantize(
        self,
        source: Path,
        exported: Exported,
        recipe: Recipe,
        ranges: Mapping[str, Range] | None,
        request: ExportRequest,
    ) -> Exported:
        """Write the quantized artifact to ``request.path``; the same arguments give the same bytes.

        Args:
            source: The float artifact; it is left alone.
            exported: What is known of it.
            recipe: One that the format can express.
            ranges: By tensor, for static recipes; None for the others.
            request: Where to.

        Returns:
            The new artifact's inputs, outputs and layer map.

        Raises:
            UsageError: The recipe keeps layers in float that the model does not have, or needs what is not given.
            ConversionError: The format's quantizer refused the file.
        """


EXPORTERS: Final = {
    Format.ONNX: "coordatt_deploy.exporters.onnx",
    Format.TFLITE: "coordatt_deploy.exporters.tflite",
    Format.COREML: "coordatt_deploy.exporters.coreml",
}
QUANTIZERS: Final = {
    Format.ONNX: "coordatt_deploy.exporters.onnx_quantize",
    Format.TFLITE: "coordatt_deploy.exporters.tflite_quantize",
    Format.COREML: "coordatt_deploy.exporters.coreml_quantize",
}
CONVERTERS: Final = {Format.ONNX: "onnx", Format.TFLITE: "litert_torch", Format.COREML: "coremltools"}
FORMATS: Final = {".onnx": Format.ONNX, ".tflite": Format.TFLITE, ".mlpackage": Format.COREML}

# What the exporters write themselves; every other precision is a recipe of the second stage.
PRECISIONS: Final = {
    Format.ONNX: (Precision.FP32,),
    Format.TFLITE: (Precision.FP32,),
    Format.COREML: (Precision.FP32, Precision.FP16),
}


def exporter(kind: Format) -> Exporter:
    """Return the module that writes *kind*.

    Raises:
        MissingDependencyError: A converter is not installed.
    """
    return cast("Exporter", _load(EXPORTERS[kind], "exporting to", kind))


def quantizer(kind: Format) -> Quantizer:
    """Return the module that quantizes artifacts of *kind*.

    Raises:
        MissingDependencyError: The format's quantizer is not installed.
    """
    return cast("Quantizer", _load(QUANTIZERS[kind], "quantizing", kind))


def _load(module: str, what: str, kind: Format) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("coordatt_deploy"):
            raise
        raise MissingDependencyError(
            f"{what} {kind} needs {error.name}, which is not installed; run: pip install 'coordatt-deploy[{kind}]'"
        ) from error


def need(package: str, extra: str) -> None:
    """Refuse to go on without *package*.

    Raises:
        MissingDependencyError: It is not installed; the text holds the line that installs it.
    """
    if find_spec(package) is None:
        raise MissingDependencyError(
            f"this needs {package}, which is not installed; run: pip install 'coordatt-deploy[{extra}]'"
        )


def need_converters(*kinds: Format) -> None:
    """Refuse to go on where one of these formats cannot be written here.

    Raises:
        MissingDependencyError: See ``need``.
    """
    need("torch", "onnx")
    for kind in dict.fromkeys(kinds):
        need(CONVERTERS[kind], kind)
