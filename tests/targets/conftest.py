"""The box of the emulated ARM64 machine, and what is run in it."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.models import create_model
from coordatt_deploy.targets import target as target_named
from coordatt_deploy.targets.qemu_arm64 import packages, sysroot
from coordatt_deploy.tensors import encode

SHAPE = (1, 3, 96, 96)
INT8_WEIGHT = np.random.default_rng(5).integers(-127, 128, (64, 64, 1, 1), np.int8)


@pytest.fixture
def fake_box():
    """Write a folder that passes for a box; see ``_fake_box``."""
    return _fake_box


def _fake_box(cache, **changes):
    """Write a folder that passes for a box of this version, with one file in it."""
    root = cache / sysroot.NAME
    (root / "site").mkdir(parents=True)
    (root / "site/module.so").write_bytes(b"machine code")
    document = {
        "schema_version": sysroot.SCHEMA_VERSION,
        "recipe": sysroot.recipe(),
        "runtimes": packages.installed_runtimes(),
        "no_counts_because": None,
        "bytes": 12,
        "files": sysroot.hashes(root),
    }
    (root / sysroot.MANIFEST).write_text(json.dumps(document | changes))
    return root


@pytest.fixture(scope="session")
def real():
    """The box in the user's cache, built now if it is not there."""
    found = target_named("qemu-arm64").setup()
    assert (found.state, found.counting_problem) == ("ready", None)
    return sysroot.open_sysroot()


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    """The embedded default as ONNX and TFLite, and an int8 convolution as ONNX whose exact result is known."""
    folder = tmp_path_factory.mktemp("arm64")
    graph, _ = fold_batchnorms(capture(create_model("mobilenetv2_ca_035.digits"), (torch.zeros(SHAPE),)))
    spec = ModelSpec("digits", Preprocessing(SHAPE[2:]))
    made = {}
    for kind in (Format.ONNX, Format.TFLITE):
        path = folder / f"digits.{kind}"
        exported = exporter(kind).export(graph, ExportRequest(spec, Precision.FP32, path))
        made[kind.value] = path, _artifact(path, kind, Precision.FP32, exported.inputs, exported.outputs)
    path = folder / "int8.onnx"
    onnx.save(_int8_convolution(), path)
    image = TensorSpec("image", (1, 64, 8, 8), "float32", "NCHW")
    made["int8"] = path, _artifact(path, Format.ONNX, Precision.INT8, (image,), (replace(image, name="sums"),))
    return made


def _artifact(path, kind, precision, inputs, outputs):
    return Artifact(path.name, kind, precision, None, None, 0, "", inputs, outputs, "")


def _int8_convolution():
    """A pointwise convolution of u8 activations with 8-bit weights, as the quantizer writes it; all steps are 1."""
    constants = {
        "one": np.float32(1), "zero": np.uint8(0), "zero8": np.int8(0), "w": INT8_WEIGHT, "step": np.float32(16384),
        "middle": np.uint8(128),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "one", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "one", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "one", "zero8"], ["weight"]),
        helper.make_node("Conv", ["x", "weight"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("QuantizeLinear", ["c", "step", "middle"], ["y8"]),
        helper.make_node("DequantizeLinear", ["y8", "step", "middle"], ["sums"]),
    ]
    shape = [1, 64, 8, 8]
    graph = helper.make_graph(
        nodes,
        "int8",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="session")
def int8_weight():
    """Of the int8 convolution."""
    return INT8_WEIGHT


@pytest.fixture(scope="session")
def feeds_of():
    """Make feeds for an artifact of the digits."""
    return _feeds


def _image(seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(np.float32)


def _feeds(artifact, seed=0):
    return {artifact.inputs[0].name: encode(_image(seed), artifact.inputs[0])}
