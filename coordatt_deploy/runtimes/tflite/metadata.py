"""Read what a TFLite file says about itself, without any runtime or converter."""

import json
from pathlib import Path
from typing import Final

from coordatt_deploy.errors import BundleError
from coordatt_deploy.runtimes.tflite import flatbuffer
from coordatt_deploy.runtimes.tflite.flatbuffer import FlatBufferError

METADATA_NAME: Final = "coordatt_deploy"


def read_metadata(path: Path) -> dict[str, object]:
    """Return what the exporter wrote into the file: preprocessing, labels, provenance (``artifact_specs.metadata``).

    Raises:
        BundleError: The file is missing, no TFLite file, damaged, or not written by this project.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    if content[4:8] != flatbuffer.IDENTIFIER:
        raise BundleError(f"{path.name} is no TFLite file: it has no {flatbuffer.IDENTIFIER.decode()} mark")
    try:
        model = flatbuffer.root(content)
        entries = model.tables(flatbuffer.MODEL_METADATA)
        names = [entry.data(flatbuffer.METADATA_NAME).decode() for entry in entries]
        if METADATA_NAME not in names:
            raise BundleError(f"{path.name} has no metadata of coordatt-deploy; it was written by another tool")
        number = entries[names.index(METADATA_NAME)].number(flatbuffer.METADATA_BUFFER, "I")
        document = json.loads(model.tables(flatbuffer.MODEL_BUFFERS)[number].data(flatbuffer.BUFFER_DATA))
    except (FlatBufferError, IndexError, ValueError, RecursionError) as error:
        raise BundleError(f"{path.name} is damaged ({type(error).__name__}: {error})") from None
    if not isinstance(document, dict):
        raise BundleError(f"{path.name} is damaged: its metadata is no JSON object")
    return document
