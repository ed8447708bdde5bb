"""Which operators can be written in the terms of others; each format's ``lowering`` says which it needs.

``docs/operators.md`` has what every converter makes of every operator, with and without.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Final

from torch import fx

from coordatt_deploy.graph.graph import op_name
from coordatt_deploy.graph.lowering.decompositions import (
    activations,
    arithmetic,
    axes,
    convolutions,
    copies,
    layout,
    normalisations,
    pools,
)
from coordatt_deploy.graph.rewriter import Rewriter

Write = Callable[[Rewriter, fx.Node], fx.Node | None]
"""Writes a call anew before it and returns what holds its value; None where this variant is left as it is."""


class Decomposition(enum.StrEnum):
    """An operator, or a family of them, in terms of others."""

    NEEDLESS_COPY = "needless_copy"
    COPY = "copy"
    REPEAT_INTERLEAVE = "repeat_interleave"
    FILLED = "filled"
    NEAREST_RESIZE = "nearest_resize"
    NEAREST_BY_FACTOR = "nearest_by_factor"
    NEAREST_EXACT_RESIZE = "nearest_exact_resize"
    FRACTIONAL_NEAREST_EXACT = "fractional_nearest_exact"
    BICUBIC_RESIZE = "bicubic_resize"
    ANTIALIASED_RESIZE = "antialiased_resize"
    ADAPTIVE_MAX = "adaptive_max"
    EXTREMUM = "extremum"
    UNEVEN_AVERAGE = "uneven_average"
    TRANSPOSED_CONVOLUTION = "transposed_convolution"
    OUTPUT_PADDING = "output_padding"
    GELU_TANH = "gelu_tanh"
    CELU = "celu"
    SOFTPLUS = "softplus"
    LOG_SIGMOID = "log_sigmoid"
    LOG_SIGMOID_OF_SOFTPLUS = "log_sigmoid_of_softplus"
    FLOAT_NUMBERS = "float_numbers"
    HARD_SHRINK = "hard_shrink"
    SCALED_SUM = "scaled_sum"
    RECIPROCAL = "reciprocal"
    POWER = "power"
    QUOTIENT_OF_SUM = "quotient_of_sum"
    RMS_NORM = "rms_norm"
    GROUP_NORM = "group_norm"
    INSTANCE_NORM = "instance_norm"
    LAYER_NORM = "layer_norm"
    PRODUCT = "product"
    CHANNEL_SHUFFLE = "channel_shuffle"
    CIRCULAR_PAD = "circular_pad"
    CROP = "crop"
    QUARTER_TURNS = "quarter_turns"
    ASSIGNED = "assigned"
    TRIANGLE = "triangle"
    LERP = "lerp"
    ADDCMUL = "addcmul"
    LOGICAL = "logical"
    FRACTIONAL_RESIZE = "fractional_resize"
    CUMULATIVE_SUM = "cumulative_sum"
    ONE_HOT = "one_hot"
    GREATEST = "greatest"
    SORTED = "sorted"
    ONLY_POSITION = "only_position"
    ATTENTION_OF_FOUR_AXES = "attention_of_four_axes"
    REDUCED_WINDOWS = "reduced_windows"


@dataclass(frozen=True, slots=True)
class Rule:
    """One decomposition.

    Attributes:
        operators: Names of the operators that it is for; those with several results stand for each of them.
        write: How.
    """

    operators: frozenset[str]
    write: Write


def _rule(names: str, write: Write) -> Rule:
    return Rule(frozenset(names.split()), write)


DECOMPOSITIONS: Final[Mapping[Decomposition, Rule]] = {
    Decomposition.NEEDLESS_COPY: _rule("expand expand_as repeat tile", copies.needless),
    Decomposition.COPY: _rule("expand expand_as repeat tile", copies.copies),
    Decomposition.REPEAT_INTERLEAVE: _rule("repeat_interleave", copies.interleaved),
    Decomposition.FILLED: _rule("new_ones new_zeros new_full", copies.filled),
    Decomposition.NEAREST_RESIZE: _rule("upsample_nearest2d", axes.fractional_choices),
    Decomposition.NEAREST_BY_FACTOR: _rule("upsample_nearest2d", axes.choices_by_factor),
    Decomposition.NEAREST_EXACT_RESIZE: _rule("_upsample_nearest_exact2d", axes.choices),
    Decomposition.FRACTIONAL_NEAREST_EXACT: _rule("_upsample_nearest_exact2d", axes.fractional_choices),
    Decomposition.BICUBIC_RESIZE: _rule("upsample_bicubic2d", axes.products),
    Decomposition.ANTIALIASED_RESIZE: _rule("_upsample_bilinear2d_aa _upsample_bicubic2d_aa", axes.products),
    Decomposition.ADAPTIVE_MAX: _rule("adaptive_max_pool2d", pools.greatest_of_stretches),
    Decomposition.EXTREMUM: _rule("max min", pools.extremum),
    Decomposition.UNEVEN_AVERAGE: _rule("avg_pool2d", pools.average),
    Decomposition.TRANSPOSED_CONVOLUTION: _rule("conv_transpose1d conv_transpose2d", convolutions.uncommon_phases),
    Decomposition.OUTPUT_PADDING: _rule("conv_transpose1d conv_transpose2d", convolutions.beyond_the_taps),
    Decomposition.GELU_TANH: _rule("gelu", activations.gelu_tanh),
    Decomposition.CELU: _rule("celu", activations.celu),
    Decomposition.SOFTPLUS: _rule("softplus", activations.scaled_softplus),
    Decomposition.LOG_SIGMOID: _rule("log_sigmoid", activations.log_sigmoid),
    Decomposition.LOG_SIGMOID_OF_SOFTPLUS: _rule("log_sigmoid", activations.log_sigmoid_of_softplus),
    Decomposition.FLOAT_NUMBERS: _rule("hardtanh elu leaky_relu threshold", activations.float_numbers),
    Decomposition.HARD_SHRINK: _rule("hardshrink", activations.hard_shrink),
    Decomposition.SCALED_SUM: _rule("add sub", arithmetic.scaled_sum),
    Decomposition.RECIPROCAL: _rule("reciprocal", arithmetic.reciprocal),
    Decomposition.POWER: _rule("pow", arithmetic.power_of_many_axes),
    Decomposition.QUOTIENT_OF_SUM: _rule("div", arithmetic.quotient_of_sum),
    Decomposition.RMS_NORM: _rule("rms_norm", arithmetic.rms_norm),
    Decomposition.GROUP_NORM: _rule("group_norm", normalisations.group_norm),
    Decomposition.INSTANCE_NORM: _rule("instance_norm", normalisations.instance_norm),
    Decomposition.LAYER_NORM: _rule("layer_norm", normalisations.layer_norm),
    Decomposition.PRODUCT: _rule("prod", arithmetic.product_of_slices),
    Decomposition.CHANNEL_SHUFFLE: _rule("channel_shuffle", layout.channel_shuffle),
    Decomposition.CIRCULAR_PAD: _rule("pad", layout.circular),
    Decomposition.FRACTIONAL_RESIZE: _rule("upsample_bilinear2d upsample_bicubic2d", axes.fractional_products),
    Decomposition.CUMULATIVE_SUM: _rule("cumsum", axes.running_sum),
    Decomposition.ONE_HOT: _rule("one_hot", layout.one_hot),
    Decomposition.GREATEST: _rule("topk sort", axes.greatest),
    Decomposition.SORTED: _rule("sort", axes.greatest),
    Decomposition.REDUCED_WINDOWS: _rule("mean sum amax amin", layout.reduced_windows),
    Decomposition.ONLY_POSITION: _rule("argmax argmin", axes.only_position),
    Decomposition.ATTENTION_OF_FOUR_AXES: _rule("scaled_dot_product_attention", arithmetic.attention_of_four_axes),
    Decomposition.CROP: _rule("pad", layout.crop),
    Decomposition.QUARTER_TURNS: _rule("rot90", layout.quarter_turns),
    Decomposition.ASSIGNED: _rule("select_scatter", layout.assigned),
    Decomposition.TRIANGLE: _rule("tril triu", layout.triangle),
    Decomposition.LERP: _rule("lerp", arithmetic.interpolation),
    Decomposition.ADDCMUL: _rule("addcmul", arithmetic.sum_and_product),
    Decomposition.LOGICAL: _rule("__and__ __or__ bitwise_and bitwise_or", arithmetic.logical),
}


def operator_of(node: fx.Node) -> str:
    """Return the operator that makes a node's value: for one result of several, the operator that gives them."""
    return op_name(node.args[0]) if node.target is getitem else op_name(node)
