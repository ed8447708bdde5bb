"""One file of a network: as the official converter writes it, or as ``export`` and ``quantize`` do.

Weights that no training has seen cost as much as trained ones, and so do ranges that were measured on noise. Nothing
here says how right an int8 file is.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.attention_cost.plan import OFFICIAL, Way
from coordatt_deploy.attention_cost.written import WrittenFile
from coordatt_deploy.conversion.quantized_artifact import measure_ranges, prepare
from coordatt_deploy.conversion.quantized_artifact import write as quantize
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.errors import BundleError, ConversionError
from coordatt_deploy.exporters import ExportRequest, exporter, official
from coordatt_deploy.files import sha256, size_bytes
from coordatt_deploy.formats import FORMATS, Precision
from coordatt_deploy.graph.graph import Graph
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.operator_support import check_supported
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.loading.loaded_model import LoadedModel
from coordatt_deploy.quantization.recipes import STATIC_INT8, load_recipe
from coordatt_deploy.runtimes.reader import count_operators, delegates, read_artifact
from coordatt_deploy.scratch import Scratch

IMAGES: Final = 8  # that int8 ranges are measured on


def written(source: LoadedModel, graph: Graph, way: Way, folder: Path) -> WrittenFile:
    """Write the file; one that a converter refuses is told of, and is no error.

    Args:
        source: The network.
        graph: As it was captured.
        way: How.
        folder: Where to; it exists.
    """
    parts = (way.export, way.precision, way.target_cpu)
    path = folder / f"{'_'.join(part for part in parts if part)}{FORMATS[way.format].suffix}"
    try:
        artifact = _official(source, way, path) if way.export == OFFICIAL else _ours(source, graph, way, path)
        counted = count_operators(path, way.format).total
    except (ConversionError, BundleError) as error:  # the second: its runtime does not open it
        return WrittenFile(way, refused=str(error).removesuffix("; build the bundle again"))
    pieces = [item.partitions for item in delegates(path, read_artifact(path)) if item.partitions is not None]
    return WrittenFile(way, artifact, counted, pieces[0] if pieces else None)


def _official(source: LoadedModel, way: Way, path: Path) -> Artifact:
    converter, image = official(way.format), source.example[0]
    if way.precision is not Precision.INT8:
        made = converter.export(source.module, image, way.precision, path)
    else:
        with Scratch() as folder:
            floats = folder / f"float{path.suffix}"
            converter.export(source.module, image, FORMATS[way.format].quantized_from, floats)
            made = converter.quantize(floats, _noise(image.shape[1:]), path)
    return Artifact(
        path=path.name,
        format=way.format,
        precision=way.precision,
        recipe=None,
        target_cpu=None,
        bytes=size_bytes(path),
        sha256=sha256(path),
        inputs=made.inputs,
        outputs=made.outputs,
        layers="",
    )


def _ours(source: LoadedModel, graph: Graph, way: Way, path: Path) -> Artifact:
    if way.precision is Precision.INT8:
        return _ours_in_int8(source, graph, way, path)
    lowered, _ = lower(fold_batchnorms(graph)[0], target_of(way.format, way.target_cpu))
    check_supported(lowered, way.format)
    request = ExportRequest(source.spec, way.precision, path, way.target_cpu)
    return exporter(way.format).export(lowered, request).described(request, path.parent)


def _ours_in_int8(source: LoadedModel, graph: Graph, way: Way, path: Path) -> Artifact:
    # rounding weights on data takes minutes and leaves the operators as they are
    recipe = replace(load_recipe(STATIC_INT8), adjust=False)
    noise = _noise(source.example[0].shape[1:])
    data = CalibrationSet("noise", {source.inputs[0]: noise}, tuple(map(str, range(len(noise)))), 0)
    with Scratch() as folder:
        prepared = prepare(graph, recipe, way.format, source.spec, folder, target_cpu=way.target_cpu, data=data)
        exported, request = quantize(prepared, recipe, measure_ranges(prepared, recipe, data), path, source.spec)
    return exported.described(request, path.parent, recipe.name)


def _noise(shape: tuple[int, ...]) -> NumberArray:
    """Return images with the statistics of normalised ones, (count, C, H, W)."""
    return np.random.default_rng(7).standard_normal((IMAGES, *shape), np.float32)
