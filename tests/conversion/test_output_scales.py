"""A detector's int8 file keeps its scores: the joining of boxes and scores stays in float, and that is said."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from click.testing import CliRunner
from PIL import Image
from torch import nn

from coordatt_deploy import bundle as bundles
from coordatt_deploy.cli import main
from coordatt_deploy.quantization import output_scales

pytestmark = pytest.mark.slow

NET = """
import torch
from torch import nn


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU6())
        self.box, self.score = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1)

    def forward(self, image):
        features = self.body(image)
        boxes = self.box(features).sigmoid() * 320.0
        return torch.cat([boxes.flatten(2), self.score(features).sigmoid().flatten(2)], 1).permute(0, 2, 1)


def build():
    return Detector().eval()
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle with ONNX and TFLite, and a folder of images to calibrate with."""
    folder = tmp_path_factory.mktemp("detector")
    (folder / "net.py").write_text(NET)
    random = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for index in range(16):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(folder / "photos" / f"{index}.png")
    result = run("export", "--model", f"{folder / 'net.py'}:build", "--input-size", "32", "--format", "onnx",
                 "--format", "tflite", "--output-dir", folder / "bundle")  # fmt: skip
    assert 0 == result.exit_code, result.output
    return folder


def feeds(folder):
    held_out = bundles.open_bundle(folder).golden("inputs")["image"]
    return [value.astype(np.float32) for value in held_out]


def reference(image):
    namespace: dict[str, object] = {}
    exec(NET, namespace)  # noqa: S102 - the text above
    build = namespace["build"]
    with torch.no_grad():
        module: nn.Module = build()
        return module(torch.from_numpy(image)).numpy()


def by_onnx(path, image):
    return onnxruntime.InferenceSession(path).run(None, {"image": image})[0]


def by_tflite(path, image):
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    value = np.transpose(image, (0, 2, 3, 1)) if given["shape"][-1] == 3 else image
    scale, zero = given["quantization"]
    if given["dtype"] is np.int8:
        value = np.clip(np.round(value / scale) + zero, -128, 127).astype(np.int8)
    interpreter.set_tensor(given["index"], value)
    interpreter.invoke()
    found = interpreter.get_tensor(made["index"]).astype(np.float32)
    scale, zero = made["quantization"]
    return (found - zero) * scale if scale else found


def test_scores_of_integer_files_are_those_of_float(exported):
    """Within 0.02 of torch through the runtimes themselves, boxes within 2 % of the image; said before and kept in the
    manifest; parity passes.
    """
    result = run("quantize", exported / "bundle", "--calibration-data", exported / "photos")

    assert 0 == result.exit_code, result.output
    manifest = bundles.open_bundle(exported / "bundle").manifest
    assert any("in float, since int8 would not carry" in note for note in manifest.notes)
    for artifact in (item for item in manifest.artifacts if item.recipe):
        runner = {"onnx": by_onnx, "tflite": by_tflite}[artifact.format.value]
        for image in feeds(exported / "bundle")[:8]:
            error = np.abs(runner(exported / "bundle" / artifact.path, image) - reference(image))
            assert error[..., 4:].max() < 0.02
            assert error[..., :4].max() < 6.4
    parity = run("parity", exported / "bundle", "--json")
    assert 0 == parity.exit_code, parity.output
    outputs = [item["outputs"][0] for item in json.loads(parity.stdout)["artifacts"] if item["recipe"]]
    assert [2, 2] == [len(output["regions"]) for output in outputs]


def test_an_integer_file_without_scores_fails(exported, monkeypatch):
    """What was written before: all in integers. Every part of the output is held to what it needs."""
    monkeypatch.setattr(output_scales, "float_tails", lambda *_: ())
    opened = bundles.open_bundle(exported / "bundle")
    quantized = run("quantize", opened.root, "--calibration-data", exported / "photos", "--format", "tflite")
    assert 0 == quantized.exit_code, quantized.output

    result = run("parity", opened.root, "--format", "tflite", "--json")

    verdicts = {item["recipe"]: item for item in json.loads(result.stdout)["artifacts"]}
    wrong = verdicts["static_wi8_ai8"]
    assert (1, False) == (result.exit_code, wrong["passed"])
    assert "carries nothing" in wrong["problem"]
    assert wrong["sqnr_db"] > 20
    assert verdicts[None]["passed"]
