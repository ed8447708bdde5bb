"""The real box with the real runtimes inside."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.errors import BundleError, ConversionError, UsageError
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.runtimes.tflite.runner import operators
from coordatt_deploy.targets.qemu_arm64 import cpus, session, target


def _natively(path, artifact, feeds):
    with runtime(artifact.format).open_artifact(path, artifact) as runner:
        return runner.infer(feeds)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", cpus.CPUS)
def test_float_artifacts_compute_the_same_on_every_cpu(real, artifacts, cpu, feeds_of):
    """
    One guest opens both formats; results differ from the host's by rounding, and say where they come from.
    """
    with session.start(real, cpus.CPUS[cpu]) as guest:
        for kind in ("onnx", "tflite"):
            path, artifact = artifacts[kind]
            feeds = [feeds_of(artifact, seed) for seed in range(2)]
            with guest.open_artifact(path, artifact) as runner:
                results = [runner.infer(one) for one in feeds]
                assert runner.origin is Origin.EMULATED
                assert runner.runtime.endswith(f"on qemu-arm64:{cpu}")
                assert (artifact.inputs, artifact.outputs) == (runner.inputs, runner.outputs)
            for given, got in zip(feeds, results, strict=True):
                expected = _natively(path, artifact, given)
                assert set(expected) == set(got)
                for name, value in expected.items():
                    assert (value.shape, value.dtype) == (got[name].shape, got[name].dtype)
                    assert np.abs(got[name] - value).max() <= 1e-5 * np.abs(value).max()


@pytest.mark.slow
@pytest.mark.parametrize("cpu", cpus.CPUS)
def test_int8_sums_do_not_saturate_on_arm(real, artifacts, cpu, int8_weight):
    """
    Full-range activations and weights: exact integer arithmetic is the only right answer, also on each CPU.
    """
    path, artifact = artifacts["int8"]
    image = np.full((1, 64, 8, 8), 255, np.float32)
    image[:, ::3] = 17
    exact = np.einsum("oi,nihw->nohw", int8_weight[:, :, 0, 0].astype(np.int64), image.astype(np.int64))
    expected = np.clip(np.round(exact / 16384), -128, 127) * 16384

    with session.start(real, cpus.CPUS[cpu]) as guest, guest.open_artifact(path, artifact) as runner:
        got = runner.infer({"image": image})["sums"]

    assert np.array_equal(expected, got)
    assert len(np.unique(got)) > 8


@pytest.mark.slow
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_inner_tensors_come_out_of_the_guest(artifacts, kind, feeds_of):
    """
    A runner opened with a tensor's name gives it, as at home.
    """
    path, artifact = artifacts[kind]
    feeds = feeds_of(artifact)
    if kind == "onnx":
        name = next(node.output[0] for node in onnx.load(path).graph.node if node.op_type == "Conv")
    else:
        name = next(item.tensor for item in operators(path).operators if item.name.endswith("CONV_2D"))
    with runtime(artifact.format).open_artifact(path, artifact, tensors=(name,)) as runner:
        expected = runner.infer(feeds)[name]

    with target.start("neoverse-n1") as guest, guest.open_artifact(path, artifact, (name,)) as runner:
        got = runner.infer(feeds)[name]

    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_a_file_that_the_runtime_refuses_is_the_users_business(real, artifacts, tmp_path, feeds_of):
    """
    The guest's own error arrives, and the guest goes on working.
    """
    path, artifact = artifacts["onnx"]
    (tmp_path / "noise.onnx").write_bytes(path.read_bytes()[:500])
    with session.start(real, cpus.CPUS["neoverse-n1"]) as guest:
        with pytest.raises(BundleError, match=r"on qemu-arm64:neoverse-n1: ONNX Runtime cannot open noise\.onnx"):
            guest.open_artifact(tmp_path / "noise.onnx", artifact)

        with guest.open_artifact(path, artifact) as runner:
            with pytest.raises(UsageError, match="has no input 'picture'"):
                runner.infer({"picture": np.zeros((1, 3, 96, 96), np.float32)})
            assert runner.infer(feeds_of(artifact))


@pytest.mark.slow
def test_a_guest_that_dies_is_reported(real, artifacts):
    """
    A CPU that promises dot products and has none meets an illegal instruction.
    """
    path, artifact = artifacts["int8"]
    liar = replace(cpus.CPUS["neoverse-n1"], qemu="cortex-a53")

    with (
        session.start(real, liar) as guest,
        guest.open_artifact(path, artifact) as runner,
        pytest.raises(ConversionError, match=r"was ended by SIGILL during 'infer'; its log is ") as caught,
    ):
        runner.infer({"image": np.ones((1, 64, 8, 8), np.float32)})

    assert Path(str(caught.value).rpartition("its log is ")[2]).is_file()


@pytest.mark.slow
def test_a_guest_that_does_not_answer_is_given_up(real):
    """
    A tenth of a second is not enough to start Python.
    """
    with (
        session.start(real, cpus.CPUS["neoverse-n1"], timeout_s=0.1) as guest,
        pytest.raises(ConversionError, match=r"gave no answer within 0\.1 s"),
    ):
        guest.versions((), ())


@pytest.mark.slow
def test_guests_run_side_by_side_and_leave_nothing(real):
    """
    Each has a folder of its own, which goes with it.
    """
    with (
        session.start(real, cpus.CPUS["max"]) as one,
        session.start(real, cpus.CPUS["cortex-a53"]) as other,
    ):
        folders = {one.folder, other.folder}
        answers = []
        threads = [
            threading.Thread(target=lambda guest=guest: answers.append(guest.versions(("numpy",), ())))
            for guest in (one, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        processes = [one._process, other._process]

    assert len(folders) == 2
    assert [{"numpy": np.__version__}] * 2 == answers
    assert not any(folder.exists() for folder in folders)
    assert all(process.poll() is not None for process in processes)
