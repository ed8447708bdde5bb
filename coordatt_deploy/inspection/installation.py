"""What this machine has: runtimes and converters, their versions, the CPU, and how to install what is missing."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

from coordatt_deploy.host import Host, describe

# Import name, distribution, what it is for, and the extra that brings it.
PARTS: Final = (
    ("torch", "torch", "capture, fold, reference", "onnx"),
    ("onnx", "onnx", "ONNX export", "onnx"),
    ("onnxscript", "onnxscript", "ONNX export", "onnx"),
    ("onnxsim", "onnxsim", "ONNX export", "onnx"),
    ("onnxruntime", "onnxruntime", "running ONNX", "runtime"),
    ("litert_torch", "litert-torch", "TFLite export", "tflite"),
    ("ai_edge_quantizer", "ai-edge-quantizer", "TFLite quantization", "tflite"),
    ("ai_edge_litert", "ai-edge-litert", "running TFLite", "runtime"),
    ("coremltools", "coremltools", "Core ML export, ML Program evaluator", "coreml"),
    ("sklearn", "scikit-learn", "training the embedded default", "all"),
)


@dataclass(frozen=True, slots=True)
class Part:
    """One package that a part of the work needs.

    Attributes:
        version: None where it is not installed.
        remedy: The line that installs it; None where it is.
    """

    name: str
    purpose: str
    version: str | None
    remedy: str | None


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found."""

    host: Host
    parts: tuple[Part, ...]
    notes: tuple[str, ...]


def examine() -> Findings:
    """Look, without importing any framework."""
    parts = []
    for module, name, purpose, extra in PARTS:
        try:
            found = version(name) if find_spec(module) is not None else None
        except PackageNotFoundError:
            found = "unknown"
        parts.append(Part(name, purpose, found, None if found else f"pip install 'coordatt-deploy[{extra}]'"))
    host = describe()
    notes = []
    if not host.os.lower().startswith(("darwin", "macos")):
        notes.append("Core ML artifacts are evaluated from the saved ML Program here; the real runtime needs macOS")
    return Findings(host, tuple(parts), tuple(notes))
