"""MobileNetV2 (Sandler et al., CVPR 2018) with room for an attention block, laid out like CoordAtt's network.

A bottleneck expands the channels t times, filters them with a depthwise 3x3 convolution and projects them linearly:

    y = project(attend(filter(expand(x))))        + x, where the stride is 1 and the channels stay

Attention sits on the expanded channels, as above, or behind the projection, as in the networks of ECA's and Triplet's
authors. The first bottleneck (t = 1) has nothing to expand and gets none there, which leaves 16 attention blocks;
behind the projection there are 17. The indices in the ``nn.Sequential`` containers are the published checkpoint's
``features.{i}.conv.{j}`` keys: a new layer must not move them.
"""

from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from coordatt_deploy.models.attention_options import Place
from coordatt_deploy.models.building_blocks import AttentionBuilder, initialise, round_channels

BOTTLENECKS: Final = (
    # expansion t, channels c at width 1.0, repeats n, stride s of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM_CHANNELS: Final = 32
HEAD_CHANNELS: Final = 1280
DROPOUT: Final = 0.1


class Bottleneck(nn.Module):
    """Inverted residual bottleneck: expand, filter, attend, project."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int,
        expansion: int,
        attention: AttentionBuilder | None,
        place: Place = Place.AFTER_DEPTHWISE,
        dilation: int = 1,
    ) -> None:
        """Build the block.

        Args:
            inputs: Channels that come in.
            outputs: Channels that go out.
            stride: Stride of the depthwise convolution.
            expansion: The depthwise convolution works on inputs * expansion channels.
            attention: Builds the attention block; None for none.
            place: ``AFTER_DEPTHWISE``, where it is left out if *expansion* is 1, or ``AFTER_PROJECTION``.
            dilation: Of the depthwise convolution.
        """
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, padding=dilation, dilation=dilation, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
        ]
        if attention is not None and place is Place.AFTER_DEPTHWISE and expansion > 1:
            layers.append(attention(hidden, expansion=expansion))
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        if attention is not None and place is Place.AFTER_PROJECTION:
            layers.append(attention(outputs))
        self.conv = nn.Sequential(*layers)
        self.has_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.conv(x)
        return x + y if self.has_residual else y


@dataclass(frozen=True, slots=True)
class Features:
    """The convolutions of a MobileNetV2.

    Attributes:
        layers: The stem, then the bottlenecks.
        channels: That each of them gives.
    """

    layers: nn.Sequential
    channels: tuple[int, ...]


def build_features(
    width: float, attention: AttentionBuilder | None, place: Place, *, greatest_stride: int = 32
) -> Features:
    """Build stem and bottlenecks with fresh weights.

    Args:
        width: Factor on the channels of every layer.
        attention: Builds the attention block of a bottleneck; None for none.
        place: Where in a bottleneck it stands.
        greatest_stride: How many times smaller the feature map may become. Bottlenecks that would go beyond it keep the
            size, and their depthwise convolutions are dilated to see as far as before, as in DeepLab.
    """
    channels = [round_channels(STEM_CHANNELS * width)]
    layers: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(3, channels[0], 3, 2, padding=1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU6())
    ]
    reached, dilation = 2, 1
    for expansion, base, repeats, first_stride in BOTTLENECKS:
        outputs = round_channels(base * width)
        for index in range(repeats):
            stride = first_stride if index == 0 else 1
            if reached * stride > greatest_stride:
                stride, dilation = 1, dilation * stride
            reached *= stride
            layers.append(
                Bottleneck(
                    channels[-1], outputs, stride=stride, expansion=expansion, attention=attention, place=place,
                    dilation=dilation,
                )
            )  # fmt: skip
            channels.append(outputs)
    return Features(nn.Sequential(*layers), tuple(channels))


class MobileNetV2(nn.Module):
    """MobileNetV2 classifier for inputs (N, 3, H, W) of any size; the feature map is 32 times smaller."""

    def __init__(
        self,
        *,
        width: float = 1.0,
        num_classes: int = 1000,
        attention: AttentionBuilder | None = None,
        place: Place = Place.AFTER_DEPTHWISE,
    ) -> None:
        """Build the network with fresh weights.

        Args:
            width: Factor on the channels of every layer but the head, which only grows (above 1.0).
            num_classes: Number of logits.
            attention: Builds the attention block of a bottleneck; None for the plain network.
            place: Where in a bottleneck it stands.
        """
        super().__init__()
        features = build_features(width, attention, place)
        channels, head = features.channels[-1], round_channels(HEAD_CHANNELS * max(1.0, width))
        self.features = features.layers
        self.conv = nn.Sequential(nn.Conv2d(channels, head, 1, bias=False), nn.BatchNorm2d(head), nn.ReLU6())
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(head, num_classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of *x*, (N, 3, H, W)."""
        x = self.conv(self.features(x))  # (N, head, H / 32, W / 32)
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits
