"""Strangers' modules whose operators a converter writes wrongly: the file computes what torch computes, layer by layer.

The files are opened by the runtimes themselves (onnxruntime, ai_edge_litert); Core ML by the evaluator.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from ai_edge_litert.interpreter import Interpreter
from files_against_torch import Spelled, check
from runtimes_alone import opened
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import FORMATS, Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import is_tensor
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.layer_map import restore
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.runtimes.coreml.evaluator.package import load
from coordatt_deploy.tensors import encode

SIZE = (16, 24)
SIZES = {"simam": (80, 64)}  # coremltools takes n - 1 for n from a thousand positions on


class Net(nn.Module):
    """A strided stem of 8 channels on 8 by 12, a function, a head where a feature map comes out."""

    def __init__(self, function, channels=8):
        super().__init__()
        torch.manual_seed(2)
        self.stem, self.function = nn.Conv2d(3, 8, 3, 2, 1), function
        self.head = nn.Conv2d(channels, 4, 1) if channels else nn.Identity()

    def forward(self, image):
        return self.head(self.function(self.stem(image)))


class Eca(nn.Module):
    """Efficient channel attention as everybody writes it: 8 channels on 8 rows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        y = F.adaptive_avg_pool2d(x, 1)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid().expand_as(x)


class SimAM(nn.Module):
    """SimAM: a sum divided by one less than the number of positions."""

    def forward(self, x):
        n = x.shape[2] * x.shape[3] - 1
        d = (x - x.mean(dim=[2, 3], keepdim=True)).pow(2)
        y = d / (4 * (d.sum(dim=[2, 3], keepdim=True) / n + 1e-4)) + 0.5
        return x * torch.sigmoid(y)


class PatchAttention(nn.Module):
    """MobileViT's attention: four groups of places each attend among themselves; q, k and v are cut from one tensor."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2).reshape(4, 24, 8)
        q, k, v = self.qkv(tokens).reshape(4, 24, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(1, 96, 8).transpose(1, 2).reshape(1, 8, 8, 12))


class Channels(nn.Module):
    """A convolution to one channel, and a function of it and of what it was made of."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(8, 1, 1), function

    def forward(self, x):
        return self.function(self.conv(x), x)


