"""Parameters and multiply-accumulates of a network, counted on the network itself."""

import torch
from torch import Tensor, nn


def count_parameters(network: nn.Module) -> int:
    """Return how many numbers training adjusts; BatchNorm's running statistics are not among them."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, input_size: tuple[int, int]) -> int:
    """Return the multiply-accumulates of all convolutions and fully connected layers for one image.

    Pools, activations and the gating products of an attention block are not multiply-accumulates and are left out,
    as in the papers' own figures.

    Args:
        network: Takes (1, 3, H, W); left as it is.
        input_size: (H, W) in pixels.
    """
    macs = 0

    def add(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            macs += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs += output.numel() * module.in_features

    hooks = [module.register_forward_hook(add) for module in network.modules()]
    was_training = network.training
    try:
        weight = next(network.parameters())
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, *input_size, dtype=weight.dtype, device=weight.device))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return macs
