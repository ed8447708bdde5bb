"""The backbones: layout, counts, numerics of the attention block, options, trained weights."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from coordatt_deploy import models
from coordatt_deploy.errors import UsageError
from coordatt_deploy.models.coordatt import CoordAtt
from coordatt_deploy.models.factory import build, create_attention, read_weights
from coordatt_deploy.models.mobilenet_v2 import Bottleneck
from coordatt_deploy.models.registry import ARCHITECTURES, ATTENTION_BLOCKS, trained_models

PUBLISHED_PARAMETERS = {
    "mobilenetv2_ca_100": 3_950_648,
    "mobilenetv2_ca_075": 2_891_631,
    "mobilenetv2_ca_050": 2_095_568,
    "mobilenetv2_100": 3_504_872,
    "mobilenetv2_075": 2_636_424,
    "mobilenetv2_050": 1_968_680,
    "mobilenetv2_se_100": 3_888_208,
    "mobilenetv2_se_075": 2_855_386,
    "mobilenetv2_se_050": 2_067_086,
    "mobilenetv2_cbam_100": 3_889_808,
    "mobilenetv2_cbam_075": 2_856_986,
    "mobilenetv2_cbam_050": 2_068_686,
    "mobilenext_100": 3_535_416,
    "mobilenext_075": 2_766_168,
    "mobilenext_050": 2_152_304,
    "mobilenext_ca_100": 3_971_626,
    "efficientnet_b0_se": 5_288_548,
    "efficientnet_b0_ca": 5_381_804,
}
# CoordAtt's README: SSDLite on COCO and DeepLabV3 on Pascal VOC, plain, with SE and with CA, in millions.
PUBLISHED_DENSE = {
    "ssdlite320_mobilenetv2_ca_100": (4.3, 4.7, 4.8),
    "deeplabv3_mobilenetv2_ca_100": (4.5, 4.9, 5.0),
}
# With other arguments: what the reports of CoordAtt's and Triplet's authors give, and what timm builds.
OTHER_PARAMETERS = (
    ("mobilenetv2_ca_100", {"reduction": 16}, 4_366_850),
    ("mobilenext_ca_100", {"reduction": 24}, 4_108_336),
    ("mobilenext_ca_100", {"place": "after_last_depthwise"}, 4_088_113),
    ("mobilenetv2_triplet_100", {"kernel_size": 3}, 3_505_892),
    ("efficientnet_b0_plain", {"attention": "timm_coord"}, 5_282_312),
    ("efficientnet_b0_plain", {"attention": "timm_scoord"}, 5_299_960),
    ("efficientnet_b0_plain", {"attention": "timm_ela"}, 4_813_288),
    ("efficientnet_b0_plain", {"attention": "timm_strip"}, 4_705_768),
)
ARCHITECTURES_BY_MODEL = {"mobilenetv2": "mobilenetv2_050", "mobilenext": "mobilenext_050",
                          "efficientnet": "efficientnet_b0_plain"}  # fmt: skip
# features.1 expands nothing: its depthwise convolution comes first, and it has no attention.
FIRST_BLOCK = {"depthwise": "0", "depthwise_bn": "1", "project": "3", "project_bn": "4"}
BN_ENTRIES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def count_parameters(network):
    """How many numbers training adjusts; BatchNorm's running statistics are not among them."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network, input_size):
    """The multiply-accumulates of all convolutions, linear layers and matrix products for one image, as torch counts.

    Two floating-point operations are one of them; the network's tensors may be on the meta device.
    """
    device = next(network.parameters()).device
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.zeros(1, 3, *input_size, device=device))
    return counter.get_total_flops() // 2


def published_keys() -> set[str]:
    """The keys of the paper's mbv2_ca.py, written out from its layout."""
    keys = {f"{place}.0.weight" for place in ("features.0", "conv")}
    keys |= {f"{place}.1.{entry}" for place in ("features.0", "conv") for entry in BN_ENTRIES}
    keys |= {f"features.1.conv.{index}.weight" for index in (0, 3)}
    keys |= {f"features.1.conv.{index}.{entry}" for index in (1, 4) for entry in BN_ENTRIES}
    for block in range(2, 18):
        prefix = f"features.{block}.conv"
        keys |= {f"{prefix}.{index}.weight" for index in (0, 3, 7)}
        keys |= {f"{prefix}.{index}.{entry}" for index in (1, 4, 8) for entry in BN_ENTRIES}
        keys |= {f"{prefix}.6.{conv}.{entry}" for conv in ("conv1", "conv2", "conv3") for entry in ("weight", "bias")}
        keys |= {f"{prefix}.6.bn1.{entry}" for entry in BN_ENTRIES}
    return keys | {"classifier.1.weight", "classifier.1.bias"}


def randomise(network: nn.Module, seed: int) -> None:
    """Give BatchNorm statistics and scales that a wrong formula cannot get right by luck."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.5, generator=generator)
            module.running_var.uniform_(0.3, 2.0, generator=generator)
            with torch.no_grad():
                module.weight.normal_(0.5, 1.0, generator=generator)
                module.bias.normal_(0.0, 0.5, generator=generator)


def coordatt_by_hand(x: NDArray[np.float64], state: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The paper's equations for one image (C, H, W), one direction at a time, in float64."""

    def pointwise(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return state[f"{name}.weight"][:, :, 0, 0] @ values + state[f"{name}.bias"][:, None]

    def gate(name: str, strip: NDArray[np.float64]) -> NDArray[np.float64]:
        t = pointwise("conv1", strip)
        std = np.sqrt(state["bn1.running_var"] + 1e-5)
        t = state["bn1.weight"][:, None] * (t - state["bn1.running_mean"][:, None]) / std[:, None]
        t += state["bn1.bias"][:, None]
        t = t * np.clip(t + 3, 0, 6) / 6
        return 1 / (1 + np.exp(-pointwise(name, t)))

    rows = gate("conv2", x.mean(axis=2))  # (C, H)
    columns = gate("conv3", x.mean(axis=1))  # (C, W)
    return x * rows[:, :, None] * columns[:, None, :]


@pytest.mark.parametrize("name", models.list_models())
def test_card_tells_what_the_network_has(name):
    """
    Parameters, multiply-accumulates, logits and attention on the card are those of the network itself.
    """
    card = models.model_card(name)
    with torch.device("meta"):
        network = models.create_model(name, pretrained=False)
        returned = network(torch.zeros(1, 3, *card.input_size))
    classes = {tuple(value.shape) for value in (returned.values() if isinstance(returned, dict) else [returned])}
    own = network if card.attention is None else attention_class(card)

    assert card.parameters == count_parameters(network)
    assert card.macs == count_macs(network, card.input_size)
    assert EXPECTED[card.task](card) == classes
    assert card.task == ARCHITECTURES[card.architecture].task
    assert (card.attention is not None) == any(type(module) is own for module in network.modules() if module != network)
    assert not network.training


EXPECTED = {
    "classification": lambda card: {(1, card.num_classes)},
    "segmentation": lambda card: {(1, card.num_classes, *card.input_size)},
    "detection": lambda card: {(1, 3234, card.num_classes), (1, 3234, 4)},
}


def attention_class(card):
    """The class of the card's attention block."""
    return type(create_attention(card.attention, 32, **asdict(card.attended.options)))


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED_PARAMETERS.items())
def test_parameter_counts_are_the_published_ones(name, parameters):
    """
    Each has the parameter count of its authors' code, with attention and without.
    """
    assert parameters == models.model_card(name).parameters


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_DENSE.items())
def test_dense_networks_have_the_published_millions(name, millions):
    """
    Of CoordAtt's authors' own table, to the digit that it has: without attention, with SE, with CA.
    """
    card, found = models.model_card(name), []
    for attended in (None, *ARCHITECTURES[card.architecture].attention[1::-1]):
        with torch.device("meta"):
            found.append(round(count_parameters(build(card, attended)) / 1e6, 1))

    assert list(millions) == found


@pytest.mark.parametrize(("name", "choices", "parameters"), OTHER_PARAMETERS)
def test_places_and_options_give_the_published_counts(name, choices, parameters):
    """
    What others report with another place, reduction, kernel or block is a matter of arguments.
    """
    with torch.device("meta"):
        network = models.create_model(name, **choices)

    assert parameters == count_parameters(network)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ATTENTION_BLOCKS)
@pytest.mark.parametrize("family", ARCHITECTURES_BY_MODEL)
def test_every_block_stands_at_every_place_of_every_backbone(family, kind):
    """
    It is built and runs at a small oblong input, and its network has the block there.
    """
    counts = []
    for place in ARCHITECTURES[family].places:
        network = models.create_model(ARCHITECTURES_BY_MODEL[family], attention=kind, place=place, num_classes=3)
        with torch.no_grad():
            logits = network(torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(0)))
        assert (1, 3) == tuple(logits.shape)
        assert bool(torch.isfinite(logits).all())
        counts.append(count_parameters(network))

    assert min(counts) > count_parameters(models.create_model(ARCHITECTURES_BY_MODEL[family], num_classes=3))


def test_sandglass_keys_are_those_of_the_published_checkpoints():
    """
    Full blocks, blocks without the first filter, and blocks without any; the residual where the code has it.
    """
    network = models.create_model("mobilenext_100")
    indices = {}
    for key in network.state_dict():
        parts = key.split(".")
        if parts[0] == "features" and parts[2] == "conv":
            indices.setdefault(int(parts[1]), set()).add(int(parts[3]))
    residual = [index for index, block in enumerate(network.features) if index and block.has_residual]

    full, filtered, bare = {0, 1, 3, 4, 5, 6, 8, 9}, {0, 1, 2, 3, 5, 6}, {0, 1, 2, 3}
    expected = dict.fromkeys(range(1, 21), full) | dict.fromkeys((3, 6, 13), filtered) | dict.fromkeys((9, 17), bare)
    assert expected == indices
    assert [4, 5, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19] == residual
    assert "classifier.1.weight" in network.state_dict()


def test_efficientnet_keys_are_timms():
    """
    The names of the first block, of an expanding one and of the ends; squeeze-and-excitation as timm calls it.
    """
    state = set(models.create_model("efficientnet_b0_se").state_dict())
    layers = {key.rpartition(".")[0] for key in state}

    first = {f"blocks.0.0.{name}" for name in ("conv_dw", "bn1", "se.conv_reduce", "se.conv_expand", "conv_pw", "bn2")}
    other = {f"blocks.5.3.{name}" for name in (
        "conv_pw", "bn1", "conv_dw", "bn2", "se.conv_reduce", "se.conv_expand", "conv_pwl", "bn3")}  # fmt: skip
    assert first == {layer for layer in layers if layer.startswith("blocks.0.0.")}
    assert other == {layer for layer in layers if layer.startswith("blocks.5.3.")}
    assert {"conv_stem", "bn1", "conv_head", "bn2", "classifier"} == {
        layer for layer in layers if not layer.startswith("blocks.")
    }
    assert [1, 2, 2, 3, 3, 4, 1] == [len({key.split(".")[2] for key in state if key.startswith(f"blocks.{stage}.")})
                                     for stage in range(7)]  # fmt: skip


@pytest.mark.parametrize("name", ["mobilenetv2_ca_100", "mobilenetv2_ca_050", "mobilenetv2_ca_035.digits"])
def test_keys_are_those_of_the_published_checkpoint(name):
    """
    The state dict has the 490 entries of mbv2_ca.pth, under the same names.
    """
    state = models.create_model(name).state_dict()

    assert 490 == len(state)
    assert published_keys() == set(state)


def test_plain_backbone_differs_by_the_attention_alone():
    """
    Without attention, the projection moves up into the attention block's place and nothing else changes.
    """
    plain = models.create_model("mobilenetv2_100").state_dict()
    attended = models.create_model("mobilenetv2_ca_100").state_dict()
    moved = {
        key.replace(".conv.7.", ".conv.6.").replace(".conv.8.", ".conv.7.") for key in attended if ".conv.6." not in key
    }

    assert moved == set(plain)


