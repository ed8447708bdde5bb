"""Coordinate attention (Hou et al., CVPR 2021), the block of the paper's MobileNetV2.

    squeeze:  p_h[c, i] = mean_j x[c, i, j],    p_w[c, j] = mean_i x[c, i, j]
    mix:      f = h_swish(bn1(conv1([p_h ; p_w])))               one convolution for both directions
    gates:    a_h = sigmoid(conv2(f_h)),        a_w = sigmoid(conv3(f_w))
    output:   y[c, i, j] = x[c, i, j] * a_w[c, j] * a_h[c, i]

This is the plain form of the paper. It is what a checkpoint fits and what every faster form is compared with.
"""

from typing import Final

import torch
from torch import Tensor, nn

from coordatt_deploy.models.activations import activation_layer
from coordatt_deploy.models.attention_options import CoordAttOptions

PAPERS: Final = CoordAttOptions()


class CoordAtt(nn.Module):
    """Coordinate attention over a feature map.

    Every convolution is 1x1 and has a bias. The state-dict keys (conv1, bn1, conv2, conv3) are those of the
    published ``mbv2_ca.pth``; conv2 gates the rows (a_h) and conv3 the columns (a_w).
    """

    def __init__(self, channels: int, options: CoordAttOptions = PAPERS) -> None:
        """Build the block for a feature map of so many channels, in and out."""
        super().__init__()
        squeezed = max(options.least, channels // options.reduction)
        self.pool_h = nn.AdaptiveAvgPool2d((None, 1))
        self.pool_w = nn.AdaptiveAvgPool2d((1, None))
        self.conv1 = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.bn1 = nn.BatchNorm2d(squeezed)
        self.act = activation_layer(options.activation)
        self.conv2 = nn.Conv2d(squeezed, channels, kernel_size=1)
        self.conv3 = nn.Conv2d(squeezed, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate *x*, (N, C, H, W), by row and by column; the shape stays."""
        height, width = x.shape[2:]
        rows = self.pool_h(x)  # (N, C, H, 1)
        columns = self.pool_w(x).permute(0, 1, 3, 2)  # (N, C, W, 1)

        mixed = self.act(self.bn1(self.conv1(torch.cat([rows, columns], dim=2))))  # (N, squeezed, H + W, 1)
        rows, columns = torch.split(mixed, [height, width], dim=2)

        a_h = self.conv2(rows).sigmoid()  # (N, C, H, 1)
        a_w = self.conv3(columns.permute(0, 1, 3, 2)).sigmoid()  # (N, C, 1, W)

        # The paper's code expands both gates to (N, C, H, W) first. Broadcasting gives the same products, without the
        # two full-size copies that expand() turns into in exported files (Expand, BROADCAST_TO, tile).
        gated: Tensor = x * a_w * a_h
        return gated
