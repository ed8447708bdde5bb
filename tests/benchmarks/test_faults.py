"""Faults planted into real files: the report fails and names the layer.

A few of each kind by default. ``FAULT_SEEDS=50`` plants as many into each format, on the embedded default;
``FAULT_BUNDLE=DIR`` takes another bundle. ``python -m benchmarks.faults BUNDLE`` prints the table.
"""

import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.conversion.export_run import export
from coordatt_deploy.conversion.plan import ExportPlan, QuantizePlan
from coordatt_deploy.conversion.quantize_run import quantize
from coordatt_deploy.formats import Format
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.parity.executors import LOCAL, RemoteExecutor
from coordatt_deploy.parity.localise import localise
from coordatt_deploy.parity.tolerances import TOLERANCES, tolerance_of
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.recipes import parse

ROOT = Path(__file__).parents[2]
SEEDS = int(os.environ.get("FAULT_SEEDS", "8"))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def faults():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        from benchmarks.faults import bench, planters, tflite_file

        yield {
            "Bench": bench.Bench,
            "FAULTS": planters.FAULTS,
            "TfliteFile": tflite_file.TfliteFile,
        }
        for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def bench(faults, tmp_path_factory):
    root = Path(os.environ.get("FAULT_BUNDLE", tmp_path_factory.mktemp("faults") / "bundle"))
    if not root.exists():
        exported = export(ExportPlan(output_dir=root), Stages())
        quantize(exported, QuantizePlan((parse("static_wi8_ai8"),), (Format.TFLITE,), calibration="digits"), Stages())
    return faults["Bench"](root)


@pytest.mark.parametrize("kind", list(Format))
def test_nothing_planted_passes(bench, kind):
    """
    The files as they were exported are within tolerance at every layer, stirred values included.
    """
    for artifact in bench.bundle.manifest.artifacts:
        if artifact.format is kind:
            assert bench.judge(bench.bundle, artifact).passed, artifact.path


@pytest.mark.parametrize("kind", list(Format))
def test_planted_faults_are_found_and_named(bench, faults, kind):
    """
    Each kind of fault, in a layer chosen by the seed, makes the report fail at that layer.

    But for those in integer files that move no channel of it by as much as is allowed for rounding.
    """
    artifacts = [item for item in bench.bundle.manifest.artifacts if item.format is kind]
    kinds = list(faults["FAULTS"])
    first = SEEDS if SEEDS < len(kinds) else 0  # other kinds for each format, so that few seeds see many
    outcomes = [
        bench.plant(
            artifacts[seed % len(artifacts)], kinds[(seed + first * list(Format).index(kind)) % len(kinds)], seed
        )
        for seed in range(SEEDS)
    ]
    planted = [outcome for outcome in outcomes if outcome.planted]

    assert len(planted) >= 0.6 * len(outcomes)
    assert [] == [outcome for outcome in planted if outcome.missed and not outcome.too_small]


@pytest.mark.parametrize("kind", list(Format))
def test_smallest_weight_change(bench, kind):
    """
    Scaling a layer's weights by many times the reported change is seen in nearly all layers, by a tenth in none.
    """
    artifact = next(item for item in bench.bundle.manifest.artifacts if item.format is kind)
    change = bench.judge(bench.bundle, artifact).smallest_weight_change

    assert 1e-8 < change < 1e-1
    seen = [bench.scaled(artifact, 30 * change, seed).detected for seed in range(4)]
    assert sum(seen) >= 3
    assert not any(bench.scaled(artifact, 0.03 * change, seed).detected for seed in range(2))


