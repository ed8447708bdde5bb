"""What recognition finds: attention blocks, their anatomy, and everything else that lowering writes anew."""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from coordatt_deploy.graph.lowering.activations import HardActivation
from coordatt_deploy.graph.lowering.strip_axes import Strip
from coordatt_deploy.manifest import NearMiss


class Kind(enum.StrEnum):
    """Every kind of attention block that is told from the others by its structure."""

    COORDATT = "coordatt"
    SQUEEZE_EXCITE = "squeeze_excite"
    ECA = "eca"
    CBAM = "cbam"
    CHANNEL_GATE = "cbam_channel"
    """The first half of CBAM alone."""
    SPATIAL_GATE = "cbam_spatial"
    """The second half of CBAM alone."""
    TRIPLET = "triplet"
    STRIP_POOLING = "strip_pooling"
    MIXED_POOLING = "mixed_pooling"
    GLOBAL_CONTEXT = "global_context"
    SIMPLE_COORD = "timm_scoord"
    LOCAL = "timm_ela"
    STRIP = "timm_strip"


@dataclass(frozen=True, slots=True)
class Branch:
    """One direction of an attention block, by node names.

    Attributes:
        direction: ``rows`` (a value per row, pooled along the width), ``columns``, or ``whole`` (one per channel).
        pool: The pooling node.
        squeeze: First pointwise convolution (or linear layer).
        activation: Activation after it; None where there is none.
        excite: Second pointwise convolution.
        gate: ``sigmoid`` or ``hardsigmoid`` node (the last one of it, where it is spelled out).
    """

    direction: str
    pool: str
    squeeze: str
    activation: str | None
    excite: str
    gate: str


@dataclass(frozen=True, slots=True)
class Branches:
    """The anatomy of coordinate attention and of squeeze-and-excitation.

    Attributes:
        squeezed: Channels between the two convolutions.
        branches: Rows before columns.
        strips: What each inner node holds, as far as it is a strip.
    """

    squeezed: int
    branches: tuple[Branch, ...]
    strips: Mapping[str, Strip] = field(repr=False)


class Role(enum.StrEnum):
    """What an operator does inside a block, however it is spelled."""

    FEATURE = "feature"
    """The feature map itself."""
    MEAN = "mean"
    GREATEST = "greatest"
    JOIN = "join"
    """Means and greatest values of one pool, one after the other."""
    MIX = "mix"
    """Mixes the channels of each position: a 1x1 convolution or a linear layer."""
    ALONG = "along"
    """A convolution along a strip."""
    ACROSS = "across"
    """A convolution over the channels, in their order."""
    PLACES = "places"
    """A convolution from statistics to one value for each place."""
    MASK = "mask"
    """A 1x1 convolution of the feature map to one channel."""
    WEIGHTS = "weights"
    """A softmax over all places."""
    CONTEXT = "context"
    """The feature map summed with weights."""
    NORM = "norm"
    ACTIVATION = "activation"
    GATE = "gate"
    SUM = "sum"
    PRODUCT = "product"
    SCALE = "scale"
    """A product with a number."""


@dataclass(frozen=True, slots=True)
class Term:
    """What a node holds: an operator of other terms. Layout operators make no term of their own.

    Attributes:
        role: What the operator does.
        node: Its name.
        axes: How its result lies, a letter an axis: N, C, H, W, S for H and W as one, 2 for two statistics, 1.
        terms: What it takes.
    """

    role: Role
    node: str
    axes: str
    terms: tuple["Term", ...] = ()

    def put(self, feature: "Term") -> "Term":
        """Return the term with *feature* in the place of the feature map."""
        if self.role is Role.FEATURE:
            return feature
        return replace(self, terms=tuple(term.put(feature) for term in self.terms))

    def every(self) -> Iterator["Term"]:
        """Yield the term and all terms that it is made of."""
        yield self
        for term in self.terms:
            yield from term.every()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a node inside a block holds, and how it lies there.

    Attributes:
        term: Its value.
        axes: How it lies; see ``Term.axes``. An axis that is 1 here has one value, which may have been copied.
    """

    term: Term
    axes: str


@dataclass(frozen=True, slots=True)
class Terms:
    """The anatomy of every other block.

    Attributes:
        squeezed: Channels between its two mixing layers; None where it has no two.
        output: How its output is made of the feature map.
        readings: What each inner node holds.
    """

    squeezed: int | None
    output: Term
    readings: Mapping[str, Reading] = field(repr=False)


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """An attention block found in a graph.

    Attributes:
        kind: What it is.
        name: Path of the module that holds it; the output node's name where there is none.
        channels: The channels of the feature map.
        height: The height of the feature map; None if it is dynamic.
        width: The width of the feature map; None if it is dynamic.
        feature: Node of the feature map that is pooled and gated.
        output: Node of the gated feature map.
        anatomy: How its inside is made.
        inner: All nodes of the block between feature and output; nothing else uses them.
    """

    kind: Kind
    name: str
    channels: int
    height: int | None
    width: int | None
    feature: str
    output: str
    anatomy: Branches | Terms
    inner: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Recognition:
    """Everything found in one graph; nodes are meant by name, so a copy of the graph serves as well."""

    blocks: tuple[AttentionBlock, ...]
    near_misses: tuple[NearMiss, ...]
    activations: tuple[HardActivation, ...]
