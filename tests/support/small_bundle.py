"""A bundle of one convolution, written by onnx alone: real files for what runs in a moment."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.bundle import save_golden
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import FORMATS, Format, Precision
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.manifest import GoldenCase, Manifest
from coordatt_deploy.runtimes import provenance, runtime

FLOAT_ONNX = "onnx/net.onnx"
IMAGE = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")
LOGITS = TensorSpec("logits", (1, 4, 8, 8), "float32", "NCHW")
SPEC = ModelSpec("net", Preprocessing((8, 8)), source_sha256="0" * 64)


def float_bundle(folder: Path, also: Sequence[Format] = (), layers: LayerMap | None = None) -> Path:
    """Write a bundle with a float ONNX file, and a file of each of *also* that nothing can open; return its folder."""
    layer_map = layers or LayerMap(())
    images = [np.random.default_rng(seed).uniform(-1, 1, IMAGE.shape).astype(np.float32) for seed in (1, 2)]
    with writing(folder, SPEC.source_sha256) as staging:
        paths = [FLOAT_ONNX, *(f"{kind.value}/net{FORMATS[kind].suffix}" for kind in also)]
        artifacts = []
        for path in paths:
            file = staging / path
            file.parent.mkdir()
            if path == FLOAT_ONNX:
                _save(file)
            else:
                file.write_bytes(b"not opened")
            layers = file.with_suffix(".layers.json")
            layers.write_text(layer_map.dump())
            artifacts.append(
                Artifact(path, Format(file.parent.name), Precision.FP32, None, None, file.stat().st_size, sha256(file),
                         (IMAGE,), (LOGITS,), layers.relative_to(staging).as_posix())
            )  # fmt: skip
        with runtime(Format.ONNX).open_artifact(staging / FLOAT_ONNX, artifacts[0]) as runner:
            outputs = [runner.infer({"image": image})["logits"] for image in images]
        rounded = [output + np.float32(1e-6) for output in outputs]
        values = {
            "inputs": {"image": images},
            "outputs": {"logits": [output.astype(np.float64) for output in outputs]},
            "rounding_fp32": {"logits": rounded},
            "rounding_fp16": {"logits": rounded},
        }
        (staging / "golden").mkdir()
        for name, cases in values.items():
            save_golden(staging / f"golden/{name}.npz", cases)
        golden = (GoldenCase("one"), GoldenCase("two"))
        finish(staging, Manifest(SPEC, (IMAGE,), (LOGITS,), tuple(artifacts), golden=golden))
    return folder


def _save(path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weights"], ["logits"], pads=[1, 1, 1, 1])],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, IMAGE.shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, LOGITS.shape)],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {provenance.KEY: SPEC.source_sha256})
    onnx.save(model, path)
