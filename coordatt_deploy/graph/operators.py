"""What is known of each ATen operator: one row per operator, and queries of the table.

Every module that treats operators alike asks for them by a trait, so a new operator is one new row. An operator without
a row has no trait, and its multiply-accumulates are not counted. Names only: nothing here needs torch.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final


class Trait(enum.Flag):
    """What an operator is or does, as far as some pass, judge or quantizer asks."""

    NONE = 0

    # Layers with weights
    QUANTIZED_WEIGHT = enum.auto()
    """Int8 recipes round its weight, and equalisation scales it."""
    MIXES_CHANNELS = enum.auto()
    """Mixes the channels of each position and nothing else where its kernel has size 1."""
    FOLDS_BATCH_NORM = enum.auto()
    """Its weight takes gamma / std at the output channels: on axis 0, of a transposed convolution on axis 1."""

    # Elementwise functions
    UNARY = enum.auto()
    """A function of each element of one tensor; its other arguments are numbers."""
    GATE = enum.auto()
    """Maps to [0, 1], as the last step of an attention block does."""
    KEEPS_ZERO = enum.auto()
    """An activation that maps 0 to 0: channels padded with zeros stay zero through it."""
    CLAMP = enum.auto()
    """Commutes with a positive factor below its upper bound, if the lower one is 0."""
    HOMOGENEOUS = enum.auto()
    """f(k x) = k f(x) for a positive factor k per channel (axis 1), if it leaves that axis alone."""
    READS_BOUNDS = enum.auto()
    """Has bounds, or usually something with bounds behind it: values should cross them to show that they are there."""

    # Pools
    POOL = enum.auto()
    """Takes the mean or maximum of a two-dimensional window."""
    REDUCTION = enum.auto()
    """Takes the mean or maximum over whole axes."""
    AVERAGE = enum.auto()
    """Takes the mean, not the maximum."""

    # Layout
    LAYOUT = enum.auto()
    """Only changes how the axes of its one tensor lie."""
    SPLIT = enum.auto()
    """Cuts a tensor along one axis into a tuple of tensors."""
    BROADCASTS = enum.auto()
    """Copies a tensor to a greater shape."""
    ASSIGNS = enum.auto()
    """Overwrites a part of a tensor."""

    # Integer arithmetic
    FUSES = enum.auto()
    """Runtimes compute an activation behind it inside it."""
    FUSED_BEHIND = enum.auto()
    """Runtimes compute this activation inside the operator before it."""
    MOVES = enum.auto()
    """Computes no new values, so its result is stored with the grid of its input."""
    KEEPS_GRID = enum.auto()
    """Runtimes keep the input's grid, because it only moves, joins or averages values."""
    CHOOSES = enum.auto()
    """Chooses between its inputs, so runtimes store them with the grid of its result."""

    # Judging
    PERTURBED = enum.auto()
    """Its value may be anything near what it is (a sum, mean or product with weights), so noise may be added to it."""

    # Capture
    IDENTITY = enum.auto()
    """Computes nothing at inference: the user's value passes through unchanged."""
    DROPOUT = enum.auto()
    """Drops values in training only, and gives its input back at inference although its schema does not say so."""
    NOT_CONSTANT = enum.auto()
    """Not worth computing beforehand: an expanded tensor is best left to broadcasting, a copy to its source."""
    READS_SIZE = enum.auto()
    """Reads a size or stride off a tensor."""
    RANDOM = enum.auto()
    """Draws random numbers."""


class MacRule(enum.Enum):
    """How the multiply-accumulates of an operator are counted; ``macs`` has the arithmetic."""

    NOTHING = enum.auto()
    """Moves, compares or looks up."""
    CONVOLUTION = enum.auto()
    MATRIX_PRODUCT = enum.auto()
    SUM_AND_PRODUCT = enum.auto()
    """A matrix product of the second and third argument, added to the first."""
    EINSUM = enum.auto()
    ATTENTION = enum.auto()
    ELEMENTS_READ = enum.auto()
    """One for every element of the input."""
    WINDOW = enum.auto()
    """One for every element of each window of a pool."""
    ONE_PER_RESULT = enum.auto()
    TWO_PER_RESULT = enum.auto()
    THREE_PER_RESULT = enum.auto()
    FOUR_PER_RESULT = enum.auto()


