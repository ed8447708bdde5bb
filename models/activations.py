"""The activations that attention blocks and backbones choose from."""

from collections.abc import Mapping
from typing import Final

from torch import Tensor, nn
from torch.nn import functional

from coordatt_deploy.models.attention_options import Activation


class HardSwish(nn.Module):
    """h_swish(x) = x * relu6(x + 3) / 6, in the order in which the code of CoordAtt's authors computes it."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply h_swish to every element of *x*."""
        return x * (functional.relu6(x + 3.0) / 6.0)


_LAYERS: Final[Mapping[Activation, type[nn.Module]]] = {
    Activation.RELU: nn.ReLU,
    Activation.RELU6: nn.ReLU6,
    Activation.HARD_SWISH: HardSwish,
    Activation.SILU: nn.SiLU,
}


def activation_layer(activation: Activation) -> nn.Module:
    """Return a new layer that applies *activation*."""
    return _LAYERS[activation]()
