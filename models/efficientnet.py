"""EfficientNet-B0 (Tan and Le, ICML 2019) with room for an attention block, laid out like timm's network.

A block is MobileNetV2's inverted bottleneck with SiLU instead of ReLU6, kernels of 3 or 5, and attention in every
block, also in the first, which expands nothing:

    y = project(attend(filter(expand(x))))        + x, where the stride is 1 and the channels stay

The published network attends by squeeze-and-excitation. Module names are timm's (``blocks.{i}.{j}.conv_dw``), so that
its weights fit; another block takes the place of ``se``, or stands behind the projection as ``attention``.
"""

from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from coordatt_deploy.models.attention_options import Place
from coordatt_deploy.models.building_blocks import AttentionBuilder, initialise, round_channels

STAGES: Final = (
    # expansion t, channels c at width 1.0, repeats n, stride s of the first, side of the depthwise kernel
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM_CHANNELS: Final = 32
HEAD_CHANNELS: Final = 1280
DROPOUT: Final = 0.2


@dataclass(frozen=True, slots=True)
class Convolutions:
    """What a block's convolutions are made from.

    Attributes:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the depthwise convolution.
        kernel_size: Side of its kernel.
        expansion: It works on inputs * expansion channels.
    """

    inputs: int
    outputs: int
    stride: int
    kernel_size: int
    expansion: int

    @property
    def has_residual(self) -> bool:
        """Whether what comes in is added to what goes out."""
        return self.stride == 1 and self.inputs == self.outputs

    def depthwise(self) -> nn.Conv2d:
        """Return the depthwise convolution."""
        channels, padding = self.inputs * self.expansion, self.kernel_size // 2
        return nn.Conv2d(
            channels, channels, self.kernel_size, self.stride, padding=padding, groups=channels, bias=False
        )


class SeparableBlock(nn.Module):
    """The first block: filter, attend, project."""

    def __init__(self, sizes: Convolutions, *, attention: AttentionBuilder | None, place: Place) -> None:
        """Build the block; see ``InvertedBottleneck``."""
        super().__init__()
        inputs, outputs = sizes.inputs, sizes.outputs
        self.conv_dw = sizes.depthwise()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act = nn.SiLU()
        self.se: nn.Module = nn.Identity()
        if attention is not None and place is Place.AFTER_DEPTHWISE:
            self.se = attention(inputs)
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.attention: nn.Module = nn.Identity()
        if attention is not None and place is Place.AFTER_PROJECTION:
            self.attention = attention(outputs)
        self.has_residual = sizes.has_residual

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.se(self.act(self.bn1(self.conv_dw(x))))
        projected: Tensor = self.attention(self.bn2(self.conv_pw(y)))
        return projected + x if self.has_residual else projected


class InvertedBottleneck(nn.Module):
    """MBConv: expand, filter, attend, project."""

    def __init__(self, sizes: Convolutions, *, attention: AttentionBuilder | None, place: Place) -> None:
        """Build the block.

        Args:
            sizes: Of its convolutions.
            attention: Builds the attention block; None for none.
            place: ``AFTER_DEPTHWISE`` or ``AFTER_PROJECTION``.
        """
        super().__init__()
        inputs, outputs, expansion = sizes.inputs, sizes.outputs, sizes.expansion
        hidden = inputs * expansion
        self.conv_pw = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.act1 = nn.SiLU()
        self.conv_dw = sizes.depthwise()
        self.bn2 = nn.BatchNorm2d(hidden)
        self.act2 = nn.SiLU()
        self.se: nn.Module = nn.Identity()
        if attention is not None and place is Place.AFTER_DEPTHWISE:
            self.se = attention(hidden, expansion=expansion)
        self.conv_pwl = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.attention: nn.Module = nn.Identity()
        if attention is not None and place is Place.AFTER_PROJECTION:
            self.attention = attention(outputs)
        self.has_residual = sizes.has_residual

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.act1(self.bn1(self.conv_pw(x)))
        y = self.se(self.act2(self.bn2(self.conv_dw(y))))
        projected: Tensor = self.attention(self.bn3(self.conv_pwl(y)))
        return projected + x if self.has_residual else projected


class EfficientNet(nn.Module):
    """EfficientNet classifier for inputs (N, 3, H, W) of any size; the feature map is 32 times smaller."""

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
            width: Factor on the channels of every layer; 1.0 is B0.
            num_classes: Number of logits.
            attention: Builds the attention block of each block; None for the plain network.
            place: Where in a block it stands.
        """
        super().__init__()
        channels = round_channels(STEM_CHANNELS * width)
        self.conv_stem = nn.Conv2d(3, channels, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.SiLU()
        stages: list[nn.Module] = []
        for expansion, base, repeats, first_stride, kernel_size in STAGES:
            outputs = round_channels(base * width)
            blocks: list[nn.Module] = []
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                sizes = Convolutions(channels, outputs, stride, kernel_size, expansion)
                kind = SeparableBlock if expansion == 1 else InvertedBottleneck
                blocks.append(kind(sizes, attention=attention, place=place))
                channels = outputs
            stages.append(nn.Sequential(*blocks))
        head = round_channels(HEAD_CHANNELS * width)
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(channels, head, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(head)
        self.act2 = nn.SiLU()
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(head, num_classes)
        initialise(self, per_group=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of *x*, (N, 3, H, W)."""
        x = self.blocks(self.act1(self.bn1(self.conv_stem(x))))
        x = self.act2(self.bn2(self.conv_head(x)))  # (N, head, H / 32, W / 32)
        logits: Tensor = self.classifier(self.drop(self.global_pool(x).flatten(1)))
        return logits