WIDE = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 2, 7, padding=3, bias=False)).eval()
"""


@pytest.mark.parametrize(("at", "expected"), [((0, 0), ()), ((3, 3), ("2",))])
def test_a_weight_that_only_meets_padding_is_no_fault(faults, tmp_path, at, expected):
    """
    Of a 7x7 kernel on a map of 2x2 the corner reaches no value, the middle all: the one is not counted, the other is.
    """
    (tmp_path / "net.py").write_text(WIDE)
    model = ModelRequest(f"{tmp_path / 'net.py'}:net", input_size=(4, 4))
    export(ExportPlan(model, formats=(Format.ONNX,), output_dir=tmp_path / "bundle"), Stages())
    bench = faults["Bench"](tmp_path / "bundle")

    def edited(place):
        op, weights, _ = next(item for item in place.weighted() if item[1].shape[-2:] == (7, 7))
        changed = weights.copy()
        changed[..., at[0], at[1]] += 3
        place.file.put(op, changed, None)
        return [op]

    outcome = bench.plant(bench.bundle.manifest.artifacts[0], edited, 0)

    assert expected == tuple(layer.partition(":")[0] for layer in outcome.planted)
    assert bool(expected) == (outcome.detected and outcome.named)
    assert expected or "changes no value" in outcome.said


def test_command_fails_and_saves_the_layer(bench, faults, tmp_path, monkeypatch):
    """
    Through the command line: exit code 1, the layer in the text, and its tensors in a file.
    """
    import dataclasses
    import shutil

    from coordatt_deploy.files import sha256

    root = tmp_path / "bundle"
    shutil.copytree(bench.bundle.root, root)
    artifact = next(item for item in bench.bundle.manifest.artifacts if item.format is Format.TFLITE)
    file = faults["TfliteFile"](root / artifact.path)
    op = next(op for op in file.ops if op.kind == "conv" and file.weights(op)[1] is not None)
    weights, bias = file.weights(op)
    file.put(op, weights, bias + 0.01)
    file.save()
    edited = dataclasses.replace(artifact, sha256=sha256(root / artifact.path))
    manifest = dataclasses.replace(bench.bundle.manifest, artifacts=(edited,))
    (root / "manifest.json").write_text(manifest.dump(), encoding="utf-8")

    arguments = ["parity", str(root), "--layers", "--save-failing", str(tmp_path / "failing")]
    monkeypatch.setattr(sys, "argv", ["coordatt-deploy", *arguments])
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)

    assert 1 == result.exit_code
    assert "first beyond tolerance at features.0.0" in " ".join(result.output.split())
    folder = tmp_path / "failing" / Path(artifact.path).name
    assert {"README.txt", "failing.json", "failing.npz"} == {path.name for path in folder.iterdir()}
    assert shlex.join(["coordatt-deploy", *arguments]) == json.loads((folder / "failing.json").read_text())["command"]
    with np.load(folder / "failing.npz") as saved:
        assert saved["000/reference"].shape == saved["000/alone"].shape
        assert np.abs(saved["000/reference"] - saved["000/alone"]).max() > 1e-3
    assert open_bundle(root).manifest.artifacts[0].sha256 == edited.sha256


@pytest.fixture(scope="module")
def dynamic(faults, tmp_path_factory):
    root = tmp_path_factory.mktemp("faults") / "dynamic"
    plan = ExportPlan(
        ModelRequest("mobilenetv2_ca_035", input_size=(96, 96), dynamic=(64, 128, 32)),
        output_dir=root,
        formats=(Format.ONNX, Format.COREML),
    )
    export(plan, Stages())
    return faults["Bench"](root)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (Format.ONNX, "pool frozen at a smaller size"),
        (Format.ONNX, "window frozen at the captured size"),
        (Format.COREML, "pool frozen at a smaller size"),
    ],
)
def test_a_pool_that_is_frozen_at_the_captured_size(dynamic, kind, fault):
    """
    Right at the size of the capture, it is named by what other sizes give, whether the file still runs there or not.
    """
    artifact = next(item for item in dynamic.bundle.manifest.artifacts if item.format is kind)
    assert dynamic.judge(dynamic.bundle, artifact).passed

    outcomes = [dynamic.plant(artifact, fault, seed) for seed in range(4)]

    assert [True] * 4 == [bool(outcome.planted) for outcome in outcomes]
    assert [] == [outcome for outcome in outcomes if outcome.missed]


@pytest.mark.parametrize("kind", [Format.ONNX, Format.TFLITE])
def test_pieces_for_another_machine_are_the_same(bench, kind):
    """
    A file that is cut apart here and opened like any other gives what the pieces give that are cut in the runtime.
    """
    (artifact, *_) = [item for item in bench.bundle.manifest.artifacts if item.format is kind]
    tolerance = tolerance_of(artifact, TOLERANCES)
    elsewhere = RemoteExecutor(lambda path, item, tensors: LOCAL.open_artifact(path, item, tensors))
    here, there = (
        localise(bench.candidate(artifact), bench.cases, bench.reference, tolerance, where=where)
        for where in (LOCAL, elsewhere)
    )
    assert there.passed
    assert [row.local.max_abs_error for row in here.rows if row.local] == pytest.approx(
        [row.local.max_abs_error for row in there.rows if row.local], rel=0.5, abs=1e-6
    )
