"""What torch's exporter and ONNX Runtime's quantizer write, told no more than they ask for."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from torch import nn

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.exporters import OfficialFile
from coordatt_deploy.exporters.converter_errors import official_refusal
from coordatt_deploy.formats import Format, Precision


def export(module: nn.Module, image: torch.Tensor, precision: Precision, path: Path) -> OfficialFile:  # noqa: ARG001 - its only one
    """See ``OfficialExporter.export``: ``torch.onnx.export``."""
    try:
        torch.onnx.export(module, (image,), path, dynamo=True, external_data=False, verbose=False)
    except Exception as error:
        raise official_refusal(Format.ONNX, "torch.onnx.export", error) from error
    return _described(path)


def quantize(source: Path, images: NumberArray, path: Path) -> OfficialFile:
    """See ``OfficialExporter.quantize``: ``onnxruntime.quantization.quantize_static``."""
    name = onnx.load(source).graph.input[0].name
    try:
        quantize_static(source, path, _Images(name, images))
    except Exception as error:
        raise official_refusal(Format.ONNX, "onnxruntime.quantization", error) from error
    return _described(path)


class _Images(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """One image at a time, as ONNX Runtime's quantizer asks for them."""

    def __init__(self, name: str, images: NumberArray) -> None:
        self._feeds: Iterator[dict[str, NumberArray]] = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, NumberArray] | None:
        """Return the next feeds; None after the last."""
        return next(self._feeds, None)


def _described(path: Path) -> OfficialFile:
    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs, outputs = (
        tuple(TensorSpec(item.name, tuple(item.shape), _dtype(item.type), "NCHW"[: len(item.shape)]) for item in items)
        for items in (session.get_inputs(), session.get_outputs())
    )
    return OfficialFile(inputs, outputs)


def _dtype(name: str) -> str:
    """NumPy's name of what ONNX Runtime calls ``tensor(float)``."""
    return np.dtype({"float": "float32", "double": "float64"}.get(inner := name[7:-1], inner)).name
