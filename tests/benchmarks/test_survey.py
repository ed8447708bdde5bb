"""The survey: what becomes of a network becomes a result, whatever its process does, and the page says so."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import survey, survey_run
from benchmarks.survey_networks import NETWORKS, Network, normalised, photographs, settle, stir
from benchmarks.survey_page import page
from benchmarks.survey_results import ArtifactResult, FaultCount, NetworkResult, Survey, Verdict
from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.documents import dump, load
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import FORMATS, Format, Precision
from coordatt_deploy.graph.capture import capture

GOOD = tuple(
    ArtifactResult(kind, precision, Verdict.PASSED, "", 101.3, 50, 0.98, 0.96, None if kind is Format.COREML else 99.0)
    for kind in Format for precision in FORMATS[kind].precisions
)  # fmt: skip
REFUSED = ArtifactResult(Format.TFLITE, Precision.FP32, Verdict.REFUSED, "TFLite cannot have nms in head")


def network(key, artifacts=GOOD, **fields):
    return NetworkResult(key, 64, 1_500_000, artifacts, **fields)


def test_the_document_comes_back():
    """
    Every field, also of what never ran.
    """
    faults = (FaultCount("onnx/a.onnx", 5, 4, ("seed 3",)),)
    found = Survey((network("timm:a", faults=faults), NetworkResult("timm:b", 64, problem="took too long")),
                   {"ultralytics": "not installed"})  # fmt: skip

    assert found == load(Survey, dump(found))


@pytest.mark.parametrize(("result", "verdict"), [
    (network("timm:a"), Verdict.PASSED),
    (network("timm:a", (*GOOD[1:], REFUSED)), Verdict.REFUSED),
    (network("timm:a", problem="took more than 9 s"), Verdict.CRASHED),
    (network("timm:a", ()), Verdict.CRASHED),
])  # fmt: skip
def test_a_network_is_worth_its_worst_file(result, verdict):
    """
    A refusal, a crash, and a run that came to nothing.
    """
    assert verdict == result.verdict


def test_the_page_counts_what_passed_and_gives_the_reason_of_the_rest():
    """
    A library a table; refusals below.
    """
    refused = network("timm:b", (*GOOD[:1], REFUSED, *GOOD[2:]), sources="abc")
    planted = network("torchvision:c", faults=(FaultCount("x", 8, 7),))

    text = page(Survey((network("timm:a"), refused, planted), {"ultralytics": "absent"}))

    assert "**2 of 3 networks passed in every format.** 1 refused." in text
    assert "| a | 64×64 | 1.50 M | passed, 101 dB (99 dB), 98%/96% |" in text
    assert "* timm:b, TFLite fp32, refused (sources abc): TFLite cannot have nms in head" in text
    assert "| torchvision:c | 8 | 7 |" in text
    assert "ultralytics (absent)" in text


@pytest.mark.parametrize(("program", "problem"), [
    ("import os; os.abort()", "ended with -6"),
    ("raise RuntimeError('no such layer')", "RuntimeError: no such layer"),
    ("import time; time.sleep(60)", "took more than 1 s"),
])  # fmt: skip
def test_a_process_that_dies_or_hangs_ends_alone(program, problem, monkeypatch, tmp_path):
    """
    Its result says how.
    """
    monkeypatch.setattr(survey, "sources", lambda: "abc")
    monkeypatch.setattr(survey, "RUN", ("-c", program))

    found = survey.examine(Network("timm", "x"), timeout_s=1.0 if "sleep" in program else 30.0, keep=tmp_path)

    assert problem in found.problem
    assert Verdict.CRASHED is found.verdict


def test_a_later_result_takes_the_place_of_an_earlier_one():
    """
    In the order of the list.
    """
    order = [item.key for item in NETWORKS[:3]]
    document = Survey((network(order[0]), network(order[2])))

    document = survey.put(document, network(order[1]), order)
    document = survey.put(document, network(order[2], problem="died"), order)

    assert order == [item.network for item in document.results]
    assert "died" == document.results[2].problem


def test_networks_have_names_of_their_own():
    """
    And at least forty are timm's.
    """
    assert len(NETWORKS) == len({item.key for item in NETWORKS})
    assert sum(item.library == "timm" for item in NETWORKS) >= 40


def test_settled_networks_have_healthy_values():
    """
    A branch that begins dead, as ResNets' do, and a layer scale of 1e-6 come alive.
    """

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.scale = (
                nn.Conv2d(3, 8, 3),
                nn.BatchNorm2d(8),
                nn.Parameter(torch.full((8,), 1e-6)),
            )
            nn.init.zeros_(self.norm.weight)

        def forward(self, x):
            return self.norm(self.conv(x)) * self.scale[:, None, None]

    torch.manual_seed(0)
    net, images = Net().eval(), torch.from_numpy(normalised(photographs(8, 32, seed=1)))
    before = net(images).std()
    stir(net, torch.Generator().manual_seed(0))
    settle(net, images)

    assert 0.0 == before
    assert 0.1 < net(images).std() < 2.0
    assert not net.norm.training


def test_photographs_have_the_spectrum_of_photographs():
    """
    Neighbours are alike, unlike in noise; all of 8 bits.
    """
    images = photographs(4, 64, seed=3).astype(np.float64)
    noise = np.random.default_rng(3).integers(0, 256, images.shape)

    def alike(pixels):
        return np.corrcoef(pixels[:, 1:].ravel(), pixels[:, :-1].ravel())[0, 1]

    assert alike(images) > 0.6 > 0.05 > abs(alike(noise))
    assert images.std() > 20


def test_the_direct_check_sees_a_changed_weight(tmp_path):
    """
    Without this project's runners: ONNX Runtime against torch, and against a torch that differs by a thousandth.
    """
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    image = normalised(photographs(1, 16, seed=4))
    request = ExportRequest(ModelSpec("net", Preprocessing((16, 16))), Precision.FP32, tmp_path / "net.onnx")
    done = exporter(Format.ONNX).export(capture(net, (torch.from_numpy(image),)), request)
    artifact = Artifact("", Format.ONNX, Precision.FP32, None, None, 0, "", done.inputs, done.outputs, "")

    def ratio():
        with torch.no_grad():
            return survey_run.direct_sqnr_db(
                request.path, artifact, image, {done.outputs[0].name: net(torch.from_numpy(image)).numpy()}
            )

    healthy = ratio()
    with torch.no_grad():
        net[0].weight *= 1.001

    assert healthy > 100 > 70 > ratio()
