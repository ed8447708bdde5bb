"""A session with this machine itself: the code that travels, started by Python without anything else of ours."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from coordatt_deploy.artifact_specs import Artifact, Origin, TensorSpec
from coordatt_deploy.errors import BundleError, ConversionError, UsageError
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.logs import ENVIRONMENT
from coordatt_deploy.targets import Session as SessionProtocol
from coordatt_deploy.targets import TargetName
from coordatt_deploy.targets.qemu_arm64.sysroot import ship_code
from coordatt_deploy.targets.session_client import SERVER_MODULE, Session

HERE = TargetName("here", "native")
SPECS = (
    (TensorSpec("image", (1, 4), "float32", "NC"),),
    (TensorSpec("scaled", (1, 4), "float32", "NC"),),
)  # fmt: skip


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    ship_code(folder)
    return folder


def launch(code, folder, log, command=("-m", SERVER_MODULE)):
    """Start Python without its site module: an editable install of this checkout is out of reach."""
    site = Path(np.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-S", "-P", "-B", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONPATH": f"{code}:{site}", "HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )


@pytest.fixture
def session(code):
    with Session(HERE, partial(launch, code), origin=Origin.MEASURED, timeout_s=60) as opened:
        yield opened


def artifact(path, kind=Format.ONNX):
    return Artifact(path.name, kind, Precision.FP32, None, None, 0, "", *SPECS, "")


def save_scaling(path, factor):
    """A network that multiplies by *factor*."""
    tensors = [helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, spec.shape) for (spec,) in SPECS]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["image", "factor"], ["scaled"])],
        "scaling",
        tensors[:1],
        tensors[1:],
        [numpy_helper.from_array(np.float32(factor), "factor")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_artifacts_are_opened_run_and_closed(session, tmp_path):
    """
    Each keeps its number: one that was closed gives its place to no other.
    """
    paths = [save_scaling(tmp_path / f"by_{factor}.onnx", factor) for factor in (2, 3, 5)]
    image = np.arange(4, dtype=np.float32)[None]
    opened: SessionProtocol = session

    with opened.open_artifact(paths[0], artifact(paths[0])) as first:
        second = opened.open_artifact(paths[1], artifact(paths[1]))
        assert np.array_equal(2 * image, first.infer({"image": image})["scaled"])
    with opened.open_artifact(paths[2], artifact(paths[2])) as third:
        assert np.array_equal(3 * image, second.infer({"image": image})["scaled"])
        assert np.array_equal(5 * image, third.infer({"image": image})["scaled"])

    assert SPECS == (second.inputs, second.outputs)
    assert second.origin is Origin.MEASURED
    assert second.runtime.startswith("onnxruntime ")
    assert second.runtime.endswith(" on here:native")


def test_versions_are_those_of_the_other_side(session):
    """
    The runtimes are imported on the way.
    """
    assert {"numpy": np.__version__} == session.versions(("numpy",), ("onnx", "tflite"))


def test_errors_arrive_as_what_they_were(session, tmp_path):
    """
    With the machine's name and the log; and the session goes on.
    """
    path = save_scaling(tmp_path / "net.onnx", 2)
    (tmp_path / "noise.onnx").write_bytes(b"noise")

    with pytest.raises(BundleError, match=r"on here:native: .*cannot open noise\.onnx.*; the guest's log is "):
        session.open_artifact(tmp_path / "noise.onnx", artifact(path))
    with session.open_artifact(path, artifact(path)) as runner:
        with pytest.raises(UsageError, match="has no input 'picture'"):
            runner.infer({"picture": np.zeros((1, 4), np.float32)})
        assert {"scaled"} == set(runner.infer({"image": np.zeros((1, 4), np.float32)}))


def test_what_did_not_travel_is_never_a_result(session, tmp_path):
    """
    The modules of Core ML stay at home.
    """
    with pytest.raises(ConversionError, match=r"No module named 'coordatt_deploy\.runtimes\.coreml'"):
        session.open_artifact(tmp_path / "net.mlpackage", artifact(tmp_path / "net.mlpackage", Format.COREML))


def test_a_server_that_ends_is_reported(code):
    """
    With its exit status, what it was asked, and its log, which outlives it.
    """
    starting = partial(launch, code, command=("-c", "raise SystemExit('no runtime here')"))
    with (
        Session(HERE, starting, origin=Origin.MEASURED) as session,
        pytest.raises(
            ConversionError, match=r"the guest here:native ended with exit status 1 during 'v.*log is"
        ) as caught,
    ):
        session.versions((), ())

    assert "no runtime here\n" == Path(str(caught.value).rpartition("its log is ")[2]).read_text()


def test_a_session_that_does_not_start_leaves_nothing():
    """
    Its folder goes, the error stays.
    """
    folders = []

    def refuse(folder, log):  # noqa: ARG001
        folders.append(folder)
        raise OSError("no such machine")

    with pytest.raises(OSError, match="no such machine"):
        Session(HERE, refuse, origin=Origin.MEASURED)
    assert [False] == [folder.exists() for folder in folders]


def test_the_server_imports_little(code, tmp_path):
    """
    Under emulation each module costs time: judges, bundles and the client's side stay unread.
    """
    names = "print(*(name for name in sys.modules if name.startswith('coordatt_deploy.')))"
    with (tmp_path / "log").open("wb") as log:
        process = launch(code, tmp_path, log, command=("-c", f"import sys, {SERVER_MODULE}; {names}"))
        loaded = {name.split(".")[1] for name in process.communicate()[0].decode().split()}

    assert {
        "array_types",
        "artifact_specs",
        "documents",
        "errors",
        "format_modules",
        "formats",
        "interruption",
        "progress",
        "runtime_versions",
        "runtimes",
        "targets",
    } == (loaded)