@dataclass(frozen=True, slots=True)
class Operator:
    """What is known of one operator.

    Attributes:
        name: As in ``aten.conv2d``, without the underscore of an in-place variant.
        macs: How its multiply-accumulates are counted; None where nothing is known of that.
        traits: What it is or does.
        weight_at: The position of its weight among its arguments; None where parity knows of no weight.
        overload: The overload that the traits hold for, where they are asked of one overload alone.
        integer_range: The least and greatest value of its integer grid, where every runtime fixes them.
        probed_range: The values between which noise is added to its own, where those have bounds.
    """

    name: str
    macs: MacRule | None = None
    traits: Trait = Trait.NONE
    weight_at: int | None = None
    overload: str = "default"
    integer_range: tuple[float, float] | None = None
    probed_range: tuple[float, float] | None = None


_LAYER = Trait.QUANTIZED_WEIGHT | Trait.MIXES_CHANNELS | Trait.FOLDS_BATCH_NORM | Trait.FUSES | Trait.PERTURBED
_MEAN = Trait.HOMOGENEOUS | Trait.KEEPS_GRID | Trait.AVERAGE | Trait.PERTURBED
_ACTIVATION = Trait.UNARY | Trait.KEEPS_ZERO
_BOUNDED = Trait.UNARY | Trait.FUSED_BEHIND | Trait.READS_BOUNDS
_MOVED = Trait.HOMOGENEOUS | Trait.MOVES | Trait.KEEPS_GRID
_GATE = Trait.UNARY | Trait.GATE | Trait.READS_BOUNDS
_DROPOUT = Trait.IDENTITY | Trait.DROPOUT


def _alike(names: str, macs: MacRule | None = None, traits: Trait = Trait.NONE) -> tuple[Operator, ...]:
    return tuple(Operator(name, macs, traits) for name in names.split())


