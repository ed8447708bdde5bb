"""Exporters: a folder a format. ``export`` goes through its official converter, ``quantize`` is the second stage."""

if __name__ != "coordatt_deploy.exporters":
    raise ImportError("import coordatt_deploy.exporters; the folder at the top of the repository is only its place")

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, ModelSpec, TensorSpec
from coordatt_deploy.errors import ConversionError
from coordatt_deploy.files import remove, sha256, size_bytes
from coordatt_deploy.format_modules import Role, load
from coordatt_deploy.formats import FORMATS, Format, Precision, TargetCpu, format_of
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.quantization.ranges import Range
from coordatt_deploy.quantization.recipes import Recipe
from coordatt_deploy.runtime_versions import NO_LIMITS, RuntimeLimits, check_needs
from coordatt_deploy.runtimes.reader import app_interface, runtime_needs

if TYPE_CHECKING:
    import torch
    from torch import nn

    from coordatt_deploy.graph.graph import Graph


EIGHT_BITS: Final = 127  # greatest level of an int8 weight: -128 is left out, so that both signs reach as far


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to write and where.

    Attributes:
        spec: Goes into the artifact's metadata: preprocessing, labels, provenance.
        path: The file (or folder, where the format is one) to write; its parent exists.
        target_cpu: The CPU family whose form the graph already has; for the metadata. None where forms do not differ.
        float32_nodes: Nodes of the graph that an fp16 artifact computes in float32, as their values leave float16's
            range.
        limits: For how old a runtime.
    """

    spec: ModelSpec
    precision: Precision
    path: Path
    target_cpu: TargetCpu | None = None
    float32_nodes: frozenset[str] = frozenset()
    limits: RuntimeLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the tensors a caller meets, where the graph's layers are, and what the user should know."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: LayerMap
    notes: tuple[str, ...] = ()

    def described(self, request: ExportRequest, folder: Path, recipe: str | None = None) -> Artifact:
        """Write the layer map beside the file and return the manifest's entry.

        Args:
            request: What was asked for; the file is at its path.
            folder: That paths are relative to.
            recipe: Name of the quantization recipe; None for float.

        Raises:
            ConversionError: It needs a newer runtime than was asked for; the file is gone then.
        """
        file_format = format_of(request.path)
        assert file_format is not None  # noqa: S101 - who asks for a file knows its suffix
        needs = runtime_needs(request.path, file_format)
        try:
            check_needs(needs, file_format, request.limits, _instead(file_format, recipe))
        except ConversionError:
            remove(request.path)
            raise
        layers = request.path.with_name(f"{request.path.stem}.layers.json")
        layers.write_text(self.layers.dump(), encoding="utf-8")
        return Artifact(
            path=request.path.relative_to(folder).as_posix(),
            format=file_format,
            precision=request.precision,
            recipe=recipe,
            target_cpu=request.target_cpu,
            bytes=size_bytes(request.path),
            sha256=sha256(request.path),
            inputs=self.inputs,
            outputs=self.outputs,
            layers=layers.relative_to(folder).as_posix(),
            app=app_interface(request.path, file_format),
            needs=needs,
        )


def _instead(file_format: Format, recipe: str | None) -> str:
    """What may need an older runtime than a file that needs one too new."""
    if recipe is None:
        return ""
    others = [name for name in FORMATS[file_format].recipes if not recipe.startswith(name)]
    return f", or try another recipe: {', '.join(others)}"


class Exporter(Protocol):
    """What ``exporters/<format>/export.py`` offers (PEP 544: a module can satisfy a protocol)."""

    def export(self, graph: "Graph", request: ExportRequest) -> Exported:
        """Write *graph* to ``request.path``; the same graph and request give the same bytes.

        Raises:
            ConversionError: The converter refused the graph.
        """


class Quantizer(Protocol):
    """What ``exporters/<format>/quantize.py`` offers: a stage on the float artifact that an exporter wrote."""

    def weight_levels(self, target_cpu: TargetCpu | None) -> int:
        """Return the greatest level of an int8 weight in a file for *target_cpu*; ``EIGHT_BITS`` nearly everywhere."""

    def integer_operators(self) -> frozenset[str] | None:
        """Return the operators of a graph that static recipes compute in integers, beyond data that only moves.

        None stands for all of them.
        """

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


@dataclass(frozen=True, slots=True)
class OfficialFile:
    """The tensors that a caller of a file meets which the official converter named."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class OfficialExporter(Protocol):
    """What ``exporters/<format>/official.py`` offers: the file that a user gets without this package, to compare with.

    Nothing is lowered, folded or named; the converters are told no more than they ask for.
    """

    def export(self, module: "nn.Module", image: "torch.Tensor", precision: Precision, path: Path) -> OfficialFile:
        """Write *module*, which takes one image (N, C, H, W), to *path*.

        Raises:
            ConversionError: The converter refused it.
        """

    def quantize(self, source: Path, images: NumberArray, path: Path) -> OfficialFile:
        """Write the float file at *source* with int8 weights and activations to *path*.

        Args:
            source: A file that ``export`` wrote.
            images: What activations are measured on, (count, C, H, W).
            path: Where to.

        Raises:
            ConversionError: The quantizer refused the file, or cannot run here.
        """


def exporter(file_format: Format) -> Exporter:
    """Return the module that writes *file_format*.

    Raises:
        MissingDependencyError: A converter is not installed.
    """
    return cast("Exporter", load(file_format, Role.EXPORT))


def quantizer(file_format: Format) -> Quantizer:
    """Return the module that quantizes artifacts of *file_format*.

    Raises:
        MissingDependencyError: The format's quantizer is not installed.
    """
    return cast("Quantizer", load(file_format, Role.QUANTIZE))


def official(file_format: Format) -> OfficialExporter:
    """Return the module that writes *file_format* as its official converter does.

    Raises:
        MissingDependencyError: The converter is not installed.
    """
    return cast("OfficialExporter", load(file_format, Role.OFFICIAL))
