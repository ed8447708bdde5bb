"""Files that take pixels as they are: bytes in TFLite, an image and a classifier in Core ML, proven from PNG files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.bundle_writing import finish
from coordatt_deploy.conversion import export_run
from coordatt_deploy.conversion.plan import ExportPlan
from coordatt_deploy.data.images import load_image, preprocess
from coordatt_deploy.documents import from_json, to_json
from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.exporters.tflite.export import pack
from coordatt_deploy.exporters.tflite.uint8_input import add_uint8_input, remove_uint8_input
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.graph.passes.input_normalisation import fold_normalisation
from coordatt_deploy.loading.bake_preprocessing import bake
from coordatt_deploy.loading.loaded_model import LoadedModel, capture_source
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.loading.preprocessing import PreprocessingChanges
from coordatt_deploy.parity.run import ParityPlan, check_parity
from coordatt_deploy.progress import Stages
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.runtimes.coreml.evaluator.package import read_model
from coordatt_deploy.runtimes.coreml.runner import EvaluatorRunner

RGB = 20  # in FeatureTypes.proto
TROUBLE = Path(__file__).parents[2] / "zoo" / "trouble.py"
LABELS = ("cat", "dog", "hen", "owl")
WRITER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net()
"""


def _baked(softmax=True, labels=LABELS, preprocessing=None):
    """A small network with its normalisation folded into the first convolution, and the reference before folding."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    spec = ModelSpec("net", preprocessing or Preprocessing((16, 24)), labels, source_sha256="0" * 64)
    source = LoadedModel(net, spec, (torch.randn(1, 3, 16, 24),), ())
    source, graph = bake(source, capture_source(source), softmax=softmax)
    return source, fold_normalisation(fold_batchnorms(graph)[0])[0]


def _exported(tmp_path, kind, **options):
    tmp_path.mkdir(exist_ok=True)
    source, graph = _baked(**options)
    suffix = {Format.TFLITE: ".tflite", Format.COREML: ".mlpackage", Format.ONNX: ".onnx"}[kind]
    request = ExportRequest(source.spec, Precision.FP32, tmp_path / f"net{suffix}")
    exported = exporter(kind).export(graph, request)
    return source, exported, exported.described(request, tmp_path)


def _pixels():
    return np.random.default_rng(1).integers(0, 256, (1, 16, 24, 3), np.uint8)


@pytest.mark.parametrize("kind", [Format.TFLITE, Format.COREML])
def test_bytes_in_probabilities_out(kind, tmp_path):
    """
    Both take (1, H, W, 3) of bytes and give what the network gives on the normalised image.
    """
    source, exported, artifact = _exported(tmp_path, kind)

    with runtime(kind).open_artifact(tmp_path / artifact.path, artifact) as runner:
        given = runner.infer({"image": _pixels()})["probabilities"]
    image = torch.from_numpy(_pixels()).permute(0, 3, 1, 2).double()
    expected = source.module.double()(image).detach().numpy()

    assert [("image", (1, 16, 24, 3), "uint8", "NHWC")] == [
        (spec.name, spec.shape, spec.dtype, spec.layout) for spec in exported.inputs
    ]
    assert ["probabilities"] == [spec.name for spec in exported.outputs]
    assert np.allclose(expected, given, rtol=0, atol=1e-6)
    assert np.isclose(given.sum(), 1.0, atol=1e-6)


def test_core_ml_shows_an_image_and_a_classifier(tmp_path):
    """
    Xcode and Vision read the description: an RGB image of fixed size, the label and the probability of each.
    """
    _, _, artifact = _exported(tmp_path, Format.COREML)
    model, _ = read_model(tmp_path / artifact.path)
    (image,) = model.description.input

    assert (24, 16) == (image.type.imageType.width, image.type.imageType.height)
    assert RGB == image.type.imageType.colorSpace
    assert ["classLabel", "classLabel_probs"] == [item.name for item in model.description.output]
    assert list(LABELS) == json.loads(model.description.metadata.userDefined["labels"])


def test_the_manifest_says_what_an_app_meets(tmp_path):
    """
    Of an image classifier in Core ML the features that the package describes, of everything else its tensors.
    """
    for kind in (Format.COREML, Format.TFLITE):
        _, _, artifact = _exported(tmp_path / kind, kind)
        read = from_json(Artifact, to_json(artifact))
        assert ["probabilities"] == [spec.name for spec in read.outputs]
        if kind is Format.TFLITE:
            assert read.app is None
            continue
        model, _ = read_model(tmp_path / kind / artifact.path)
        assert [("image", "image")] == [(item.name, item.type) for item in read.app.inputs]
        assert [("classLabel", "text"), ("classLabel_probs", "numbers by text")] == [
            (item.name, item.type) for item in read.app.outputs
        ]
        assert [item.shortDescription for item in model.description.output] == [
            item.meaning for item in read.app.outputs
        ]


@pytest.mark.parametrize("labels", [None, ("a", "b")])
def test_without_a_name_for_each_class_there_is_no_classifier(labels, tmp_path):
    """
    The output is then an array, and the input an image all the same.
    """
    _, exported, artifact = _exported(tmp_path, Format.COREML, labels=labels, softmax=False)
    model, _ = read_model(tmp_path / artifact.path)

    assert ["logits"] == [item.name for item in model.description.output]
    assert "uint8" == exported.inputs[0].dtype


def test_the_same_package_twice(tmp_path):
    """
    A classifier's bytes follow from the graph as well.
    """
    hashes = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        hashes.add(_exported(tmp_path / name, Format.COREML)[2].sha256)
    assert 1 == len(hashes)


def test_wrong_bytes_are_refused(tmp_path):
    """
    Floats for an image, or another size.
    """
    _, _, artifact = _exported(tmp_path, Format.COREML)
    with EvaluatorRunner(tmp_path / artifact.path, artifact, 1, ()) as runner:
        with pytest.raises(UsageError, match="image is float32, the package takes uint8"):
            runner.infer({"image": _pixels().astype(np.float32)})
        with pytest.raises(UsageError, match="the package takes 1 × 3 × 16 × 24"):
            runner.infer({"image": _pixels()[:, :8]})


def test_pixels_can_be_taken_out_of_a_tflite_file_again(tmp_path):
    """
    What the second stage quantizes is the float network behind the cast; a file without one is refused.
    """
    _, _, artifact = _exported(tmp_path, Format.TFLITE)
    model = schema.ModelT.InitFromPackedBuf((tmp_path / artifact.path).read_bytes(), 0)
    operators = len(model.subgraphs[0].operators)

    remove_uint8_input(model, "image")
    floats = pack(model)
    add_uint8_input(model, "image")

    assert operators == len(model.subgraphs[0].operators)
    again = schema.ModelT.InitFromPackedBuf(floats, 0)
    assert schema.TensorType.FLOAT32 == again.subgraphs[0].tensors[int(again.subgraphs[0].inputs[0])].type
    with pytest.raises(ConversionError, match="does not begin with its pixels"):
        remove_uint8_input(again, "image")
    with pytest.raises(ConversionError, match="no input photo"):
        add_uint8_input(again, "photo")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels")
    (folder / "net.py").write_text(WRITER, encoding="utf-8")
    plan = ExportPlan(
        ModelRequest(f"{folder / 'net.py'}:build", input_size=(16, 24), labels=LABELS),
        formats=(Format.ONNX,),
        bake=True,
        softmax=True,
        output_dir=folder / "bundle",
    )
    return export_run.export(plan, Stages()), plan


def test_the_artifact_is_run_on_the_png_through_its_own_description(bundle):
    """
    Every golden image, and the manifest says what became of the normalisation.
    """
    made, _ = bundle
    report = check_parity(made, ParityPlan(), Stages())

    assert [(True, 20)] == [(item.passed, item.images) for item in report.artifacts]
    assert made.manifest.model.pixels
    assert "shifted" == made.manifest.bake.form
    assert (0.485, 0.456, 0.406) == made.manifest.bake.preprocessing.mean
    pixels = made.golden("inputs")["image"]
    assert all(np.array_equal(value, np.round(value)) and 0 <= value.min() <= value.max() <= 255 for value in pixels)


def test_a_description_that_lies_fails(bundle, tmp_path):
    """
    The same weights, the same outputs, and another resize filter in the file's metadata.
    """
    made, _ = bundle
    shutil.copytree(made.root, tmp_path / "lying")
    lying = open_bundle(tmp_path / "lying")
    (artifact,) = lying.manifest.artifacts
    model = onnx.load(lying.path(artifact.path))
    entry = next(item for item in model.metadata_props if item.key == "preprocessing")
    entry.value = entry.value.replace("bilinear", "nearest")
    onnx.save(model, lying.path(artifact.path))
    changed = replace(artifact, sha256=sha256(lying.path(artifact.path)))
    finish(lying.root, replace(lying.manifest, artifacts=(changed,)))

    (verdict,) = check_parity(open_bundle(tmp_path / "lying"), ParityPlan(), Stages()).artifacts

    assert verdict.passed is False
    assert "description of preprocessing makes another tensor of golden/images/" in verdict.problem


def test_each_image_has_its_tensor_and_outputs_beside_it(bundle):
    """
    ``golden/images/expected.json`` is what an app's own test reads.
    """
    made, _ = bundle
    document = json.loads((made.root / "golden/images/expected.json").read_text(encoding="utf-8"))

    assert 20 == len(document["images"])
    for index, entry in enumerate(document["images"]):
        tensor = preprocess(load_image(made.root / "golden/images" / entry["image"]), made.manifest.model.preprocessing)
        for place in entry["tensor"]["places"]:
            assert np.allclose(place["channels"], tensor[:, place["row"], place["column"]], rtol=0, atol=0)
        assert np.allclose(entry["outputs"]["probabilities"], made.golden("outputs")["probabilities"][index][0])


def test_files_that_are_fed_differently_do_not_share_a_bundle(bundle):
    """
    Another normalisation, or none baked in, needs a folder of its own.
    """
    made, plan = bundle
    other = replace(plan.model, preprocessing=PreprocessingChanges(resize="nearest"))
    with pytest.raises(UsageError, match="name another --output-dir"):
        export_run.export(replace(plan, model=other), Stages())
    with pytest.raises(UsageError, match="name another --output-dir"):
        export_run.export(replace(plan, bake=False, softmax=False), Stages())
    with pytest.raises(UsageError, match=r"labels"):
        export_run.export(replace(plan, model=replace(plan.model, labels=LABELS[::-1])), Stages())
    with pytest.raises(UsageError, match="--bake-preprocessing as well"):
        export_run.export(replace(plan, bake=False), Stages())
    assert open_bundle(made.root).manifest.model == made.manifest.model


def test_several_images_at_once(tmp_path):
    """
    A model of pairs: each golden image is put beside the next, and parity feeds the first of them from its PNG file.
    """
    shapes = {"image": (2, 3, 16, 16)}
    plan = ExportPlan(
        ModelRequest(f"{TROUBLE}:Pairs", input_size=(16, 16), inputs=shapes),
        formats=(Format.ONNX,),
        output_dir=tmp_path / "pairs",
    )

    made = export_run.export(plan, Stages())
    (verdict,) = check_parity(made, ParityPlan(), Stages()).artifacts

    assert (True, 20) == (verdict.passed, verdict.images)
    first, second = made.golden("inputs")["image"][:2]
    assert np.array_equal(first[1], second[0])
    with pytest.raises(UsageError, match="takes 2 images at once"):
        export_run.export(replace(plan, bake=True, output_dir=tmp_path / "baked"), Stages())


def test_complex_outputs_are_refused(tmp_path):
    """
    No phone's format holds them.
    """
    plan = ExportPlan(ModelRequest(f"{TROUBLE}:Spectrum", input_size=(16, 16)), output_dir=tmp_path / "net")
    with pytest.raises(UsageError, match="complex64; files for phones give real numbers"):
        export_run.export(plan, Stages())
