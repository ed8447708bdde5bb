"""docs/parity.md says what the report holds and what is allowed; this holds it to both."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.documents import dump
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.parity.error_statistics import LayerErrorStats
from coordatt_deploy.parity.layers import ArtifactLayers, LayerRow
from coordatt_deploy.parity.outputs import judge
from coordatt_deploy.parity.reference_rounding import RoundingError
from coordatt_deploy.parity.reports import ParityReports, ParityRun, covered
from coordatt_deploy.parity.result import ArtifactParity, GraphVerdict, ParityReport
from coordatt_deploy.parity.tolerances import TOLERANCES
from coordatt_deploy.run_records import GOLDEN, HERE, NotRun, RunInputs

DOCS = (Path(__file__).parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([a-z0-9_]+)`", DOCS))


def documents():
    """The report in the bundle, and what the command prints."""
    artifact = Artifact("onnx/net.onnx", Format.ONNX, Precision.FP32, None, None, 1, "ab" * 32, (), (), "")
    values = [np.ones((1, 3))]
    tally = LayerErrorStats(16.0, 2.0**-24)
    tally.add(values[0], values[0], RoundingError(1e-7, np.zeros(3)))
    layers = ArtifactLayers(artifact, artifact.path, (LayerRow("a", "conv2d", tally, tally, None, None),))
    tolerance = TOLERANCES[Format.ONNX, "fp32"]
    outputs = (judge("logits", values, values, values, tolerance),)
    verdict = ArtifactParity(artifact, "onnxruntime", Origin.MEASURED, True, outputs, tolerance, layers=layers)
    result = ParityReport((verdict,), cases=("a.png",)).record()
    (judged,) = result.artifacts
    run = ParityRun(
        kind="parity", artifact=judged.path, sha256=judged.sha256, place=HERE,
        inputs=RunInputs(GOLDEN, 1, result.cases),
        covered=covered(judged), tool_versions={}, time="2026-01-01T00:00:00.000+00:00", result=judged,
    )  # fmt: skip
    graph = GraphVerdict("folded", None, None, None, None, None, "", judged.layers)
    reports = ParityReports((run,), (graph,), (NotRun("coreml/net.mlpackage", "it has no Core ML"),))
    return json.loads(dump(reports)), json.loads(dump(result))


def keys(value):
    if isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item)


def test_every_key_of_the_report_is_described():
    """
    No key of parity.json, and of what `--json` prints, is missing from its page.
    """
    assert set() == set(keys(list(documents()))) - NAMED - {"name"}


@pytest.mark.parametrize(("kind", "label"), TOLERANCES, ids=lambda item: str(item))
def test_every_tolerance_stands_in_the_table(kind, label):
    """
    With its multiple, its decibels and its agreement, in the row that names it.
    """
    tolerance = TOLERANCES[kind, label]
    short = label.replace("palettized", "")
    (row,) = [
        line for line in DOCS.splitlines()
        if line.startswith("|") and f" {tolerance.multiple:g} × " in line
        and (f"`{label}`" in line or f"`{short}`" in line) and (kind in line.split("|")[1] or "`static" in line
        or "`weight_only_wi8_afp32`" in line)
    ]  # fmt: skip
    if tolerance.min_sqnr_db is not None:
        assert f"{tolerance.min_sqnr_db:g}" in row.split("|")[3]
    assert ("90 %" in row.split("|")[3]) == (tolerance.min_top1_agreement == 0.9) or label == "palettized_w4"