@pytest.mark.parametrize("reduction", [16, 32])
def test_attention_sits_on_every_expanded_map(reduction):
    """
    Blocks 2 to 17 attend, after the depthwise convolution and before the projection; block 1 does not.
    """
    network = models.create_model("mobilenetv2_ca_100", reduction=reduction)
    places = {name: module for name, module in network.named_modules() if isinstance(module, CoordAtt)}

    assert [f"features.{block}.conv.6" for block in range(2, 18)] == list(places)
    for name, attention in places.items():
        block = network.get_submodule(name.rpartition(".conv.")[0])
        depthwise, projection = block.conv[3], block.conv[7]
        assert isinstance(block, Bottleneck)
        assert depthwise.groups == depthwise.out_channels == attention.conv1.in_channels == projection.in_channels
        assert max(8, depthwise.out_channels // reduction) == attention.conv1.out_channels


def test_state_dict_of_the_papers_names_loads_strictly():
    """
    A checkpoint with the paper's keys loads as it is, and every entry of it arrives.
    """
    network = models.create_model("mobilenetv2_ca_050", seed=1)
    generator = torch.Generator().manual_seed(2)
    checkpoint = {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else torch.tensor(7)
        for key, value in network.state_dict().items()
    }
    assert published_keys() == set(checkpoint)

    network.load_state_dict(checkpoint, strict=True)

    assert all(torch.equal(checkpoint[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 9), (12, 1)])
@pytest.mark.parametrize("channels", [16, 288])
def test_coordatt_follows_the_papers_equations(channels, height, width):
    """
    The block gives what the equations give, at square, oblong and degenerate sizes, to float64 rounding.
    """
    generator = torch.Generator().manual_seed(channels)
    block = CoordAtt(channels).double().eval()
    randomise(block, seed=height)
    x = torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64) * 3
    state = {key: value.numpy() for key, value in block.state_dict().items()}

    with torch.no_grad():
        actual = block(x).numpy()

    expected = np.stack([coordatt_by_hand(image, state) for image in x.numpy()])
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-13)


def test_swapped_gates_are_noticed():
    """
    The comparison above can fail: with conv2 and conv3 exchanged the output is far off.
    """
    block = CoordAtt(16).double().eval()
    randomise(block, seed=0)
    x = torch.randn(1, 16, 5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = {key: value.numpy() for key, value in block.state_dict().items()}
    swap = {"conv2": "conv3", "conv3": "conv2"}
    swapped = {
        ".".join([swap.get(key.split(".")[0], key.split(".")[0]), key.split(".")[1]]): v for key, v in state.items()
    }

    with torch.no_grad():
        actual = block(x).numpy()

    assert np.abs(actual[0] - coordatt_by_hand(x.numpy()[0], swapped)).max() > 1e-2


def test_network_takes_any_size():
    """
    The same weights take oblong inputs and the smallest one; the logits keep their shape.
    """
    network = models.create_model("mobilenetv2_ca_035", num_classes=7)

    with torch.no_grad():
        shapes = [tuple(network(torch.zeros(2, 3, *size)).shape) for size in ((32, 32), (64, 160), (97, 33))]

    assert [(2, 7)] * 3 == shapes


def test_fresh_weights_depend_on_the_seed_alone():
    """
    The same seed gives the same weights, another seed others, and the caller's random state is untouched.
    """
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (models.create_model("mobilenetv2_035", seed=seed).state_dict() for seed in (3, 3, 4))

    assert torch.equal(expected, torch.rand(3))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["features.0.0.weight"], other["features.0.0.weight"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilenetv2_ca_10", {}, "mobilenetv2_ca_100"),
        ("mobilenetv2_ca_035.digit", {}, "mobilenetv2_ca_035.digits"),
        ("resnext", {}, "mobilenetv2_100"),
        ("mobilenetv2_100", {"reduction": 16}, "no attention block"),
        ("mobilenetv2_ca_100", {"reduction": 0}, "at least 1"),
        ("mobilenetv2_ca_100", {"num_classes": 0}, "at least 1"),
        ("mobilenetv2_ca_100", {"pretrained": True}, "no trained weights"),
        ("mobilenetv2_ca_035.digits", {"num_classes": 11}, "num_classes=10"),
        ("mobilenetv2_ca_035.digits", {"reduction": 16}, "reduction=32"),
        ("mobilenetv2_cbam_100", {"place": "after_reduction"}, "known: after_depthwise, after_projection"),
        ("mobilenetv2_cbam_100", {"attention": "ecca"}, "did you mean eca"),
        ("mobilenetv2_eca_100", {"reduction": 8}, "takes no argument 'reduction'; it takes num_classes, kernel_size"),
        ("mobilenext_100", {"place": "after_reduction"}, "no attention block"),
        ("ssdlite320_mobilenetv2_ca_100", {"decode": 1}, "decode is 1; it must be true or false"),
        ("mobilenetv2_ca_100", {"decode": True}, "takes no argument 'decode'"),
        ("ssdlite320_mobilenetv2_ca_100", {"nms": True}, "takes num_classes, decode, reduction"),
    ],
)
def test_wrong_request_is_refused_with_a_remedy(name, options, message):
    """
    A name or an option that doesn't fit is bad usage, and the message says what would fit.
    """
    with pytest.raises(UsageError, match=message) as error:
        models.create_model(name, **options)

    assert 2 == error.value.exit_code


