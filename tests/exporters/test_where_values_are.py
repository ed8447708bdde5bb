"""Values that lay somewhere else than the map said: each file is held against torch layer by layer."""

import pytest
import torch
import torch.nn.functional as F
from files_against_torch import check
from judged_layers import judged
from torch import nn

from coordatt_deploy.formats import Format
from coordatt_deploy.graph.graph import DynamicSize

TFLITE = pytest.param(Format.TFLITE, marks=pytest.mark.slow)
SHAPE = (1, 3, 8, 10)


class CalledLikeConstants(nn.Module):
    """Buffers that have the names of calls: of a sigmoid and of a product."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)
        self.register_buffer("sigmoid", torch.rand(1, 4, 8, 10))
        self.register_buffer("mul", torch.rand(4, 1, 1))

    def forward(self, image):
        value = self.first(image) * self.sigmoid
        rows, columns = (value.mean(axis, keepdim=True).sigmoid() for axis in (3, 2))
        return self.last(value * rows * columns).sigmoid() * self.mul


class InnerProducts(nn.Module):
    """Convolutions whose result is scaled inside a sum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.norm.running_mean.normal_()
        self.shift, self.scale = nn.Parameter(torch.randn(4, 1, 1)), nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, image):
        value = torch.addcmul(self.shift, self.norm(self.first(image)), self.scale)
        return torch.add(value.sin(), self.second(value.tanh()), alpha=0.3).sin()


class FarBelow(nn.Module):
    """The logarithm of sigmoids of -100 and less."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        return F.logsigmoid(self.conv(image) * 100)


class Repeated(nn.Module):
    """A block twice on the same features, as a tower that is called again."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        value = self.conv(image)
        first, second = ((value.abs() + 0.1).rsqrt() for _ in range(2))
        return first.tanh() + second.exp().mean((2, 3), keepdim=True)


