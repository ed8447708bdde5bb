"""Files for old runtimes, files that say whose they are, and files of several images: opened without this package."""

import json

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from runtimes_alone import opened
from torch import nn

from coordatt_deploy import api
from coordatt_deploy.errors import ConversionError
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes.coreml.evaluator.package import read_model
from coordatt_deploy.runtimes.reader import read_about

pytestmark = pytest.mark.slow

HOSTILE = {"author": 'Jo <b>&"\x1b[31m', "license": "Apache-2.0", "description": 'two\nlines {"é": 1}'}


class Net(nn.Module):
    """What each converter writes in its own way: a convolution, a mean over axes, linear layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.inner, self.head = nn.Conv2d(3, 16, 3, 2), nn.Linear(16, 256), nn.Linear(256, 10)

    def forward(self, image):
        x = nn.functional.hardswish(self.conv(image)).mean((2, 3))
        return self.head(torch.relu(self.inner(x)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """All formats for runtimes of years ago, with an author whose name is markup."""
    return api.export(
        Net(),
        (torch.randn(1, 3, 32, 24),),
        tmp_path_factory.mktemp("old") / "net",
        min_runtimes={"onnxruntime": "1.12", "tflite": "2.14", "ios": "15"},
        **HOSTILE,
    )


def test_files_need_no_more_than_was_asked_for(bundle):
    """
    Opset 17, TFLite's 2.0 and iOS 15 stand in the manifest and in the files, and all pass parity.
    """
    needs = {artifact.path: artifact.needs for artifact in bundle.artifacts}
    specification, _ = read_model(bundle.root / "coreml" / "Net_fp16.mlpackage")

    assert not bundle.refused
    assert {"onnxruntime": "1.12"} == needs["onnx/Net_fp32_arm64.onnx"].least
    assert {"tflite": "2.0"} == needs["tflite/Net_fp32.tflite"].least
    assert {"ios": "15", "macos": "12"} == needs["coreml/Net_fp16.mlpackage"].least
    assert 6 == specification.specificationVersion
    assert [17] == [item.version for item in onnx.load(bundle.root / "onnx/Net_fp32_arm64.onnx").opset_import]
    assert bundle.check_parity().passed


@pytest.mark.parametrize(
    ("kind", "recipe", "says"),
    [
        ("tflite", "dynamic_wi8_afp32", r"tflite 2\.17 because of FULLY_CONNECTED version 12.*try another recipe"),
        ("coreml", "palettized_w6", "from iOS 16 on, and --min-runtime asks for iOS 15"),
    ],
)
def test_recipes_that_old_runtimes_cannot_compute_are_refused(bundle, kind, recipe, says):
    """
    By what the export was told, though quantize was told nothing; the file does not join the bundle.
    """
    with pytest.raises(ConversionError, match=says):
        bundle.quantize(recipe, formats=[kind])

    assert not [*bundle.root.glob(f"{kind}/*{recipe}*")]


def test_a_newer_runtime_lifts_the_refusal(bundle):
    """
    The dynamic file says what it needs, so that an older runtime refuses it instead of computing nonsense.
    """
    written = bundle.quantize("dynamic_wi8_afp32", formats=["tflite"], min_runtimes={"tflite": "2.17"})
    (artifact,) = (item for item in written.artifacts if item.recipe)
    model = schema.ModelT.InitFromPackedBuf((bundle.root / artifact.path).read_bytes(), 0)
    said = {code.builtinCode: code.version for code in model.operatorCodes}

    assert {"tflite": "2.17"} == artifact.needs.least
    assert 12 == said[schema.BuiltinOperator.FULLY_CONNECTED]


def test_author_licence_and_description_are_in_every_file(bundle):
    """
    As they were given, where each format's own tools show them, and in the manifest.
    """
    model = onnx.load(bundle.root / "onnx/Net_fp32_arm64.onnx")
    flat = schema.ModelT.InitFromPackedBuf((bundle.root / "tflite/Net_fp32.tflite").read_bytes(), 0)
    specification, _ = read_model(bundle.root / "coreml" / "Net_fp32.mlpackage")
    described = specification.description.metadata
    manifest = json.loads((bundle.root / "manifest.json").read_text())

    assert HOSTILE.items() <= {item.key: item.value for item in model.metadata_props}.items()
    assert HOSTILE["description"] == model.doc_string == flat.description.decode()
    assert [*HOSTILE.values()] == [described.author, described.license, described.shortDescription]
    assert manifest["model"]["about"] == HOSTILE
    for artifact in bundle.artifacts:
        assert HOSTILE == read_about(bundle.root / artifact.path, artifact.format).said()


def test_a_batch_of_several_images(tmp_path):
    """
    Each format's own runtime takes three images at once, and gives what torch gives of each.
    """
    module = Net().eval()
    written = api.export(module, (torch.randn(1, 3, 32, 24),), tmp_path / "net", batch_size=3, precisions=["fp32"])
    images = torch.randn(3, 3, 32, 24)
    with torch.no_grad():
        expected = module(images).numpy()

    assert list(Format) == [artifact.format for artifact in written.artifacts]
    assert any("take 3 images at once" in note for note in written.manifest.notes)
    for artifact in written.artifacts:
        moved = images.permute(0, 2, 3, 1) if artifact.format is Format.TFLITE else images
        feeds = {artifact.inputs[0].name: moved.contiguous().numpy()}
        (found,) = opened(written.root / artifact.path, artifact.format)(feeds).values()
        np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-5)
    assert written.check_parity().passed
