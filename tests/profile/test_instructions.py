"""Instructions of a bundle's artifacts, on a target that stands in for an emulated one."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from coordatt_deploy import targets
from coordatt_deploy.artifact_specs import Artifact, TensorSpec
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.profile.instructions import InstructionProfile, count_on, read_reports
from coordatt_deploy.progress import Stages
from coordatt_deploy.targets import InstructionCount

IMAGE = TensorSpec("image", (1, 2), "float32", "NC")


def artifact(path, file_format, cpu=None):
    return Artifact(path, file_format, Precision.FP32, None, cpu, 0, "", (IMAGE,), (), "")


@dataclass
class FakeBundle:
    """What counting asks of a bundle."""

    artifacts: tuple
    root: Path = Path()
    read_only: bool = False
    written: dict = field(default_factory=dict)

    @property
    def manifest(self):
        return SimpleNamespace(artifacts=self.artifacts)

    def golden(self, _):
        return {"image": np.zeros((3, 1, 2))}

    def path(self, name):
        return name

    def reporting(self):
        return nullcontext()

    def write_report(self, name, text):
        self.written[name] = text


@pytest.fixture
def machine(monkeypatch):
    """A target without Core ML that counts by the name of the file."""
    totals = {"onnx/net.onnx": 300, "tflite/net.tflite": 200}

    def count_instructions(path, artifact, feeds, *, cpu):
        assert (1, 2) == feeds["image"].shape
        total = totals[path]
        classes = {"fmla": total - 1, "other": 1}
        return InstructionCount(total, classes, (total, total + 2, total), 2 / total, f"{artifact.format} 1.0 on {cpu}")

    module = SimpleNamespace(
        CPUS={"small": None},
        DEFAULT_CPU="small",
        unsupported_reason=lambda one: "it has no Core ML" if one.format is Format.COREML else None,
        count_instructions=count_instructions,
    )
    monkeypatch.setattr(targets, "target", {"box": module}.__getitem__)


@pytest.mark.usefixtures("machine")
def test_the_document_has_every_artifact_and_every_ratio():
    """
    Key by key as earlier versions have written it; the report holds a run of each, and reads what those wrote.
    """
    bundle = FakeBundle((
        artifact("onnx/net.onnx", Format.ONNX, TargetCpu.ARM64),
        artifact("coreml/net.mlpackage", Format.COREML),
        artifact("tflite/net.tflite", Format.TFLITE),
    ))  # fmt: skip

    profile = count_on(bundle, "box", Stages(), formats=tuple(Format))

    assert isinstance(profile, InstructionProfile)
    expected = {
        "schema_version": 1,
        "target": "box:small",
        "results": [
            {
                "path": "onnx/net.onnx", "format": "onnx", "precision": "fp32", "recipe": None, "target_cpu": "arm64",
                "runtime": "onnx 1.0 on small", "origin": "emulated", "instructions": 300,
                "classes": {"fmla": 299, "other": 1}, "instructions_per_inference": [300, 302, 300], "spread": 2 / 300,
            },
            {
                "path": "tflite/net.tflite", "format": "tflite", "precision": "fp32", "recipe": None,
                "target_cpu": None, "runtime": "tflite 1.0 on small", "origin": "emulated", "instructions": 200,
                "classes": {"fmla": 199, "other": 1}, "instructions_per_inference": [200, 202, 200], "spread": 0.01,
            },
        ],
        "ratios": [{"a": "onnx/net.onnx", "b": "tflite/net.tflite", "ratio": 1.5}],
        "skipped": [{"path": "coreml/net.mlpackage", "reason": "it has no Core ML"}],
    }  # fmt: skip
    assert json.dumps(expected, indent=1) + "\n" == dump(profile)
    reports = read_reports(bundle.written["profile-box-small.json"])
    assert profile.results == tuple(run.result for run in reports.runs)
    assert {"instructions"} == {run.kind for run in reports.runs}
    assert {"box:small"} == {run.place for run in reports.runs}
    assert profile.skipped == reports.skipped
    assert profile.results == tuple(run.result for run in read_reports(dump(profile)).runs)


@pytest.mark.usefixtures("machine")
def test_nothing_to_count_is_bad_usage():
    """
    With the reason, and no report.
    """
    bundle = FakeBundle((artifact("coreml/net.mlpackage", Format.COREML),))

    with pytest.raises(UsageError, match=r"nothing of \. can run on the target: it has no Core ML"):
        count_on(bundle, "box", Stages(), formats=tuple(Format))
    assert {} == bundle.written
