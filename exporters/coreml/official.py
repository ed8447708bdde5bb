"""What coremltools writes, told no more than it asks for."""

from pathlib import Path

import torch
from torch import nn

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.errors import ConversionError
from coordatt_deploy.exporters import OfficialFile
from coordatt_deploy.exporters.converter_errors import official_refusal
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools
from coordatt_deploy.runtimes.coreml.reader import graph


def export(module: nn.Module, image: torch.Tensor, precision: Precision, path: Path) -> OfficialFile:
    """See ``OfficialExporter.export``: ``coremltools.convert``."""
    kinds = {Precision.FP16: coremltools.precision.FLOAT16, Precision.FP32: coremltools.precision.FLOAT32}
    try:
        program = torch.export.export(module, (image,)).run_decompositions({})
        converted = coremltools.convert(program, compute_precision=kinds[precision], skip_model_load=True)
        converted.save(str(path))
    except Exception as error:
        raise official_refusal(Format.COREML, "coremltools", error) from error
    found = graph(path)
    return OfficialFile(found.inputs, found.outputs)


def quantize(source: Path, images: NumberArray, path: Path) -> OfficialFile:  # noqa: ARG001 - see below
    """See ``OfficialExporter.quantize``.

    Raises:
        ConversionError: Always: it runs the file to measure activations, which needs macOS.
    """
    raise ConversionError("coremltools measures activations by running the file, which needs macOS")
