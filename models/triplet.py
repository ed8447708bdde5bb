"""Triplet attention (Misra et al., WACV 2021).

    branch:  g(x) = x * sigmoid(bn(conv([max_0 x; mean_0 x])))      0: the first axis behind the batch
    output:  y = (hw(x) + cw(x with C and H exchanged) exchanged back + hc(x with C and W exchanged) exchanged back) / 3

Layout and keys are those of landskape-ai/triplet-attention, ``triplet_attention.py`` (its ``MODELS/`` has older names).
"""

import torch
from torch import Tensor, nn

from coordatt_deploy.models.attention_options import TripletOptions
from coordatt_deploy.models.building_blocks import ConvBatchNorm


class AttentionGate(nn.Module):
    """Gate every place of the last two axes by the greatest and the mean value along the axis before them."""

    def __init__(self, kernel_size: int) -> None:
        """Build the gate."""
        super().__init__()
        self.conv = ConvBatchNorm(2, 1, kernel_size, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, A, B, C), with one value per B and C."""
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)  # (N, 2, B, C)
        gated: Tensor = x * torch.sigmoid(self.conv(pooled))
        return gated


class TripletAttention(nn.Module):
    """The mean of three gates, each over two of the axes C, H and W."""

    def __init__(self, channels: int, options: TripletOptions) -> None:  # noqa: ARG002
        """Build the block; it is the same for every number of channels."""
        super().__init__()
        self.cw = AttentionGate(options.kernel_size)
        self.hc = AttentionGate(options.kernel_size)
        self.hw = AttentionGate(options.kernel_size) if options.spatial else None

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W); the shape stays."""
        by_width: Tensor = self.cw(x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        by_height: Tensor = self.hc(x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
        if self.hw is None:
            return 1 / 2 * (by_width + by_height)
        gated: Tensor = 1 / 3 * (self.hw(x) + by_width + by_height)
        return gated
