"""Global context (Cao et al., ICCV Workshops 2019).

    context:  z[c] = sum_ij softmax_ij(mask(x))[i, j] x[c, i, j]       or the mean
    output:   y = x * sigmoid(multiply(z)) + add(z)                    either or both
              each: 1x1 convolution, LayerNorm, activation, 1x1 convolution

Layout and keys are those of xvjiarui/GCNet, ``mmdet/ops/gcb/context_block.py``, whose default adds.
"""

from torch import Tensor, nn

from coordatt_deploy.models.activations import activation_layer
from coordatt_deploy.models.attention_options import GlobalContextOptions


class GlobalContext(nn.Module):
    """Add one context vector to every place of the map, or gate the channels by it."""

    def __init__(self, channels: int, options: GlobalContextOptions) -> None:
        """Build the block for a feature map of so many channels."""
        super().__init__()
        self.conv_mask = nn.Conv2d(channels, 1, 1) if options.attention_pooling else None
        self.channel_add_conv = _transform(channels, options) if options.add else None
        self.channel_mul_conv = _transform(channels, options) if options.multiply else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W), like *x*."""
        context = self._context(x)
        if self.channel_mul_conv is not None:
            x = x * self.channel_mul_conv(context).sigmoid()
        if self.channel_add_conv is not None:
            x = x + self.channel_add_conv(context)
        return x

    def _context(self, x: Tensor) -> Tensor:
        """One value per channel, (N, C, 1, 1)."""
        if self.conv_mask is None:
            return x.mean((2, 3), keepdim=True)
        weights = self.conv_mask(x).flatten(2).softmax(dim=2)  # (N, 1, H * W)
        context: Tensor = x.flatten(2) @ weights.transpose(1, 2)  # (N, C, 1)
        return context.unsqueeze(-1)


def _transform(channels: int, options: GlobalContextOptions) -> nn.Sequential:
    squeezed = max(2, channels // options.reduction)
    return nn.Sequential(
        nn.Conv2d(channels, squeezed, 1),
        nn.LayerNorm([squeezed, 1, 1]),
        activation_layer(options.activation),
        nn.Conv2d(squeezed, channels, 1),
    )
