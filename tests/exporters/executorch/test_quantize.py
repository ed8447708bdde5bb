"""Integers in ExecuTorch files: how near they stay, what is left in float, one piece for XNNPACK."""

from collections import Counter

import numpy as np
import pytest
import torch
from executorch_files import images, made, quantized
from torch import nn

from coordatt_deploy.layer_map import restore
from coordatt_deploy.metrics import sqnr_db
from coordatt_deploy.runtimes.executorch.program_file import opened
from coordatt_deploy.runtimes.executorch.tensors import operators, sources


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("executorch")
    source = made(folder, integer=True)
    return source, quantized(source, folder)


def kinds(made):
    return Counter(item.name for item in operators(opened(made.path.read_bytes(), made.path.name)))


def conversions(made):
    """How many there are of more than one value."""
    file = opened(made.path.read_bytes(), made.path.name)
    known = sources(file)
    return sum(item.name == "XNNConvert" and np.prod(known[item.inputs[0]].shape) > 1 for item in operators(file))


def test_integers_are_near_floats(files):
    """
    Both outputs, on an image that no range was measured on.
    """
    _, integers = files
    image = images(seed=11)
    with torch.no_grad():
        expected = integers.module(torch.from_numpy(image))

    with integers.open() as runner:
        results = runner.infer({"image": image})

    for spec, reference in zip(integers.artifact.outputs, expected, strict=True):
        assert 25 < sqnr_db(reference.numpy(), results[spec.name]) < 60


def test_all_of_it_is_computed_in_integers_in_one_piece(files):
    """
    The image is converted once, each output once back; hard-swish is a product, strip pools are means.
    """
    source, integers = files
    found = kinds(integers)

    assert 3 == conversions(integers)
    assert not {"XNNHardswish", "XNNAvgPooling2d"} & found.keys()
    assert kinds(source)["XNNAvgPooling2d"] + kinds(source)["XNNGlobalAvgPooling2d"] == found["XNNGlobalAvgPooling2d"]
    assert 1 == len(opened(integers.path.read_bytes(), "int8").graphs)


def test_floats_leave_the_file(files):
    """
    The floats that integers have taken the place of are not in the file any more.
    """
    sizes = [{len(item) for item in opened(made.path.read_bytes(), "file").segments} for made in files]
    kernel = 16 * 3 * 3 * 3

    assert {4 * kernel} == sizes[0] & {4 * kernel, kernel}
    assert {kernel} == sizes[1] & {4 * kernel, kernel}


def test_layers_stay_where_they_were(files):
    """
    Under the same names, as the floats that the integers stand for.
    """
    source, integers = files
    held = [layer for layer in integers.exported.layers.layers if layer.parts]
    names = tuple({part.tensor for layer in held for part in layer.parts})
    image = {"image": images(seed=11)}
    with source.open(tensors=names) as floats, integers.open(tensors=names) as runner:
        expected, actual = floats.infer(image), runner.infer(image)

    assert source.exported.layers == integers.exported.layers
    for layer in held:
        assert 15 < sqnr_db(restore(layer, expected), restore(layer, actual)), layer.layer_id


def test_a_layer_can_stay_in_float(files, tmp_path):
    """
    With conversions around it, inside of the same piece.
    """
    source, _ = files
    kept = quantized(source, tmp_path, float_layers=("depthwise",))

    assert 5 == conversions(kept)
    assert 1 == len(opened(kept.path.read_bytes(), "int8").graphs)


def test_the_same_bytes_twice(files, tmp_path):
    """
    Nothing in it depends on the moment.
    """
    source, integers = files

    assert quantized(source, tmp_path).path.read_bytes() == integers.path.read_bytes()


def test_a_bias_of_a_dead_channel_fits(tmp_path):
    """
    A channel whose weights have vanished keeps its bias, which would not fit into 32 bits of its own tiny steps.
    """
    module = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        module.weight[2] = 1e-12
        module.bias[2] = 3.0
    integers = quantized(made(tmp_path, module, integer=True), tmp_path)

    with integers.open() as runner:
        (result,) = runner.infer({"image": images()}).values()

    assert np.allclose(3.0, result[:, 2], atol=0.05)
