"""The user's own model takes the same road: real conversions of the zoo, proven layer by layer."""

from pathlib import Path

import pytest

from coordatt_deploy.conversion import export_run
from coordatt_deploy.conversion.plan import ExportPlan
from coordatt_deploy.formats import Format
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.parity.run import ParityPlan, check_parity
from coordatt_deploy.progress import Stages

ZOO = Path(__file__).parents[1] / "zoo"
ALL = (Format.ONNX, Format.TFLITE, Format.COREML)
OPEN = (Format.ONNX, Format.COREML)  # which take a dynamic size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "dynamic", "formats", "blocks"),
    [
        ("official_network.py:mbv2_ca", (64, 48), None, ALL, 2),
        ("official_block.py:build", (64, 64), None, ALL, 1),
        ("timm_like.py:silu", (48, 64), None, ALL, 2),
        ("home_made.py:two_branches", (64, 48), None, ALL, 1),
        ("home_made.py:one_dimensional", (64, 64), None, ALL, 1),
        ("home_made.py:functional", (48, 64), None, ALL, 1),
        ("detector.py:named_levels", (64, 96), None, ALL, 4),
        ("official_network.py:mbv2_ca", None, (32, 96, 8), OPEN, 2),
        ("official_block.py:build", None, (32, 96, 1), OPEN, 1),
        ("home_made.py:two_branches", None, (32, 96, 1), OPEN, 1),
        ("detector.py:nested_tuple", None, (32, 96, 16), OPEN, 4),
    ],
)
def test_a_users_model_is_exported_in_tuned_form_and_proven(model, size, dynamic, formats, blocks, tmp_path):
    """
    Square, not square and dynamic; every block is rewritten and every layer is within tolerance.
    """
    plan = ExportPlan(
        ModelRequest(f"{ZOO / model}", input_size=size, dynamic=dynamic), formats=formats, output_dir=tmp_path / "net"
    )

    bundle = export_run.export(plan, Stages())
    report = check_parity(bundle, ParityPlan(), Stages())

    assert set(formats) == {item.artifact.format for item in report.artifacts}
    assert [] == [(item.artifact.path, item.problem) for item in report.artifacts if not item.passed]
    for lowering in bundle.manifest.lowering.values():
        assert blocks == len(lowering.blocks)
        assert "unchanged" not in {block.form for block in lowering.blocks}
