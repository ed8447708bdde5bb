"""Give a network with fresh weights the BatchNorm statistics of what passes through it.

Initial statistics (mean 0, variance 1) fit no network: layer by layer the values shrink, until the logits of
MobileNetV2-1.0 are 1e-13 and nothing that is measured on them means anything. After one batch of noise they are of
the size that a trained network has; so speed, parity and int8 of a model can be tried before it is trained.
"""

from typing import Final

import torch
from torch import nn

IMAGES: Final = 8
SIDE: Final = 96  # pixels: at a total stride of 32 each statistic of the last layers is of 72 values
STEPS: Final = 256  # statistics are rounded to a 256th of their scale: the same on every machine


def initialise_batchnorm_statistics(module: nn.Module) -> None:
    """Set every BatchNorm's running mean and variance to those of a fixed batch of noise, computed in float64.

    Args:
        module: In evaluation mode, takes one image (N, 3, H, W) of any size; it is changed in place.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    noise = torch.randn(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module.double()
    for norm in norms:
        norm.momentum = 1.0  # the running statistics become the batch's
        norm.train()
    with torch.no_grad():
        module(noise)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        _round(norm)
    module.float()


def _round(norm: nn.BatchNorm2d) -> None:
    mean, variance, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None and variance is not None and count is not None  # noqa: S101, PT018 - none is set otherwise
    scale = torch.exp2(torch.floor(torch.log2(variance)))
    variance.copy_(torch.round(variance / scale * STEPS) / STEPS * scale)
    deviation = torch.exp2(torch.floor(torch.log2(variance) / 2))
    mean.copy_(torch.round(mean / deviation * STEPS) / STEPS * deviation)
    count.zero_()
