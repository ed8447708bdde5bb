import itertools

import numpy as np
import pytest
import torch
from torch import nn

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.exported_program import program, provenance
from coordatt_deploy.graph.graph import DynamicBatch, DynamicSize, weights_sha256


def _feeds(height=32, width=48):
    return {"image": np.random.default_rng(0).standard_normal((1, 3, height, width)).astype(np.float32)}


def test_the_captured_graph_computes_what_the_module_does(tiny, tiny_graph):
    """
    In float64 the graph and the module agree to the last bit.
    """
    feeds = _feeds()
    expected = tiny.double()(torch.from_numpy(feeds["image"]).double()).detach().numpy()

    actual = run(tiny_graph, feeds)["logits"]

    assert np.array_equal(expected, actual)


def test_layer_ids_are_the_users_module_names(tiny_graph):
    """
    A module with one operator gives its name; one with several gives name and operator, counted.
    """
    ids = [layer.layer_id for layer in tiny_graph.layers.layers]

    assert {"stem.0", "stem.1", "block.3.conv1", "block.3:mul", "block.3:mul_1", "head", ":add", ":flatten"} <= set(ids)
    assert len(ids) == len(set(ids))


def test_a_dynamic_capture_is_right_at_sizes_it_never_saw(tiny):
    """
    The paper's strip pools follow the size.
    """
    graph = capture(tiny, (torch.randn(1, 3, 32, 48),), dynamic=DynamicSize(32, 96))
    for size in ((64, 40), (40, 64)):
        feeds = _feeds(*size)
        expected = tiny.double()(torch.from_numpy(feeds["image"]).double()).detach().numpy()
        tiny.float()

        assert np.allclose(expected, run(graph, feeds)["logits"], rtol=0, atol=1e-12)


def test_a_dynamic_batch_is_right_at_batches_it_never_saw(tiny):
    """
    Captured with two images, alone and together with a dynamic size; the first axis of inputs and outputs is open.
    """
    for dynamic, places in ((None, [(32, 48)]), (DynamicSize(32, 96), [(64, 40), (40, 64)])):
        graph = capture(tiny, (torch.randn(2, 3, 32, 48),), dynamic=dynamic, batch=DynamicBatch(1, 8))

        assert (None, 3) == graph.inputs[0].shape[:2]
        assert {None} == {layer.shape[0] for layer in graph.layers.layers}
        for batch, size in itertools.product((1, 2, 3, 8), places):
            images = np.random.default_rng(batch).standard_normal((batch, 3, *size))
            expected = tiny.double()(torch.from_numpy(images)).detach().numpy()
            tiny.float()

            assert np.allclose(expected, run(graph, {"image": images})["logits"], rtol=0, atol=1e-12)


