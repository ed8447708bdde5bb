"""What the backbones and attention blocks are made of."""

import math
from typing import Protocol

from torch import Tensor, nn


class AttentionBuilder(Protocol):
    """Builds the attention block of one place in a backbone."""

    def __call__(self, channels: int, *, expansion: int = 1) -> nn.Module:
        """Build a block for *channels*, which an inverted bottleneck has expanded so many times."""


class ConvBatchNorm(nn.Module):
    """A convolution that keeps the size, and its BatchNorm, called ``conv`` and ``bn`` as in CBAM and Triplet."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, momentum: float) -> None:
        """Build both; the convolution has no bias."""
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H, W)."""
        y: Tensor = self.bn(self.conv(x))
        return y


def round_channels(channels: float, divisor: int = 8) -> int:
    """Return the multiple of *divisor* nearest to *channels*, at least one and never more than 10 % below it."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def initialise(network: nn.Module, *, per_group: bool = False) -> None:
    """Draw the weights of *network* the way the code of CoordAtt's authors does: He's fan-out rule for convolutions.

    Args:
        network: Its convolutions, BatchNorms and linear layers are drawn anew.
        per_group: Whether the fan-out of a grouped convolution is that of one group, as in EfficientNet.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            outputs = module.out_channels // (module.groups if per_group else 1)
            fan_out = module.kernel_size[0] * module.kernel_size[1] * outputs
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
