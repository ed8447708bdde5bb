"""A file that ends a process ends another one than this, and is told in one line."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_network import ONNX, onnx_model

from coordatt_deploy.errors import BundleError, DeployError, UsageError
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes import first_run
from coordatt_deploy.runtimes.onnx.runner import open_artifact

SMALL = onnx_model().SerializeToString()


@pytest.fixture
def child(monkeypatch):
    """A process that tries files for this test alone."""
    fresh = first_run._Child()
    monkeypatch.setattr(first_run, "_CHILD", fresh)
    yield fresh
    if fresh.process is not None:
        fresh.process.kill()
        fresh.process.wait()


def expanded(sizes, count=1):
    """A file of a few hundred bytes that makes *count* tensors of *sizes*, and adds them."""
    nodes = [helper.make_node("Identity", ["image"], ["kept"])]
    nodes += [helper.make_node("Expand", ["kept", "sizes"], [f"large_{index}"]) for index in range(count)]
    nodes += [helper.make_node("Sum", [f"large_{index}" for index in range(count)], ["sum"])]
    nodes += [helper.make_node("ReduceMax", ["sum"], ["logits"], keepdims=0)]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.array(sizes, np.int64), "sizes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def endless():
    """A loop of 2**62 turns."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["going"]), helper.make_node("Add", ["value", "value"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["turns", "true", "image"], ["logits"], body=inner)],
        "endless",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array(2**62), "turns"), numpy_helper.from_array(np.array(True), "true")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_a_healthy_file_is_run_once_in_one_process(child):
    """
    And not again: its hash is remembered. Another file goes to the same process.
    """
    first_run.survives(Format.ONNX, SMALL, "a.onnx")
    process = child.process
    first_run.survives(Format.ONNX, SMALL + b"", "b.onnx")
    first_run.survives(Format.ONNX, onnx_model().SerializeToString() + b"\x12\x01a", "c.onnx")

    assert process is child.process
    assert 2 == len(child.survived)
    assert process.poll() is None


@pytest.mark.usefixtures("child")
def test_what_takes_too_much_memory_is_refused(monkeypatch):
    """
    A few hundred bytes that ask for gigabytes; with more allowed, it passes.
    """
    monkeypatch.setenv(first_run.MEMORY_VARIABLE, "0.5")
    with pytest.raises(BundleError, match=r"large\.onnx is refused: .* it takes more than 0\.5 GB of memory"):
        first_run.survives(Format.ONNX, expanded([1 << 26], 4), "large.onnx")

    monkeypatch.setenv(first_run.MEMORY_VARIABLE, "2.5")
    first_run.survives(Format.ONNX, expanded([1 << 26], 4), "large.onnx")


@pytest.mark.usefixtures("child")
def test_what_never_ends_is_refused(monkeypatch, tmp_path):
    """
    Through the runner, after the seconds that are allowed.
    """
    monkeypatch.setenv(first_run.SECONDS_VARIABLE, "1")
    path = tmp_path / "endless.onnx"
    path.write_bytes(endless())

    with pytest.raises(BundleError, match="it had not ended after 1 s"):
        open_artifact(path, ONNX)
    first_run.survives(Format.ONNX, SMALL, "next.onnx")  # a new process is there


def test_the_end_of_the_process_is_told_and_another_started(child, monkeypatch):
    """
    By the name of the signal.
    """
    first_run.survives(Format.ONNX, SMALL, "a.onnx")
    os.kill(child.process.pid, signal.SIGSTOP)  # so that the file below is under way when the end comes
    child.process.send_signal(signal.SIGSEGV)
    monkeypatch.setattr(child.process, "poll", lambda: None)
    os.kill(child.process.pid, signal.SIGCONT)

    with pytest.raises(BundleError, match="SIGSEGV ended it"):
        first_run.survives(Format.ONNX, expanded([2]), "b.onnx")
    first_run.survives(Format.ONNX, expanded([2]), "b.onnx")


def test_an_interruption_ends_the_process(child, monkeypatch):
    """
    An answer that comes too late is not taken for the next file's.
    """
    first_run.survives(Format.ONNX, SMALL, "a.onnx")
    process = child.process

    class Interrupted:
        def readline(self):
            raise KeyboardInterrupt

        def close(self):
            pass

    monkeypatch.setattr(process, "stdout", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        first_run.survives(Format.ONNX, endless(), "b.onnx")

    assert process.poll() is not None
    first_run.survives(Format.ONNX, expanded([2]), "c.onnx")


@pytest.mark.usefixtures("child")
def test_an_error_of_the_runtime_is_no_death(tmp_path):
    """
    Who opens the file here hears it in the runtime's own words.
    """
    first_run.survives(Format.ONNX, b"no model", "a.onnx")
    path = tmp_path / "a.onnx"
    path.write_bytes(b"no model")

    with pytest.raises(BundleError, match=r"ONNX Runtime cannot open a\.onnx"):
        open_artifact(path, ONNX)


@pytest.mark.usefixtures("child")
def test_a_process_that_does_not_start_is_no_fault_of_the_file(monkeypatch):
    """
    The interpreter is named.
    """
    monkeypatch.setattr(first_run.sys, "executable", "/bin/false")

    with pytest.raises(DeployError, match="did not start"):
        first_run.survives(Format.ONNX, SMALL, "a.onnx")


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize("text", ["0", "-1", "nan", "much", "1e9"])
def test_limits_are_numbers_above_zero(monkeypatch, text):
    """
    They come from the environment.
    """
    monkeypatch.setenv(first_run.SECONDS_VARIABLE, text)

    with pytest.raises(UsageError, match=first_run.SECONDS_VARIABLE):
        first_run.survives(Format.ONNX, SMALL, "a.onnx")


def test_the_process_ends_with_its_parent(tmp_path):
    """
    Also where the parent is killed.
    """
    onnx.save(onnx_model(), tmp_path / "a.onnx")
    code = (
        "import json, os, sys, pathlib; from coordatt_deploy.runtimes import first_run;"
        "from coordatt_deploy.formats import Format;"
        "first_run.survives(Format.ONNX, pathlib.Path(sys.argv[1]).read_bytes(), 'a.onnx');"
        "print(json.dumps(first_run._CHILD.process.pid), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.onnx"], capture_output=True, check=False)
    child = json.loads(done.stdout)

    assert -9 == done.returncode
    for _ in range(100):
        if not os.path.exists(f"/proc/{child}"):  # noqa: PTH110
            break
        time.sleep(0.05)
    else:
        pytest.fail("it is still there")
