"""The table of layers on the terminal: every figure of every file, at any width."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.parity.error_statistics import LayerErrorStats
from coordatt_deploy.parity.layers import ArtifactLayers, LayerRow
from coordatt_deploy.parity.reference_rounding import RoundingError
from coordatt_deploy.parity.result import ArtifactParity, ParityReport
from coordatt_deploy.report.terminal.parity import _show_layers

KINDS = (
    (Format.ONNX, "static_wi8_ai8", TargetCpu.ARM64), (Format.ONNX, "weight_only_wi8_afp32", TargetCpu.X86_64),
    (Format.TFLITE, "dynamic_wi8_afp32", None), (Format.COREML, "palettized_w6", None),
    (Format.ONNX, None, TargetCpu.ARM64),
)  # fmt: skip
LAYERS = ("features.4.conv.6.attention.gate:hardsigmoid_1", "stem.0", "features.10.conv.3")


def tally(decibels: float) -> LayerErrorStats:
    made = LayerErrorStats(16.0, 1e-7)
    value = np.full(4, 1.0)
    made.add(value + 10 ** (-decibels / 20), value, RoundingError(1.0, np.array([1e-14]), 0.0))
    return made


def report() -> ParityReport:
    """Five files of three layers, each figure another number."""
    items = []
    for number, (kind, recipe, cpu) in enumerate(KINDS):
        artifact = Artifact(f"{number}", kind, Precision.FP32, recipe, cpu, 1, "", (), (), "")
        rows = tuple(
            LayerRow(layer, "conv2d", tally(100 + 10 * number + at), tally(160 + 10 * number + at),
                     "stem.0" if at == 0 else None, None)
            for at, layer in enumerate(LAYERS)
        )  # fmt: skip
        items.append(ArtifactParity(artifact, "r", Origin.MEASURED, True, layers=ArtifactLayers(artifact, "r", rows)))
    return ParityReport(tuple(items))


@pytest.mark.parametrize("width", [50, 60, 80, 100, 120, 160, 220])
def test_no_figure_is_cropped(width):
    """
    Columns that do not fit go into a further table; words of a head and figures stay whole.
    """
    console = Console(file=io.StringIO(), width=width)

    _show_layers(console, report())
    text = console.file.getvalue()

    assert max(map(len, text.splitlines())) <= width
    for number in range(len(KINDS)):
        for at in range(len(LAYERS)):
            assert re.search(rf" {100 + 10 * number + at} / {160 + 10 * number + at}\b", text)
    for words in KINDS:
        assert [] == [word for word in words if word is not None and not re.search(rf"(?<!\S){word}(?!\S)", text)]
