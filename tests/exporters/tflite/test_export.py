import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, metadata
from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.exporters import ExportRequest
from coordatt_deploy.exporters.layer_search import axes_between
from coordatt_deploy.exporters.tflite.export import export
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import DynamicSize
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.layer_map import restore
from coordatt_deploy.models import create_model
from coordatt_deploy.models.coordatt import CoordAtt
from coordatt_deploy.runtimes.tflite.metadata import read_metadata
from coordatt_deploy.runtimes.tflite.runner import Interpreter, open_artifact, operators
from coordatt_deploy.tensors import encode

SPEC = ModelSpec("small", Preprocessing((20, 28)), ("cat", "größte"), "coordatt", "0123abcd")


class Small(nn.Module):
    """What the converter fuses, moves or splits: convolution with clip, attention, a sum, linear layer with relu."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.attention = CoordAtt(16)
        self.head = nn.Linear(16, 5)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)

    def forward(self, image):
        x = self.stem(image)
        x = x + self.attention(self.depthwise(x))
        return torch.relu(self.head(x.mean((2, 3))))


class Cube(nn.Module):
    """Height, width and channels of the same size: only the values tell the axes apart."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Conv2d(3, 8, 3, 1, 1)
        self.second = nn.Conv2d(8, 8, 1)

    def forward(self, image):
        x = self.first(image).tanh()
        return self.second(x.transpose(2, 3)), x.permute(0, 2, 3, 1).flatten(1)


def folded(module, *sizes, **options):
    generator = torch.Generator().manual_seed(5)
    example = tuple(torch.randn(*size, generator=generator) for size in sizes)
    return fold_batchnorms(capture(module.eval(), example, **options))[0]


def written(graph, path, **changes):
    return export(graph, ExportRequest(**{"spec": SPEC, "precision": Precision.FP32, "path": path, **changes}))


def described(exported):
    return Artifact("", Format.TFLITE, Precision.FP32, None, None, 0, "", exported.inputs, exported.outputs, "")


def infer(path, exported, feeds, tensors=()):
    with open_artifact(path, described(exported), tensors=tensors) as runner:
        return runner.infer({spec.name: encode(feeds[spec.name], spec) for spec in runner.inputs})


def fresh_feeds(graph, seed=77):
    """Feeds that the exporter has not seen."""
    generator = np.random.default_rng(seed)
    return {spec.name: generator.normal(0.3, 2.0, spec.shape).astype(np.float32) for spec in graph.inputs}


def follow(graph, exported, path):
    """Each layer that has tensors: its value in the file, and in the graph run in float64."""
    layers = [layer for layer in exported.layers.layers if layer.parts]
    names = tuple(dict.fromkeys(part.tensor for layer in layers for part in layer.parts))
    feeds = fresh_feeds(graph)
    tensors = infer(path, exported, feeds, names)
    where = {layer.layer_id: layer.parts for layer in graph.layers.layers}
    nodes = run(graph, feeds, nodes=frozenset(part.tensor for parts in where.values() for part in parts))
    for layer in layers:
        (part,) = where[layer.layer_id]
        yield layer, restore(layer, tensors), nodes[part.tensor]


@pytest.fixture(scope="module")
def small():
    return folded(Small(), (1, 3, 20, 28))


@pytest.fixture(scope="module")
def small_file(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("tflite") / "small.tflite"
    return path, written(small, path, target_cpu=TargetCpu.ARM64)


@pytest.fixture(scope="module")
def small_path(small_file):
    return small_file[0]


@pytest.fixture(scope="module")
def small_export(small_file):
    return small_file[1]


def test_interface_has_stable_names_and_nhwc(small_export):
    """
    Images go in as NHWC under the name image, and logits come out.
    """
    (image,), (logits,) = small_export.inputs, small_export.outputs

    assert ("image", (1, 20, 28, 3), "float32", "NHWC") == (image.name, image.shape, image.dtype, image.layout)
    assert ("logits", (1, 5), "float32", "NC") == (logits.name, logits.shape, logits.dtype, logits.layout)


def test_file_computes_the_graph(small, small_path, small_export):
    """
    The file run in LiteRT differs from float64 by no more than a few roundings of float32.
    """
    feeds = fresh_feeds(small)
    expected = run(small, feeds)["logits"]
    torch_error = np.abs(run(small, feeds, dtype=torch.float32)["logits"] - expected).max()

    actual = infer(small_path, small_export, feeds)["logits"]

    assert np.abs(actual - expected).max() <= 8 * max(torch_error, np.spacing(np.float32(np.abs(expected).max())))


def test_every_layer_of_the_map_holds_its_value(small, small_path, small_export):
    """
    On inputs that the exporter never saw, each mapped tensor is its layer's value, in the graph's own layout.
    """
    followed = list(follow(small, small_export, small_path))

    assert len(followed) >= len(small_export.layers.layers) // 2
    for layer, actual, expected in followed:
        assert expected.shape == actual.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5, err_msg=layer.layer_id)