def test_recipe_of_untrained_model_is_refused():
    """
    A model without trained weights has no recipe; the message names those that have.
    """
    with pytest.raises(UsageError, match=r"mobilenetv2_ca_035\.digits"):
        models.model_card("mobilenetv2_100").recipe()


@pytest.mark.parametrize("name", trained_models())
def test_trained_weights_are_the_recipes(name):
    """
    The packaged weights are at most 3 MB, and load into the network bit for bit.
    """
    card = models.model_card(name)
    recipe = card.recipe()

    assert card.weights_path.stat().st_size == recipe["weights"]["bytes"] <= 3_000_000
    stored = read_weights(card.weights_path, recipe["weights"]["sha256"])
    loaded = models.create_model(name).state_dict()
    assert set(stored) == set(loaded)
    assert all(torch.equal(stored[key], loaded[key]) for key in stored)
    assert all(bool(torch.isfinite(value).all()) for value in stored.values())


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damaged_weights_are_refused(damage, tmp_path: Path):
    """
    A changed byte, a cut end or a missing file is an error that names the file and the way out.
    """
    card = models.model_card("mobilenetv2_ca_035.digits")
    content = bytearray(card.weights_path.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "weights.safetensors"
    if damage != "missing":
        path.write_bytes(content if damage == "flipped" else content[:1000])

    with pytest.raises(UsageError, match="reinstall") as error:
        read_weights(path, card.recipe()["weights"]["sha256"])

    assert str(path) in str(error.value)


def test_weights_of_another_network_are_not_taken_for_ours(tmp_path: Path):
    """
    A sound safetensors file with another content fails the checksum.
    """
    path = tmp_path / "weights.safetensors"
    save_file({"classifier.1.bias": torch.zeros(10)}, path)

    with pytest.raises(UsageError, match="damaged"):
        read_weights(path, models.model_card("mobilenetv2_ca_035.digits").recipe()["weights"]["sha256"])


def test_listing_needs_no_torch():
    """
    Names and cards come without importing torch or scikit-learn.
    """
    code = (
        "import sys; from coordatt_deploy import models;"
        "from coordatt_deploy.data import digits;"
        "[models.model_card(name) for name in models.list_models()]; digits.read_split('golden');"
        "print(sorted({'torch', 'sklearn', 'safetensors'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "[]" == result.stdout.strip()


def test_package_refuses_a_second_name(tmp_path: Path):
    """
    Imported as top-level "models", the package says what to import instead of loading twice.
    """
    root = Path(models.__file__).parent
    code = (
        "import importlib.util as u;"
        f"spec = u.spec_from_file_location('models', {str(root / '__init__.py')!r});"
        "spec.loader.exec_module(u.module_from_spec(spec))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)

    assert 1 == result.returncode
    assert "import coordatt_deploy.models instead" in result.stderr
