"""Networks of six families go a stranger's way: exported, proven, held to torch directly, and faults in them found."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runtimes_alone import opened

from coordatt_deploy.conversion import export_run
from coordatt_deploy.conversion.plan import ExportPlan
from coordatt_deploy.formats import FORMATS, Format
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.parity.run import ParityPlan, check_parity
from coordatt_deploy.progress import Stages
from coordatt_deploy.tensors import decode, encode

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
NETWORKS = TESTS / "zoo" / "families.py"
FAMILIES = ("shufflenet", "repvgg", "densenet", "convnext", "mobilevit", "yolo")
SIDE = 64
MAPPED = 0.9  # share of the layers that each file has to place
FAULTS_EACH = 4  # planted into each file
CLOSE_DB = {Format.ONNX: 90.0, Format.TFLITE: 90.0}  # outputs, run by the runtime itself


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, tmp_path_factory):
    """One network's bundle in every format, and its factory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TESTS / "zoo")
        import families

        folder = tmp_path_factory.mktemp("family") / request.param
        model = ModelRequest(f"{NETWORKS}:{request.param}", input_size=(SIDE, SIDE))
        bundle = export_run.export(ExportPlan(model, formats=FORMATS, output_dir=folder), Stages())
        yield bundle, getattr(families, request.param)


@pytest.fixture(scope="module")
def faults():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TESTS.parent)
        from benchmarks.faults import bench, planters

        yield bench.Bench, list(planters.FAULTS)
        for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
            del sys.modules[name]


def test_every_format_is_written_mapped_and_proven(exported):
    """
    Nothing is refused, every file passes parity at its outputs and at every layer, and nine tenths of the layers and
    more are in it.
    """
    bundle, _ = exported
    report = check_parity(bundle, ParityPlan(), Stages())

    assert not bundle.manifest.refused
    assert set(FORMATS) == {item.artifact.format for item in report.artifacts}
    assert [] == [(item.artifact.path, item.problem) for item in report.artifacts if not item.passed]
    for artifact in bundle.manifest.artifacts:
        assert MAPPED <= bundle.layers(artifact).coverage, artifact.path


def test_files_in_their_runtimes_give_what_torch_gives(exported):
    """
    An image that nobody has seen, without this project's runners and judges.
    """
    bundle, build = exported
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = build().double()(image.double())
    expected = expected if isinstance(expected, dict) else {bundle.manifest.outputs[0].name: expected}
    for artifact in bundle.manifest.artifacts:
        if artifact.format not in CLOSE_DB:
            continue
        (spec,) = artifact.inputs
        given = opened(bundle.path(artifact.path), artifact.format)({spec.name: encode(image.numpy(), spec)})
        for output in artifact.outputs:
            value = expected[output.name].numpy()
            noise = np.square(decode(np.asarray(given[output.name]), output) - value).sum()
            assert 10 * np.log10(np.square(value).sum() / noise) > CLOSE_DB[artifact.format], artifact.path


def test_planted_faults_are_found(exported, faults):
    """
    Other kinds in each file; a file that cannot be edited so is no miss; a fault that passes, or is not named, is one.
    """
    bundle, _ = exported
    opener, kinds = faults
    bench = opener(bundle.root)
    planted = []
    for number, artifact in enumerate(bench.bundle.manifest.artifacts):
        for seed in range(FAULTS_EACH):
            outcome = bench.plant(artifact, kinds[(number * FAULTS_EACH + seed) % len(kinds)], seed)
            planted += [outcome] if outcome.planted else []

    assert len(planted) >= FAULTS_EACH
    assert [] == [outcome for outcome in planted if outcome.missed]
