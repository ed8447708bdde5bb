"""Exporters: each module writes one format through its official converter, all under one protocol."""

if __name__ != "coordatt_deploy.exporters":
    raise ImportError("import coordatt_deploy.exporters; the folder at the top of the repository is only its place")

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.layers import LayerMap
from coordatt_deploy.specs import Format, ModelSpec, Precision, TargetCpu, TensorSpec

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


class Exporter(Protocol):
    """What each module of this folder offers (PEP 544: a module can satisfy a protocol)."""

    def export(self, graph: "Graph", request: ExportRequest) -> Exported:
        """Write *graph* to ``request.path``; the same graph and request give the same bytes.

        Raises:
            ConversionError: The converter refused the graph.
        """


EXPORTERS: Final = {
    Format.ONNX: "coordatt_deploy.exporters.onnx",
    Format.TFLITE: "coordatt_deploy.exporters.tflite",
    Format.COREML: "coordatt_deploy.exporters.coreml",
}

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
    try:
        return cast("Exporter", import_module(EXPORTERS[kind]))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("coordatt_deploy"):
            raise
        raise MissingDependencyError(
            f"exporting to {kind} needs {error.name}, which is not installed;"
            f" run: pip install 'coordatt-deploy[{kind}]'"
        ) from error
