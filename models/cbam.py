"""CBAM, the convolutional block attention module (Woo et al., ECCV 2018).

    channels:  a[c] = sigmoid(mlp(mean_ij x) + mlp(max_ij x)),       x' = x * a
    places:    b[i, j] = sigmoid(bn(conv([max_c x'; mean_c x']))),   y = x' * b

Layout and keys are those of Jongchan/attention-module. It pools with kernels of the map's size; a mean and a maximum
give the same and take any size.
"""

import torch
from torch import Tensor, nn

from coordatt_deploy.models.activations import activation_layer
from coordatt_deploy.models.attention_options import CbamOptions
from coordatt_deploy.models.building_blocks import ConvBatchNorm


class ChannelGate(nn.Module):
    """Gate the channels by their mean and their maximum, through the same two layers."""

    def __init__(self, channels: int, options: CbamOptions) -> None:
        """Build the gate."""
        super().__init__()
        squeezed = max(1, channels // options.reduction)
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, squeezed),
            activation_layer(options.activation),
            nn.Linear(squeezed, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W)."""
        mean = self.mlp(x.mean((2, 3), keepdim=True))  # (N, C)
        greatest = self.mlp(x.amax((2, 3), keepdim=True))  # (N, C)
        gated: Tensor = x * torch.sigmoid(mean + greatest)[:, :, None, None]
        return gated


class SpatialGate(nn.Module):
    """Gate the places by the greatest channel and the mean of all."""

    def __init__(self, options: CbamOptions) -> None:
        """Build the gate."""
        super().__init__()
        self.spatial = ConvBatchNorm(2, 1, options.kernel_size, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W)."""
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)  # (N, 2, H, W)
        gated: Tensor = x * torch.sigmoid(self.spatial(pooled))
        return gated


class CBAM(nn.Module):
    """Gate the channels, then the places."""

    def __init__(self, channels: int, options: CbamOptions) -> None:
        """Build the block for a feature map of so many channels."""
        super().__init__()
        self.ChannelGate = ChannelGate(channels, options)
        self.SpatialGate = SpatialGate(options) if options.spatial else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W); the shape stays."""
        gated: Tensor = self.SpatialGate(self.ChannelGate(x))
        return gated
