import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coordatt_deploy.artifact_specs import Artifact, TensorSpec
from coordatt_deploy.errors import MissingDependencyError, UsageError
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.macs import Work, count
from coordatt_deploy.models import create_model
from coordatt_deploy.targets.qemu_arm64 import target

COREML = Artifact(
    "coreml/x.mlpackage", Format.COREML, Precision.FP16, None, None, 0, "",
    (TensorSpec("image", (1, 3, 4, 4), "float32", "NCHW"),), (TensorSpec("logits", (1, 2), "float32", "NC"),), "",
)  # fmt: skip


def test_core_ml_is_not_run_there():
    """
    The reason is given before anything is started, and never a result.
    """
    assert "Apple" in target.unsupported_reason(COREML)
    assert target.unsupported_reason(replace(COREML, format=Format.ONNX)) is None
    with pytest.raises(UsageError, match="Core ML"):
        target.count_instructions(Path("x.mlpackage"), COREML, {})


def test_counting_without_a_counter_says_why_and_parity_goes_on(tmp_path, fake_box):
    """
    Exit code 3, with the reason that the build left.
    """
    fake_box(tmp_path, no_counts_because="there was no C compiler when the box was built")

    found = target.status(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"no C compiler .*parity works without"):
        target.start(counting=True, cache_dir=tmp_path)

    assert ("ready", False) == (found.state, found.counts)


def test_building_the_box_needs_python_debian(monkeypatch, tmp_path):
    """
    Exit code 3 and the extra; what needs no building works without.
    """
    for name in ("debian", "debian.deb822"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("apt", "build"):
        monkeypatch.delitem(sys.modules, f"coordatt_deploy.targets.qemu_arm64.{name}", raising=False)
        monkeypatch.delattr(f"coordatt_deploy.targets.qemu_arm64.{name}", raising=False)

    with pytest.raises(MissingDependencyError, match=r"needs python-debian, .*coordatt-deploy\[qemu-arm64\]") as caught:
        target.setup(tmp_path)

    assert caught.value.exit_code == 3
    assert "missing" == target.status(tmp_path).state


@pytest.mark.slow
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_instructions_are_counted_and_repeat(artifacts, kind, feeds_of):
    """
    An fmla multiplies four numbers: their count is that of the multiply-accumulates, and of what channels are padded
    with; two runs agree.
    """
    path, artifact = artifacts[kind]
    counted = count(capture(create_model("mobilenetv2_ca_035.digits"), (torch.zeros(1, 3, 96, 96),)))
    macs = counted.of(Work.CONVOLUTION, Work.LINEAR)
    feeds = feeds_of(artifact)

    first, second = (target.count_instructions(path, artifact, feeds, cpu="neoverse-n1") for _ in range(2))

    assert 1.0 <= 4 * first.classes["fmla"] / macs <= 1.3
    assert (first.classes["fmla"], 0, 0) == (second.classes["fmla"], first.classes["sdot"], first.classes["smmla"])
    assert first.total == sum(first.classes.values())
    assert len(first.per_inference) == 3
    assert abs(first.total / second.total - 1) <= {"tflite": 1e-6, "onnx": 1e-4}[kind]
    assert first.spread <= 3e-3
    assert first.runtime.endswith("on qemu-arm64:neoverse-n1")


@pytest.mark.slow
@pytest.mark.usefixtures("real")
def test_int8_uses_the_instructions_that_the_cpu_has(artifacts):
    """
    Dot products on neoverse-n1, matrix products on max, widening products on cortex-a53.
    """
    path, artifact = artifacts["int8"]
    feeds = {"image": np.ones((1, 64, 8, 8), np.float32)}
    macs = 64 * 64 * 8 * 8

    used = {
        cpu: target.count_instructions(path, artifact, feeds, cpu=cpu, inferences=1).classes
        for cpu in ("cortex-a53", "neoverse-n1", "max")
    }

    assert 16 * used["neoverse-n1"]["sdot"] >= macs
    assert 32 * used["max"]["smmla"] >= macs
    assert used["neoverse-n1"]["smmla"] == used["cortex-a53"]["sdot"] == used["cortex-a53"]["smmla"] == 0
    assert used["cortex-a53"]["simd"] + used["cortex-a53"]["smlal"] > used["neoverse-n1"]["simd"]
