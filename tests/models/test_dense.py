"""SSDLite, DeepLabV3 and LR-ASPP: structure, boxes against the reference's equations, strides, masks."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from coordatt_deploy import models
from coordatt_deploy.data.scenes import GOLDEN_FILE
from coordatt_deploy.models import train_scenes
from coordatt_deploy.models.attention_options import Place
from coordatt_deploy.models.mobilenet_v2 import build_features
from coordatt_deploy.models.segmentation import DeepLabV3
from coordatt_deploy.models.ssdlite import decode_boxes, prior_boxes

MAPS = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
STRIDES = (16, 32, 64, 107, 160, 320)
SIZES = ((60, 105), (105, 150), (150, 195), (195, 240), (240, 285), (285, 330))


def reference_priors():
    """The rule of lufficc/SSD's mobilenet_v2_ssd320, one prior after the other."""
    found = []
    for (rows, _), stride, (least, greatest) in zip(MAPS, STRIDES, SIZES, strict=True):
        for row, column in itertools.product(range(rows), repeat=2):
            centre = [(column + 0.5) * stride / 320, (row + 0.5) * stride / 320]
            found.append([*centre, least / 320, least / 320])
            found.append([*centre, math.sqrt(least * greatest) / 320, math.sqrt(least * greatest) / 320])
            for ratio in (2, 3):
                wide, narrow = least / 320 * math.sqrt(ratio), least / 320 / math.sqrt(ratio)
                found += [[*centre, wide, narrow], [*centre, narrow, wide]]
    return np.clip(np.array(found), 0, 1)


def test_priors_are_the_references():
    """
    3,234 of them at 320x320.
    """
    priors = prior_boxes(MAPS, (320, 320)).numpy()

    assert (3234, 4) == priors.shape
    np.testing.assert_allclose(priors, reference_priors(), rtol=0, atol=1e-15)


def test_offsets_become_boxes_by_the_references_equation():
    """
    Centre and size of the prior, moved and stretched, as left, top, right and bottom.
    """
    offsets = np.random.default_rng(0).normal(size=(2, 3234, 4))
    priors = reference_priors()
    centre = offsets[..., :2] * 0.1 * priors[:, 2:] + priors[:, :2]
    size = np.exp(offsets[..., 2:] * 0.2) * priors[:, 2:]
    expected = np.concatenate([centre - size / 2, centre + size / 2], axis=2)
    actual = decode_boxes(torch.from_numpy(offsets), torch.from_numpy(priors)).numpy()

    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [(96, 96), (64, 128)])
def test_decoding_is_the_raw_heads_decoded(size):
    """
    The same weights, at small and oblong sizes: boxes of the offsets, softmax of the scores.
    """
    options = {"num_classes": 5, "seed": 1}
    raw = models.create_model("ssdlite320_mobilenetv2_ca_100", **options)
    decoding = models.create_model("ssdlite320_mobilenetv2_ca_100", decode=True, **options)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        heads, found = raw(x), decoding(x)

    assert ["box_offsets", "class_logits"] == list(heads)
    assert ["boxes", "scores"] == list(found)
    assert torch.equal(heads["class_logits"].softmax(2), found["scores"])
    sizes = [(size[0] // 16, size[1] // 16)]
    while len(sizes) < 6:
        sizes.append(tuple(math.ceil(length / 2) for length in sizes[-1]))
    priors = prior_boxes(sizes, size).float()
    assert torch.equal(decode_boxes(heads["box_offsets"], priors), found["boxes"])


def test_each_place_of_a_map_has_its_rows_in_the_output():
    """
    Map by map, row by row, six priors each: what one place of the first map gives stands where its priors stand.
    """
    network = models.create_model("ssdlite320_mobilenetv2_ca_100", num_classes=3)
    maps = [torch.zeros(1, channels, *size) for channels, size in zip((96, 1280, 512, 256, 256, 64), MAPS, strict=True)]
    with torch.no_grad():
        before, _ = network.predictor(maps)
        maps[0][0, :, 7, 11] = 5.0
        after, _ = network.predictor(maps)
    changed = np.flatnonzero((before != after).any(dim=2)[0].numpy())

    near = {6 * (20 * row + column) + prior for row in (6, 7, 8) for column in (10, 11, 12) for prior in range(6)}
    assert near == set(changed.tolist())


@pytest.mark.parametrize("name", ["deeplabv3_mobilenetv2_ca_100", "lraspp_mobilenetv2_ca_100"])
def test_masks_have_the_size_of_the_image(name):
    """
    Odd and oblong sizes as well.
    """
    network = models.create_model(name, num_classes=4)
    with torch.no_grad():
        shapes = [tuple(network(torch.zeros(1, 3, *size))["mask_logits"].shape) for size in ((64, 64), (65, 97))]

    assert [(1, 4, 64, 64), (1, 4, 65, 97)] == shapes


def test_dilation_takes_the_place_of_the_last_stride():
    """
    The last four blocks keep the size at a stride of 16, look twice as far, and have the weights of strided ones.
    """
    dilated = build_features(0.35, None, Place.AFTER_DEPTHWISE, greatest_stride=16)
    strided = build_features(0.35, None, Place.AFTER_DEPTHWISE)
    depthwise = [block.conv[-5] for block in dilated.layers[1:]]

    assert (4, 4) == dilated.layers(torch.zeros(1, 3, 64, 64)).shape[2:]
    assert (2, 2) == strided.layers(torch.zeros(1, 3, 64, 64)).shape[2:]
    assert [(1, 1)] * 13 + [(2, 2)] * 4 == [layer.dilation for layer in depthwise]
    shapes = [{key: value.shape for key, value in of.layers.state_dict().items()} for of in (dilated, strided)]
    assert shapes[0] == shapes[1]


def test_keys_of_the_heads_are_torchvisions():
    """
    LR-ASPP's all, DeepLabV3's ASPP with its five branches.
    """
    lraspp = models.create_model("lraspp_mobilenetv2_ca_100").state_dict()
    deeplab = DeepLabV3().state_dict()

    heads = {"cbr.0", "cbr.1", "scale.1", "low_classifier", "high_classifier"}
    assert heads == {key.removeprefix("classifier.").rpartition(".")[0] for key in lraspp if "classifier" in key}
    branches = {key.split(".")[3] for key in deeplab if key.startswith("classifier.0.convs.")}
    assert ({"0", "1", "2", "3", "4"}, (256, 1280, 1, 1)) == (branches, deeplab["classifier.0.project.0.weight"].shape)
    assert "classifier.0.convs.4.1.weight" in deeplab


@pytest.mark.slow
def test_training_script_of_scenes_writes_what_the_package_holds(tmp_path):
    """
    One short epoch into another folder writes weights, recipe and golden scenes; the scenes are the packaged ones.
    """
    train_scenes.main(["--epochs", "1", "--scenes", "32", "--output", str(tmp_path)])

    name = "lraspp_mobilenetv2_ca_035.scenes"
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert {"data/scenes_golden.npz", f"weights/{name}.safetensors", f"weights/{name}.json"} == written
    assert GOLDEN_FILE.read_bytes() == (tmp_path / "data" / "scenes_golden.npz").read_bytes()
    recipe = json.loads((tmp_path / "weights" / f"{name}.json").read_text())
    packaged = models.model_card(name).recipe()
    assert packaged["data"]["held_out"] == recipe["data"]["held_out"]
    assert packaged.keys() == recipe.keys()
