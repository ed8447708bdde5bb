import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import DynamicBatch, DynamicSize
from coordatt_deploy.graph.macs import Work, count
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.loaded_model import capture_source
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.models import create_model, model_card


def _counted(module, *shape):
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return count(capture(module.eval(), (example,)))


class _Mixed(nn.Module):
    """Every kind of operator that torch's own counter has a rule for."""

    def __init__(self):
        super().__init__()
        self.strided = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(12, 24, 3, padding=2, dilation=2, groups=4, bias=False)
        self.depthwise = nn.Conv2d(24, 24, (5, 1), padding=(2, 0), groups=24)
        self.up = nn.ConvTranspose2d(24, 8, 2, stride=2, groups=2)
        self.sequence = nn.Conv1d(8, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, image):
        x = self.up(self.depthwise(self.grouped(self.strided(image))))
        x = self.sequence(x.flatten(2)).transpose(1, 2)
        return torch.bmm(self.head(x).transpose(1, 2), self.head(x)) @ torch.ones(5, 3)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (_Mixed, (1, 3, 18, 22)),
        (lambda: create_model("mobilenetv2_ca_035"), (1, 3, 64, 96)),
    ],
    ids=["mixed", "mobilenetv2_ca_035"],
)
def test_products_agree_with_torchs_own_counter(make, shape):
    """
    An independent counter that watches the module run: two of its operations are one multiply-accumulate.
    """
    module = make().eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(torch.randn(shape))

    counted = _counted(module, *shape)

    assert counter.get_total_flops() == 2 * counted.of(Work.CONVOLUTION, Work.LINEAR)
    assert {} == counted.uncounted


@pytest.mark.parametrize("name", ["mobilenetv2_ca_035.digits", "mobilenetv2_ca_050", "mobilenetv2_100"])
def test_the_cards_figures_are_the_counters(name):
    """
    Parameters and multiply-accumulates of ``models`` are those that the graph gives: convolutions and linear layers.
    """
    card = model_card(name)
    source = resolve(ModelRequest(name))

    graph = capture_source(source)
    counted = count(graph)

    assert card.macs == counted.of(Work.CONVOLUTION, Work.LINEAR)
    running = sum(2 * layer.shape[1] for layer in graph.layers.layers if layer.operator == "batch_norm")
    trained = sum(parameter.numel() for parameter in source.module.parameters())
    assert card.parameters == trained == counted.parameters - running


def test_attention_adds_two_pools_and_two_products_per_element():
    """
    For each block 4·C·H·W: two pools read the feature map, two gates multiply it.
    """
    example = (torch.randn(1, 3, 64, 64),)
    with_attention = count(fold_batchnorms(capture(create_model("mobilenetv2_ca_035"), example))[0])
    without = count(fold_batchnorms(capture(create_model("mobilenetv2_035"), example))[0])

    # Channels of the feature maps that are gated, and their height at an input of 64².
    maps = (
        *[(48, 16)] * 2, (48, 8), *[(96, 8)] * 2, (96, 4), *[(144, 4)] * 4, *[(192, 4)] * 2, (192, 2), *[(336, 2)] * 3,
    )  # fmt: skip
    read = sum(channels * size**2 for channels, size in maps)
    added = with_attention.macs - without.macs - with_attention.of(Work.CONVOLUTION) + without.of(Work.CONVOLUTION)
    assert 2 * read == with_attention.of(Work.POOLING) - without.of(Work.POOLING)
    hard_swish = sum(3 * max(8, channels // 32) * 2 * size for channels, size in maps)
    assert 4 * read + hard_swish == added


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x: x.mean(3), 60),
        (lambda x: functional.adaptive_avg_pool2d(x, (None, 1)), 60),
        (lambda x: functional.avg_pool2d(x, (2, 5)), 2 * 5 * 3 * 2 * 1),
        (lambda x: x * x + 1, 120),
        (lambda x: functional.hardswish(x), 180),
        (lambda x: x * (functional.relu6(x + 3) / 6), 180),
        (lambda x: functional.max_pool2d(x, 2), 0),
        (lambda x: torch.cat([x, x], 1).relu().reshape(-1), 0),
        (lambda x: functional.scaled_dot_product_attention(x, x, x), 3 * 4 * 4 * (5 + 5)),
        (lambda x: torch.einsum("bchw,bch->bchw", x, x.amax(3)), 60),
    ],
)
def test_each_operator_counts_as_its_rule_says(make, expected):
    """
    On a tensor of 1 x 3 x 4 x 5: pools by what they read, products by what they give, the rest nothing.
    """

    class Net(nn.Module):
        def forward(self, image):
            return make(image)

    assert expected == _counted(Net(), 1, 3, 4, 5).macs


def test_an_operator_without_a_rule_is_listed():
    """
    Better than to leave it out in silence.
    """

    class Net(nn.Module):
        def forward(self, image):
            return torch.fft.rfft(image).abs()

    assert {"fft_rfft": 1} == _counted(Net(), 1, 3, 4, 8).uncounted


def test_a_shared_weight_is_counted_once():
    """
    Two calls of one layer: twice the work, once the bytes.
    """

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, image):
            return self.conv(image) * self.conv(image.flip(2))

    counted = _counted(Net(), 1, 3, 4, 5)

    assert 16 == counted.parameters
    assert 64 == sum(layer.weight_bytes for layer in counted.layers)
    assert 2 * 4 * 20 * 3 == counted.of(Work.CONVOLUTION)


def test_a_dynamic_graph_is_counted_at_the_captured_size(tiny):
    """
    The same figures as of the static one.
    """
    example = (torch.randn(1, 3, 32, 48),)

    assert count(capture(tiny, example)).macs == count(capture(tiny, example, dynamic=DynamicSize(16, 64))).macs


def test_a_dynamic_batch_is_counted_as_one_image(tiny):
    """
    Whatever it was captured with, and beside a dynamic size as well.
    """
    alone = count(capture(tiny, (torch.randn(1, 3, 32, 48),))).macs
    several = (torch.randn(2, 3, 32, 48),)

    assert alone == count(capture(tiny, several, batch=DynamicBatch(1, 8))).macs
    assert alone == count(capture(tiny, several, batch=DynamicBatch(1, 8), dynamic=DynamicSize(16, 64))).macs
