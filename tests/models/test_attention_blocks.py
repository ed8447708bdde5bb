"""Every attention block is its reference: its keys, its numbers."""

import importlib.util

import pytest
import torch
from torch import nn
from zoo_requests import ZOO

from coordatt_deploy.errors import UsageError
from coordatt_deploy.models.factory import create_attention
from coordatt_deploy.models.registry import ATTENTION_BLOCKS


def zoo_module(name):
    """A file of the zoo, which is no package: the tests of an installed wheel have it as well."""
    spec = importlib.util.spec_from_file_location(f"zoo_{name}", ZOO / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = zoo_module("attention_references")
CoordAttention = zoo_module("official_block").CoordAttention
CoordAtt = zoo_module("official_network").CoordAtt

CHANNELS = 96
SIZES = ((7, 7), (5, 9), (12, 3))
BLOCKS = (
    ("coordatt", {}, lambda: CoordAtt(CHANNELS, CHANNELS)),
    ("squeeze_excite", {}, lambda: reference.SqueezeExcite(CHANNELS)),
    ("squeeze_excite", {"reduction": 24, "layers": "convolutions", "bias": True, "activation": "relu6"},
     lambda: reference.MobileSqueezeExcite(CHANNELS)),
    ("squeeze_excite", {"reduction": 24, "layers": "efficientnet", "bias": True, "activation": "silu"},
     lambda: reference.EfficientNetSqueezeExcite(CHANNELS, 4)),
    ("cbam", {}, lambda: reference.CBAM(CHANNELS)),
    ("cbam", {"reduction": 24}, lambda: reference.CBAM(CHANNELS, 24)),
    ("eca", {}, lambda: reference.ECA(1)),
    ("eca", {"kernel_size": 5}, lambda: reference.ECA(5)),
    ("triplet", {}, lambda: reference.Triplet()),
    ("strip_pooling", {}, lambda: reference.SPM(CHANNELS)),
    ("mixed_pooling", {}, lambda: reference.MPM(CHANNELS)),
    ("global_context", {}, lambda: reference.GlobalContext(CHANNELS)),
    ("global_context", {"multiply": True, "add": False}, lambda: reference.GlobalContext(CHANNELS, ("channel_mul",))),
    ("global_context", {"multiply": True}, lambda: reference.GlobalContext(CHANNELS, ("channel_mul", "channel_add"))),
    ("timm_coord", {}, lambda: reference.TimmCoord(CHANNELS, 8)),
    ("timm_scoord", {}, lambda: reference.TimmSimpleCoord(CHANNELS, 16)),
    ("timm_ela", {}, lambda: reference.TimmLocal(CHANNELS)),
    ("timm_strip", {}, lambda: reference.TimmStrip(CHANNELS)),
)  # fmt: skip
NAMES = ["-".join((kind, *options)) for kind, options, _ in BLOCKS]


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Weights and running statistics that a wrong formula cannot get right by luck."""
    generator = torch.Generator().manual_seed(seed)
    state = module.state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.3, 2.0, generator=generator)
        elif value.is_floating_point():
            value.normal_(0.0, 0.5, generator=generator)
    return module.eval()


@pytest.mark.parametrize(("kind", "options", "make"), BLOCKS, ids=NAMES)
def test_block_is_its_reference(kind, options, make):
    """
    The state dict of the reference loads without a rename, and gives the reference's numbers at oblong sizes as well.
    """
    torch.manual_seed(0)
    theirs = randomised(make(), seed=1)
    ours = create_attention(kind, CHANNELS, **options)

    ours.load_state_dict(theirs.state_dict(), strict=True)

    for seed, size in enumerate(SIZES):
        x = torch.randn(2, CHANNELS, *size, generator=torch.Generator().manual_seed(seed)) * 3
        with torch.no_grad():
            expected, actual = theirs(x.clone()), ours(x)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "options", "make"), BLOCKS, ids=NAMES)
def test_comparison_notices_a_changed_weight(kind, options, make):
    """
    The comparison above can fail: with any weight of the block changed, the output is off.
    """
    torch.manual_seed(0)
    theirs = randomised(make(), seed=1)
    ours = create_attention(kind, CHANNELS, **options)
    x = torch.randn(1, CHANNELS, 6, 8, generator=torch.Generator().manual_seed(0)) * 3
    for name in dict(ours.named_parameters()):
        ours.load_state_dict(theirs.state_dict(), strict=True)
        if name in {"conv_mask.bias"}:  # a softmax does not notice what is added to all of its values
            continue
        with torch.no_grad():
            ours.get_parameter(name).mul_(1.5).add_(0.5)
            assert not torch.allclose(ours(x), theirs(x.clone()), rtol=1e-4, atol=1e-4), name


def test_every_block_has_a_reference():
    """
    A block that is added needs one here.
    """
    assert set(ATTENTION_BLOCKS) == {kind for kind, _, _ in BLOCKS}


def test_both_published_spellings_of_coordinate_attention_agree():
    """
    conv_h gates as conv2 does, conv_w as conv3.
    """
    torch.manual_seed(0)
    theirs = randomised(CoordAttention(CHANNELS, CHANNELS), seed=2)
    ours = create_attention("coordatt", CHANNELS)
    names = {"conv_h": "conv2", "conv_w": "conv3"}
    state = {".".join((names.get(key.split(".")[0], key.split(".")[0]), key.split(".")[1])): value
             for key, value in theirs.state_dict().items()}  # fmt: skip
    ours.load_state_dict(state, strict=True)
    x = torch.randn(1, CHANNELS, 5, 9, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x.clone()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind, block in ATTENTION_BLOCKS.items()
                                  if "activation" in block.options.names()])  # fmt: skip
def test_activation_is_an_option(kind):
    """
    The same weights with another activation give another output, so a comparison can use one for all.
    """
    x = torch.randn(1, 32, 6, 6, generator=torch.Generator().manual_seed(0)) * 3
    outputs = []
    for activation in ("relu", "relu6", "hard_swish", "silu"):
        torch.manual_seed(0)
        block = randomised(create_attention(kind, 32, activation=activation), seed=3)
        with torch.no_grad():
            outputs.append(block(x))

    assert all(not torch.equal(outputs[0], other) for other in outputs[2:])
    assert outputs[0].shape == x.shape


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("cbamm", {}, "did you mean cbam"),
        ("cbam", {"reductoin": 8}, "did you mean reduction"),
        ("cbam", {"reduction": 0}, "whole number of at least 1"),
        ("cbam", {"reduction": True}, "whole number of at least 1"),
        ("cbam", {"kernel_size": 4}, "odd"),
        ("cbam", {"spatial": 1}, "true or false"),
        ("cbam", {"activation": "gelu"}, "known: relu, relu6, hard_swish, silu"),
    ],
)
def test_wrong_option_is_refused_with_a_remedy(kind, options, message):
    """
    The message says what would fit.
    """
    with pytest.raises(UsageError, match=message):
        create_attention(kind, CHANNELS, **options)
