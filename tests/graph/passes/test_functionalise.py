import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import DynamicSize


def _net(inplace):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(inplace=inplace),
        nn.Dropout2d(0.2, inplace=inplace),
        nn.Conv2d(8, 8, 1),
        nn.Hardswish(inplace=inplace),
    ).eval()


def _operators(graph):
    return [str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"]


def _agree(module, graph, size=(8, 12)):
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        expected = module.double()(image.clone())
    actual = run(graph, {"image": image.numpy()})
    module.float()
    return np.array_equal(expected.numpy(), actual[graph.outputs[0]])


def test_inplace_activations_give_the_graph_of_the_network_without_them():
    """
    ``inplace=True`` saves memory in training; the captured operators are the same either way.
    """
    example = (torch.randn(1, 3, 8, 12),)

    assert _operators(capture(_net(inplace=False), example)) == _operators(capture(_net(inplace=True), example))


class _ReadsBefore(nn.Module):
    """The overwritten tensor is read before, by its own name after, and through a view made before."""

    def forward(self, image):
        whole = image * 2
        part = whole[:, :1]
        before = whole + 1
        whole.relu_()
        return before + whole + part


class _SliceAssignment(nn.Module):
    """The identity of a bottleneck, added as some repositories write it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, image):
        out = self.norm(self.conv(image))
        out[:, :3] = out[:, :3] + image
        out[:, 2:-1] *= 3.0
        out[:, :, ::2] += 1.0
        return out


class _WholeSlice(nn.Module):
    def forward(self, image):
        out = image * 2
        out[:, :3, :, :] = out[:, :3, :, :] + image
        return out


class _OverwritesItsInput(nn.Module):
    def forward(self, image):
        image.sub_(0.5).div_(0.25)
        return functional.relu_(image)


@pytest.mark.parametrize("kind", [_ReadsBefore, _SliceAssignment, _WholeSlice, _OverwritesItsInput])
def test_the_captured_function_is_the_modules_own(kind):
    """
    Whatever is overwritten, and by whichever name it is read afterwards, the float64 results agree to the last bit.
    """
    module = kind().eval()
    graph = capture(module, (torch.randn(1, 3, 8, 12),))

    assert _agree(module, graph)
    assert not [name for name in _operators(graph) if name.split(".")[1].endswith("_")]


def test_a_slice_assignment_becomes_a_concatenation_and_is_remembered():
    """
    Stretches with step 1 are concatenated; the layers that stand for them are listed.
    """
    graph = capture(_SliceAssignment().eval(), (torch.randn(1, 3, 8, 12),))

    assert (":cat", ":cat_1") == graph.assignments
    assert 2 == _operators(graph).count("aten.cat.default")
    assert "aten.batch_norm.default" in _operators(graph)


def test_assigning_the_whole_tensor_is_a_plain_sum():
    """
    Nothing is left over to concatenate.
    """
    graph = capture(_WholeSlice().eval(), (torch.randn(1, 3, 8, 12),))

    assert ["aten.mul.Tensor", "aten.add.Tensor"] == _operators(graph)


def test_slice_assignment_follows_a_dynamic_size():
    """
    Channels are known even where height and width are not.
    """
    module = _SliceAssignment().eval()
    graph = capture(module, (torch.randn(1, 3, 8, 12),), dynamic=DynamicSize(4, 64))

    assert _agree(module, graph, (22, 10))


class _Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, image):
        self.seen += 1
        return image + self.seen


def test_a_model_that_overwrites_its_own_buffer_is_refused_by_name():
    """
    An artifact keeps no state.
    """
    with pytest.raises(UsageError, match="overwrites its own seen"):
        capture(_Counts().eval(), (torch.randn(1, 3, 8, 8),))


class _KeepsTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def train(self, mode=True):
        super().train(mode)
        self.norm.train()
        return self

    def forward(self, image):
        return self.norm(self.conv(image))


class _AlwaysDrops(nn.Module):
    def forward(self, image):
        return functional.dropout(image, 0.5)


@pytest.mark.parametrize(("kind", "where"), [(_KeepsTraining, "norm"), (_AlwaysDrops, "own forward")])
def test_leftovers_of_training_are_refused_with_their_place(kind, where):
    """
    ``eval()`` does not reach an overridden ``train`` or a call without ``self.training``.
    """
    with pytest.raises(UsageError, match=f"{where}.* in training mode"):
        capture(kind().eval(), (torch.randn(1, 3, 8, 8),))
