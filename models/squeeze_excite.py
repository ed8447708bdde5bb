"""Squeeze-and-excitation (Hu et al., CVPR 2018).

    squeeze:  p[c] = mean_ij x[c, i, j]
    gate:     a = sigmoid(excite(act(squeeze(p))))
    output:   y[c, i, j] = x[c, i, j] * a[c]

The reference, hujie-frank/SENet, is a Caffe network. Its PyTorch forms have layers and keys of their own, which
``SqueezeExciteLayers`` lists; they compute the same.
"""

from collections.abc import Mapping
from typing import Final

from torch import Tensor, nn

from coordatt_deploy.models.activations import activation_layer
from coordatt_deploy.models.attention_options import SqueezeExciteLayers, SqueezeExciteOptions


class LinearSqueezeExcite(nn.Module):
    """The layers are linear and called ``fc.0`` and ``fc.2``."""

    def __init__(self, channels: int, options: SqueezeExciteOptions) -> None:
        """Build the block for a feature map of so many channels."""
        super().__init__()
        squeezed = _squeezed(channels, options)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, squeezed, bias=options.bias),
            activation_layer(options.activation),
            nn.Linear(squeezed, channels, bias=options.bias),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W), by channel."""
        gate = self.fc(self.avg_pool(x).flatten(1))  # (N, C)
        gated: Tensor = x * gate[:, :, None, None]
        return gated


class ConvolutionalSqueezeExcite(nn.Module):
    """The layers are 1x1 convolutions and called ``conv.0`` and ``conv.2``."""

    def __init__(self, channels: int, options: SqueezeExciteOptions) -> None:
        """Build the block for a feature map of so many channels."""
        super().__init__()
        squeezed = _squeezed(channels, options)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1, bias=options.bias),
            activation_layer(options.activation),
            nn.Conv2d(squeezed, channels, 1, bias=options.bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W), by channel."""
        gated: Tensor = x * self.conv(self.pool(x)).sigmoid()
        return gated


class EfficientNetSqueezeExcite(nn.Module):
    """The layers are 1x1 convolutions and called ``conv_reduce`` and ``conv_expand``."""

    def __init__(self, channels: int, options: SqueezeExciteOptions) -> None:
        """Build the block for a feature map of so many channels."""
        super().__init__()
        squeezed = _squeezed(channels, options)
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1, bias=options.bias)
        self.act1 = activation_layer(options.activation)
        self.conv_expand = nn.Conv2d(squeezed, channels, 1, bias=options.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W), by channel."""
        gate = self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True))))  # (N, C, 1, 1)
        gated: Tensor = x * gate.sigmoid()
        return gated


_CLASSES: Final[Mapping[SqueezeExciteLayers, type[nn.Module]]] = {
    SqueezeExciteLayers.LINEAR: LinearSqueezeExcite,
    SqueezeExciteLayers.CONVOLUTIONS: ConvolutionalSqueezeExcite,
    SqueezeExciteLayers.EFFICIENTNET: EfficientNetSqueezeExcite,
}


def squeeze_excite(channels: int, options: SqueezeExciteOptions) -> nn.Module:
    """Return the block whose layers are built and called as the options say."""
    block: nn.Module = _CLASSES[options.layers](channels, options)
    return block


def _squeezed(channels: int, options: SqueezeExciteOptions) -> int:
    return max(1, channels // options.reduction)
