"""Constants that optimizers and float16 lose: epsilons under divisions, masks, factors near one."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.exporters.onnx.optimise import resembles
from coordatt_deploy.formats import FORMATS, Format, Precision, TargetCpu
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.float16_range import beyond_float16, lost_in_float16
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.tensors import decode, encode

SPEC = ModelSpec("tiny", Preprocessing((8, 12)), source_sha256="0123abcd")

# Of a feature map y >= 0 whose second channel is dead, and which is dead as a whole on a black image.
SPELLINGS = {
    "mean": lambda y: y / (y.mean((2, 3), keepdim=True) + 1e-12),
    "norm": lambda y: y / (y.norm(dim=1, keepdim=True) + 1e-12),
    "normalize": lambda y: F.normalize(y, dim=1),
    "whole": lambda y: y / (y.mean() + 1e-9),
    "clamp": lambda y: y / y.sum(1, keepdim=True).clamp(min=1e-9),
    "sqrt": lambda y: y / torch.sqrt(y.pow(2).sum(1, keepdim=True) + 1e-10),
    "rsqrt": lambda y: y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-10),
    "subtract": lambda y: y / (y - -1e-12),
    "logarithm": lambda y: torch.log(y + 1e-10),
    "nearly_one": lambda y: torch.log(y * (1 + 2**-18) + 1),
}
KINDS = [(Format.ONNX, Precision.FP32), (Format.TFLITE, Precision.FP32), (Format.COREML, Precision.FP32),
         (Format.COREML, Precision.FP16)]  # fmt: skip
ALLOWED = {Precision.FP32: 1e-5, Precision.FP16: 4e-3}  # relative to the greatest value; float16 has steps of 1e-3


class Spelled(nn.Module):
    def __init__(self, spellings):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.spellings = nn.Conv2d(3, 4, 3, bias=False), spellings
        self.conv.weight.data[1] = 0

    def forward(self, image):
        features = self.conv(image).relu()
        return {name: spelling(features) for name, spelling in self.spellings.items()}


def exported(module, kind, precision, folder, images):
    """Write *module*; return its layer map and what the runtime makes of *images*."""
    names = tuple(module.spellings)
    graph = capture(module.eval(), (images[0],), output_names=names)
    lowered, _ = lower(graph, target_of(kind, TargetCpu.ARM64 if FORMATS[kind].per_cpu else None))
    beyond = beyond_float16(lowered, [{graph.inputs[0].name: image.numpy()} for image in images])
    request = ExportRequest(SPEC, precision, folder / f"net{FORMATS[kind].suffix}", float32_nodes=frozenset(beyond))
    written = exporter(kind).export(lowered, request)
    artifact = written.described(request, folder)
    results = []
    with runtime(kind).open_artifact(request.path, artifact) as runner:
        for image in images:
            found = runner.infer({spec.name: encode(image.numpy(), spec) for spec in artifact.inputs})
            results.append({spec.name: decode(found[spec.name], spec) for spec in artifact.outputs})
    return written, results


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(1)
    return [torch.rand(1, 3, 8, 12), torch.zeros(1, 3, 8, 12)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision"), KINDS, ids=lambda item: item.value)
def test_a_dead_channel_gives_what_torch_gives(kind, precision, tmp_path, images):
    """
    In every format, of every spelling: zeros divided by an epsilon are zeros, and no layer is lost.
    """
    module = Spelled(SPELLINGS)
    written, results = exported(module, kind, precision, tmp_path, images)

    for image, found in zip(images, results, strict=True):
        for name, expected in module(image).items():
            allowed = ALLOWED[precision] * max(1.0, float(expected.abs().max()))
            error = np.abs(found[name] - expected.detach().numpy()).max()
            assert error <= allowed, (name, error, allowed)
    kept = {layer.layer_id for layer in written.layers.layers if layer.operator in ("add", "sub") and layer.parts}
    assert 6 <= len(kept)


@pytest.mark.slow
def test_a_mask_of_the_least_number_is_kept_in_float16(tmp_path, images):
    """
    A row that is masked as a whole gives equal shares in torch; minus infinity would give NaN.
    """
    mask = torch.zeros(6, 10)
    mask[:, 7:] = mask[5] = torch.finfo(torch.float32).min
    module = Spelled({"shares": lambda y: (y + mask).softmax(-1)})

    written, results = exported(module, Format.COREML, Precision.FP16, tmp_path, images)

    for image, found in zip(images, results, strict=True):
        assert np.abs(found["shares"] - module(image)["shares"].detach().numpy()).max() < 2e-3
    assert "in float32: float16 holds magnitudes from 6e-8 to 65504" in written.notes[0]


@pytest.mark.slow
def test_values_beyond_float16_are_kept_and_named(tmp_path, images):
    """
    Layers that overflow compute in float32 and are named; the others, and a network without such ones, do not.
    """
    module = Spelled({"large": lambda y: (y * 1e5).mean((2, 3)) / 1e5, "small": lambda y: y.mean((2, 3))})
    written, results = exported(module, Format.COREML, Precision.FP16, tmp_path, images)

    for name, expected in module(images[0]).items():
        assert np.abs(results[0][name] - expected.detach().numpy()).max() < 1e-3
    assert ":mul, :mean, :div in float32" in written.notes[0]
    ordinary = Spelled({"small": module.spellings["small"]})
    (tmp_path / "ordinary").mkdir()
    assert () == exported(ordinary, Format.COREML, Precision.FP16, tmp_path / "ordinary", images)[0].notes


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_what_depends_on_an_epsilon_computes_in_float32(spelling):
    """
    The sum, what it is made for and what it is made of are found by name; the convolution never is.
    """
    graph = capture(Spelled({"one": spelling}).eval(), (torch.rand(1, 3, 8, 12),))
    lost = lost_in_float16(graph.module)
    last = next(node for node in graph.module.graph.nodes if node.op == "output").args[0][0].name

    assert "conv2d" not in lost
    assert (spelling is SPELLINGS["nearly_one"]) != (last in lost)


def test_usual_epsilons_and_constants_stay_in_float16():
    """
    The negative: 1e-6 under a division, a mask of -1e4, layer normalisation and hard-swish are left alone.
    """
    usual = {
        "epsilon": lambda y: y / (y.mean((2, 3), keepdim=True) + 1e-6),
        "norm": lambda y: F.layer_norm(y, y.shape[1:], eps=1e-6),
        "mask": lambda y: y.masked_fill(y > 1, -1e4).softmax(-1),
        "infinity": lambda y: y.masked_fill(y > 1, -torch.inf).softmax(-1),
        "hard": F.hardswish,
    }
    graph = capture(Spelled(usual).eval(), (torch.rand(1, 3, 8, 12),))

    assert frozenset() == lost_in_float16(graph.module)


@pytest.mark.parametrize("value", [1e-12, -1e-9, 1 + 1e-6, 1 - 2**-20, 3.0001, 6.0003, 0.1667])
def test_a_constant_near_a_rules_is_hidden_from_the_optimizer(value):
    """
    Near 0, 1, 3, 6 or a sixth, and none of these itself: the optimizer would take it for one.
    """
    assert resembles(ir.tensor(np.float32(value)))
    assert not resembles(ir.tensor(np.float32([value, value])))


@pytest.mark.parametrize("value", [0.0, 1.0, 3.0, 6.0, 0.5, 1 / 6, 1e-5, 2.0, 0.25])
def test_an_exact_constant_is_shown_to_the_optimizer(value):
    """
    The negative: what is exactly a rule's, or far from it, hides nothing.
    """
    assert not resembles(ir.tensor(np.float32(value)))
    assert not resembles(ir.tensor(np.int64(1)))
