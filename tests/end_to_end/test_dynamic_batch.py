"""A dynamic batch from the command line to the verdict, and files that froze it."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import helper, numpy_helper
from PIL import Image

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.formats import Format
from coordatt_deploy.parity.run import ParityPlan, check_parity
from coordatt_deploy.progress import Stages
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.tensors import decode, encode

pytestmark = pytest.mark.slow

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Linear(8 * 64, 5)

    def forward(self, image):
        x = self.norm(self.stem(image)).relu()
        return self.head(x.reshape(image.shape[0], -1))
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch")
    (folder / "net.py").write_text(NET)
    result = run(
        "export", "--model", f"{folder / 'net.py'}:Net", "--input-size", "16", "--dynamic-batch", "1:12",
        "--output-dir", folder / "bundle",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "TFLite files have one batch" in result.output
    said = "files take from 1 to 12 images at once; golden inputs have 1, 3 and 8, and none is tried with more"
    assert said in " ".join(result.output.split())
    result = run("quantize", folder / "bundle", "--recipe", "static_wi8_ai8", "--format", "onnx",
                 "--calibration-data", "digits", "--calibration-count", "16")  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def bundle(exported, tmp_path):
    shutil.copytree(exported / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


def verdicts(root):
    report = check_parity(open_bundle(root, verify=False), ParityPlan(), Stages())
    return {item.artifact.path.partition("/")[2]: item for item in report.artifacts}


def test_the_bundle_says_that_the_batch_is_open_and_every_file_takes_it(exported):
    """
    Shapes in the manifest, cases of several images, and one, three and twelve images in each runtime against torch.
    """
    bundle = open_bundle(exported / "bundle")
    namespace = {}
    exec(NET, namespace)  # noqa: S102 - the network above
    module = namespace["Net"]().eval()

    assert [(None, 3, 16, 16)] == [spec.shape for spec in bundle.manifest.inputs]
    assert [(None, 5)] == [spec.shape for spec in bundle.manifest.outputs]
    assert ["batch_of_3", "batch_of_8"] == [case.name for case in bundle.manifest.golden[-2:]]
    assert {Format.ONNX, Format.COREML} == {item.format for item in bundle.manifest.artifacts}
    for artifact in bundle.manifest.artifacts:
        close = {"fp32": 1e-5, "fp16": 3e-3, "int8": 0.1}[artifact.precision.value]
        # without the 16-bit sums of an x86 CPU that has no VNNI
        with runtime(artifact.format).open_artifact(bundle.path(artifact.path), artifact, exact_sums=True) as opened:
            for batch in (1, 3, 12):
                images = np.random.default_rng(batch).uniform(-2, 2, (batch, 3, 16, 16)).astype(np.float32)
                expected = module(torch.from_numpy(images)).detach().numpy()
                (spec,), (given,) = opened.outputs, opened.inputs
                found = decode(opened.infer({given.name: encode(images, given)})[spec.name], spec)
                assert expected.shape == found.shape
                assert np.abs(found - expected).max() <= close * np.abs(expected).max(), artifact.path


def test_every_file_passes_at_every_batch(bundle):
    """
    Outputs and layers; the int8 file too is judged on several images beside each other.
    """
    found = verdicts(bundle)

    assert 4 == len(found)
    assert [] == [(path, item.problem) for path, item in found.items() if not (item.passed and item.layers.passed)]
    int8 = next(item for path, item in found.items() if path.endswith("ai8_arm64.onnx"))
    assert 5 * (20 + 3 + 8) == int8.outputs[0].elements  # the images set aside, alone and together


def _outputs_of_the_first_image(model):
    """Give every image what the first one gives: right for one image, and of the right shape for any number."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["own" if name == output else name for name in node.output]
    model.graph.initializer.extend([
        numpy_helper.from_array(np.array([0], np.int64), "first"), numpy_helper.from_array(np.float32(0), "none")
    ])  # fmt: skip
    model.graph.node.extend(
        [
            helper.make_node("Gather", ["own", "first"], ["one"], axis=0),
            helper.make_node("Mul", ["own", "none"], ["zeros"]),
            helper.make_node("Add", ["zeros", "one"], [output]),
        ]
    )


def _one_image(model):
    """Declare the input for one image."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _one_row(model):
    """Reshape whatever comes into the row of one image, as a frozen ``x.reshape(1, -1)`` does."""
    (node,) = (item for item in model.graph.node if item.op_type == "Reshape")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 512], np.int64), "frozen"))
    node.input[1] = "frozen"


@pytest.mark.parametrize("precision", ["fp32_arm64", "static_wi8_ai8_arm64"])
@pytest.mark.parametrize("freeze", [_outputs_of_the_first_image, _one_image, _one_row])
def test_a_file_that_froze_the_batch_is_not_passed(bundle, freeze, precision):
    """
    Right for one image; whether it gives wrong values for more, or refuses to run.
    """
    path = bundle / "onnx" / f"net_{precision}.onnx"
    model = onnx.load(path)
    freeze(model)
    onnx.save(model, path)

    assert verdicts(bundle)[path.name].passed is False


def test_a_network_of_several_images_is_evaluated_image_by_image(tmp_path):
    """
    It is fed with the same image as often as it needs one, and what it says of the first counts; folders of images go
    into parity two by two.
    """
    (tmp_path / "net.py").write_text(NET)
    for label in range(5):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        colours = np.random.default_rng(label).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(colours).save(tmp_path / "images" / str(label) / "one.png")
    result = run("export", "--model", f"{tmp_path / 'net.py'}:Net", "--input-size", "16", "--format", "onnx",
                 "--dynamic-batch", "2:6", "--output-dir", tmp_path / "bundle")  # fmt: skip
    assert result.exit_code == 0, result.output

    judged = run("evaluate", tmp_path / "bundle", "--dataset", tmp_path / "images", "--json")
    found = run("parity", tmp_path / "bundle", "--inputs", tmp_path / "images")

    assert judged.exit_code == 0, judged.output
    _, subject = json.loads(judged.stdout)["subjects"]
    assert subject["problem"] is None
    assert subject["agreement"] == 1.0
    assert subject["sqnr_db"] > 100
    assert found.exit_code == 0, found.output
