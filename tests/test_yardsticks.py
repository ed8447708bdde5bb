import subprocess
import sys

import numpy as np
import pytest

from coordatt_deploy import yardsticks
from coordatt_deploy.latency import YardstickKind
from coordatt_deploy.specs import Format


def test_each_runtime_in_use_has_its_network():
    """
    Beside NumPy's yardstick the network runs in the artifacts' runtimes; Core ML has none.
    """
    with yardsticks.open_yardsticks([Format.ONNX, Format.TFLITE, Format.COREML]) as calls:
        kinds = [(kind, software.split()[0]) for kind, software in calls]
        for call in calls.values():
            call()

    assert [(YardstickKind.NUMPY, "numpy"), (YardstickKind.NETWORK, "onnxruntime")] == kinds[:2]
    assert YardstickKind.NETWORK is kinds[2][0]
    assert 3 == len(kinds)


def test_both_files_hold_the_same_network():
    """
    The ONNX and the TFLite file give the same features, and no feature is a NaN or a denormal that would slow it down.
    """
    with yardsticks.open_yardsticks([Format.ONNX, Format.TFLITE]) as calls:
        _, onnx, tflite = (call() for call in calls.values())

    features, others = onnx["features"], tflite["output_0"]
    assert (1, 160) == features.shape
    assert features == pytest.approx(others, rel=1e-4, abs=1e-5)
    assert features.std() > 0.01
    assert not (np.abs(features[features != 0]) < 1e-30).any()


def test_the_yardstick_needs_no_torch():
    """
    Boards have none.
    """
    script = (
        "import sys\n"
        "from coordatt_deploy.specs import Format\n"
        "from coordatt_deploy.yardsticks import network, open_yardsticks\n"
        "assert len(network(Format.ONNX)) > 1_000_000\n"
        "with open_yardsticks([Format.ONNX]) as calls:\n"
        "    print('torch' in sys.modules, len(calls))\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert "False 2" == done.stdout.strip()
