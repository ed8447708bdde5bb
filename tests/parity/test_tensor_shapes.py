"""Shapes of tensors, told from the layer map alone."""

import numpy as np

from coordatt_deploy.layer_map import Layer, Part
from coordatt_deploy.parity.tensor_shapes import expected_shapes


def values(height, width):
    """Of a map, its two strips and their concatenation."""
    return {
        "map": np.zeros((1, 8, height, width)),
        "rows": np.zeros((1, 8, height, 1)),
        "columns": np.zeros((1, 8, 1, width)),
        "both": np.zeros((1, 8, height + width, 1)),
        "act": np.zeros((1, 4, height + width, 1)),
        "pooled": np.zeros((1, 8)),
    }


LAYERS = (
    Layer("map", "conv2d", (1, 8, None, None), (Part("m", (0, 2, 3, 1)),)),
    Layer("rows", "mean", (1, 8, None, 1), (Part("r"),)),
    Layer("columns", "mean", (1, 8, 1, None), (Part("c"),)),
    Layer("both", "cat", (1, 8, None, 1), (Part("r"), Part("c", (0, 1, 3, 2))), axis=2),
    Layer("act", "hardswish", (1, 4, None, 1), (Part("a"), Part("b", (0, 1, 3, 2))), axis=2),
    Layer("pooled", "flatten", (1, 8), (Part("p"),)),
)
POOLED = {"p": (1, 8, 1, 1)}
SEEN = POOLED | {"m": (1, 6, 4, 8), "r": (1, 8, 6, 1), "c": (1, 8, 1, 4), "a": (1, 4, 6, 1), "b": (1, 4, 1, 4)}
TURNED = POOLED | {"m": (1, 4, 6, 8), "r": (1, 8, 4, 1), "c": (1, 8, 1, 6), "a": (1, 4, 4, 1), "b": (1, 4, 1, 6)}


def test_of_another_size():
    """
    Layouts and ranks are the artifact's; how long each of several parts is comes from those that it is made of.
    """
    assert expected_shapes(LAYERS, values(6, 4), SEEN) == SEEN
    assert expected_shapes(LAYERS, values(4, 6), SEEN) == TURNED


def test_parts_that_nothing_tells_the_length_of():
    """
    Without the layers before it, a layer of several parts has no shape.
    """
    assert expected_shapes(LAYERS[4:], values(4, 6), SEEN) is None
