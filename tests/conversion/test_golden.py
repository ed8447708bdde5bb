"""The golden data of a bundle."""

import copy

import numpy as np
import pytest
from PIL import Image

from coordatt_deploy.artifact_specs import Preprocessing, TensorSpec
from coordatt_deploy.conversion.golden import golden_inputs, write_golden
from coordatt_deploy.data.images import preprocess


def test_written_again_it_keeps_what_was_set_aside_for_artifacts(shared_graph, tmp_path):
    """
    Its own files of an earlier export go; a folder of calibration images belongs to artifacts that stay.
    """
    golden = golden_inputs(shared_graph.inputs, Preprocessing(size=(32, 48)), ())
    aside = tmp_path / "golden" / "set-aside-1" / "inputs.npz"
    for path in (aside, tmp_path / "golden" / "stale.npz", tmp_path / "golden" / "images" / "stale.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"earlier")

    write_golden(tmp_path, golden, shared_graph, copy.deepcopy(shared_graph.module).double())

    assert aside.read_bytes() == b"earlier"
    assert not list((tmp_path / "golden").rglob("stale*"))
    assert (tmp_path / "golden" / "outputs.npz").exists()


def _golden(channels, preprocessing):
    spec = TensorSpec("image", (1, channels, 8, 12), "float32", "NCHW")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return golden_inputs([spec], preprocessing, [("photo", picture, None)])


def test_a_grey_network_gets_grey_golden_images():
    """
    The PNG is grey, and the tensor is what preprocessing makes of it.
    """
    grey = Preprocessing((8, 12), (0.5,), (0.5,), "GREY")
    golden = _golden(1, grey)

    assert ["golden/images/photo.png"] == [case.image for case in golden.cases if case.image]
    ((_, image),) = golden.images
    assert "L" == image.mode
    assert (1, 1, 8, 12) == golden.feeds["image"][0].shape
    assert np.array_equal(preprocess(image, grey), golden.feeds["image"][0][0])


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_golden_inputs_lie_where_preprocessing_puts_them(channels):
    """
    Whatever the number of channels; what no image has gets made-up pixels, and no PNG.
    """
    colour = {1: "GREY", 3: "RGB"}.get(channels, "OTHER")
    golden = _golden(channels, Preprocessing((8, 12), (0.5,) * channels, (0.25,) * channels, colour))
    values = np.stack(golden.feeds["image"])

    assert (-2.0, 2.0) == (values.min(), values.max())
    assert (1, channels, 8, 12) == values.shape[1:]
    assert (channels in (1, 3)) == any(case.image for case in golden.cases)


def test_an_input_beside_the_image_has_its_size_where_that_is_dynamic():
    """
    Height and width are one size in all inputs; what is fixed stays as it is, and other ranks have no size.
    """
    specs = [TensorSpec("image", (1, 3, None, None), "float32", "NCHW"),
             TensorSpec("guide", (1, 2, None, None), "float32", "NCHW"),
             TensorSpec("fixed", (1, 2, 5, 5), "float32", "NCHW"),
             TensorSpec("state", (1, 7), "float32", "")]  # fmt: skip
    golden = golden_inputs(specs, Preprocessing((8, 12)), (), [(16, 10)])

    sizes = {image.shape[2:] for image in golden.feeds["image"]}
    assert {(8, 12), (16, 10)} == sizes
    for image, guide, fixed, state in zip(*(golden.feeds[spec.name] for spec in specs), strict=True):
        assert [(1, 2, *image.shape[2:]), (1, 2, 5, 5), (1, 7)] == [guide.shape, fixed.shape, state.shape]


def test_a_dynamic_batch_has_cases_of_several_different_images():
    """
    Images stay alone, in the smallest batch; further cases hold as many as they say, and no two alike.
    """
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    specs = [
        TensorSpec("image", (None, 3, 8, 12), "float32", "NCHW"),
        TensorSpec("prior", (None, 4), "float32", ""),
        TensorSpec("anchors", (5, 4), "float32", ""),
    ]
    golden = golden_inputs(specs, Preprocessing((8, 12)), [("photo", picture, None)], (), (1, 3, 6))
    names = [case.name for case in golden.cases]
    by_name = {name: dict(zip(golden.feeds, values, strict=True))
               for name, values in zip(names, zip(*golden.feeds.values(), strict=True), strict=True)}  # fmt: skip

    assert ["batch_of_3", "batch_of_6"] == names[-2:]
    for name, batch in {"photo": 1, "zeros": 1, "batch_of_3": 3, "batch_of_6": 6}.items():
        feeds = by_name[name]
        assert [(batch, 3, 8, 12), (batch, 4), (5, 4)] == [value.shape for value in feeds.values()]
        assert batch == len(np.unique(feeds["image"].reshape(batch, -1), axis=0))


def test_a_dynamic_size_and_batch_are_tried_together():
    """
    A case has both another size and another batch; one whose smallest batch is two has no image alone.
    """
    spec = TensorSpec("image", (None, 3, None, None), "float32", "NCHW")
    golden = golden_inputs([spec], Preprocessing((8, 12)), (), ((16, 8),), (2, 3, 4))
    shapes = {case.name: value.shape for case, value in zip(golden.cases, golden.feeds["image"], strict=True)}

    assert (2, 3, 16, 8) == shapes["noise_16x8"]
    assert ((3, 3, 8, 12), (4, 3, 16, 8)) == (shapes["batch_of_3"], shapes["batch_of_4_16x8"])
    assert {2} == {shape[0] for name, shape in shapes.items() if not name.startswith("batch_of_")}
