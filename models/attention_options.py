"""What each attention block can be asked for, and where in a backbone it can stand. Standard library only.

The defaults of a class are those of the block's reference. What a backbone's authors chose beside them stands in
``registry``, with the backbone.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self, TypeAlias

from coordatt_deploy.errors import UsageError, nearest

Option: TypeAlias = int | str | bool | None


class Activation(enum.StrEnum):
    """The function between a block's two mixing layers."""

    RELU = "relu"
    RELU6 = "relu6"
    HARD_SWISH = "hard_swish"
    SILU = "silu"


class Place(enum.StrEnum):
    """Where in a backbone's block attention stands; each backbone has some of them."""

    AFTER_DEPTHWISE = "after_depthwise"
    """After the depthwise convolution and its activation, on the expanded channels."""
    AFTER_PROJECTION = "after_projection"
    """After the linear projection, on the narrow channels, before the residual sum."""
    AFTER_FIRST_DEPTHWISE = "after_first_depthwise"
    """Sandglass: after the first depthwise convolution and its activation, on the wide channels that come in."""
    AFTER_REDUCTION = "after_reduction"
    """Sandglass: on the narrow channels in the middle."""
    AFTER_LAST_DEPTHWISE = "after_last_depthwise"
    """Sandglass: on the wide channels that go out, before the residual sum."""


class SqueezeExciteLayers(enum.StrEnum):
    """How the two layers of squeeze-and-excitation are built, and under which keys."""

    LINEAR = "linear"
    """``fc.0`` and ``fc.2``, linear layers: moskomule/senet.pytorch."""
    CONVOLUTIONS = "convolutions"
    """``conv.0`` and ``conv.2``, 1x1 convolutions: the MobileNetV2 that CoordAtt's authors compare with."""
    EFFICIENTNET = "efficientnet"
    """``conv_reduce`` and ``conv_expand``, 1x1 convolutions: timm's EfficientNet."""


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What every block's options have in common."""

    def within(self, expansion: int) -> Self:  # noqa: ARG002 - for the blocks that count from the unexpanded channels
        """Return the options for a map whose channels were expanded so many times."""
        return self

    def names(self) -> tuple[str, ...]:
        """Return what the options are called."""
        return tuple(item.name for item in fields(self))

    def changed(self, changes: Mapping[str, object]) -> Self:
        """Return the options with *changes*, each checked.

        Raises:
            UsageError: There is no such option, or its value doesn't fit.
        """
        for name in changes:
            if name not in self.names():
                raise UsageError(f"this attention block has no option {name!r}; {nearest(name, self.names())}")
        return replace(self, **{name: _checked(name, value, getattr(self, name)) for name, value in changes.items()})


def _checked(name: str, value: object, own: Option) -> Option:
    """*value* in the type of the option, which its *own* value shows; None stands for a number that is worked out."""
    if own is None and value is None:
        return None
    if isinstance(own, enum.StrEnum):
        kinds = [str(item) for item in type(own)]
        if value not in kinds:
            raise UsageError(f"{name} is {value!r}; known: {', '.join(kinds)}")
        return type(own)(str(value))
    if isinstance(own, bool):
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {value!r}; it must be true or false")
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is {value!r}; it must be a whole number of at least 1")
    if name == "kernel_size" and value % 2 == 0:
        raise UsageError(f"kernel_size is {value}; it must be odd, so that the map keeps its size")
    return value


@dataclass(frozen=True, slots=True)
class CoordAttOptions(AttentionOptions):
    """Coordinate attention: max(least, channels // reduction) channels between the convolutions."""

    reduction: int = 32
    least: int = 8
    activation: Activation = Activation.HARD_SWISH


@dataclass(frozen=True, slots=True)
class SqueezeExciteOptions(AttentionOptions):
    """Squeeze-and-excitation: channels // reduction channels between the layers, at least one.

    Attributes:
        reduction: See above.
        activation: Between the layers.
        layers: How they are built, and under which keys.
        bias: Whether they have biases.
        of_input: The reduction counts from the channels before the expansion, as in EfficientNet.
    """

    reduction: int = 16
    activation: Activation = Activation.RELU
    layers: SqueezeExciteLayers = SqueezeExciteLayers.LINEAR
    bias: bool = False
    of_input: bool = False

    def within(self, expansion: int) -> Self:
        """See ``AttentionOptions.within``."""
        return replace(self, reduction=self.reduction * expansion) if self.of_input else self


