import pytest

from coordatt_deploy.graph import operators, summation_order
from coordatt_deploy.graph.graph import aten, overloads
from coordatt_deploy.graph.lowering import strip_axes, writer
from coordatt_deploy.graph.operators import OPERATORS, MacRule, Operator, Trait, having, mac_rule
from coordatt_deploy.graph.passes import channel_affine, constants, functionalise, identities
from coordatt_deploy.parity import layers, probing, reference_rounding
from coordatt_deploy.quantization import scaling_chains, simulate

TRAITS = {
    Trait.QUANTIZED_WEIGHT: "conv2d linear",
    Trait.MIXES_CHANNELS: "conv1d conv2d linear",
    Trait.FOLDS_BATCH_NORM: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear",
    Trait.UNARY: "celu clamp clamp_max clamp_min elu gelu hardsigmoid hardswish hardtanh leaky_relu mish relu relu6"
                 " selu sigmoid silu softplus tanh",
    Trait.GATE: "hardsigmoid sigmoid",
    Trait.KEEPS_ZERO: "celu elu gelu hardswish leaky_relu mish relu relu6 selu silu tanh",
    Trait.CLAMP: "clamp hardtanh relu6",
    Trait.HOMOGENEOUS: "adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d constant_pad_nd flatten getitem leaky_relu"
                       " max_pool2d mean permute relu reshape slice split split_with_sizes squeeze transpose unsqueeze"
                       " upsample_nearest2d view",
    Trait.READS_BOUNDS: "add clamp hardsigmoid hardswish hardtanh relu relu6 sigmoid",
    Trait.POOL: "adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d max_pool2d",
    Trait.REDUCTION: "amax max mean",
    Trait.AVERAGE: "adaptive_avg_pool2d avg_pool2d mean",
    Trait.LAYOUT: "flatten permute reshape squeeze swapaxes transpose unflatten unsqueeze view",
    Trait.SPLIT: "chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split",
    Trait.BROADCASTS: "expand expand_as repeat",
    Trait.ASSIGNS: "copy index_put select_scatter slice_scatter",
    Trait.FUSES: "add conv2d linear",
    Trait.FUSED_BEHIND: "clamp hardtanh relu relu6",
    Trait.MOVES: "constant_pad_nd flatten max_pool2d permute reshape slice split split_with_sizes squeeze transpose"
                 " unsqueeze upsample_nearest2d view",
    Trait.KEEPS_GRID: "adaptive_avg_pool2d avg_pool2d cat flatten getitem max_pool2d mean permute reshape slice split"
                      " split_with_sizes squeeze transpose unsqueeze view",
    Trait.CHOOSES: "masked_fill maximum minimum where",
    Trait.PERTURBED: "adaptive_avg_pool2d addmm avg_pool2d batch_norm conv2d convolution linear mean relu relu6",
    Trait.IDENTITY: "alias alpha_dropout clone contiguous detach dropout feature_dropout lift_fresh_copy",
    Trait.DROPOUT: "alpha_dropout dropout feature_dropout",
    Trait.NOT_CONSTANT: "clone expand lift_fresh_copy",
    Trait.READS_SIZE: "sym_numel sym_size sym_stride",
    Trait.RANDOM: "bernoulli native_dropout normal rand rand_like randint randn randn_like rrelu",
}  # fmt: skip
MAC_RULES = {
    MacRule.CONVOLUTION: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution",
    MacRule.MATRIX_PRODUCT: "bmm dot linear matmul mm mv",
    MacRule.SUM_AND_PRODUCT: "addmm baddbmm",
    MacRule.EINSUM: "einsum",
    MacRule.ATTENTION: "scaled_dot_product_attention",
    MacRule.ELEMENTS_READ: "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d cumsum mean sum",
    MacRule.WINDOW: "avg_pool1d avg_pool2d",
    MacRule.ONE_PER_RESULT: "add addcmul div lerp mul pow rsub silu square sub",
    MacRule.TWO_PER_RESULT: "hardsigmoid softmax",
    MacRule.THREE_PER_RESULT: "group_norm hardswish instance_norm layer_norm rms_norm std var",
    MacRule.FOUR_PER_RESULT: "upsample_bilinear2d",
    MacRule.NOTHING:
        "batch_norm relu relu6 hardtanh clamp clamp_min clamp_max leaky_relu prelu elu celu selu gelu sigmoid tanh"
        " softplus mish exp log sqrt rsqrt abs neg reciprocal sign erf sin cos floor ceil round max_pool1d max_pool2d"
        " adaptive_max_pool2d amax amin max min maximum minimum argmax argmin topk sort where masked_fill eq ne lt le"
        " gt ge logical_and logical_or logical_not view reshape _unsafe_view flatten unflatten rand randn rand_like"
        " randn_like bernoulli squeeze unsqueeze permute transpose t numpy_T expand expand_as repeat tile cat stack"
        " split split_with_sizes chunk unbind getitem slice select narrow index index_select gather flip roll pad"
        " constant_pad_nd reflection_pad2d replication_pad2d pixel_shuffle pixel_unshuffle channel_shuffle"
        " upsample_nearest2d contiguous clone to _to_copy type_as zeros ones full zeros_like ones_like full_like arange"
        " linspace eye scalar_tensor movedim slice_scatter select_scatter index_put scatter embedding copy fill unfold"
        " im2col meshgrid diagonal swapaxes log_softmax",
}  # fmt: skip


