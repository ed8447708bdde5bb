"""A configuration of timm, against what timm's own transform makes of images (``benchmarks.timm_configurations``)."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.timm_configurations import PLACES, SIZES, image, places
from coordatt_deploy.data.images import preprocess
from coordatt_deploy.errors import UsageError
from coordatt_deploy.loading.timm_preprocessing import HONOURED, NAMED, SAYS_NOTHING, check_size, read_config

RECORDED = json.loads((Path(__file__).parent / "timm_configurations.json").read_text())
CONFIGURATIONS = RECORDED["configurations"]
ODD = [item for item in CONFIGURATIONS
       if max(item["input_size"]) <= 240 and (item["crop_mode"] != "center" or item["crop_pct"] > 1)]  # fmt: skip


def worst(config, crop=None):
    """The greatest difference to timm's own tensor over the places that were kept, in units of the tensor."""
    fields = {key: config[key] for key in ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")}
    found = read_config(fields if crop is None else fields | {"crop_mode": crop})
    tensors = [places(preprocess(image(size), found.preprocessing)) for size in SIZES]
    return float(np.max(np.abs(np.array(tensors) - np.array(config["tensors"]))))


def test_every_configuration_was_recorded():
    """
    The record is of all 1,826 pretrained configurations of timm 1.0.31, 137 of them squash or border.
    """
    assert 1826 == sum(item["count"] for item in CONFIGURATIONS)
    assert 137 == sum(item["count"] for item in CONFIGURATIONS if item["crop_mode"] != "center")
    assert {(len(SIZES), PLACES**2)} == {np.array(item["tensors"]).shape[:2] for item in CONFIGURATIONS}


@pytest.mark.parametrize(
    "config", ODD, ids=lambda item: f"{item['crop_mode']}-{item['crop_pct']}-{item['input_size'][1]}"
)
def test_an_unusual_crop_is_timms(config):
    """
    Squashed, bordered and padded images are the tensors that timm makes, up to the rounding of float32.
    """
    assert worst(config) < 1e-4


def test_a_crop_taken_for_another_would_be_seen():
    """
    The negative: squash and border read as center differ by far more than rounding.
    """
    assert all(worst(item, crop="center") > 0.1 for item in ODD if item["crop_mode"] != "center")


@pytest.mark.slow
def test_every_configuration_is_timms():
    """
    Of all distinct configurations, each tensor is the one that timm makes.
    """
    assert [] == [item["input_size"] for item in CONFIGURATIONS if worst(item) >= 1e-4]


def test_every_field_has_a_place():
    """
    Each field that a configuration of timm has is honoured, named for the user, or known to say nothing.
    """
    assert set() == set(RECORDED["fields"]) - HONOURED - NAMED - SAYS_NOTHING
    assert [] == sorted(HONOURED & NAMED | HONOURED & SAYS_NOTHING | NAMED & SAYS_NOTHING)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("test_input_size", (3, 288, 288), "tests these weights at 288x288"),
        ("test_crop_pct", 1.0, "crop ratio of 1;"),
        ("min_input_size", (3, 96, 96), "96x96 as the least size"),
        ("num_classes", 0, "no classifier"),
        ("license", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("label_offset", 1, "label_offset"),
        ("interpolation", "lanczos", "interpolation 'lanczos' cannot be expressed; bicubic is taken"),
        ("crop_mode", "mosaic", "crop_mode 'mosaic' cannot be expressed; center is taken"),
        ("colour_space", "lab", "colour_space"),
    ],
)
def test_what_is_not_honoured_is_named(field, value, said):
    """
    A field that cannot be expressed, or that is unknown, is in the notes; without it there is no such note.
    """
    config = {"input_size": (3, 224, 224), "num_classes": 1000}

    assert any(said in note for note in read_config(config | {field: value}).notes)
    assert not any(said in note for note in read_config(config).notes)


def test_a_fixed_size_is_refused_with_the_way_out():
    """
    A module of fixed size is not built for another one unless timm is told so.
    """
    config = {"input_size": (3, 224, 224), "fixed_input_size": True}

    with pytest.raises(UsageError, match=r"--model-args '{\"img_size\": \[256, 320\]}'"):
        check_size("vit", config, (256, 320), {})
    check_size("vit", config, (224, 224), {})
    check_size("vit", config, (256, 320), {"img_size": (256, 320)})
    check_size("resnet", config | {"fixed_input_size": False}, (256, 320), {})


def test_class_names_of_the_configuration_are_taken():
    """
    Names of classes go on to the artifacts.
    """
    assert ("cat", "dog") == read_config({"label_names": ["cat", "dog"]}).labels
    assert read_config({}).labels is None
