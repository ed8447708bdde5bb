"""Files of a dynamic batch against torch, at batches that neither the capture nor the converter saw."""

import pytest
import torch
import torch.nn.functional as F
from files_against_torch import AllOf, check, randomised
from torch import nn

from coordatt_deploy.formats import Format
from coordatt_deploy.graph.graph import DynamicBatch, DynamicSize
from coordatt_deploy.models.coordatt import CoordAtt

pytestmark = pytest.mark.slow  # each runs a converter

OPEN = (Format.ONNX, Format.COREML)
IMAGES = (2, 3, 16, 24)  # two of them: torch.export takes one for what there always is
BATCH, BATCHES = DynamicBatch(1, 8), (1, 3, 8)


class Flat(nn.Module):
    """A convolution, a BatchNorm and a linear layer on what they give, flattened."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Linear(8 * 8 * 12, 5)

    def forward(self, image):
        return self.head(self.norm(self.stem(image)).relu().flatten(1))


class ByShape(Flat):
    """Asks for the batch and reshapes by it."""

    def forward(self, image):
        x = self.stem(image)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w).relu()
        return self.head(x.reshape(image.shape[0], -1)), x


class Attending(nn.Module):
    """A transformer's layer: a class token that is expanded to the batch, heads, products of matrices."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.heads, self.norm, self.head = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        n, count, c = x.shape
        q, k, v = self.heads(self.norm(x)).reshape(n, count, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
        return self.head((weights @ v).transpose(1, 2).reshape(n, count, c)[:, 0])


class Two(nn.Module):
    """Two images and a vector beside each other, and anchors that are the same for all."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.prior = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(6, 8)

    def forward(self, image, second, vector, anchors):
        x = self.one(image) * self.other(second).sigmoid()
        x = torch.cat([x, x + self.prior(vector)[:, :, None, None]], 1)
        return x.mean((2, 3)) @ anchors, x


class Attention(nn.Module):
    """The paper's block, which every target writes in a form of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.attention, self.mix = nn.Conv2d(3, 16, 3, 2, 1), CoordAtt(16), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        x = self.mix(self.attention(self.stem(image)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


NETWORKS = {"flat": Flat, "by shape": ByShape, "attending": Attending, "coordinate attention": Attention}
# What lowering writes in other terms, or a converter has an opinion on.
FUNCTIONS = {
    "ceil": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "greatest": lambda x: F.adaptive_max_pool2d(x, (3, 5)),
    "thirds": lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
    "bicubic": lambda x: F.interpolate(x, size=(13, 19), mode="bicubic"),
    "nearest": lambda x: F.interpolate(x, size=(12, 18)),
    "shuffled": lambda x: F.channel_shuffle(x, 2).relu(),
    "circular": lambda x: F.pad(x, (1, 2, 0, 1), mode="circular"),
    "summed": lambda x: x.cumsum(3),
    "squared": lambda x: x.unflatten(1, (2, 4)) ** 3,
    "share": lambda x: x.sum((2, 3)) / 7,
    "maximum": lambda x: x.max(1).values,
    "up": lambda x: F.pixel_shuffle(x, 2),
    "gate": lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x),
}


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize("name", NETWORKS)
def test_files_are_right_at_every_batch(name, kind):
    """
    Outputs and layers; one image, the captured two, three, and the largest.
    """
    # ONNX merges the reshapes of a form, or of the code, with others: 4 of 14 layers, also with a fixed batch.
    mapped = 0.7 if kind is Format.ONNX else 0.9
    module = randomised(NETWORKS[name]())
    graph, _ = check(module, IMAGES, formats=(kind,), batch=BATCH, batches=BATCHES, mapped=mapped)

    assert graph.inputs[0].shape[0] is None


@pytest.mark.parametrize("kind", OPEN)
def test_what_is_written_in_other_terms_follows_the_batch(kind):
    """
    No decomposition needs the number of images.
    """
    check(AllOf(FUNCTIONS), (2, 3, 16, 24), formats=(kind,), batch=BATCH, batches=BATCHES)


@pytest.mark.parametrize("kind", OPEN)
def test_all_inputs_share_the_batch_but_those_of_another_first_axis(kind):
    """
    Two images and a vector; a matrix of anchors stays as it is.
    """
    graph, _ = check(randomised(Two()), IMAGES, IMAGES, (2, 6), (16, 4), formats=(kind,), batch=BATCH, batches=BATCHES)

    assert [None, None, None, 16] == [spec.shape[0] for spec in graph.inputs]


class Sized(nn.Module):
    """Strip pools, a nearest resize and a global mean."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.attention, self.head = nn.Conv2d(3, 16, 3, 2, 1), CoordAtt(16), nn.Linear(16, 5)

    def forward(self, image):
        x = self.attention(self.stem(image))
        return self.head(F.interpolate(x, scale_factor=2.0).mean((2, 3)))


@pytest.mark.parametrize("kind", OPEN)
def test_a_dynamic_size_and_batch_together(kind):
    """
    At each batch in each size.
    """
    check(randomised(Sized()), (2, 3, 32, 48), formats=(kind,), dynamic=DynamicSize(16, 64, 8),
          sizes=((64, 16),), batch=BATCH, batches=(1, 3))  # fmt: skip
