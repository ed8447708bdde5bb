from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.data.images import preprocess
from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import FORMATS, Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.graph.passes.input_normalisation import fold_normalisation
from coordatt_deploy.loading.bake_preprocessing import bake
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.loaded_model import LoadedModel, capture_source, reference_module
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.tensors import decode, encode

IMAGENET = Preprocessing((12, 16))
SAME_GREY = Preprocessing((12, 16), (0.5,) * 3, (0.5, 0.25, 0.125))


def _source(module, preprocessing=IMAGENET):
    example = (torch.randn(1, 3, *preprocessing.size, generator=torch.Generator().manual_seed(0)),)
    source = LoadedModel(module.eval(), ModelSpec("net", preprocessing, source_sha256="0" * 64), example, ())
    return source, capture_source(source)


def _image(size, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _operators(graph):
    return [str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"]


def _net(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, **options), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 4, 1))


def _images_agree(source, graph, baked_source, baked, tolerance=1e-12):
    """The image through the old preprocessing and the old graph, and through the new ones."""
    image = _image((20, 30))
    old = run(graph, {"image": preprocess(image, source.spec.preprocessing)[None].astype(np.float64)})
    new = run(baked, {"image": preprocess(image, baked_source.spec.preprocessing)[None].astype(np.float64)})
    return np.allclose(old[graph.outputs[0]], new[baked.outputs[0]], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("options", "preprocessing", "form", "operators"),
    [
        ({}, IMAGENET, "folded", 0),
        ({"stride": 2, "padding": 1}, IMAGENET, "shifted", 1),
        ({"stride": 2, "padding": 1}, SAME_GREY, "padded", 1),
        ({"padding": 1}, replace(SAME_GREY, std=(0.229, 0.224, 0.225)), "padded", 1),
        ({"padding": (0, 2), "dilation": 2, "bias": False}, SAME_GREY, "padded", 1),
        ({"groups": 3, "padding": 1}, IMAGENET, "shifted", 1),
        ({"padding": 1}, replace(IMAGENET, colour="BGR"), "shifted", 1),
        ({}, replace(IMAGENET, colour="BGR", input_range=(-1.0, 1.0)), "folded", 0),
    ],
)
def test_the_normalisation_disappears_and_the_function_stays(options, preprocessing, form, operators):
    """
    Exact at the borders, whatever the padding; at most one operator on the image is left.
    """
    source, graph = _source(_net(**options), preprocessing)
    before = len(_operators(fold_batchnorms(graph)[0]))

    baked_source, baked = bake(source, graph)
    folded, report = fold_normalisation(fold_batchnorms(baked)[0])

    assert _images_agree(source, graph, baked_source, baked, tolerance=1e-6)
    assert _images_agree(source, graph, baked_source, folded, tolerance=1e-5)
    assert form == report.form
    assert ("1",) == report.layers
    assert report.max_relative_error < 1e-6
    assert before + operators == len(_operators(folded))
    assert ((0.0,) * 3, (1.0,) * 3, "RGB", (0.0, 255.0)) == (
        baked_source.spec.preprocessing.mean,
        baked_source.spec.preprocessing.std,
        baked_source.spec.preprocessing.colour,
        baked_source.spec.preprocessing.input_range,
    )


def test_adding_the_bias_alone_would_be_wrong_at_the_border():
    """
    The trap that this pass avoids: with zeros around the pixels the inner results agree and the border's do not.
    """
    source, graph = _source(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), SAME_GREY)
    _, baked = bake(source, graph)
    folded, _ = fold_normalisation(baked)
    pad = next(node for node in folded.module.graph.nodes if "constant_pad" in str(node.target))
    feeds = {"image": baked.example[0].numpy()}
    right = run(folded, feeds)["logits"]

    pad.args = (*pad.args[:2], 0.0)
    folded.module.recompile()
    naive = run(folded, feeds)["logits"]

    assert np.allclose(right[..., 1:-1, 1:-1], naive[..., 1:-1, 1:-1])
    assert np.abs(right - naive)[..., 0, :].min() > 1e-3


