"""What litert-torch and ai-edge-quantizer write, told no more than they ask for."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")

import litert_torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.exporters import OfficialFile
from coordatt_deploy.exporters.converter_errors import official_refusal
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.runtimes.tflite.runner import SIGNATURE, TensorDetail


def export(module: nn.Module, image: torch.Tensor, precision: Precision, path: Path) -> OfficialFile:  # noqa: ARG001 - its only one
    """See ``OfficialExporter.export``: ``litert_torch.convert``, the image with its channels last."""
    try:
        moved = litert_torch.to_channel_last_io(module, args=[0])
        litert_torch.convert(moved, (image.permute(0, 2, 3, 1).contiguous(),)).export(str(path))
    except Exception as error:
        raise official_refusal(Format.TFLITE, "litert-torch", error) from error
    return _described(path)


def quantize(source: Path, images: NumberArray, path: Path) -> OfficialFile:
    """See ``OfficialExporter.quantize``: the recipe ``static_wi8_ai8`` of ai-edge-quantizer."""
    (name,) = (spec.name for spec in _described(source).inputs)
    try:
        engine = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
        cases = [{name: np.ascontiguousarray(image[None].transpose(0, 2, 3, 1))} for image in images]
        engine.quantize(engine.calibrate({SIGNATURE: cases})).export_model(str(path), overwrite=True)
    except Exception as error:
        raise official_refusal(Format.TFLITE, "ai-edge-quantizer", error) from error
    return _described(path)


def _described(path: Path) -> OfficialFile:
    runner = Interpreter(str(path)).get_signature_runner(SIGNATURE)
    inputs, outputs = (
        tuple(_tensor(name, item) for name, item in details.items())
        for details in (runner.get_input_details(), runner.get_output_details())
    )
    return OfficialFile(inputs, outputs)


def _tensor(name: str, detail: TensorDetail) -> TensorSpec:
    shape = tuple(int(size) for size in detail["shape"])
    scale, zero_point = detail["quantization"]
    grid = (float(scale), int(zero_point)) if scale else (None, None)
    layout = "NHWC" if len(shape) == 4 else "NC"[: len(shape)]
    return TensorSpec(name, shape, np.dtype(detail["dtype"]).name, layout, *grid)
