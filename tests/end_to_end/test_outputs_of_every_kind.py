"""What strangers' networks return: a tensor twice, the input itself, class maps, one head in two places."""

import textwrap

import numpy as np
import onnxruntime
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter

from coordatt_deploy.conversion import export_run
from coordatt_deploy.conversion.plan import ExportPlan
from coordatt_deploy.formats import Format
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.parity.run import ParityPlan, check_parity
from coordatt_deploy.progress import Stages

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
        if self.how == "lowest":
            z = self.stem(x)  # without the zeros of a ReLU: which of several equals comes first is nobody's promise
            return z.flatten(2).sort(2)[0][:, :, :3], z.kthvalue(2, 1)[0], z.topk(3, 1, largest=False)[1]
        return {"strongest": y.flatten(2).topk(4, 2)[0], "middle": y.median(1)[0]}


def build(how):
    return Net(how).eval()
'''

HOWS = ("shared head", "input as well", "class map twice", "lowest", "strongest and middle")


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
