"""Write one file of a small module, and judge its layers by this project's parity and its output by torch."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from files_against_torch import captured, saved

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import FORMATS, Precision, TargetCpu
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.parity.candidate import Candidate
from coordatt_deploy.parity.cases import ParityCases
from coordatt_deploy.parity.localise import localise
from coordatt_deploy.parity.reference_layers import ReferenceLayers
from coordatt_deploy.parity.tolerances import TOLERANCES
from coordatt_deploy.runtimes import runtime

CLOSE = 1e-5  # of the greatest value


def judged(kind, right, shape, *, made_of=None, edit=None, images=None):
    """Judge a float32 file.

    Args:
        kind: Its format.
        right: The module that it should be, with one output.
        shape: Of its image.
        made_of: The module that the file is made of, with the same layers; *right* by default.
        edit: Does something to the file.
        images: That it is judged on; noise by default.

    Returns:
        Whether its output is torch's on an image, and what parity says of its layers.
    """
    graph = captured(right.eval(), shape)
    cpu = TargetCpu.ARM64 if FORMATS[kind].per_cpu else None
    folded = saved(fold_batchnorms(captured((made_of or right).eval(), shape))[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"net{FORMATS[kind].suffix}"
        request = ExportRequest(ModelSpec("net", Preprocessing(shape[2:])), Precision.FP32, path, cpu)
        made = exporter(kind).export(lower(folded, target_of(kind, cpu))[0], request)
        if edit is not None:
            edit(path)
        artifact = Artifact(path.name, kind, Precision.FP32, None, cpu, 0, "", made.inputs, made.outputs, "")
        generator = np.random.default_rng(5)
        images = images or [generator.standard_normal(shape).astype(np.float32) for _ in range(3)]
        cases = [{"image": image} for image in images]
        candidate = Candidate(artifact, path, made.layers, None, (), ParityCases((), {}, {}, {}, ()))
        found = localise(candidate, cases, ReferenceLayers(graph), TOLERANCES[kind, Precision.FP32])
        return _close(path, artifact, right, cases[0]["image"]), found


def _close(path, artifact, module, image):
    with torch.no_grad():
        expected = module(torch.from_numpy(image)).numpy()
    spec, output = artifact.inputs[0], artifact.outputs[0]
    with runtime(artifact.format).open_artifact(path, artifact) as opened:
        fed = image if spec.layout == "NCHW" else np.ascontiguousarray(image.transpose(0, 2, 3, 1))
        value = opened.infer({spec.name: fed})[output.name]
    value = value.transpose(0, 3, 1, 2) if output.layout == "NHWC" else value
    return bool(np.abs(value - expected).max() <= CLOSE * np.abs(expected).max())