class SmallDifference(nn.Module):
    """Large numbers whose difference keeps three digits, and what follows on it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        value = self.conv(image).sigmoid() * 0.0625 + 4096.0
        return ((value - 4096.0) * 16.0).sin() * 2.0


@pytest.mark.parametrize("kind", [Format.ONNX, TFLITE])
@pytest.mark.parametrize("module", [CalledLikeConstants, FarBelow, Repeated])
def test_every_layer_is_where_the_map_says(module, kind):
    """
    Names that constants have, products inside sums, a logarithm far below, a block that is called twice.
    """
    check(module().eval(), SHAPE, formats=(kind,))


def test_a_product_inside_a_sum_may_be_in_the_convolution_before_it():
    """
    ONNX's optimizer puts it there: what the convolution gives is then seen at the sum.
    """
    _, maps = check(InnerProducts().eval(), SHAPE, formats=(Format.ONNX,))

    through = {layer.layer_id: layer.seen_through for layer in maps[Format.ONNX].layers if layer.seen_through}
    assert {":addcmul", ":add"} == {through["norm"], through["second"]}


@pytest.mark.slow
def test_what_float32_hardly_keeps_is_found_all_the_same():
    """
    A tensor that is as near as torch's own float32 holds the value; another function's tensor does not stand for it.
    """
    close, found = judged(Format.TFLITE, SmallDifference(), SHAPE)
    row = next(item for item in found.rows if item.operator == "sub")
    assert (row.seen_through, row.accumulated is not None) == (None, True)

    class Doubled(SmallDifference):
        def forward(self, image):
            value = self.conv(image).sigmoid() * 0.0625 + 4096.0
            return ((value - 4096.25) * 16.0).sin() * 2.0

    close, found = judged(Format.TFLITE, SmallDifference(), SHAPE, made_of=Doubled())
    assert (False, False) == (close, found.passed)


@pytest.mark.slow
def test_a_map_in_the_order_of_axes_before_a_permutation_is_not_taken_for_the_one_behind_it():
    """
    Between two permutations that cancel, coremltools computes as before the first one; sizes are dynamic there.
    """

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(5)
            self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, image):
            value = self.conv(image)
            return self.last(torch.minimum((value.permute(0, 2, 3, 1) * 2).permute(0, 3, 1, 2), value))

    check(Between(), (1, 3, 8, 16), formats=(Format.COREML,), dynamic=DynamicSize(8, 24), sizes=[(16, 8)])


class Bounded(nn.Module):
    """A bound on both sides, of which these values reach neither."""

    def __init__(self, least=-2.0):
        super().__init__()
        torch.manual_seed(6)
        self.conv, self.last, self.least = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), least

    def forward(self, image):
        gate = self.conv(image).tanh()
        return self.last(F.hardtanh(gate * gate.sigmoid(), self.least, 2.0))


@pytest.mark.slow
@pytest.mark.parametrize("least", [-2.0, -0.25])
def test_of_a_bound_that_is_two_operators_the_last_one_is_the_layer(least):
    """
    Stirred values cross both; another lower bound is found at the layer itself.
    """
    close, found = judged(Format.TFLITE, Bounded(), SHAPE, made_of=Bounded(least))

    assert (least == -2.0, least == -2.0) == (close, found.passed), found.sentence()
    assert found.first_diverging_layer in (None, ":hardtanh")


class Tokens(nn.Module):
    """As mobilevit_xxs has them: attention and a perceptron over the tokens of four patches at once."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.head = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 5, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(2))
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.widen, self.narrow = nn.Linear(24, 48), nn.Linear(48, 24)

    def forward(self, image):
        features = self.stem(image)
        patches = features.reshape(24 * 4, 2, 5, 2).transpose(1, 2).reshape(1, 24, 20, 4)
        tokens = patches.transpose(1, 3).reshape(4, 20, 24)
        q, k, v = self.qkv(self.norms[0](tokens)).reshape(4, 20, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(4, 20, 24)
        tokens = tokens + self.proj(attended)
        tokens = tokens + self.narrow(F.silu(self.widen(self.norms[1](tokens))))
        return self.head(tokens.reshape(4, 24, 4, 5).mean(0, keepdim=True))


@pytest.mark.parametrize("kind", [Format.ONNX, TFLITE])
def test_tokens_of_several_patches_are_rows_of_one_matrix(kind):
    """
    Linear layers, normalisations and reshapes whose tensors have the axes of the patches and of the tokens in one.
    """
    check(Tokens().eval(), SHAPE, formats=(kind,), mapped=1.0)


class NormalisedRows(nn.Module):
    """As LeViT has it: each linear layer of tokens is followed by a BatchNorm of its rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.linears = nn.Conv2d(3, 12, 1), nn.ModuleList(nn.Linear(12, 12, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm1d(12) for _ in range(2))
        for norm in self.norms:
            norm.running_mean.normal_()

    def forward(self, image):
        x = self.stem(image).flatten(2).transpose(1, 2)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            y = linear(x)
            x = F.hardswish(norm(y.flatten(0, 1)).reshape_as(y))
        return x.mean(1)


@pytest.mark.parametrize("kind", [Format.ONNX, TFLITE])
def test_rows_that_are_normalised_are_found(kind):
    """
    The linear layer and the flattening are seen through the norm that went into them; nothing is absent.
    """
    check(NormalisedRows().eval(), SHAPE, formats=(kind,), mapped=1.0)


class Shifted(nn.Module):
    """A square that is scaled and shifted before a convolution without padding, as StarReLU in PoolFormer."""

    def __init__(self, shift=-0.4472):
        super().__init__()
        torch.manual_seed(8)
        self.first, self.last, self.shift = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), shift

    def forward(self, image):
        return self.last(self.first(image).relu().square() * 0.8944 + self.shift)


class Pieces(nn.Module):
    """A convolution's result in three pieces, each of which one operator reads, as in MobileViT v2."""

    def __init__(self, key=4):
        super().__init__()
        torch.manual_seed(9)
        self.conv, self.last, self.key = nn.Conv2d(3, 9, 1), nn.Conv2d(4, 5, 1), key

    def forward(self, image):
        query, key, value = self.conv(image).split([1, self.key, 8 - self.key], 1)
        return self.last((key * query.softmax(-1)).sum(-1, keepdim=True) * value.relu())


@pytest.mark.parametrize("kind", [Format.ONNX, Format.COREML, TFLITE])
@pytest.mark.parametrize("module", [Shifted, Pieces])
def test_nothing_is_lost_that_one_layer_takes_up(kind, module):
    """
    Every layer has a tensor, or is judged at the one that took it up, and each piece of a split is found.
    """
    _, maps = check(module().eval(), SHAPE, formats=(kind,), mapped=1.0)

    pieces = [layer for layer in maps[kind].layers if layer.operator == "getitem"]
    assert all(layer.parts for layer in pieces)
    assert len(pieces) == (3 if module is Pieces else 0)


@pytest.mark.parametrize("kind", [Format.ONNX, Format.COREML, TFLITE])
def test_a_shift_that_is_not_taken_up_is_named(kind):
    """
    The negative: a file of the same network with another shift, in whatever layer it ended.
    """
    close, found = judged(kind, Shifted(), SHAPE, made_of=Shifted(shift=-0.4470))

    named = next(row for row in found.rows if row.layer_id == found.first_diverging_layer)
    assert (False, False) == (close, found.passed)
    assert (named.seen_through or named.layer_id) in (":add", "last")
