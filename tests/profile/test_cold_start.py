import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from coordatt_deploy.artifact_specs import Artifact, TensorSpec
from coordatt_deploy.documents import to_json
from coordatt_deploy.errors import BundleError, MissingDependencyError
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.profile.cold_start import cold_start, random_input

MEGABYTE = 1 << 20


def artifact(path="onnx/net.onnx", kind=Format.ONNX):
    return Artifact(
        path=path,
        format=kind,
        precision=Precision.FP32,
        recipe=None,
        target_cpu=None,
        bytes=0,
        sha256="",
        inputs=(TensorSpec("image", (1, 3, None, None), "float32", "NCHW"),),
        outputs=(TensorSpec("logits", (1, 5), "float32", "NC"),),
        layers="",
    )


def save_net(path, hidden=8):
    """Write a small ONNX network: a mean over the image and two matrices."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.random((3, hidden), np.float32), "w2": rng.random((hidden, 5), np.float32)}
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w1"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w2"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, None, None])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def test_a_cold_start_is_measured_in_a_process_of_its_own(tmp_path):
    """
    Loading and running take time, and this process does not load the runtime for it.
    """
    save_net(tmp_path / "onnx/net.onnx")
    script = (
        "import sys, json, pathlib\n"
        "from coordatt_deploy.profile.cold_start import cold_start\n"
        "from coordatt_deploy.artifact_specs import Artifact\n"
        "from coordatt_deploy.documents import from_json, to_json\n"
        "order = json.load(sys.stdin)\n"
        "cold = cold_start(pathlib.Path(order['root']), from_json(Artifact, order['artifact']), size=(32, 48))\n"
        "here = [name for name in ('onnxruntime', 'torch') if name in sys.modules]\n"
        "print(json.dumps({'cold': to_json(cold), 'here': here}))\n"
    )
    order = json.dumps({"root": str(tmp_path), "artifact": to_json(artifact())})
    done = subprocess.run([sys.executable, "-c", script], input=order, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)

    assert [] == answer["here"]
    assert answer["cold"]["load_ms"] > 0
    assert answer["cold"]["first_inference_ms"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak of the imports hides that of a small model")
def test_peak_memory_is_the_artifacts_own(tmp_path):
    """
    Weights of sixty-four megabytes cost that much at least; a tiny network costs next to nothing, libraries uncounted.
    """
    save_net(tmp_path / "onnx/net.onnx")
    save_net(tmp_path / "onnx/large.onnx", hidden=2 * MEGABYTE)

    small = cold_start(tmp_path, artifact(), size=(32, 48)).peak_memory_bytes
    large = cold_start(tmp_path, artifact("onnx/large.onnx"), size=(32, 48)).peak_memory_bytes

    assert small < 16 * MEGABYTE
    assert large > 64 * MEGABYTE


def test_a_damaged_artifact_is_the_same_error_as_here(tmp_path):
    """
    What the runtime refuses in the other process comes back as the project's own error.
    """
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/net.onnx").write_bytes(b"no model")

    with pytest.raises(BundleError, match=r"net\.onnx"):
        cold_start(tmp_path, artifact())


def test_a_path_outside_the_bundle_is_refused(tmp_path):
    """
    The child checks paths as everyone does.
    """
    with pytest.raises(BundleError, match="outside"):
        cold_start(tmp_path, artifact("../net.onnx"))


def test_a_process_that_dies_is_told(tmp_path, monkeypatch):
    """
    A crash gives a sentence with its cause, not a traceback of this side.
    """
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -SEGV $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))

    with pytest.raises(BundleError, match="signal 11"):
        cold_start(tmp_path, artifact())


def test_a_process_that_takes_too_long_is_ended(tmp_path):
    """
    The limit counts from the start of the process.
    """
    save_net(tmp_path / "onnx/net.onnx")

    with pytest.raises(BundleError, match=r"within 0\.01 s"):
        cold_start(tmp_path, artifact(), timeout_s=0.01)


def test_a_missing_runtime_names_its_install_line(tmp_path, monkeypatch):
    """
    Exit code 3 and the line that helps survive the way between the processes.
    """
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "onnxruntime.py").write_text("raise ModuleNotFoundError('no', name='onnxruntime')\n")
    save_net(tmp_path / "onnx/net.onnx")
    monkeypatch.setenv("PYTHONPATH", str(blocked))

    with pytest.raises(MissingDependencyError, match="pip install") as missing:
        cold_start(tmp_path, artifact())

    assert 3 == missing.value.exit_code


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (TensorSpec("image", (None, 3, None, None), "float32", "NCHW"), (1, 3, 32, 48)),
        (TensorSpec("image", (1, 20, 24, 3), "int8", "NHWC", 0.1, 3), (1, 20, 24, 3)),
    ],
)
def test_random_inputs_fit(spec, shape):
    """
    Open axes get the size asked for, integers use their whole range.
    """
    value = random_input(spec, (32, 48))

    assert shape == value.shape
    assert spec.dtype == value.dtype.name
    assert value.min() < value.max()
