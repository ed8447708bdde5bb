"""What executorch writes, told no more than it asks for."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.errors import ConversionError
from coordatt_deploy.exporters import OfficialFile
from coordatt_deploy.exporters.converter_errors import official_refusal
from coordatt_deploy.exporters.executorch.executorch_import import (
    XnnpackPartitioner,
    quiet,
    to_edge_transform_and_lower,
)
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.runtimes.executorch.program_file import opened
from coordatt_deploy.runtimes.executorch.tensors import DTYPES


def export(module: nn.Module, image: torch.Tensor, precision: Precision, path: Path) -> OfficialFile:  # noqa: ARG001 - its only one
    """See ``OfficialExporter.export``: ``to_edge_transform_and_lower`` with the XNNPACK partitioner."""
    try:
        with quiet():
            exported = torch.export.export(module, (image,))
            lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            path.write_bytes(bytes(lowered.to_executorch().buffer))
    except Exception as error:
        raise official_refusal(Format.EXECUTORCH, "executorch", error) from error
    return _described(path)


def quantize(source: Path, images: NumberArray, path: Path) -> OfficialFile:  # noqa: ARG001 - there is none of files
    """See ``OfficialExporter.quantize``: executorch quantizes networks, not files."""
    raise ConversionError("executorch quantizes networks in torch; a file that is written stays in float")


def _described(path: Path) -> OfficialFile:
    method = opened(path.read_bytes(), path.name).method

    def specs(what: str, indices: list[int]) -> tuple[TensorSpec, ...]:
        values = [method.values[index].val for index in indices]
        return tuple(
            TensorSpec(f"{what}_{number}", tuple(value.sizes), np.dtype(DTYPES[value.scalar_type]).name,
                       "NCHW"[: len(value.sizes)] if len(value.sizes) <= 4 else "")
            for number, value in enumerate(values)
        )  # fmt: skip

    return OfficialFile(specs("input", method.inputs), specs("output", method.outputs))
