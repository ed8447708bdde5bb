"""DeepLabV3 and LR-ASPP on MobileNetV2: a class for each pixel, as scores of every class at the size of the image.

Both take the feature map at a stride of 16 (the last bottlenecks are dilated instead of strided) and bring their scores
back to the image's size bilinearly:

    DeepLabV3   image -> features -> ASPP: 1x1, three dilated 3x3 and the mean of the image, 256 channels each, side by
                side -> 1x1 to 256 -> 1x1 to the classes -> upsampled 16 times
    LR-ASPP     image -> features -> 1x1 to 128, times a sigmoid gate of the mean of the image -> upsampled twice
                -> 1x1 to the classes, + 1x1 to the classes of the features at a stride of 8 -> upsampled 8 times

L.-C. Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv:1706.05587 (2017); A. Howard
et al., "Searching for MobileNetV3", ICCV 2019, section 4.5. The names of the head's layers are torchvision's. DeepLabV3
has no further 3x3 convolution behind ASPP's projection, which torchvision's has: without it the network has the 4.5M
parameters (5.0M with coordinate attention) that CoordAtt's authors report.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from coordatt_deploy.models.attention_options import Place
from coordatt_deploy.models.building_blocks import AttentionBuilder, initialise
from coordatt_deploy.models.mobilenet_v2 import build_features

STRIDE: Final = 16
LOW: Final = 6  # the last layer of MobileNetV2 at a stride of 8
ASPP_CHANNELS: Final = 256
RATES: Final = (6, 12, 18)  # of ASPP's dilated convolutions at a stride of 16
ASPP_DROPOUT: Final = 0.5
LRASPP_CHANNELS: Final = 128
OUTPUT: Final = "mask_logits"


class Backbone(nn.Module):
    """MobileNetV2 up to a stride of 16, without its classifier."""

    def __init__(self, width: float, attention: AttentionBuilder | None, place: Place) -> None:
        """Build it with fresh weights; see ``MobileNetV2``."""
        super().__init__()
        features = build_features(width, attention, place, greatest_stride=STRIDE)
        self.features = features.layers
        self.low_channels, self.high_channels = features.channels[LOW], features.channels[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps (N, low_channels, H / 8, W / 8) and (N, high_channels, H / 16, W / 16) of (N, 3, H, W)."""
        low: Tensor = self.features[: LOW + 1](x)
        high: Tensor = self.features[LOW + 1 :](low)
        return low, high


def _convolution(inputs: int, outputs: int, *, rate: int | None = None) -> nn.Sequential:
    """A convolution, 1x1 or dilated 3x3, with its BatchNorm and ReLU."""
    kernel, dilation = (1, 1) if rate is None else (3, rate)
    padding = 0 if rate is None else rate
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class ImagePooling(nn.Sequential):
    """The mean over the image, through a 1x1 convolution, everywhere."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Build it."""
        super().__init__(nn.AdaptiveAvgPool2d(1), *_convolution(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H, W)."""
        y = x
        for layer in self:
            y = layer(y)
        return functional.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: what is around each place, at several distances."""

    def __init__(self, inputs: int) -> None:
        """Build it."""
        super().__init__()
        self.convs = nn.ModuleList([
            _convolution(inputs, ASPP_CHANNELS),
            *(_convolution(inputs, ASPP_CHANNELS, rate=rate) for rate in RATES),
            ImagePooling(inputs, ASPP_CHANNELS),
        ])  # fmt: skip
        self.project = nn.Sequential(
            *_convolution(len(self.convs) * ASPP_CHANNELS, ASPP_CHANNELS), nn.Dropout(ASPP_DROPOUT)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, 256, H, W)."""
        y: Tensor = self.project(torch.cat([branch(x) for branch in self.convs], dim=1))
        return y


class DeepLabV3(nn.Module):
    """DeepLabV3 for inputs (N, 3, H, W) of any size."""

    def __init__(
        self,
        *,
        width: float = 1.0,
        num_classes: int = 21,
        attention: AttentionBuilder | None = None,
        place: Place = Place.AFTER_DEPTHWISE,
    ) -> None:
        """Build the network with fresh weights; see ``MobileNetV2``. *num_classes* counts the background."""
        super().__init__()
        self.backbone = Backbone(width, attention, place)
        self.classifier = nn.Sequential(ASPP(self.backbone.high_channels), nn.Conv2d(ASPP_CHANNELS, num_classes, 1))
        initialise(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return ``mask_logits``, (N, num_classes, H, W), of *x*, (N, 3, H, W)."""
        _, high = self.backbone(x)
        return {OUTPUT: _resized(self.classifier(high), x)}


class LRASPPHead(nn.Module):
    """The head of LR-ASPP."""

    def __init__(self, low_channels: int, high_channels: int, num_classes: int) -> None:
        """Build it."""
        super().__init__()
        self.cbr = _convolution(high_channels, LRASPP_CHANNELS)
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(high_channels, LRASPP_CHANNELS, 1, bias=False), nn.Sigmoid()
        )
        self.low_classifier = nn.Conv2d(low_channels, num_classes, 1)
        self.high_classifier = nn.Conv2d(LRASPP_CHANNELS, num_classes, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Return scores (N, num_classes, H / 8, W / 8) of the maps at strides of 8 and 16."""
        attended = _resized(self.cbr(high) * self.scale(high), low)
        scores: Tensor = self.low_classifier(low) + self.high_classifier(attended)
        return scores


class LRASPP(nn.Module):
    """LR-ASPP for inputs (N, 3, H, W) of any size."""

    def __init__(
        self,
        *,
        width: float = 1.0,
        num_classes: int = 21,
        attention: AttentionBuilder | None = None,
        place: Place = Place.AFTER_DEPTHWISE,
    ) -> None:
        """Build the network with fresh weights; see ``MobileNetV2``. *num_classes* counts the background."""
        super().__init__()
        self.backbone = Backbone(width, attention, place)
        self.classifier = LRASPPHead(self.backbone.low_channels, self.backbone.high_channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return ``mask_logits``, (N, num_classes, H, W), of *x*, (N, 3, H, W)."""
        low, high = self.backbone(x)
        return {OUTPUT: _resized(self.classifier(low, high), x)}


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """Bring *x* to the height and width of *like*, bilinearly, pixels being areas and not points."""
    return functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