@dataclass(frozen=True, slots=True)
class CbamOptions(AttentionOptions):
    """CBAM: channels // reduction channels between the linear layers, at least one; a square kernel over the map.

    Attributes:
        reduction: See above.
        activation: Between the linear layers.
        kernel_size: Of the convolution that gates the places of the map.
        spatial: Whether the places are gated, or the channels alone.
    """

    reduction: int = 16
    activation: Activation = Activation.RELU
    kernel_size: int = 7
    spatial: bool = True


@dataclass(frozen=True, slots=True)
class EcaOptions(AttentionOptions):
    """ECA: how many neighbouring channels are mixed.

    Attributes:
        kernel_size: None for 1 on up to 96 channels and 3 above, as in the MobileNetV2 of ECA's authors.
    """

    kernel_size: int | None = None


@dataclass(frozen=True, slots=True)
class TripletOptions(AttentionOptions):
    """Triplet attention: the side of each branch's kernel, and whether the branch over H and W is there."""

    kernel_size: int = 7
    spatial: bool = True


@dataclass(frozen=True, slots=True)
class StripPoolingOptions(AttentionOptions):
    """The strip pooling module (SPM): the activation of the sum of both strips."""

    activation: Activation = Activation.RELU


@dataclass(frozen=True, slots=True)
class MixedPoolingOptions(AttentionOptions):
    """The mixed pooling module (MPM): its activation, and the sides of its two square grids of means."""

    activation: Activation = Activation.RELU
    first_grid: int = 20
    second_grid: int = 12


@dataclass(frozen=True, slots=True)
class GlobalContextOptions(AttentionOptions):
    """Global context: max(2, channels // reduction) channels between the convolutions.

    Attributes:
        reduction: See above; at least two channels, because the LayerNorm of a single one is a constant.
        activation: Between the convolutions.
        attention_pooling: Whether places are weighted by a softmax, or all the same.
        add: Whether the context is added to the map.
        multiply: Whether a sigmoid of it gates the map.
    """

    reduction: int = 16
    activation: Activation = Activation.RELU
    attention_pooling: bool = True
    add: bool = True
    multiply: bool = False


@dataclass(frozen=True, slots=True)
class CoordAttnOptions(AttentionOptions):
    """timm's ``coord``: two thirds of channels / reduction between the convolutions, as a multiple of 8.

    Attributes:
        reduction: One over timm's ``rd_ratio``.
        activation: Between the convolutions.
        bias: Whether they have biases.
        skip: Whether the map is added to the gated one.
        of_input: The reduction counts from the channels before the expansion, as timm's EfficientNet has it.
    """

    reduction: int = 16
    activation: Activation = Activation.HARD_SWISH
    bias: bool = False
    skip: bool = False
    of_input: bool = False

    def within(self, expansion: int) -> Self:
        """See ``AttentionOptions.within``."""
        return replace(self, reduction=self.reduction * expansion) if self.of_input else self


@dataclass(frozen=True, slots=True)
class SimpleCoordAttnOptions(CoordAttnOptions):
    """timm's ``scoord``; see ``CoordAttnOptions``."""

    reduction: int = 4
    activation: Activation = Activation.SILU
    bias: bool = True


@dataclass(frozen=True, slots=True)
class EfficientLocalAttnOptions(AttentionOptions):
    """timm's ``ela``: the length of the kernels along the strips, their biases, and the activation before the gates."""

    kernel_size: int = 7
    activation: Activation = Activation.SILU
    bias: bool = False
    skip: bool = False


@dataclass(frozen=True, slots=True)
class StripAttnOptions(AttentionOptions):
    """timm's ``strip``: whether the strips are convolved, the length of the kernels, their biases."""

    use_conv: bool = True
    kernel_size: int = 3
    bias: bool = False
    skip: bool = False
