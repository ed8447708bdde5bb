"""Where the layer map of a Core ML package says that values are: at tensors that the package has."""

import torch
import torch.nn.functional as F
from judged_layers import judged
from torch import nn

from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes.coreml.evaluator.package import block_of, read_model

SHAPE = (1, 3, 3, 4)


class Constant(nn.Module):
    """A piece of zeros that are made like a value, which coremltools computes beforehand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image):
        value = self.conv(image)
        return torch.cat([value, torch.zeros_like(value)[:, :1]], 1).sigmoid()


class Unclipped(nn.Module):
    """A clamp that these values do not reach, before a power and a mean."""

    def __init__(self, least=1e-2):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.least = nn.Conv2d(3, 4, 1), least

    def forward(self, image):
        value = self.conv(image).abs() + 0.1
        return F.adaptive_avg_pool2d(value.clamp(min=self.least).pow(3), 1).pow(1 / 3)


def filled(path):
    """Make the two zeros in the package 0.01."""
    model, _ = read_model(path)
    (zeros,) = (
        tensor.floats.values
        for operation in block_of(model).operations
        if operation.type == "const"
        and list((tensor := operation.attributes["val"].immediateValue.tensor).floats.values) == [0.0, 0.0]
    )
    zeros[:] = [0.01, 0.01]
    (specification,) = path.rglob("*.mlmodel")
    specification.write_bytes(model.SerializeToString())


def test_a_constant_is_judged_where_it_is_read():
    """
    The right package passes; one with another constant fails where that is joined.
    """
    close, found = judged(Format.COREML, Constant(), SHAPE)
    off, wrong = judged(Format.COREML, Constant(), SHAPE, edit=filled)

    assert (True, True) == (close, found.passed), found.sentence()
    assert (False, False) == (off, wrong.passed)
    at = {row.layer_id: row.seen_through or row.layer_id for row in wrong.rows}
    assert at[":cat"] == at[wrong.first_diverging_layer]


def test_a_clamp_has_its_name():
    """
    It has a tensor of its own even where it clips nothing, and one with another bound fails there.
    """
    right = Unclipped()
    close, found = judged(Format.COREML, right, SHAPE)
    _, wrong = judged(Format.COREML, right, SHAPE, made_of=Unclipped(least=1.0))

    assert (True, True) == (close, found.passed), found.sentence()
    assert [None] == [row.seen_through for row in found.rows if row.operator == "clamp"]
    assert ":clamp" == wrong.first_diverging_layer
