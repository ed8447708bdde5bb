"""What strangers' networks return: a tensor twice, the input itself, class maps, one head in two places."""

import textwrap

import numpy as np
import onnxruntime
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter

from coordatt_deploy.conversion import export_run
from coordatt_deploy.conversion.plan import ExportPlan
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.parity.run import ParityPlan, check_parity
from coordatt_deploy.progress import Stages
from coordatt_deploy.tensors import decode, encode

SOURCE = '''
import torch
from torch import nn


class Net(nn.Module):
    """A convolution and a head, whose results leave in several ways."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(3)
        self.how = how
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        y = self.stem(x).relu()
        if self.how == "shared head":
            return {"logits": self.head(y), "scores": self.head(y).sigmoid(), "levels": self.head(y).mean((2, 3))}
        if self.how == "input as well":
            return {"first": self.head(y), "image_again": x, "once_more": x}
        if self.how == "class map twice":
            classes = self.head(y).argmax(1)
            return {"classes": classes, "same": classes}
        if self.how == "mean and deviation":
            return torch.cat([y.mean(1, keepdim=True), y.std(1, keepdim=True)], 1), y.var(2), y.mean(2)
        if self.how == "lowest":
            z = self.stem(x)  # without the zeros of a ReLU: which of several equals comes first is nobody's promise
            return z.flatten(2).sort(2)[0][:, :, :3], z.kthvalue(2, 1)[0], z.topk(3, 1, largest=False)[1]
        return {"strongest": y.flatten(2).topk(4, 2)[0], "middle": y.median(1)[0]}


def build(how):
    return Net(how).eval()
'''

HOWS = ("shared head", "mean and deviation", "input as well", "class map twice", "lowest", "strongest and middle")


def _by_onnxruntime(path, feeds, names):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(names, {"image": feeds})


def _by_litert(path, feeds, names):
    interpreter = Interpreter(str(path))
    results = interpreter.get_signature_runner()(image=np.ascontiguousarray(feeds.transpose(0, 2, 3, 1)))
    return [results[name].transpose(0, 3, 1, 2) if results[name].ndim == 4 else results[name] for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
def test_what_a_network_returns_is_right_in_every_format(how, tmp_path):
    """
    Parity passes at every layer, and the files hold to torch by the runtimes alone.
    """
    source = tmp_path / "returning.py"
    source.write_text(textwrap.dedent(SOURCE), encoding="utf-8")
    request = ModelRequest(f"{source}:build", model_args={"how": how}, input_size=(32, 48))

    bundle = export_run.export(ExportPlan(request, output_dir=tmp_path / "net"), Stages())
    report = check_parity(bundle, ParityPlan(), Stages())

    assert set(Format) == {item.artifact.format for item in report.artifacts}
    assert [] == [(item.artifact.path, item.layers.sentence()) for item in report.artifacts if not item.passed]
    image = np.random.default_rng(1).standard_normal((1, 3, 32, 48)).astype(np.float32)
    namespace: dict[str, object] = {}
    exec(SOURCE, namespace)  # noqa: S102 - written above
    with torch.no_grad():
        returned = namespace["build"](how)(torch.from_numpy(image))
    expected = [value.numpy() for value in torch.utils._pytree.tree_leaves(returned)]
    for run, file_format in ((_by_onnxruntime, Format.ONNX), (_by_litert, Format.TFLITE)):
        (artifact,) = (item for item in bundle.manifest.artifacts if item.format is file_format)
        found = run(bundle.path(artifact.path), image, [spec.name for spec in artifact.outputs])
        for value, reference in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-5)


DIVIDING = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 0), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = self.stem(x)
        d = (y - y.mean((2, 3), keepdim=True)).square()
        return self.head(y * (d / (4 * (d.sum((2, 3), keepdim=True) / 329 + 1e-4)) + 0.5).sigmoid())


def build():
    return Net().eval()
"""


@pytest.mark.slow
def test_an_integer_file_divides_by_next_to_nothing(tmp_path):
    """
    On a constant image the variance is 0, and what it is in steps of its grid as well: LiteRT ends at such a divisor.
    """
    source = tmp_path / "dividing.py"
    source.write_text(DIVIDING, encoding="utf-8")
    images = np.random.default_rng(0).standard_normal((40, 3, 32, 48)).astype(np.float32).clip(-1.7, 2)
    constants = np.stack([np.zeros_like(images[0]), np.full_like(images[0], 1.5)])
    np.savez(tmp_path / "images.npz", image=np.concatenate([images, *[constants] * 5]))
    plan = ExportPlan(
        ModelRequest(f"{source}:build", input_size=(32, 48)),
        formats=(Format.TFLITE,),
        precisions=(Precision.FP32, Precision.INT8),
        calibration=str(tmp_path / "images.npz"),
        output_dir=tmp_path / "net",
    )

    bundle = export_run.export(plan, Stages())

    namespace: dict[str, object] = {}
    exec(DIVIDING, namespace)  # noqa: S102 - written above
    net = namespace["build"]()
    artifact = next(item for item in bundle.manifest.artifacts if item.precision is Precision.INT8)
    (spec,), (result,) = artifact.inputs, artifact.outputs
    for image in (constants[:1], constants[1:]):
        with torch.no_grad():
            expected = net(torch.from_numpy(image)).numpy()
        interpreter = Interpreter(str(bundle.path(artifact.path)))
        found = interpreter.get_signature_runner()(image=encode(image, spec))[result.name]
        assert float(np.abs(decode(found, result) - expected).max()) < 0.1  # NaN is not below it either
