"""ONNX files in ONNX Runtime: what is checked, what is added to a file, what is left behind."""

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_network import LOGITS, ONNX, artifact, frozen, image_of, onnx_model, reference

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.errors import BundleError, InferenceError
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes.onnx import runner as onnxruntime


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": (TensorSpec("picture", (1, 3, 6, 8), "float32", "NCHW"),)},
        {"inputs": (TensorSpec("image", (1, 3, 6, 9), "float32", "NCHW"),)},
        {"inputs": (TensorSpec("image", (1, 3, 48), "float32", "NCH"),)},
        {"outputs": (TensorSpec("logits", (1, 5), "int8", "NC", 0.1, 0),)},
        {"outputs": (LOGITS, TensorSpec("boxes", (1, 4), "float32", "NC"))},
    ],
)
def test_a_file_that_is_not_what_the_manifest_says_is_refused(files, wrong):
    """
    Names, shapes and dtypes of the manifest are compared with the file when it is opened.
    """
    path, _, _ = files[Format.ONNX]
    fields = {"inputs": ONNX.inputs, "outputs": ONNX.outputs} | wrong

    with pytest.raises(BundleError, match="manifest"):
        onnxruntime.open_artifact(path, artifact(Format.ONNX, **fields))


def test_an_input_that_an_operator_refuses(tmp_path):
    """
    The error names the runtime, the input's shape and the operator; other inputs still run.
    """
    path = tmp_path / "frozen.onnx"
    with onnxruntime.open_artifact(path, frozen(path)) as runner:
        assert (1, 5) == runner.infer({"image": np.zeros((1, 3, 6, 8), np.float32)})["logits"].shape
        with pytest.raises(InferenceError, match=r"cannot run it on image 1 x 3 x 6 x 5.*AveragePool"):
            runner.infer({"image": np.zeros((1, 3, 6, 5), np.float32)})


def test_inner_integers_of_onnx_are_refused(tmp_path):
    """
    A quantized tensor has no value without its scale: the map must name the dequantized one, which is then given.
    """
    model = onnx_model()
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(6 / 255), "scale"), numpy_helper.from_array(np.uint8(0), "zero")]
    )
    nodes = list(model.graph.node)
    nodes[2].input[0] = "clip_dequantized"
    nodes[2:2] = [
        helper.make_node("QuantizeLinear", ["clip", "scale", "zero"], ["clip_quantized"]),
        helper.make_node("DequantizeLinear", ["clip_quantized", "scale", "zero"], ["clip_dequantized"]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path = tmp_path / "quantized.onnx"
    onnx.save(model, path)
    image = image_of(8)

    with pytest.raises(BundleError, match=r"clip_quantized is tensor.uint8.*DequantizeLinear"):
        onnxruntime.open_artifact(path, ONNX, tensors=("clip_quantized",))
    with onnxruntime.open_artifact(path, ONNX, tensors=("clip_dequantized",)) as runner:
        actual = runner.infer({"image": image})["clip_dequantized"]
    np.testing.assert_allclose(actual, reference(image)[0], atol=0.51 * 6 / 255)


def test_added_outputs_are_what_the_onnx_package_would_add(files):
    """
    The bytes appended for an inner tensor parse to the same message as an output added with onnx itself.
    """
    path, _, _ = files[Format.ONNX]
    name = "clip" + "x" * 200  # a length that takes two bytes
    expected = onnx.load(path)
    expected.graph.output.append(onnx.ValueInfoProto(name="clip"))
    expected.graph.output.append(onnx.ValueInfoProto(name=name))

    actual = onnx.load_from_string(onnxruntime.with_outputs(path.read_bytes(), ("clip", name)))

    assert expected == actual


def test_telemetry_leaves_nothing_behind(files, tmp_path):
    """
    Opening and running an ONNX file writes no device id and no event store into the home folder.
    """
    path, _, _ = files[Format.ONNX]
    script = (
        "import sys, numpy; from pathlib import Path\n"
        "from coordatt_deploy.runtimes.onnx import runner as onnxruntime\n"
        "from coordatt_deploy.artifact_specs import Artifact, TensorSpec\n"
        "from coordatt_deploy.formats import Format, Precision\n"
        "image = TensorSpec('image', (1, 3, 6, 8), 'float32', 'NCHW')\n"
        "logits = TensorSpec('logits', (1, 5), 'float32', 'NC')\n"
        "described = Artifact('', Format.ONNX, Precision.FP32, None, None, 0, '', (image,), (logits,), '')\n"
        "with onnxruntime.open_artifact(Path(sys.argv[1]), described) as runner:\n"
        "    runner.infer({'image': numpy.zeros((1, 3, 6, 8), numpy.float32)})\n"
    )
    kept = {key: value for key, value in os.environ.items() if key not in {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}}
    environment = kept | {"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", script, str(path)], env=environment, cwd=tmp_path, check=True)

    assert [] == list(tmp_path.rglob("*"))
