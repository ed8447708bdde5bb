"""MobileNetV2 with room for an attention block, laid out like the network of the coordinate-attention paper.

A bottleneck expands the channels t times, filters them with a depthwise 3x3 convolution and projects them linearly:

    y = project(attend(filter(expand(x))))        + x, where the stride is 1 and the channels stay

Attention sits on the expanded channels. The first bottleneck (t = 1) has nothing to expand and gets none, which
leaves 16 attention blocks. The indices in the ``nn.Sequential`` containers are the published checkpoint's
``features.{i}.conv.{j}`` keys: a new layer must not move them.
"""

import math
from collections.abc import Callable
from typing import Final, TypeAlias

from torch import Tensor, nn

Attention: TypeAlias = Callable[[int], nn.Module]
"""Builds the attention block for a number of channels."""

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


def round_channels(channels: float) -> int:
    """Return the multiple of 8 nearest to *channels*, at least 8 and never more than 10 % below it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class Bottleneck(nn.Module):
    """Inverted residual bottleneck: expand, filter, attend, project."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int, attention: Attention | None) -> None:
        """Build the block.

        Args:
            inputs: Channels that come in.
            outputs: Channels that go out.
            stride: Stride of the depthwise convolution.
            expansion: The depthwise convolution works on inputs * expansion channels.
            attention: Builds the attention block; None for none. Left out where *expansion* is 1.
        """
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
        ]
        if attention is not None and expansion > 1:
            layers.append(attention(hidden))
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.has_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.conv(x)
        return x + y if self.has_residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2 classifier for inputs (N, 3, H, W) of any size; the feature map is 32 times smaller."""

    def __init__(self, *, width: float = 1.0, num_classes: int = 1000, attention: Attention | None = None) -> None:
        """Build the network with fresh weights.

        Args:
            width: Factor on the channels of every layer but the head, which only grows (above 1.0).
            num_classes: Number of logits.
            attention: Builds the attention block of a bottleneck; None for the plain network.
        """
        super().__init__()
        channels = round_channels(STEM_CHANNELS * width)
        layers: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, channels, 3, 2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6())
        ]
        for expansion, base, repeats, first_stride in BOTTLENECKS:
            outputs = round_channels(base * width)
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                layers.append(Bottleneck(channels, outputs, stride=stride, expansion=expansion, attention=attention))
                channels = outputs
        head = round_channels(HEAD_CHANNELS * max(1.0, width))

        self.features = nn.Sequential(*layers)
        self.conv = nn.Sequential(nn.Conv2d(channels, head, 1, bias=False), nn.BatchNorm2d(head), nn.ReLU6())
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(head, num_classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of *x*, (N, 3, H, W)."""
        x = self.conv(self.features(x))  # (N, head, H / 32, W / 32)
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits


def initialise(network: nn.Module) -> None:
    """Draw the weights of *network* the way the paper's code does: He's fan-out rule for convolutions."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