_ROWS: Final = (
    # Convolutions, linear layers, matrix products
    Operator("conv1d", MacRule.CONVOLUTION, Trait.MIXES_CHANNELS | Trait.FOLDS_BATCH_NORM),
    Operator("conv2d", MacRule.CONVOLUTION, _LAYER, weight_at=1),
    Operator("conv3d", MacRule.CONVOLUTION, Trait.FOLDS_BATCH_NORM),
    Operator("convolution", MacRule.CONVOLUTION, Trait.PERTURBED, weight_at=1),
    Operator("conv_transpose1d", MacRule.CONVOLUTION, Trait.FOLDS_BATCH_NORM),
    Operator("conv_transpose2d", MacRule.CONVOLUTION, Trait.FOLDS_BATCH_NORM, overload="input"),
    Operator("conv_transpose3d", MacRule.CONVOLUTION, Trait.FOLDS_BATCH_NORM, overload="input"),
    Operator("linear", MacRule.MATRIX_PRODUCT, _LAYER, weight_at=1),
    *_alike("matmul mm bmm mv dot", MacRule.MATRIX_PRODUCT),
    Operator("addmm", MacRule.SUM_AND_PRODUCT, Trait.PERTURBED, weight_at=2),
    Operator("baddbmm", MacRule.SUM_AND_PRODUCT),
    Operator("einsum", MacRule.EINSUM),
    Operator("scaled_dot_product_attention", MacRule.ATTENTION),
    # Normalisation; BatchNorm folds into the convolution before it
    Operator("batch_norm", MacRule.NOTHING, Trait.PERTURBED),
    *_alike("layer_norm group_norm instance_norm rms_norm var std", MacRule.THREE_PER_RESULT),  # mean, variance, scale
    # Pools and reductions
    Operator("mean", MacRule.ELEMENTS_READ, _MEAN | Trait.REDUCTION),
    Operator("adaptive_avg_pool2d", MacRule.ELEMENTS_READ, _MEAN | Trait.POOL),
    Operator("avg_pool2d", MacRule.WINDOW, _MEAN | Trait.POOL),
    Operator("avg_pool1d", MacRule.WINDOW),
    *_alike("sum adaptive_avg_pool1d adaptive_avg_pool3d cumsum", MacRule.ELEMENTS_READ),
    Operator("max_pool2d", MacRule.NOTHING, _MOVED | Trait.POOL),
    Operator("adaptive_max_pool2d", MacRule.NOTHING, Trait.HOMOGENEOUS | Trait.POOL),
    *_alike("amax max", MacRule.NOTHING, Trait.REDUCTION),
    *_alike("max_pool1d amin min argmax argmin topk sort", MacRule.NOTHING),
    # Arithmetic of two tensors
    Operator("add", MacRule.ONE_PER_RESULT, Trait.FUSES | Trait.READS_BOUNDS),
    *_alike("mul sub div rsub square pow addcmul lerp", MacRule.ONE_PER_RESULT),
    # Activations
    Operator("relu", MacRule.NOTHING, _ACTIVATION | _BOUNDED | Trait.HOMOGENEOUS | Trait.PERTURBED,
             probed_range=(0.0, 12.0)),
    Operator("relu6", MacRule.NOTHING, _ACTIVATION | _BOUNDED | Trait.CLAMP | Trait.PERTURBED,
             integer_range=(0.0, 6.0), probed_range=(0.0, 6.0)),
    *_alike("hardtanh clamp", MacRule.NOTHING, _BOUNDED | Trait.CLAMP),
    *_alike("clamp_min clamp_max softplus", MacRule.NOTHING, Trait.UNARY),
    Operator("leaky_relu", MacRule.NOTHING, _ACTIVATION | Trait.HOMOGENEOUS),
    *_alike("gelu elu celu selu mish tanh", MacRule.NOTHING, _ACTIVATION),
    Operator("silu", MacRule.ONE_PER_RESULT, _ACTIVATION),
    Operator("hardswish", MacRule.THREE_PER_RESULT, _ACTIVATION | Trait.READS_BOUNDS),  # x / 6 + 1 / 2, times x
    Operator("hardsigmoid", MacRule.TWO_PER_RESULT, _GATE, integer_range=(0.0, 1.0)),  # x / 6 + 1 / 2
    Operator("sigmoid", MacRule.NOTHING, _GATE, integer_range=(0.0, 1.0)),
    Operator("softmax", MacRule.TWO_PER_RESULT),  # sum, quotient
    *_alike("prelu log_softmax", MacRule.NOTHING),
    # Other functions of each element
    *_alike("exp log sqrt rsqrt abs neg reciprocal sign erf sin cos floor ceil round", MacRule.NOTHING),
    *_alike("maximum minimum where masked_fill", MacRule.NOTHING, Trait.CHOOSES),
    *_alike("eq ne lt le gt ge logical_and logical_or logical_not", MacRule.NOTHING),
    # Layout
    *_alike("view reshape flatten squeeze unsqueeze permute transpose", MacRule.NOTHING, _MOVED | Trait.LAYOUT),
    *_alike("swapaxes unflatten", MacRule.NOTHING, Trait.LAYOUT),
    *_alike("_unsafe_view t numpy_T movedim", MacRule.NOTHING),
    # Cutting and joining
    *_alike("split split_with_sizes", MacRule.NOTHING, _MOVED | Trait.SPLIT),
    Operator("chunk", MacRule.NOTHING, Trait.SPLIT),
    *_alike("tensor_split unsafe_split unsafe_chunk", None, Trait.SPLIT),
    Operator("slice", MacRule.NOTHING, _MOVED),
    Operator("getitem", MacRule.NOTHING, Trait.HOMOGENEOUS | Trait.KEEPS_GRID),
    Operator("cat", MacRule.NOTHING, Trait.KEEPS_GRID),
    *_alike("stack unbind select narrow diagonal", MacRule.NOTHING),
    # Looking up and assigning
    *_alike("index index_select gather scatter embedding flip roll unfold im2col", MacRule.NOTHING),
    *_alike("slice_scatter select_scatter index_put copy", MacRule.NOTHING, Trait.ASSIGNS),
    # Padding, resizing, repeating
    *_alike("constant_pad_nd upsample_nearest2d", MacRule.NOTHING, Trait.HOMOGENEOUS | Trait.MOVES),
    *_alike("pad reflection_pad2d replication_pad2d", MacRule.NOTHING),
    *_alike("pixel_shuffle pixel_unshuffle channel_shuffle", MacRule.NOTHING),
    Operator("upsample_bilinear2d", MacRule.FOUR_PER_RESULT),
    Operator("expand", MacRule.NOTHING, Trait.BROADCASTS | Trait.NOT_CONSTANT),
    *_alike("expand_as repeat", MacRule.NOTHING, Trait.BROADCASTS),
    *_alike("tile meshgrid", MacRule.NOTHING),
    # What passes a value on
    *_alike("dropout feature_dropout alpha_dropout", None, _DROPOUT),
    *_alike("alias detach", None, Trait.IDENTITY),
    Operator("contiguous", MacRule.NOTHING, Trait.IDENTITY),
    Operator("clone", MacRule.NOTHING, Trait.IDENTITY | Trait.NOT_CONSTANT),
    Operator("lift_fresh_copy", None, Trait.IDENTITY | Trait.NOT_CONSTANT),
    *_alike("to _to_copy type_as", MacRule.NOTHING),
    # What makes tensors
    *_alike("zeros ones full zeros_like ones_like full_like fill", MacRule.NOTHING),
    *_alike("arange linspace eye scalar_tensor", MacRule.NOTHING),
    *_alike("rand randn rand_like randn_like bernoulli", MacRule.NOTHING, Trait.RANDOM),
    *_alike("randint normal rrelu native_dropout", None, Trait.RANDOM),
    # Sizes
    Operator("sym_size", None, Trait.READS_SIZE, overload="int"),
    Operator("sym_stride", None, Trait.READS_SIZE, overload="int"),
    Operator("sym_numel", None, Trait.READS_SIZE),
)  # fmt: skip


