"""The backbones: layout, counts, numerics of the attention block, options, trained weights."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from coordatt_deploy import models
from coordatt_deploy.errors import UsageError
from coordatt_deploy.models.coordatt import CoordAtt
from coordatt_deploy.models.factory import read_weights
from coordatt_deploy.models.mobilenet_v2 import Bottleneck
from coordatt_deploy.models.registry import trained_models

PAPER_PARAMETERS = {
    "mobilenetv2_ca_100": 3_950_648,
    "mobilenetv2_ca_075": 2_891_631,
    "mobilenetv2_ca_050": 2_095_568,
    "mobilenetv2_100": 3_504_872,
    "mobilenetv2_075": 2_636_424,
    "mobilenetv2_050": 1_968_680,
}
# features.1 expands nothing: its depthwise convolution comes first, and it has no attention.
FIRST_BLOCK = {"depthwise": "0", "depthwise_bn": "1", "project": "3", "project_bn": "4"}
BN_ENTRIES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def count_parameters(network):
    """How many numbers training adjusts; BatchNorm's running statistics are not among them."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network, input_size):
    """The multiply-accumulates of all convolutions and fully connected layers for one image, as papers count them."""
    macs = 0

    def add(module, _, output):
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            macs += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs += output.numel() * module.in_features

    hooks = [module.register_forward_hook(add) for module in network.modules()]
    with torch.no_grad():
        network(torch.zeros(1, 3, *input_size))
    for hook in hooks:
        hook.remove()
    return macs


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
    network = models.create_model(name)
    logits = network(torch.zeros(1, 3, *card.input_size))

    assert card.parameters == count_parameters(network)
    assert card.macs == count_macs(network, card.input_size)
    assert (1, card.num_classes) == tuple(logits.shape)
    assert (card.attention == "coordatt") == any(isinstance(module, CoordAtt) for module in network.modules())
    assert not network.training


@pytest.mark.parametrize(("name", "parameters"), PAPER_PARAMETERS.items())
def test_parameter_counts_are_the_papers(name, parameters):
    """
    Each width has the parameter count of the paper's code, with attention and without.
    """
    assert parameters == count_parameters(models.create_model(name))


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


def test_trained_weights_are_the_recipes():
    """
    The packaged weights are at most 3 MB, and load into the network bit for bit.
    """
    (name,) = trained_models()
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
