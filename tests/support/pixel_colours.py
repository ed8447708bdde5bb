"""A network that names the colour of every pixel, and images with masks for it."""

import numpy as np
import onnx
import torch
from colours import COLOURS, IMAGE, RIGHT
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.saved_graph import save_graph
from coordatt_deploy.manifest import Manifest

SCORES = TensorSpec("scores", (1, 3, 8, 8), "float32", "NCHW")
NAMES = tuple(COLOURS)


class PixelColours(nn.Module):
    """Scores of a pixel are its channels, weighted."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(RIGHT)[:, :, None, None])

    def forward(self, image):
        return self.head(image)


def save_onnx(path, weight):
    """Write the same network, with another weight, as an ONNX file."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight"], ["scores"])],
        "pixel_colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, IMAGE.shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, SCORES.shape)],
        [numpy_helper.from_array(np.ascontiguousarray(weight[:, :, None, None]), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def mask_bundle(root, preprocessing=None, **weights):
    """Write a bundle with an ONNX artifact for each named weight, and return it opened."""
    preprocessing = preprocessing or Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3)
    spec = ModelSpec("pixel_colours", preprocessing, NAMES, source_sha256="0" * 64)
    graph = capture(PixelColours().eval(), (torch.rand(1, 3, 8, 8),), input_names=["image"], output_names=["scores"])
    with writing(root, spec.source_sha256) as staging:
        (staging / "onnx").mkdir(exist_ok=True)
        (staging / "reference").mkdir(exist_ok=True)
        save_graph(graph, staging / "reference")
        artifacts = []
        for name, weight in (weights or {"right": RIGHT}).items():
            path = staging / "onnx" / f"{name}.onnx"
            save_onnx(path, weight)
            path.with_suffix(".layers.json").write_text("{}")
            artifacts.append(
                Artifact(
                    f"onnx/{name}.onnx", Format.ONNX, Precision.FP32, None, None, path.stat().st_size, sha256(path),
                    (IMAGE,), (SCORES,), f"onnx/{name}.layers.json",
                )
            )  # fmt: skip
        finish(staging, Manifest(spec, (IMAGE,), (SCORES,), tuple(artifacts)))
    return open_bundle(root)


def pictures(count, size=8, seed=0):
    """Return images (N, H, W, 3) uint8 of coloured pixels and their masks (N, H, W), a few pixels being ignored."""
    generator = np.random.default_rng(seed)
    masks = generator.integers(0, 3, (count, size, size)).astype(np.uint8)
    images = np.array(list(COLOURS.values()), np.uint8)[masks]
    masks[generator.random(masks.shape) < 0.1] = 255
    return images, masks


def mask_folder(root, count, **options):
    """Write ``root/images`` and ``root/masks``, and return root."""
    for kind, arrays in zip(("images", "masks"), pictures(count, **options), strict=True):
        (root / kind).mkdir(parents=True)
        for number, array in enumerate(arrays):
            Image.fromarray(array).save(root / kind / f"{number:02d}.png")
    return root
