"""A whole comparison of a tiny network, through the real converters and runtimes."""

import dataclasses

import pytest

from coordatt_deploy.attention_cost.plan import FAMILIES, OFFICIAL, OURS, CostPlan
from coordatt_deploy.attention_cost.result import AttentionCost
from coordatt_deploy.attention_cost.run import measure_cost
from coordatt_deploy.documents import dump, load
from coordatt_deploy.formats import FORMATS, Format, Precision
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.profile.latency import ProfileSettings
from coordatt_deploy.profile.turns import OpenFile, take_turns

CODE = """
import torch
from torch import nn
from coordatt_deploy.models.squeeze_excite import squeeze_excite
from coordatt_deploy.models.attention_options import SqueezeExciteOptions


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        squeeze_excite(16, SqueezeExciteOptions()), nn.Conv2d(16, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()
"""
SHORT = ProfileSettings(samples=30, openings=2, min_seconds=0.0)


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "net.py").write_text(CODE)
    model = ModelRequest(f"{tmp_path / 'net.py'}:build", input_size=(16, 16))
    return CostPlan(backbones=(), model=model, attention=("ca",), latency=None)


@pytest.mark.slow
def test_every_file_of_every_network_is_there(plan):
    """
    In float and in int8, by the official converter and by us; what a converter refuses has its reason and is no error.
    """
    found = measure_cost(dataclasses.replace(plan, precisions=(Precision.FP32, Precision.INT8)))

    assert [None, None, "coordatt"] == [row.attention for row in found.rows]
    assert [True, False, False] == [row.is_plain for row in found.rows]
    assert found.rows[0].parameters < found.rows[1].parameters
    for row in found.rows:
        assert (1, 3, 16, 16) == row.input_shape
        assert {(kind, precision, export) for kind in Format for precision in (Precision.FP32, Precision.INT8)
                for export in (OFFICIAL, OURS)} == {
                   (file.format, file.precision, file.export) for file in row.files}  # fmt: skip
        for file in row.files:
            # what an official quantizer wrote may be refused by its runtime, and one of them runs on its system alone
            official_int8 = (file.precision, file.export) == ("int8", OFFICIAL)
            assert (official_int8 and file.refused) or (file.bytes > 0 and file.operators > 0), file
            assert file.refused or not (official_int8 and FORMATS[file.format].native_systems)
    assert 0 == found.exit_code
    assert found == load(AttentionCost, dump(found))


@pytest.mark.slow
def test_latencies_of_one_runtime_come_from_one_run(plan, monkeypatch):
    """
    All networks' files of a format take turns in one measurement; evaluated files, and forms for another CPU, in none.
    """
    groups = []

    def noted(entries, *arguments, **options):
        groups.append([(entry.artifact.format, entry.artifact.target_cpu) for entry in entries.values()])
        assert all(isinstance(entry, OpenFile) for entry in entries.values())
        return take_turns(entries, *arguments, **options)

    monkeypatch.setattr("coordatt_deploy.attention_cost.run.take_turns", noted)
    timed = dataclasses.replace(plan, latency=SHORT)

    found = measure_cost(timed)

    here = FAMILIES.get(found.host.architecture)
    assert all(len({kind for kind, _ in group}) == 1 and len(group) == 6 for group in groups)
    assert {None, here} >= {cpu for group in groups for _, cpu in group}
    measured = {kind for group in groups for kind, _ in group}
    for row in found.rows:
        for file in row.files:
            assert (file.latency is not None) == (file.format in measured and file.target_cpu in (None, here))
            assert file.latency is None or 30 <= len(file.latency.samples_ns)
    over = [file.latency_over_plain for file in found.rows[2].files if file.format in measured]
    assert all(item is not None for item in over)
    assert SHORT.seed == found.settings.seed
