"""Files in their runtimes, without this project's runners: what they give is held against torch."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from ai_edge_litert.interpreter import Interpreter
from executorch.extension.pybindings import _C as executorch  # noqa: N811

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes.coreml.evaluator.package import load

Arrays = Mapping[str, NumberArray]


def opened(path: Path, file_format: Format) -> Callable[[Arrays], Arrays]:
    """Open a file; the function that is returned takes inputs by name and gives outputs by name, as the file has them.

    Core ML has no runtime here: its packages are evaluated.
    """
    return {
        Format.ONNX: _onnx, Format.TFLITE: _tflite, Format.COREML: _coreml, Format.EXECUTORCH: _executorch,
    }[file_format](path)  # fmt: skip


def _onnx(path: Path) -> Callable[[Arrays], Arrays]:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def _tflite(path: Path) -> Callable[[Arrays], Arrays]:
    interpreter = Interpreter(model_content=path.read_bytes(), num_threads=1)
    signature = interpreter.get_signature_runner()
    return lambda feeds: signature(**feeds)


def _executorch(path: Path) -> Callable[[Arrays], Arrays]:
    """Tensors have no names in the file: the metadata has them, in the order of the tensors."""
    module = executorch._load_for_executorch(str(path))  # from a buffer it would not keep the bytes alive
    (described,) = module.run_method("coordatt_deploy_metadata", [])
    names = json.loads(described)

    def run(feeds: Arrays) -> Arrays:
        made = module.forward([torch.from_numpy(np.array(feeds[name], order="C")) for name in names["inputs"]])
        return {name: value.numpy() for name, value in zip(names["outputs"], made, strict=True)}

    return run


def _coreml(path: Path) -> Callable[[Arrays], Arrays]:
    program = load(path)
    return lambda feeds: program.evaluate(feeds, [port.name for port in program.outputs])