def test_layers_are_covered(small_export):
    """
    Every layer has a tensor or names the layer it was fused into, which has one.
    """
    assert 1.0 == small_export.layers.coverage
    for layer in small_export.layers.layers:
        holder = small_export.layers.resolved(layer.layer_id)
        assert holder is not None, layer.layer_id
        assert holder.parts


@pytest.mark.parametrize(
    ("fused", "into"),
    [
        ("stem.0", "stem.2"),  # convolution -> folded BatchNorm -> clip
        ("stem.1", "stem.2"),
        ("attention.act:relu6", "attention.act:mul"),  # inside HARD_SWISH
        ("head", ":relu"),  # into the output, whose tensor has lost the converter's name
    ],
)
def test_fused_layers_are_seen_through(small_export, fused, into):
    """
    A layer that was fused into a later one is judged there, not claimed to be in that tensor itself.
    """
    layer = next(layer for layer in small_export.layers.layers if layer.layer_id == fused)

    assert () == layer.parts
    assert into == small_export.layers.resolved(fused).layer_id


def test_a_clip_that_clips_nothing_is_no_second_home(tmp_path):
    """
    What stands before a fused clip is not claimed to be in its tensor, though both are equal on small values.
    """

    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(6)
            self.convolution = nn.Conv2d(3, 4, 1)
            nn.init.constant_(self.convolution.bias, 3.0)  # every value lies between the bounds
            self.convolution.weight.data *= 1e-2

        def forward(self, image):
            return nn.functional.relu6(self.convolution(image)).mean((2, 3))

    graph = folded(Clipped(), (1, 3, 6, 6))

    layers = written(graph, tmp_path / "clipped.tflite").layers

    convolution = next(layer for layer in layers.layers if layer.layer_id == "convolution")
    assert () == convolution.parts
    assert ":relu6" == convolution.seen_through


def test_axes_are_told_apart_by_values(tmp_path):
    """
    With height, width and channels of one size, every layer still comes back in its own layout; so do two outputs.
    """
    graph = folded(Cube(), (1, 3, 8, 8), output_names=("maps", "rows"))
    path = tmp_path / "cube.tflite"
    exported = written(graph, path)

    followed = list(follow(graph, exported, path))

    assert {"first", ":tanh", ":transpose", "second"} <= {layer.layer_id for layer, _, _ in followed}
    for layer, actual, expected in followed:
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5, err_msg=layer.layer_id)
    assert [("maps", "NHWC"), ("rows", "NC")] == [(spec.name, spec.layout) for spec in exported.outputs]


def test_inner_tensors_leave_the_outputs_as_they_are(small, small_path, small_export):
    """
    The logits with inner tensors kept are those of the file as an app runs it, up to rounding.
    """
    feeds = fresh_feeds(small)
    plain = infer(small_path, small_export, feeds)["logits"]

    kept = infer(small_path, small_export, feeds, ("stem.2", "logits"))

    assert {"stem.2", "logits"} == set(kept)
    np.testing.assert_allclose(kept["logits"], plain, rtol=1e-5, atol=1e-6)


def test_tensors_are_named_after_layers(small_path):
    """
    Names are unique, short, and free of classes and files of the machine that converted.
    """
    names = [detail["name"] for detail in Interpreter(str(small_path)).get_tensor_details()]

    assert len(set(names)) == len(names)
    assert {"image", "logits", "stem.2", "stem.2/weight", "stem.2/bias"} <= set(names)
    content = small_path.read_bytes()
    for text in ("_Call", "exporters", "torch", ".py", str(Path.home()), str(small_path.parent), os.uname().nodename):
        assert text.encode() not in content, text


def test_metadata_is_read_back(small_path):
    """
    Preprocessing, labels and provenance are in the file and come out without a converter.
    """
    assert metadata(SPEC, TargetCpu.ARM64) == read_metadata(small_path)


def test_weights_are_aligned(small_path):
    """
    Every buffer begins at a multiple of 16 bytes, as the format asks for.
    """
    model = schema.Model.GetRootAs(small_path.read_bytes(), 0)
    buffers = [model.Buffers(index)._tab for index in range(model.BuffersLength())]
    starts = [table.Vector(table.Offset(4)) for table in buffers if table.Offset(4)]

    assert len(starts) > 10
    assert {0} == {start % 16 for start in starts}


def test_export_twice_gives_the_same_bytes(small, small_path, small_export, tmp_path):
    """
    Nothing random is left in the file or its layer map.
    """
    again = written(small, tmp_path / "again.tflite", target_cpu=TargetCpu.ARM64)

    assert small_path.read_bytes() == (tmp_path / "again.tflite").read_bytes()
    assert small_export == again


