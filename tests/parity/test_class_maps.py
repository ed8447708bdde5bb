"""An inner class map is judged by its elements: the right one passes, another choice of classes does not."""

import onnx
import pytest
import torch
from judged_layers import judged
from torch import nn

from coordatt_deploy.formats import Format


class Chosen(nn.Module):
    """Features of the pixels where a class is chosen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 5, 1)

    def forward(self, image):
        features = self.stem(image)
        classes = self.head(features).argmax(1, keepdim=True)
        return features * (classes == 2)


def least_in_place_of_greatest(path):
    model = onnx.load(path)
    (node,) = [node for node in model.graph.node if node.op_type == "ArgMax"]
    node.op_type = "ArgMin"
    onnx.save(model, path)


@pytest.mark.parametrize("edit", [None, least_in_place_of_greatest])
def test_a_class_map_that_chooses_otherwise_is_named(edit):
    """
    ArgMin in place of ArgMax, in the saved file.
    """
    right, found = judged(Format.ONNX, Chosen(), (1, 3, 32, 32), edit=edit)

    assert right is (edit is None)
    assert found.passed is right
    assert found.first_diverging_layer == (None if right else ":argmax")
