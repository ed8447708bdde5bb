"""The files of spellings that networks in public use have, held against torch: outputs, and every layer of the map."""

import pytest
import torch
import torch.nn.functional as F
from files_against_torch import AllOf, check, randomised
from torch import nn

from coordatt_deploy.formats import Format
from coordatt_deploy.graph.graph import DynamicSize

pytestmark = pytest.mark.slow  # each runs two or three converters


def _shuffle(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def _heads(x):
    n, c, h, w = x.shape
    q = x.flatten(2).permute(0, 2, 1).contiguous().view(n, h * w, 2, c // 2).transpose(1, 2)
    weights = (q @ q.transpose(2, 3).contiguous()).softmax(-1)
    return (weights @ q).transpose(1, 2).contiguous().view(n, h * w, c)


def _no_grad(x):
    with torch.no_grad():
        y = torch.tanh(x)
    return y * x


def _autocast(x):
    with torch.autocast("cpu", enabled=False):
        return torch.sigmoid(x.mean((2, 3), keepdim=True)) * x


VIEWS = {
    "shuffle": _shuffle,
    "heads": _heads,
    "clone": lambda x: x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).view(1, -1, 4),
    "windows": lambda x: x.view(1, 8, 2, 4, 3, 4).permute(0, 2, 4, 3, 5, 1).contiguous().view(-1, 16, 8),
    "transposed": lambda x: x.transpose(2, 3).contiguous().view(1, 4, -1),
    "no_grad": _no_grad,
    "autocast": _autocast,
    "arange": lambda x: x + torch.arange(x.shape[3]).float(),
}
TUPLES = {
    "max": lambda x: torch.max(x, 1, keepdim=True)[0],
    "min": lambda x: x.min(3).values,
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: x.split([1, 2, 5], 1)[2] * 2,
    "tensor_split": lambda x: x.tensor_split(3, 1)[1],
    "unbind": lambda x: x.unbind(1)[3] + 1,
    "adaptive": lambda x: F.adaptive_max_pool2d(x, 1),
    "indices": lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
    "variance": lambda x: torch.var_mean(x, (2, 3), keepdim=True)[0],
}
SORTED = {
    "topk": lambda x: x.flatten(2).topk(5, 2)[0].mean(2),
    "median": lambda x: x.flatten(2).median(2, keepdim=True)[0],
    "third": lambda x: x.kthvalue(3, 1)[0],
    "sort": lambda x: x.sort(3, descending=True)[0],
}
POOLS = {
    "dropped": lambda x: F.avg_pool2d(x, 3, 3, 1, ceil_mode=True),
    "dropped_max": lambda x: F.max_pool2d(x, 3, 3, 1, ceil_mode=True),
    "one_axis": lambda x: F.max_pool2d(F.avg_pool2d(x, (2, 1), 1), (3, 4), (3, 4), 1, ceil_mode=True),
    "default_stride": lambda x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2),
    "whole": lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
}
ALL = (Format.ONNX, Format.TFLITE, Format.COREML)


@pytest.mark.parametrize("functions", [VIEWS, TUPLES, POOLS], ids=["views", "tuples", "pools"])
@pytest.mark.parametrize("kind", ALL)
def test_spellings(functions, kind):
    """
    All at once, each as an output.
    """
    check(AllOf(functions), formats=(kind,))


def test_order_statistics():
    """
    The other converters have no sort that their runtimes run.
    """
    check(AllOf(SORTED), formats=(Format.ONNX,))


class _Norms(nn.Module):
    """A BatchNorm in each of the places where one can stand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        norms = {"input": 3, "first": 8, "second": 8, "identity": 8, "joined": 16, "pooled": 8, "head": 8, "last": 8}
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(channels) for name, channels in norms.items()})
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1, bias=False)
        self.same = nn.Conv2d(8, 8, 3, padding="same", bias=False)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2, bias=False)
        self.mix, self.flat = nn.Conv2d(16, 8, 1), nn.Linear(8 * 4 * 6, 5)
        self.without = nn.BatchNorm2d(8, track_running_stats=False)

    def forward(self, image):
        norms = self.norms
        x = norms["first"](self.stem(norms["input"](image)))
        y = norms["second"](self.same(x.relu())) + norms["identity"](x)
        y = self.mix(norms["joined"](torch.cat([x, y], 1)).relu())
        up = norms["last"](self.up(y)).relu()
        pooled = norms["pooled"](F.avg_pool2d(y, 2).relu())
        flat = self.flat(norms["head"](F.max_pool2d(y, 2).tanh()).flatten(1))
        return {"up": up, "pooled": pooled, "flat": flat, "without": self.without(y)}


@pytest.mark.parametrize("kind", ALL)
def test_batch_norms(kind):
    """
    Folded before and behind, written out, or taken from the input.
    """
    graph, maps = check(randomised(_Norms()), formats=(kind,))

    assert 9 == sum(layer.operator == "batch_norm" for layer in graph.layers.layers)
    assert not [layer for layer in maps[kind].layers if layer.operator == "batch_norm" and layer.absent]


class _Strips(nn.Module):
    """Strip pools outside of an attention block, and a strip that is cut by a slice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1)

    def forward(self, image):
        x = self.stem(image)
        rows, columns = F.adaptive_avg_pool2d(x, (None, 1)), F.adaptive_avg_pool2d(x, (1, None))
        joined = torch.cat([rows, columns.transpose(2, 3)], 2)[:, :, : x.shape[2]]
        quarters = F.adaptive_avg_pool2d(x, 2)
        return self.head((rows + columns).relu()), joined, quarters


def test_strips_of_a_dynamic_size():
    """
    At sizes that neither the capture nor the converter saw.
    """
    check(_Strips(), (1, 3, 64, 64), formats=(Format.ONNX,), dynamic=DynamicSize(32, 128, 32),
          sizes=((96, 32), (32, 128)))  # fmt: skip


class _Twice(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)

    def forward(self, image):
        y = self.stem(image)
        return {"out": y, "logits": y, "activated": y.relu()}


@pytest.mark.parametrize("kind", ALL)
def test_one_tensor_under_two_names(kind):
    """
    Both names are outputs of the file.
    """
    check(_Twice(), formats=(kind,))


@pytest.mark.parametrize("kind", ALL)
def test_several_images_at_once(kind):
    """
    Every layer is where the map says for each of them.
    """
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish(), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    check(randomised(net), (4, 3, 16, 24), formats=(kind,))