@settings(max_examples=20, deadline=None)
@given(
    means=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    stds=st.lists(st.floats(0.05, 2), min_size=3, max_size=3),
    padding=st.integers(0, 2),
    high=st.sampled_from([1.0, 255.0]),
    colour=st.sampled_from(["RGB", "BGR"]),
)
def test_any_preprocessing_can_be_baked(means, stds, padding, high, colour):
    """
    Whatever mean, deviation, range, order of colours and padding: float32 rounding is all that changes.
    """
    preprocessing = Preprocessing(
        (12, 16), tuple(value * high for value in means), tuple(value * high for value in stds), colour,
        input_range=(0.0, high),
    )  # fmt: skip
    source, graph = _source(_net(padding=padding), preprocessing)

    baked_source, baked = bake(source, graph)
    folded, report = fold_normalisation(baked)

    assert report.max_relative_error < 1e-5
    assert folded.inputs == graph.inputs
    assert baked_source.example[0].max() > 100


class _TwoStems(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, image):
        return self.left(image) + self.right(image)


class _PoolsFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 1), nn.MaxPool2d(2)

    def forward(self, image):
        return self.conv(self.pool(image))


def test_every_convolution_that_takes_the_image_takes_it_in():
    """
    Two stems with different paddings.
    """
    source, graph = _source(_TwoStems())
    baked_source, baked = bake(source, graph)

    folded, report = fold_normalisation(baked)

    assert ("left", "right") == report.layers
    assert _images_agree(source, graph, baked_source, folded, tolerance=1e-5)


def test_anything_else_that_takes_the_image_is_refused_by_name():
    """
    A pool does not commute with a negative factor, and a product with the image needs it normalised.
    """
    source, graph = _source(_PoolsFirst())

    with pytest.raises(UsageError, match=r"pool \(max_pool2d\) takes the image; only convolutions"):
        fold_normalisation(bake(source, graph)[1])
    with pytest.raises(ConversionError, match="no normalisation of its own"):
        fold_normalisation(graph)


def test_the_reference_of_a_baked_model_is_the_users_module_behind_the_normalisation():
    """
    In float64, on pixels; the baked bundle is told apart by its hash.
    """
    source, graph = _source(_net(padding=1))
    baked_source, baked = bake(source, graph)

    exact, remark = reference_module(baked_source, baked)

    assert remark is None
    assert source.spec.source_sha256 != baked_source.spec.source_sha256
    pixels = baked.example[0].double()
    assert np.allclose(exact(pixels).detach().numpy(), run(baked, {"image": pixels.numpy()})["logits"], atol=1e-6)


