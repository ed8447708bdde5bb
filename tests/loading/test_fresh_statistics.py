"""Networks with fresh weights have values of the size that trained ones have."""

import torch

from coordatt_deploy.loading.fresh_statistics import initialise_batchnorm_statistics
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.models import create_model


def test_logits_of_an_untrained_network_are_no_rounding_noise():
    """
    As they are drawn they vanish; settled they don't, and the weights themselves are the same.
    """
    plain = create_model("mobilenetv2_ca_035", pretrained=False)
    settled = create_model("mobilenetv2_ca_035", pretrained=False)
    initialise_batchnorm_statistics(settled)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        assert plain(image).abs().max() < 1e-6
        assert settled(image).abs().max() > 1e-2
    assert all(map(torch.equal, plain.parameters(), settled.parameters()))
    assert not any(module.training for module in settled.modules())
    assert {torch.float32, torch.int64} == {tensor.dtype for tensor in settled.state_dict().values()}


def test_settling_repeats_to_the_last_bit_whatever_the_threads():
    """
    Statistics are part of the weights' hash, by which a bundle knows its own.
    """
    networks = [create_model("mobilenetv2_035") for _ in range(2)]
    threads = torch.get_num_threads()
    for network, count in zip(networks, (1, 2), strict=True):
        torch.set_num_threads(count)
        initialise_batchnorm_statistics(network)
    torch.set_num_threads(threads)

    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_fresh_weights_are_settled_and_it_is_said():
    """
    Trained weights and checkpoints are left alone.
    """
    fresh = resolve(ModelRequest("mobilenetv2_035", input_size=(64, 64)))
    trained = resolve(ModelRequest("mobilenetv2_ca_035.digits"))
    packaged = create_model("mobilenetv2_ca_035.digits").state_dict()

    assert any("weights are random" in note for note in fresh.notes)
    assert not any("random" in note for note in trained.notes)
    assert (True, False) == (fresh.spec.untrained, trained.spec.untrained)
    assert all(torch.equal(packaged[name], tensor) for name, tensor in trained.module.state_dict().items())