class Returns(nn.Module):
    """A convolution, and what is made of its result."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head, self.function = nn.Conv2d(3, 4, 1), nn.Linear(4 * 16, 5), function

    def forward(self, image):
        return self.function(self.stem(image), self.head)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (
            lambda x, _: x.view(1, -1),
            r"logits has a first axis of 1 for every batch: view in .* at .*\.py:\d+ .*puts the",
        ),
        (lambda x, _: torch.relu(x.reshape(4, -1)), "its code does not take every batch of the range alike"),
        (lambda x, head: head(x.view(1, -1).reshape(2, -1)), r"its code fixes the batch to 2; let the code ask for it"),
        (lambda x, head: head(x.flatten(1)) + torch.ones(2, 1), "its code fixes the batch to 2"),
        (lambda x, head: head(x.flatten(1)).view(x.shape[0] // 2, 2, -1), "its code fixes the batch to 2"),
    ],
)
def test_code_that_fixes_the_batch_is_refused(function, reason):
    """
    Whether torch.export notices or not: with the line where the images are put together, and what to write instead.
    """
    with pytest.raises(UsageError, match=f"{reason}.*leave --dynamic-batch out"):
        capture(Returns(function).eval(), (torch.randn(2, 3, 4, 4),), batch=DynamicBatch(1, 8))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, _: x.flatten(2).permute(2, 0, 1),  # positions first, as transformers have them
        lambda x, _: x.permute(0, 2, 3, 1).reshape(-1, 4),  # a row per position of all images
        lambda x, head: (head(x.flatten(1)), head.weight * 2),  # anchors that no image changes
    ],
)
def test_outputs_may_have_the_batch_elsewhere_or_not_at_all(function):
    """
    The graph computes what the code computes at every batch.
    """
    module = Returns(function).eval()
    graph = capture(module, (torch.randn(2, 3, 4, 4),), batch=DynamicBatch(1, 8))

    for batch in (1, 3):
        images = torch.randn(batch, 3, 4, 4)
        returned = module(images)
        expected = returned if isinstance(returned, tuple) else (returned,)
        found = run(graph, {"image": images.numpy()})
        assert all(
            np.allclose(a.detach(), found[name], atol=1e-5) for a, name in zip(expected, graph.outputs, strict=True)
        )


def test_every_call_is_found_again_after_decomposition(tiny_folded):
    """
    Names are followed through re-export and decomposition.
    """
    exported, names = program(tiny_folded)
    found = provenance(exported.run_decompositions({}))
    calls = {node.name for node in exported.run_decompositions({}).graph.nodes}

    assert {"conv2d", "linear", "split_with_sizes[0]"} <= set(found)
    assert set(found.values()) <= calls
    assert set(names) <= {node.name for node in tiny_folded.module.graph.nodes}


def test_a_module_in_training_mode_is_refused(tiny):
    """
    Dropout and batch statistics would be frozen into the files.
    """
    with pytest.raises(UsageError, match="training mode"):
        capture(tiny.train(), (torch.randn(1, 3, 32, 32),))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tiny, value):
    """
    The message names the tensor.
    """
    with torch.no_grad():
        tiny.head.weight[0, 0] = value

    with pytest.raises(UsageError, match=r"head\.weight holds 1 values"):
        capture(tiny, (torch.randn(1, 3, 32, 32),))


def test_half_precision_is_refused(tiny):
    """
    The message says what to call.
    """
    with pytest.raises(UsageError, match=r"model\.float\(\)"):
        capture(tiny.half(), (torch.randn(1, 3, 32, 32),))


def test_an_input_that_the_model_rejects_is_one_line(tiny):
    """
    Torch's page of text is boiled down to its first line.
    """
    with pytest.raises(UsageError) as caught:
        capture(tiny, (torch.randn(1, 4, 32, 32),))

    assert "rejects an input of shape (1, 4, 32, 32)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hash_of_the_weights_sees_one_bit(tiny):
    """
    Counters of training steps are no weights; everything else is.
    """
    before = weights_sha256(tiny)
    tiny.stem[1].num_batches_tracked += 1
    assert before == weights_sha256(tiny)

    with torch.no_grad():
        tiny.head.bias[0] = torch.nextafter(tiny.head.bias[0], torch.tensor(9.0))

    assert before != weights_sha256(tiny)


def test_complex_numbers_are_no_layer():
    """
    Files hold them as pairs, each in its own way; what is computed from them is a layer.
    """

    class Spectrum(nn.Module):
        def forward(self, image):
            return torch.fft.rfft(image).abs()

    graph = capture(Spectrum().eval(), (torch.zeros(1, 3, 8, 8),), input_names=("image",), output_names=("spectrum",))

    assert [":abs"] == [layer.layer_id for layer in graph.layers.layers]


def test_identities_leave_no_layer():
    """
    Dropout at inference is nothing, so it is no layer that an artifact could lack.
    """
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5)).eval()

    graph = capture(net, (torch.randn(1, 3, 8, 8),))

    assert ["0"] == [layer.layer_id for layer in graph.layers.layers]
