"""Files in their runtimes, without this project's runners: what they give is held against torch."""

from collections.abc import Callable, Mapping
from pathlib import Path

import onnxruntime
from ai_edge_litert.interpreter import Interpreter

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes.coreml.evaluator.package import load

Arrays = Mapping[str, NumberArray]


def opened(path: Path, file_format: Format) -> Callable[[Arrays], Arrays]:
    """Open a file; the function that is returned takes inputs by name and gives outputs by name, as the file has them.

    Core ML has no runtime here: its packages are evaluated.
    """
    return {Format.ONNX: _onnx, Format.TFLITE: _tflite, Format.COREML: _coreml}[file_format](path)


def _onnx(path: Path) -> Callable[[Arrays], Arrays]:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def _tflite(path: Path) -> Callable[[Arrays], Arrays]:
    interpreter = Interpreter(model_content=path.read_bytes(), num_threads=1)
    signature = interpreter.get_signature_runner()
    return lambda feeds: signature(**feeds)


def _coreml(path: Path) -> Callable[[Arrays], Arrays]:
    program = load(path)
    return lambda feeds: program.evaluate(feeds, [port.name for port in program.outputs])
