"""MobileNeXt (Zhou et al., ECCV 2020) with room for an attention block, laid out like its authors' code.

A sandglass block filters the wide channels that come in, reduces them t times, expands them again and filters those:

    y = filter(relu6(expand(reduce(relu6(filter(x))))))        + x, where the block has a residual

The code differs from the paper's figure, and the published numbers are the code's. Where the channels change, the
first filter is left out (features.3, 6, 9, 13, 17), and the second one too where the stride is 1 (features.9, 17).
The first block, and blocks that stand alone at stride 1 (features.1, 2, 20), have both filters and no residual. The
indices in the ``nn.Sequential`` containers are the published checkpoints' ``features.{i}.conv.{j}`` keys.
"""

import math
from typing import Final

from torch import Tensor, nn

from coordatt_deploy.models.attention_options import Place
from coordatt_deploy.models.building_blocks import AttentionBuilder, initialise, round_channels

SANDGLASSES: Final = (
    # reduction t, channels c at width 1.0, repeats n, stride s of the first
    (2, 96, 1, 2),
    (6, 144, 1, 1),
    (6, 192, 3, 2),
    (6, 288, 3, 2),
    (6, 384, 4, 1),
    (6, 576, 4, 2),
    (6, 960, 3, 1),  # the arXiv version says 2; its authors call that a typing error
    (6, 1280, 1, 1),
)
STEM_CHANNELS: Final = 32
HEAD_CHANNELS: Final = 1280
DROPOUT: Final = 0.1


class Sandglass(nn.Module):
    """Sandglass block: filter, reduce, expand, filter."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int,
        reduction: int,
        alone: bool,
        attention: AttentionBuilder | None,
        place: Place,
    ) -> None:
        """Build the block.

        Args:
            inputs: Channels that come in.
            outputs: Channels that go out.
            stride: Stride of the second depthwise convolution.
            reduction: The middle has inputs // reduction channels; more where that is under a sixth of *outputs*.
            alone: Whether it is the only block of its stage at stride 1.
            attention: Builds the attention block; None for none.
            place: One of the three after a depthwise convolution or the reduction; left out where that is.
        """
        super().__init__()
        middle = inputs // reduction
        if middle < outputs / 6:
            middle = round_channels(math.ceil(outputs / 6), 16)
        whole = alone or reduction == 2 or inputs == outputs

        def attend(where: Place, channels: int) -> list[nn.Module]:
            return [attention(channels)] if attention is not None and place is where else []

        layers: list[nn.Module] = []
        if whole:
            layers += [*_filter(inputs, 1), nn.ReLU6(), *attend(Place.AFTER_FIRST_DEPTHWISE, inputs)]
        layers += [nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle)]
        layers += attend(Place.AFTER_REDUCTION, middle)
        layers += [nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6()]
        if whole or stride == 2:
            layers += [*_filter(outputs, stride), *attend(Place.AFTER_LAST_DEPTHWISE, outputs)]
        self.conv = nn.Sequential(*layers)
        self.has_residual = inputs == outputs and not alone and reduction != 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.conv(x)
        return y + x if self.has_residual else y


def _filter(channels: int, stride: int) -> tuple[nn.Module, nn.Module]:
    """A depthwise 3x3 convolution and its BatchNorm."""
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False), nn.BatchNorm2d(channels)


class MobileNeXt(nn.Module):
    """MobileNeXt classifier for inputs (N, 3, H, W) of any size; the feature map is 32 times smaller."""

    def __init__(
        self,
        *,
        width: float = 1.0,
        num_classes: int = 1000,
        attention: AttentionBuilder | None = None,
        place: Place = Place.AFTER_FIRST_DEPTHWISE,
    ) -> None:
        """Build the network with fresh weights.

        Args:
            width: Factor on the channels of every layer but the last block, which only grows (above 1.0).
            num_classes: Number of logits.
            attention: Builds the attention block of a sandglass block; None for the plain network.
            place: Where in a sandglass block it stands.
        """
        super().__init__()
        channels = round_channels(STEM_CHANNELS * width)
        layers: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, channels, 3, 2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6())
        ]
        for reduction, base, repeats, first_stride in SANDGLASSES:
            outputs = round_channels(base * (max(1.0, width) if base == HEAD_CHANNELS else width))
            for index in range(repeats):
                layers.append(
                    Sandglass(
                        channels,
                        outputs,
                        stride=first_stride if index == 0 else 1,
                        reduction=reduction,
                        alone=repeats == 1 and first_stride == 1,
                        attention=attention,
                        place=place,
                    )
                )
                channels = outputs
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(channels, num_classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of *x*, (N, 3, H, W)."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits
