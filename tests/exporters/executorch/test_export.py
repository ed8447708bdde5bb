"""ExecuTorch files against torch: outputs, layers, pieces for XNNPACK, bytes."""

import numpy as np
import pytest
import torch
from executorch.extension.pybindings import _C as executorch  # noqa: N811
from executorch_files import KIND, SIZE, Small, images, made
from files_against_torch import check
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.errors import UsageError
from coordatt_deploy.exporters import ExportRequest
from coordatt_deploy.exporters.executorch.export import export
from coordatt_deploy.formats import Precision
from coordatt_deploy.runtimes.reader import count_operators, delegates, read_artifact, read_metadata


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return made(tmp_path_factory.mktemp("executorch"))


def test_executorch_itself_gives_what_torch_gives(small):
    """
    Without anything of this project in between: the saved file, opened by executorch's own module.
    """
    image = torch.from_numpy(images())
    with torch.no_grad():
        expected = small.module(image)

    actual = executorch._load_for_executorch(str(small.path)).forward([image])

    assert len(expected) == len(actual) == 2
    for one, other in zip(expected, actual, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_every_layer_is_where_the_map_says():
    """
    Outputs and layers of the file against torch, all layers placed; so with a kernel outside of XNNPACK.
    """

    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, image):
            x = torch.nn.functional.hardswish(self.first(image))
            return self.second(torch.cumsum(x, 1)), x.mean(3)

    for module in (Small(), Outside()):
        _, maps = check(module.eval(), formats=(KIND,), mapped=1.0)
        assert all(layer.absent is None for layer in maps[KIND].layers)


def test_a_network_with_coordinate_attention_is_one_piece(small):
    """
    XNNPACK runs it from input to output; a mean over one axis would break it in three for each block.
    """
    graph = read_artifact(small.path)
    (found,) = delegates(small.path, graph)

    assert (1, len(graph.nodes), ()) == (found.partitions, found.taken, found.rejected)
    assert "in 1 partition" in count_operators(small.path, KIND).remark


def test_what_xnnpack_leaves_is_told(tmp_path):
    """
    A kernel outside of it is named, with why that matters.
    """

    class Outside(nn.Module):
        def forward(self, image):
            return torch.cumsum(image * 2, 1) * 3

    path = made(tmp_path, Outside()).path
    (found,) = delegates(path, read_artifact(path))

    assert 2 == found.partitions
    assert ["aten::cumsum.out"] == [name for name, _, _ in found.rejected]


def test_the_same_graph_gives_the_same_bytes(small, tmp_path):
    """
    And the file says what it is for.
    """
    again = made(tmp_path)

    assert small.path.read_bytes() == again.path.read_bytes()
    said = read_metadata(small.path, KIND)
    assert ("small", [*SIZE]) == (said["model"], said["preprocessing"]["size"])
    assert (["image"], [spec.name for spec in small.artifact.outputs]) == (said["inputs"], said["outputs"])


def test_what_it_does_not_write(small, tmp_path):
    """
    Halves, and sizes that are not known.
    """
    request = ExportRequest(ModelSpec("net", Preprocessing(SIZE)), Precision.FP16, tmp_path / "net.pte")

    with pytest.raises(UsageError, match="writes fp32"):
        export(small.graph, request)

    assert not request.path.exists()


def test_an_input_that_is_handed_through(tmp_path):
    """
    An output that nothing computes is the input.
    """

    class Through(nn.Module):
        def forward(self, image):
            return image, image + 1

    file = made(tmp_path, Through())
    image = images()
    with file.open() as runner:
        results = runner.infer({"image": image})

    first, second = (results[spec.name] for spec in file.artifact.outputs)
    assert np.array_equal(image, first)
    assert np.allclose(image + 1, second)


def test_one_tensor_under_several_names(tmp_path):
    """
    As models return that give {"out": y, "logits": y}: XNNPACK's delegate would hand one of them through.
    """

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, image):
            value = self.conv(image).relu()
            return value, value, value.mean((2, 3)), value

    module = Twice().eval()
    with made(tmp_path, module).open() as runner:
        first, second, mean, third = runner.infer({"image": images()}).values()

    with torch.no_grad():
        expected = module(torch.from_numpy(images()))[0].numpy()
    assert np.allclose(expected, first, atol=1e-5)
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)
    assert np.allclose(expected.mean((2, 3)), mean, atol=1e-5)


class OfRows(nn.Module):
    """A layer norm over the channels of a map."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.weight, self.bias = self.norm.weight, self.norm.bias

    def forward(self, value):
        return self.norm(value.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "norm",
    [
        *(lambda groups=groups: nn.GroupNorm(groups, 8) for groups in (1, 2, 8)),
        lambda: nn.InstanceNorm2d(8, affine=True),
        OfRows,
    ],
    ids=["one group", "two groups", "a group a channel", "instance norm", "layer norm"],
)
def test_a_normalisation_is_in_the_piece_and_keeps_its_digits(tmp_path, norm):
    """
    The runtime's own kernel stands outside XNNPACK, and loses the digits of a map whose mean is far from 0.
    """

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.norm = nn.Conv2d(3, 8, 3), norm()
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)
            self.conv.bias.data += 100.0

        def forward(self, image):
            return self.norm(self.conv(image)).relu()

    module = Normalised().eval()
    file = made(tmp_path, module)
    with file.open() as runner:
        (value,) = runner.infer({"image": images()}).values()

    with torch.no_grad():
        expected = module.double()(torch.from_numpy(images()).double()).numpy()
    assert float(np.abs(value - expected).max()) < 1e-3  # the kernels' own: 0.02 to 0.1
    (found,) = delegates(file.path, read_artifact(file.path))
    assert (1, ()) == (found.partitions, found.rejected)


def test_a_convolution_along_one_axis_may_be_called_twice():
    """
    executorch gave the one kernel a further axis at each call, and ended at the second: ECA before and behind a block.
    """

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1, bias=False)

        def gated(self, x):
            gate = self.mix(x.mean((2, 3)).unsqueeze(1)).sigmoid()
            return x * gate.transpose(1, 2).unsqueeze(-1)

        def forward(self, image):
            return self.gated(self.gated(self.stem(image)).relu())

    check(Twice().eval(), formats=(KIND,), mapped=1.0)