def test_softmax_at_the_end_gives_probabilities():
    """
    Under their own name; a model without a single matrix is refused.
    """
    classifier = nn.Sequential(_net(padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    source, graph = _source(classifier)

    baked_source, baked = bake(source, graph, softmax=True)
    folded, _ = fold_normalisation(fold_batchnorms(baked)[0])
    result = run(folded, {"image": baked.example[0].numpy()})

    assert ("probabilities",) == baked.outputs == baked_source.outputs
    assert np.isclose(1.0, result["probabilities"].sum())
    expected = functional.softmax(classifier.double()(_normalised(source, baked)), 1)
    assert np.allclose(expected.detach().numpy(), result["probabilities"], atol=1e-6)
    with pytest.raises(UsageError, match="must give one matrix"):
        bake(*_source(_net()), softmax=True)


def _normalised(source, baked):
    low, high = source.spec.preprocessing.input_range
    mean, std = (torch.tensor(value).double().reshape(1, 3, 1, 1) for value in
                 (source.spec.preprocessing.mean, source.spec.preprocessing.std))  # fmt: skip
    return (low + baked.example[0].double() / 255 * (high - low) - mean) / std


def test_a_model_of_grey_images_is_refused():
    """
    Preprocessing describes RGB images.
    """
    module = nn.Conv2d(1, 4, 3).eval()
    example = (torch.randn(1, 1, 12, 16),)
    source = LoadedModel(module, ModelSpec("net", IMAGENET), example, ())

    with pytest.raises(UsageError, match="takes 1 x 1 x 12 x 16"):
        bake(source, capture(module, example))


def test_the_embedded_default_can_be_baked():
    """
    Its mean is one grey, so nothing but a padding is left of its normalisation; all layers keep their place.
    """
    source = resolve(ModelRequest("mobilenetv2_ca_035.digits"))
    graph = capture_source(source)

    baked_source, baked = bake(source, graph)
    folded, report = fold_normalisation(fold_batchnorms(baked)[0])

    assert "padded" == report.form
    assert _images_agree(source, graph, baked_source, folded, tolerance=1e-3)
    assert len(graph.layers.layers) == len(folded.layers.layers)
    assert fold_batchnorms(graph)[0].layers.coverage == folded.layers.coverage


GREY = Preprocessing((12, 16), (0.4,), (0.25,), "GREY")


def _grey_source(preprocessing=GREY, channels=1):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 3))
    source = LoadedModel(module.eval(), ModelSpec("net", preprocessing, source_sha256="0" * 64),
                         (torch.randn(1, channels, 12, 16),), ())  # fmt: skip
    return source, capture_source(source)


def test_the_normalisation_of_one_channel_is_baked():
    """
    Grey pixels in, what torch makes of the normalised image out.
    """
    source, graph = _grey_source()
    baked, baked_graph = bake(source, graph)
    folded, report = fold_normalisation(fold_batchnorms(baked_graph)[0])
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 12, 16)).astype(np.float32)
    normalised = torch.from_numpy((pixels.astype(np.float64) / 255 - 0.4) / 0.25)
    expected = source.module.double()(normalised).detach().numpy()

    assert Preprocessing((12, 16), (0.0,), (1.0,), "GREY", input_range=(0.0, 255.0)) == baked.spec.preprocessing
    assert np.allclose(expected, run(folded, {graph.inputs[0].name: pixels})[folded.outputs[0]], atol=1e-6)
    assert "padded" == report.form


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(Format))
def test_a_file_takes_grey_pixels(kind, tmp_path):
    """
    In every format, through its runtime: bytes in TFLite, a grey image in Core ML, floats of 0 to 255 in the others.
    """
    source, graph = _grey_source()
    baked, baked_graph = bake(source, graph)
    folded, _ = fold_normalisation(fold_batchnorms(baked_graph)[0])
    path = tmp_path / f"net{FORMATS[kind].suffix}"
    written = exporter(kind).export(folded, ExportRequest(baked.spec, Precision.FP32, path))
    artifact = written.described(ExportRequest(baked.spec, Precision.FP32, path), tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 12, 16), dtype=np.uint8)
    (spec,), (output,) = artifact.inputs, artifact.outputs
    with runtime(kind).open_artifact(path, artifact) as runner:
        found = decode(runner.infer({spec.name: encode(pixels.astype(np.float32), spec)})[output.name], output)
    expected = source.module((torch.from_numpy(pixels) / 255 - 0.4) / 0.25).detach().numpy()

    assert np.allclose(expected, found, atol=1e-5)
    assert (kind in (Format.TFLITE, Format.COREML)) == (spec.dtype == "uint8")


@pytest.mark.parametrize(
    ("preprocessing", "channels", "said"),
    [
        (Preprocessing((12, 16), (0.0,) * 4, (1.0,) * 4, "OTHER"), 4, "no image of three channels or one"),
        (Preprocessing((12, 16), (0.4,), (0.25,), "GREY", crop="border"), 1, "crop border"),
    ],
)
def test_what_no_pixel_says_is_not_baked(preprocessing, channels, said):
    """
    The negative: channels that no image has, and a border that depends on the mean.
    """
    with pytest.raises(UsageError, match=said):
        bake(*_grey_source(preprocessing, channels))
