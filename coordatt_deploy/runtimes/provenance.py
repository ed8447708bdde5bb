"""What an artifact says of itself: the weights it was made from, and how an image becomes its input."""

from pathlib import Path
from typing import Any, Final

from coordatt_deploy.bundle import Manifest
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.specs import Artifact, Format, Preprocessing, from_json

KEY: Final = "source_sha256"


def check_provenance(path: Path, artifact: Artifact, manifest: Manifest) -> None:
    """Compare the hash of the weights in the file's metadata with the bundle's.

    Raises:
        BundleError: The file was made from other weights, or says nothing of them.
    """
    found = source_sha256(path, artifact.format)
    expected = manifest.model.source_sha256
    if found == expected:
        return
    said = f"other weights ({found[:12]}…)" if found else "weights that it does not name"
    raise BundleError(
        f"{artifact.path} was made from {said}, the bundle holds {expected[:12]}…: the file is stale;"
        " export it again with: coordatt-deploy export"
    )


def source_sha256(path: Path, kind: Format) -> str:
    """Return the hash in the metadata of the file at *path*; empty where it has none.

    Raises:
        BundleError: The file cannot be read.
    """
    return str(_metadata(path, kind).get(KEY, ""))


def embedded_preprocessing(path: Path, kind: Format) -> Preprocessing:
    """Return the preprocessing that the file at *path* describes.

    Raises:
        BundleError: The file cannot be read, or describes none.
    """
    found: Any = _metadata(path, kind).get("preprocessing")
    try:
        return Preprocessing.from_json(from_json(found) if isinstance(found, str) else found)
    except (ValueError, TypeError, AttributeError, UsageError) as error:
        raise BundleError(f"{path.name} describes no preprocessing ({error}); export it again") from None


def _metadata(path: Path, kind: Format) -> dict[str, Any]:
    readers = {Format.ONNX: _onnx, Format.TFLITE: _tflite, Format.COREML: _coreml}
    return readers[kind](path)


def _onnx(path: Path) -> dict[str, Any]:
    import onnxruntime

    from coordatt_deploy.runtimes.checks import first_line
    from coordatt_deploy.runtimes.onnxruntime import LOG_ERRORS, PROVIDERS

    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_ERRORS
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(PROVIDERS))
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        raise BundleError(
            f"ONNX Runtime cannot open {path.name}: {first_line(error)}; build the bundle again"
        ) from error
    return dict(session.get_modelmeta().custom_metadata_map)


def _tflite(path: Path) -> dict[str, Any]:
    from coordatt_deploy.runtimes.tflite_file import read_metadata

    return read_metadata(path)


def _coreml(path: Path) -> dict[str, Any]:
    from coordatt_deploy.runtimes.mlprogram import read_model

    model, _ = read_model(path)
    return dict(model.description.metadata.userDefined)
