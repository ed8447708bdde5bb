"""Detectors and segmentation nets in every format: right by parity, and by the runtimes alone."""

import numpy as np
import onnxruntime
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from zoo_requests import ZOO, zoo

from coordatt_deploy.artifact_specs import OutputKind
from coordatt_deploy.conversion import export_run
from coordatt_deploy.conversion.plan import ExportPlan
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.loading.factories import build_factory
from coordatt_deploy.metrics import box_ious
from coordatt_deploy.models.registry import ARCHITECTURES
from coordatt_deploy.parity.run import ParityPlan, check_parity
from coordatt_deploy.progress import Stages
from coordatt_deploy.tensors import decode, encode

SIZE = (64, 64)
NETS = {
    "lraspp": ("dense:lraspp", {}, "lraspp_mobilenetv2"),
    "deeplabv3": ("dense:deeplabv3", {}, "deeplabv3_mobilenetv2"),
    "ssdlite": ("dense:ssdlite", {}, "ssdlite320_mobilenetv2"),
    "ssdlite decoded": ("dense:ssdlite", {"decode": True}, "ssdlite320_mobilenetv2"),
}


def by_onnxruntime(path, artifact, image):
    names = [spec.name for spec in artifact.outputs]
    found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        names, {"image": encode(image, artifact.inputs[0])}
    )
    return dict(zip(names, found, strict=True))


def by_litert(path, artifact, image):
    interpreter = Interpreter(str(path))
    return interpreter.get_signature_runner()(image=encode(image, artifact.inputs[0]))


RUNTIMES = {Format.ONNX: by_onnxruntime, Format.TFLITE: by_litert}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in ("deeplabv3", "ssdlite") else []) for name in NETS]
)
def test_every_file_of_a_dense_network_is_right(name, tmp_path):
    """
    Parity passes every output by its kind and every layer; ONNX Runtime and LiteRT give torch's values.
    """
    model, arguments, architecture = NETS[name]
    kinds = ARCHITECTURES[architecture].output_kinds
    request = zoo(model, input_size=SIZE, model_args=arguments)
    module = build_factory(f"{ZOO / 'dense.py'}:{model.partition(':')[2]}", arguments).module
    with torch.no_grad():
        expected = {key: value.numpy() for key, value in module(torch.zeros(1, 3, *SIZE)).items()}
    plan = ExportPlan(
        request,
        precisions=(Precision.FP32,),
        output_dir=tmp_path / "net",
        output_kinds={key: kinds[key] for key in expected},
    )
    bundle = export_run.export(plan, Stages())
    report = check_parity(bundle, ParityPlan(), Stages())

    assert set(Format) == {item.artifact.format for item in report.artifacts}
    assert [] == [(item.artifact.path, item.problem, item.layers.sentence()) for item in report.artifacts
                  if not item.passed]  # fmt: skip
    image = np.random.default_rng(1).uniform(-1.5, 1.5, (1, 3, *SIZE)).astype(np.float32)
    with torch.no_grad():
        expected = {key: value.numpy() for key, value in module(torch.from_numpy(image)).items()}
    for item in report.artifacts:
        if item.artifact.format not in RUNTIMES:
            continue
        found = RUNTIMES[item.artifact.format](bundle.path(item.artifact.path), item.artifact, image)
        specs = {spec.name: spec for spec in item.artifact.outputs}
        for key, value in expected.items():
            mine = decode(found[key], specs[key])
            np.testing.assert_allclose(mine, value, rtol=1e-3, atol=2e-4 * np.abs(value).max())
            if kinds[key] is OutputKind.BOXES:
                assert box_ious([mine], [value]).mean() > 0.99
