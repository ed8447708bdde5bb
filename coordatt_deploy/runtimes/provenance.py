"""What an artifact says of itself: the weights it was made from, and how an image becomes its input."""

from pathlib import Path
from typing import Final

from coordatt_deploy.artifact_specs import Artifact, Preprocessing
from coordatt_deploy.documents import parse
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.formats import Format
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.runtimes.reader import read_metadata

KEY: Final = "source_sha256"


def check_provenance(path: Path, artifact: Artifact, manifest: Manifest) -> None:
    """Compare the hash of the weights in the file's metadata with the bundle's.

    Raises:
        BundleError: The file was made from other weights, or says nothing of them.
        MissingDependencyError: What reads the format is not installed.
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


def source_sha256(path: Path, file_format: Format) -> str:
    """Return the hash in the metadata of the file at *path*; empty where it has none.

    Raises:
        BundleError: The file cannot be read.
        MissingDependencyError: What reads the format is not installed.
    """
    return str(read_metadata(path, file_format).get(KEY, ""))


def embedded_preprocessing(path: Path, file_format: Format) -> Preprocessing:
    """Return the preprocessing that the file at *path* describes.

    Raises:
        BundleError: The file cannot be read, or describes none.
        MissingDependencyError: What reads the format is not installed.
    """
    found = read_metadata(path, file_format).get("preprocessing")
    try:
        return Preprocessing.from_json(parse(found) if isinstance(found, str) else found)
    except (ValueError, TypeError, AttributeError, UsageError) as error:
        raise BundleError(f"{path.name} describes no preprocessing ({error}); export it again") from None
