"""Golden outputs and rounding files are held to what the reference computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from coordatt_deploy.errors import BundleError
from coordatt_deploy.formats import Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.parity.cases import ParityCases
from coordatt_deploy.parity.golden_check import check_golden


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return capture(module.eval(), (torch.randn(1, 3, 8, 8),), input_names=["image"], output_names=["logits"])


@pytest.fixture(scope="module")
def cases(graph):
    random = np.random.default_rng(0)
    feeds = [{"image": random.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(3)]
    runs = {
        Precision.FP32: prepare(graph, dtype=torch.float32),
        Precision.FP16: prepare(graph, dtype=torch.float32, after=lambda _, value: value.half().float()),
    }
    return ParityCases(
        ("a", "b", "c"),
        {"image": [feed["image"] for feed in feeds]},
        {"logits": [prepare(graph)(feed)["logits"] for feed in feeds]},
        {kind: {"logits": [run(feed)["logits"] for feed in feeds]} for kind, run in runs.items()},
        (False, False, False),
    )


def changed(values, change):
    return {"logits": [change(value) if index == 1 else value for index, value in enumerate(values["logits"])]}


def test_what_the_reference_computes_is_taken(graph, cases):
    """The negative of all that follows; float64 in another order of sums is the same."""
    check_golden(cases, graph, "golden")
    check_golden(replace(cases, outputs=changed(cases.outputs, lambda value: value * (1 + 1e-12))), graph, "golden")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (np.zeros_like, "logits of b is not what reference/ computes"),
        (lambda value: value + 1e-4, "off by 0.0001"),
        (lambda value: value[:, ::-1], "is not what reference/ computes"),
        (lambda value: value[:, :3], "has shape"),
        (lambda value: np.where(np.arange(5) == 2, np.nan, value), "is not what reference/ computes"),
    ],
)
def test_other_outputs_are_refused(graph, cases, change, said):
    """Zeroed, shifted by little, classes exchanged, of another shape, or with a hole."""
    with pytest.raises(BundleError, match=said):
        check_golden(replace(cases, outputs=changed(cases.outputs, change)), graph, "golden")


@pytest.mark.parametrize("kind", [Precision.FP32, Precision.FP16])
def test_rounding_that_would_excuse_any_file_is_refused(graph, cases, kind):
    """A hundred times the error that torch makes here is no other CPU's."""

    def worse(values):
        return {"logits": [e + 100 * (r - e) for r, e in zip(values["logits"], cases.outputs["logits"], strict=True)]}

    rounding = {**cases.rounding, kind: worse(cases.rounding[kind])}

    with pytest.raises(BundleError, match=f"rounding_{kind.value}.npz: rounding costs logits"):
        check_golden(replace(cases, rounding=rounding), graph, "golden")