class Mixed(nn.Module):
    """Rows mixed with their normalised selves: in TFLite one of the two lies in another order of axes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(96)

    def forward(self, x):
        y = x.flatten(2)
        return torch.lerp(self.norm(y), y, 0.4)


def _gate(x):
    return torch.sigmoid(F.adaptive_avg_pool2d(x, 1))


def _image_pooling(x):
    return torch.cat([x, _gate(x).expand(-1, -1, x.shape[2], x.shape[3])], 1)


def _yolo(x):
    n, c, h, w = x.shape
    y = x.view(n, 2, c // 2, h, w).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
    return (y[..., 2:4] * 2) ** 2


def _instance_norm():
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return norm


NETS = {
    "eca": lambda: Net(Eca()),
    "simam": lambda: Net(SimAM()),
    "image pooling": lambda: Net(_image_pooling, 16),
    "repeat": lambda: Net(lambda x: x * _gate(x).repeat(1, 1, x.shape[2], x.shape[3])),
    "yolo boxes": lambda: Net(_yolo, 0),
    "nearest": lambda: Net(lambda x: F.interpolate(x, size=(13, 19))),
    "instance norm": lambda: Net(_instance_norm()),
    "gelu": lambda: Net(nn.GELU("tanh")),
    "antialias": lambda: Net(lambda x: F.interpolate(x, size=(5, 7), mode="bilinear", antialias=True)),
    "grouped decoder": lambda: Net(nn.ConvTranspose2d(8, 8, 2, 2, groups=4)),
    "dilated decoder": lambda: Net(nn.ConvTranspose2d(8, 8, 3, 2, 2, dilation=2, output_padding=1)),
    "divisor": lambda: Net(nn.AvgPool2d(2, 2, divisor_override=3)),
    "uneven average": lambda: Net(nn.AvgPool2d(2, 3, ceil_mode=True)),
    "circular": lambda: Net(nn.CircularPad2d((1, 2, 0, 3))),
    "softplus": lambda: Net(nn.Softplus(2, 5)),
    "class map": lambda: Net(lambda x: x.argmax(1), 0),
    "patch attention": lambda: Net(PatchAttention()),
    "where": lambda: Net(lambda x: torch.where(x > 0, x, 0.1 * x), 0),
    "the lesser of two": lambda: Net(lambda x: torch.min(x.log_softmax(1), x)),
    "a number to a power": lambda: Net(lambda x: 2.0 ** x.tanh()),
    "nearest, fewer rows": lambda: Net(lambda x: F.interpolate(F.interpolate(x, size=(28, 14)), size=(4, 2))),
    "a factor that no float32 is": lambda: Net(lambda x: F.interpolate(
        F.pad(x, (0, 0, 1, 1)), scale_factor=1.3, mode="bilinear")),
    "a map of means copied": lambda: Net(lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1).flatten(2), 0),
    "a strip copied": lambda: Net(lambda x: x.mean(3, keepdim=True).expand(-1, -1, -1, 5)),
    "decoder, odd size": lambda: Net(nn.ConvTranspose2d(8, 8, 3, 2, 1)),
    "decoder of rows": lambda: Net(nn.ConvTranspose2d(8, 8, 3, (2, 1), 1)),
    "decoder, output padding alone": lambda: Net(nn.ConvTranspose2d(8, 8, 2, 2, output_padding=1, groups=2)),
    "decoder of one axis": lambda: Net(nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(8, 8, 3, 2, 1)), 0),
    "attention without heads": lambda: Net(lambda x: F.scaled_dot_product_attention(*[x.mean(3)] * 3), 0),
    "place of the only channel": lambda: Net(Channels(lambda y, x: x * (y.argmax(1, keepdim=True) == 0)), 8),
    "mean of windows": lambda: Net(lambda x: x.reshape(1, 8, 4, 2, 6, 2).mean((3, 5))),
    "mixed with its norm": lambda: Net(Mixed(), 0),
}  # fmt: skip
# The place of the only channel is 0 whatever the image is: TFLite keeps nothing of what leads to it.
MAPPED = {(Format.TFLITE, "place of the only channel"): 0.5}
FAST = {(Format.COREML, name) for name in ("simam", "instance norm", "gelu", "antialias", "uneven average", "circular")}
CASES = [
    pytest.param(item, name, marks=[] if (item, name) in FAST else pytest.mark.slow, id=f"{item} {name}")
    for item in Format for name in NETS
]  # fmt: skip


def by_onnxruntime(path, exported, image):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {exported.inputs[0].name: image})[0]


def by_litert(path, exported, image):
    interpreter = Interpreter(str(path))
    result = interpreter.get_signature_runner()(**{exported.inputs[0].name: image.transpose(0, 2, 3, 1)})
    value = result[exported.outputs[0].name]
    return value.transpose(0, 3, 1, 2) if value.ndim == 4 else value


def by_evaluator(path, exported, image):
    artifact = Artifact("", Format.COREML, Precision.FP32, None, None, 0, "", exported.inputs, exported.outputs, "")
    with runtime(Format.COREML).open_artifact(path, artifact) as runner:
        return runner.infer({exported.inputs[0].name: image})[exported.outputs[0].name]


def by_executorch(path, exported, image):
    return opened(path, Format.EXECUTORCH)({exported.inputs[0].name: image})[exported.outputs[0].name]


DIRECTLY = {
    Format.ONNX: by_onnxruntime,
    Format.TFLITE: by_litert,
    Format.COREML: by_evaluator,
    Format.EXECUTORCH: by_executorch,
}


@pytest.mark.parametrize(("file_format", "name"), CASES)
def test_the_file_computes_what_torch_computes(file_format, name, tmp_path):
    """
    The output to within float32 rounding, and every layer that the map places, decomposed ones among them.
    """
    net, size = NETS[name]().eval(), SIZES.get(name, SIZE)
    graph = capture(net, (torch.randn(1, 3, *size),))
    lowered, _ = lower(fold_batchnorms(graph)[0], target_of(file_format))
    request = ExportRequest(
        ModelSpec("net", Preprocessing(size)), Precision.FP32, tmp_path / f"net{FORMATS[file_format].suffix}"
    )
    image = np.random.default_rng(8).normal(0.2, 1.5, (1, 3, *size)).astype(np.float32)

    exported = exporter(file_format).export(lowered, request)

    with torch.no_grad():
        wanted = net(torch.from_numpy(image)).numpy()
    value = DIRECTLY[file_format](request.path, exported, image)
    assert wanted.shape == value.shape
    np.testing.assert_allclose(value, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    _compare_layers(graph, exported, file_format, request.path, image, MAPPED.get((file_format, name), 0.9))


def _compare_layers(graph, exported, file_format, path, image, mapped):
    where = {layer.layer_id: layer.parts[0].tensor for layer in graph.layers.layers}
    floats = {
        node.name for node in graph.module.graph.nodes if is_tensor(node) and node.meta["val"].is_floating_point()
    }
    layers = [layer for layer in exported.layers.layers if layer.parts and where[layer.layer_id] in floats]
    names = tuple(dict.fromkeys(part.tensor for layer in layers for part in layer.parts))
    artifact = Artifact("", file_format, Precision.FP32, None, None, 0, "", exported.inputs, exported.outputs, "")
    with runtime(file_format).open_artifact(path, artifact, tensors=names) as runner:
        tensors = runner.infer({spec.name: encode(image, spec) for spec in runner.inputs})
    values = run(graph, {"image": image}, nodes=frozenset(where.values()))
    assert exported.layers.coverage >= mapped
    for layer in layers:
        reference = values[where[layer.layer_id]].astype(np.float64)
        np.testing.assert_allclose(
            restore(layer, tensors), reference, rtol=0, atol=2e-5 * np.abs(reference).max(), err_msg=layer.layer_id
        )


def test_onnx_layers_of_booleans_and_integers_are_read():
    """
    A mask or a position inside the network is a layer as any other: it is judged, and what follows is fed with it.
    """
    module = Spelled(lambda x: torch.where(x > 0.1, x, 0.2 * x) + (x * 2).to(torch.int32).float())

    graph, maps = check(module, formats=(Format.ONNX,))

    assert {"bool", "int32"} <= {str(n.meta["val"].dtype).removeprefix("torch.") for n in graph.module.graph.nodes
                                 if "val" in n.meta}  # fmt: skip
    assert not [layer for layer in maps[Format.ONNX].layers if layer.absent]


def test_coreml_scales_and_shifts_without_an_epsilon():
    """
    A BatchNorm with no convolution before it is a product and a sum; a pass of coremltools made it a BatchNorm of
    variance 1 and epsilon 1e-5, and the values 5e-6 too small: eighty times what float32 rounds.
    """
    layer = nn.BatchNorm2d(8)
    generator = torch.Generator().manual_seed(2)
    for tensor in (layer.running_var, layer.weight):
        tensor.data.uniform_(0.5, 1.5, generator=generator)
    layer.bias.data.normal_(generator=generator)
    graph, _ = fold_batchnorms(capture(layer.eval(), (torch.randn(1, 8, *SIZE),), output_names=["output"]))
    lowered, _ = lower(graph, target_of(Format.COREML))
    image = np.random.default_rng(0).standard_normal((1, 8, *SIZE)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        spec = ModelSpec("scaled", Preprocessing(SIZE, (0.0,) * 8, (1.0,) * 8, "OTHER"))
        path = Path(folder) / "scaled.mlpackage"
        exporter(Format.COREML).export(lowered, ExportRequest(spec, Precision.FP32, path))
        (actual,) = load(path).evaluate({"image": image}, ["output"]).values()

    with torch.no_grad():
        expected = layer.double()(torch.from_numpy(image).double()).numpy()
    assert np.abs(actual - expected).max() <= 4 * 2.0**-24 * np.abs(expected).max()
