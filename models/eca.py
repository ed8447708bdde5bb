"""ECA, efficient channel attention (Wang et al., CVPR 2020).

    squeeze:  p[c] = mean_ij x[c, i, j]
    gate:     a[c] = sigmoid(sum_d w[d] p[c + d]),   d = -k // 2 … k // 2
    output:   y[c, i, j] = x[c, i, j] * a[c]

Layout and key (``conv.weight``, (1, 1, k)) are those of BangguWu/ECANet.
"""

from typing import Final

from torch import Tensor, nn

from coordatt_deploy.models.attention_options import EcaOptions

NARROW: Final = 96  # channels up to which ECA's MobileNetV2 has a kernel of 1


class ECA(nn.Module):
    """Gate the channels by a convolution over their means, in the order of the channels."""

    def __init__(self, channels: int, options: EcaOptions) -> None:
        """Build the block for a feature map of so many channels."""
        super().__init__()
        size = options.kernel_size or (1 if channels <= NARROW else 3)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W), by channel."""
        means = self.avg_pool(x).squeeze(-1).transpose(-1, -2)  # (N, 1, C)
        gate = self.conv(means).transpose(-1, -2).unsqueeze(-1)  # (N, C, 1, 1)
        gated: Tensor = x * gate.sigmoid()
        return gated
