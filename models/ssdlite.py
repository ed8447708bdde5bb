"""SSDLite320 on MobileNetV2: boxes and classes at 3,234 places of an image of 320x320.

Six feature maps, each a half of the one before, get a head each: a depthwise 3x3 and a pointwise convolution give four
offsets and a score per class for every one of six prior boxes at every place (only a pointwise one on the last map).
The structure, the priors and the coding of the boxes are those of lufficc/SSD, ``mobilenet_v2_ssd320``, which the
SSDLite code of MobileNeXt's and CoordAtt's authors is made from:

    map          features.13   conv    extras.0   extras.1   extras.2   extras.3
    at 320       20x20         10x10   5x5        3x3        2x2        1x1
    channels     96            1280    512        256        256        64

    box centre = prior centre + 0.1 * offset * prior size        box size = prior size * exp(0.2 * offset)

W. Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016; M. Sandler et al., "MobileNetV2", CVPR 2018, sec. 6.2.
Suppressing boxes that overlap (NMS) is no part of the network: it belongs into a Core ML pipeline or the app.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Final

import torch
from torch import Tensor, nn

from coordatt_deploy.models.attention_options import Place
from coordatt_deploy.models.building_blocks import AttentionBuilder, initialise, round_channels
from coordatt_deploy.models.mobilenet_v2 import HEAD_CHANNELS, build_features

SIZE: Final = 320  # that the sizes of the priors, in pixels, belong to
FIRST: Final = 13  # the last layer of MobileNetV2 at a stride of 16
EXTRAS: Final = ((512, 0.2), (256, 0.25), (256, 0.5), (64, 0.25))  # channels out, and expansion (a reduction here)
PRIOR_SIZES: Final = (60, 105, 150, 195, 240, 285, 330)  # of each map, and of the one behind the last
RATIO: Final = 3.0  # of the oblong priors, beside 2
PRIORS: Final = 6
CENTRE_VARIANCE: Final = 0.1
SIZE_VARIANCE: Final = 0.2


class Extra(nn.Module):
    """A bottleneck that halves the map: 1x1, depthwise 3x3 at a stride of 2, linear 1x1."""

    def __init__(self, inputs: int, outputs: int, expansion: float) -> None:
        """Build it; the inner convolution works on inputs * expansion channels."""
        super().__init__()
        hidden = round(inputs * expansion)
        self.conv = nn.Sequential(
            nn.Sequential(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            nn.Sequential(
                nn.Conv2d(hidden, hidden, 3, 2, padding=1, groups=hidden, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU6(),
            ),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / 2, W / 2)."""
        y: Tensor = self.conv(x)
        return y


def _head(channels: int, outputs: int, *, last: bool) -> nn.Module:
    """A head of one map."""
    if last:
        return nn.Conv2d(channels, outputs, 1)
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.BatchNorm2d(channels),
        nn.ReLU6(),
        nn.Conv2d(channels, outputs, 1),
    )


class BoxPredictor(nn.Module):
    """The heads of all maps."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        """Build them for maps of so many *channels*."""
        super().__init__()
        last = len(channels) - 1
        self.num_classes = num_classes
        self.cls_headers = nn.ModuleList(
            _head(count, PRIORS * num_classes, last=level == last) for level, count in enumerate(channels)
        )
        self.reg_headers = nn.ModuleList(
            _head(count, PRIORS * 4, last=level == last) for level, count in enumerate(channels)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return offsets (N, priors, 4) and scores (N, priors, num_classes): map by map, row by row, prior by prior."""
        offsets, scores = [], []
        for features, score, offset in zip(maps, self.cls_headers, self.reg_headers, strict=True):
            offsets.append(_by_prior(offset(features), 4))
            scores.append(_by_prior(score(features), self.num_classes))
        return torch.cat(offsets, dim=1), torch.cat(scores, dim=1)


def _by_prior(values: Tensor, each: int) -> Tensor:
    """Bring (N, priors * each, H, W) to (N, H * W * priors, each)."""
    count = values.shape[1] // each * values.shape[2] * values.shape[3]
    return values.permute(0, 2, 3, 1).reshape(-1, count, each)