@pytest.mark.slow
def test_another_process_gives_the_same_bytes(tmp_path):
    """
    Neither the hash seed, the working directory nor what was converted before shows in the file.
    """
    script = (
        "import sys, torch; from pathlib import Path\n"
        "from coordatt_deploy.graph.capture import capture\n"
        "from coordatt_deploy.exporters import ExportRequest\n"
        "from coordatt_deploy.exporters.tflite.export import export\n"
        "from coordatt_deploy.models.coordatt import CoordAtt\n"
        "from coordatt_deploy.artifact_specs import ModelSpec, Precision, Preprocessing\n"
        "torch.manual_seed(0)\n"
        "graph = capture(CoordAtt(16).eval(), (torch.ones(1, 16, 6, 8),))\n"
        "export(graph, ExportRequest(ModelSpec('ca', Preprocessing((6, 8))), Precision.FP32, Path('a.tflite')))\n"
    )
    digests = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, check=True, stderr=subprocess.PIPE)
        digests.add(hashlib.sha256((folder / "a.tflite").read_bytes()).hexdigest())

    assert 1 == len(digests)


def test_one_changed_weight_changes_the_output(small, small_path, small_export, tmp_path):
    """
    The file's own weights are what is run: doubling one of them shows in the logits.
    """
    content = bytearray(small_path.read_bytes())
    model = schema.Model.GetRootAs(content, 0)
    subgraph = model.Subgraphs(0)
    tensors = [subgraph.Tensors(index) for index in range(subgraph.TensorsLength())]
    (weight,) = (tensor for tensor in tensors if tensor.Name() == b"stem.2/weight")
    table = model.Buffers(weight.Buffer())._tab
    start = table.Vector(table.Offset(4))
    value = np.frombuffer(content, dtype=np.float32, count=1, offset=start)
    content[start : start + 4] = (value * 2).tobytes()
    changed = tmp_path / "changed.tflite"
    changed.write_bytes(content)
    feeds = fresh_feeds(small)

    before = infer(small_path, small_export, feeds)["logits"]
    after = infer(changed, small_export, feeds)["logits"]

    assert not np.array_equal(before, after)


@pytest.mark.parametrize("axes", [(0, 2, 3, 1), (0, 1, 2, 3), (0, 3, 2, 1)])
def test_axes_between_finds_the_order(axes):
    """
    The order of the axes is found from the values, size-1 axes come and go, and no order is given for other values.
    """
    generator = np.random.default_rng(0)
    value = generator.normal(size=(1, 5, 5, 5))
    tensor = value.transpose(axes).astype(np.float32)

    assert axes == axes_between([tensor], [value])
    assert axes_between([tensor[0]], [value]) == axes
    assert axes_between([tensor + np.float32(0.1)], [value]) is None
    assert axes_between([np.full_like(tensor, np.nan)], [value]) is None
    assert axes_between([tensor, tensor], [value, generator.normal(size=(1, 5, 5, 5))]) is None


def test_what_the_format_does_not_have_is_refused(tmp_path):
    """
    Another precision and a dynamic size are usage errors, and leave no file.
    """
    path = tmp_path / "no.tflite"
    static = folded(nn.Conv2d(3, 4, 1), (1, 3, 8, 8))
    dynamic = folded(nn.Conv2d(3, 4, 1), (1, 3, 8, 8), dynamic=DynamicSize(4, 32))

    with pytest.raises(UsageError, match="fp32, not fp16"):
        written(static, path, precision=Precision.FP16)
    with pytest.raises(UsageError, match="fixed input size"):
        written(dynamic, path)
    assert not path.exists()


def test_an_operator_without_conversion_is_named(tmp_path):
    """
    What litert-torch cannot convert is a conversion error with the operator's name, and leaves no file.
    """

    class Decomposed(nn.Module):
        def forward(self, image):
            return torch.linalg.qr(image)[0].mean((2, 3))

    graph = folded(Decomposed(), (1, 3, 4, 4))

    with pytest.raises(ConversionError, match="qr"):
        written(graph, tmp_path / "no.tflite")
    assert not (tmp_path / "no.tflite").exists()


@pytest.mark.slow
def test_the_embedded_default_is_one_partition_and_covered(tmp_path):
    """
    MobileNetV2 with coordinate attention: XNNPACK runs it as one piece, nine layers in ten are mapped and right.
    """
    graph = folded(create_model("mobilenetv2_ca_035.digits"), (1, 3, 96, 96))
    path = tmp_path / "default.tflite"
    exported = written(graph, path)
    delegation = operators(path)

    assert 1 == delegation.partitions
    assert all(operator.delegated for operator in delegation.operators)
    assert exported.layers.coverage >= 0.9
    followed = list(follow(graph, exported, path))
    assert len(followed) > 200
    for layer, actual, expected in followed:
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=layer.layer_id)
