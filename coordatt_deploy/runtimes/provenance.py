"""What an artifact says of itself: the weights it was made from, and how an image becomes its input."""

from pathlib import Path
from typing import Any, Final

from coordatt_deploy.artifact_specs import Artifact, Preprocessing
from coordatt_deploy.documents import parse
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.formats import Format
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.runtimes.file_graph import reader

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
    return str(reader(kind).metadata(path).get(KEY, ""))


def embedded_preprocessing(path: Path, kind: Format) -> Preprocessing:
    """Return the preprocessing that the file at *path* describes.

    Raises:
        BundleError: The file cannot be read, or describes none.
    """
    found: Any = reader(kind).metadata(path).get("preprocessing")
    try:
        return Preprocessing.from_json(parse(found) if isinstance(found, str) else found)
    except (ValueError, TypeError, AttributeError, UsageError) as error:
        raise BundleError(f"{path.name} describes no preprocessing ({error}); export it again") from None