class SSDLite(nn.Module):
    """SSDLite for inputs (N, 3, H, W); made for 320x320."""

    def __init__(
        self,
        *,
        width: float = 1.0,
        num_classes: int = 21,
        attention: AttentionBuilder | None = None,
        place: Place = Place.AFTER_DEPTHWISE,
        decode: bool = False,
    ) -> None:
        """Build the network with fresh weights.

        Args:
            width: Factor on the channels of the backbone.
            num_classes: With the background, which is class 0.
            attention: Builds the attention block of a bottleneck; None for the plain backbone.
            place: Where in a bottleneck it stands.
            decode: Whether boxes and probabilities come out instead of offsets and scores.
        """
        super().__init__()
        features = build_features(width, attention, place)
        head = round_channels(HEAD_CHANNELS * max(1.0, width))
        self.features = features.layers
        self.conv = nn.Sequential(
            nn.Conv2d(features.channels[-1], head, 1, bias=False), nn.BatchNorm2d(head), nn.ReLU6()
        )
        channels = [features.channels[FIRST], head]
        extras = []
        for outputs, expansion in EXTRAS:
            extras.append(Extra(channels[-1], outputs, expansion))
            channels.append(outputs)
        self.extras = nn.ModuleList(extras)
        self.predictor = BoxPredictor(channels, num_classes)
        self.decode = decode
        initialise(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return what is at each of the priors of *x*, (N, 3, H, W).

        Returns:
            ``box_offsets`` (N, priors, 4) and ``class_logits`` (N, priors, num_classes). With ``decode``: ``boxes``
            (N, priors, 4), left, top, right and bottom in parts of the image's sides, and ``scores``, probabilities.
        """
        maps = [self.features[: FIRST + 1](x)]
        maps.append(self.conv(self.features[FIRST + 1 :](maps[0])))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        offsets, logits = self.predictor(maps)
        if not self.decode:
            return {"box_offsets": offsets, "class_logits": logits}
        sizes = [(int(features.shape[2]), int(features.shape[3])) for features in maps]
        priors = prior_boxes(sizes, (int(x.shape[2]), int(x.shape[3]))).to(offsets)
        return {"boxes": decode_boxes(offsets, priors), "scores": logits.softmax(dim=2)}


def prior_boxes(sizes: Sequence[tuple[int, int]], image: tuple[int, int]) -> Tensor:
    """Return the priors of an image.

    Args:
        sizes: (H, W) of each feature map.
        image: (H, W); the priors grow with it.

    Returns:
        (priors, 4) float64: the centre's x and y, width and height, in parts of the image's sides, cut off at 0 and 1.
    """
    found = []
    for level, (rows, columns) in enumerate(sizes):
        least, greater = PRIOR_SIZES[level] / SIZE, PRIOR_SIZES[level + 1] / SIZE
        # whole pixels, as the reference has them: 16, 32, 64, 107, 160 and 320 at 320
        down, across = math.ceil(image[0] / rows) / image[0], math.ceil(image[1] / columns) / image[1]
        for row, column in product(range(rows), range(columns)):
            centre = ((column + 0.5) * across, (row + 0.5) * down)
            between = math.sqrt(least * greater)
            shapes = [(least, least), (between, between)]
            for ratio in (2.0, RATIO):
                root = math.sqrt(ratio)
                shapes += [(least * root, least / root), (least / root, least * root)]
            found += [(*centre, *shape) for shape in shapes]
    return torch.tensor(found, dtype=torch.float64).clamp(0.0, 1.0)


def decode_boxes(offsets: Tensor, priors: Tensor) -> Tensor:
    """Return boxes (N, priors, 4), left, top, right and bottom, of offsets (N, priors, 4); the equation is above."""
    centre = priors[:, :2] + CENTRE_VARIANCE * offsets[..., :2] * priors[:, 2:]
    half = 0.5 * priors[:, 2:] * torch.exp(SIZE_VARIANCE * offsets[..., 2:])
    return torch.cat([centre - half, centre + half], dim=2)