def by_name(rows: Iterable[Operator]) -> Mapping[str, Operator]:
    """Index the rows; two of one name are an error."""
    table: dict[str, Operator] = {}
    for row in rows:
        if row.name in table:
            raise ValueError(f"two rows for the operator {row.name}")
        table[row.name] = row
    return table


OPERATORS: Final = by_name(_ROWS)


def having(trait: Trait) -> frozenset[str]:
    """Return the names of the operators that have every flag of *trait*."""
    return frozenset(name for name, row in OPERATORS.items() if trait in row.traits)


def weight_positions() -> Mapping[str, int]:
    """Return where each layer's weight is among its arguments, for the layers whose weights parity judges."""
    return {name: row.weight_at for name, row in OPERATORS.items() if row.weight_at is not None}


def integer_ranges() -> Mapping[str, tuple[float, float]]:
    """Return the ends of the integer grids that every runtime fixes."""
    return {name: row.integer_range for name, row in OPERATORS.items() if row.integer_range is not None}


def probed_ranges() -> Mapping[str, tuple[float, float]]:
    """Return, of operators whose values have bounds, the values between which noise is added to them."""
    return {name: row.probed_range for name, row in OPERATORS.items() if row.probed_range is not None}


def mac_rule(name: str) -> MacRule | None:
    """Return how the multiply-accumulates of an operator are counted; None where nothing is known of that."""
    row = OPERATORS.get(name)
    return None if row is None else row.macs