@pytest.mark.parametrize("trait", Trait, ids=lambda trait: trait.name)
def test_a_trait_has_these_operators_and_no_others(trait):
    """
    An operator that gains or loses a trait changes what some pass does: artifacts and verdicts change with it.
    """
    assert set(TRAITS[trait].split()) == having(trait)


@pytest.mark.parametrize("rule", MacRule, ids=lambda rule: rule.name)
def test_a_rule_of_counting_has_these_operators_and_no_others(rule):
    """
    What ``inspect`` counts, and what it lists as uncounted, follows from these.
    """
    assert set(MAC_RULES[rule].split()) == {name for name, row in OPERATORS.items() if row.macs is rule}


def test_what_a_row_says_beyond_its_traits():
    """
    Positions of weights, fixed integer grids, and the values between which bounded layers are stirred.
    """
    assert operators.weight_positions() == {"conv2d": 1, "convolution": 1, "linear": 1, "addmm": 2}
    assert operators.integer_ranges() == {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "relu6": (0.0, 6.0)}
    assert operators.probed_ranges() == {"relu6": (0.0, 6.0), "relu": (0.0, 12.0)}


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        pytest.param("conv2d linear", simulate.WEIGHTED, id="simulate-weighted"),
        pytest.param("conv2d linear", scaling_chains.WEIGHTED, id="chains-weighted"),
        pytest.param("conv2d convolution linear addmm", layers.WEIGHTED, id="layers-weighted"),
        pytest.param("conv2d convolution linear addmm", reference_rounding.WEIGHTED, id="rounding-weighted"),
        pytest.param(TRAITS[Trait.MOVES], simulate.MOVES, id="moves"),
        pytest.param(TRAITS[Trait.FUSES], simulate.FUSES, id="fuses"),
        pytest.param(TRAITS[Trait.FUSED_BEHIND], simulate.FUSED_BEHIND, id="fused-behind"),
        pytest.param(TRAITS[Trait.HOMOGENEOUS], scaling_chains.HOMOGENEOUS, id="homogeneous"),
        pytest.param(TRAITS[Trait.CLAMP], scaling_chains.CLAMPS, id="clamps"),
        pytest.param(TRAITS[Trait.KEEPS_GRID], reference_rounding.KEEPS_GRID, id="keeps-grid"),
        pytest.param(TRAITS[Trait.CHOOSES], reference_rounding.CHOOSES, id="chooses"),
        pytest.param("sigmoid hardsigmoid relu6", reference_rounding.FIXED, id="fixed"),
        pytest.param("relu relu6", probing.BOUNDED, id="bounded"),
        pytest.param(TRAITS[Trait.PERTURBED], probing.PERTURBED, id="perturbed"),
        pytest.param(TRAITS[Trait.READS_BOUNDS], probing.READS_BOUNDS, id="reads-bounds"),
        pytest.param("adaptive_avg_pool2d avg_pool2d", summation_order.POOLS, id="summed-pools"),
        pytest.param("conv1d conv2d linear", strip_axes.CONVOLUTIONS, id="strip-convolutions"),
        pytest.param("sigmoid hardsigmoid", strip_axes.GATES, id="gates"),
        pytest.param(TRAITS[Trait.UNARY], strip_axes.UNARY, id="unary"),
        pytest.param(TRAITS[Trait.SPLIT], strip_axes.SPLITS, id="splits"),
        pytest.param(TRAITS[Trait.LAYOUT], strip_axes.LAYOUT, id="layout"),
        pytest.param(TRAITS[Trait.KEEPS_ZERO], writer.KEEPS_ZERO, id="keeps-zero"),
    ],
)
def test_each_module_asks_for_the_operators_it_had(expected, actual):
    """
    The query beside each use gives what its table listed.
    """
    assert set(expected.split()) == set(actual)


def test_calls_are_told_apart_by_the_one_overload():
    """
    In-place variants and other overloads are other calls.
    """
    dropouts = {aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default}
    copies = {aten.alias.default, aten.detach.default, aten.contiguous.default, aten.clone.default,
              aten.lift_fresh_copy.default}  # fmt: skip

    assert dropouts == functionalise.DROPOUTS
    assert dropouts | copies == identities.IDENTITIES
    assert {aten.expand.default, aten.clone.default, aten.lift_fresh_copy.default} == constants.NOT_CONSTANT
    assert {aten.sym_size.int, aten.sym_numel.default, aten.sym_stride.int} == constants.READS_SIZE
    foldable = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default}
    assert foldable | channel_affine.TRANSPOSED == channel_affine.LAYERS
    assert aten.dropout_.default not in overloads(Trait.DROPOUT)


def test_an_operator_without_a_row_has_no_trait_and_no_rule():
    """
    What the table does not know is listed as uncounted and moves, folds and fuses nothing.
    """
    assert mac_rule("fft_rfft") is None
    assert not any("fft_rfft" in having(trait) for trait in Trait)


def test_two_rows_for_one_operator_are_refused():
    """
    The second would hide the first.
    """
    with pytest.raises(ValueError, match="two rows for the operator relu"):
        operators.by_name([Operator("relu"), Operator("relu", MacRule.NOTHING)])
