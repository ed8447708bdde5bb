"""Rows of formats agree with the rest: extras, packages, tolerances, and what is said of fixed sizes."""

import tomllib
from pathlib import Path

import pytest

from coordatt_deploy.formats import FORMATS, TORCH_EXTRA, Format, format_of, suffixes
from coordatt_deploy.host import PACKAGES as MEASURED
from coordatt_deploy.host import TOOLS
from coordatt_deploy.inspection.installation import PACKAGES
from coordatt_deploy.parity.tolerances import TOLERANCES

EXTRAS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("file_format", Format)
def test_a_suffix_leads_to_its_format_alone(file_format):
    """
    Both ways.
    """
    suffix = FORMATS[file_format].suffix

    assert file_format is format_of(Path(f"net{suffix}"))
    assert suffix in suffixes()
    assert format_of(Path(f"net{suffix}.zip")) is None


@pytest.mark.parametrize("file_format", Format)
def test_every_package_is_in_the_extra_that_is_said_to_bring_it(file_format):
    """
    The line that is shown installs what is missing: converter, quantizer and runtime.
    """
    row = FORMATS[file_format]
    brought = {extra: {line.partition("==")[0].partition(">=")[0] for line in lines} for extra, lines in EXTRAS.items()}

    assert row.converter in {package.module for package in row.packages}
    assert row.runtimes[0] in {package.distribution for package in row.packages}
    for package in row.packages:
        assert package.distribution in brought[package.extra]
    assert "torch" in brought[TORCH_EXTRA]


@pytest.mark.parametrize("file_format", Format)
def test_whatever_a_format_writes_has_a_tolerance(file_format):
    """
    Each precision of its exporter and each of its recipes; what a precision stands for is one of them.
    """
    row = FORMATS[file_format]

    assert {(file_format, name) for name in (*row.precisions, *row.recipes)} <= set(TOLERANCES)
    assert set(row.precision_recipes.values()) <= set(row.recipes)
    assert row.quantized_from in row.precisions


def test_doctor_lists_converters_before_what_runs_their_files():
    """
    Format by format, torch before them all; the order in which versions are recorded is the rows' own.
    """
    names = [package.distribution for package in PACKAGES]

    assert [
        "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "litert-torch", "ai-edge-quantizer", "ai-edge-litert",
        "coremltools", "executorch", "scikit-learn",
    ] == names  # fmt: skip
    assert (
        "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "litert-torch", "ai-edge-litert", "ai-edge-quantizer",
        "coremltools", "executorch", "numpy", "Pillow",
    ) == TOOLS  # fmt: skip
    assert (
        "coordatt-deploy", "numpy", "onnxruntime", "ai-edge-litert", "tflite-runtime", "coremltools", "executorch",
    ) == MEASURED  # fmt: skip
