"""What this project writes into a TFLite file, read back."""

import pytest
from ai_edge_litert import schema_py_generated as schema

from coordatt_deploy.errors import BundleError
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes.tflite.metadata import read_metadata


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: b"text", "no TFLite file"),
        (lambda content: content[:8] + b"\xff" * 64, "damaged"),
        (lambda content: content[:64], "damaged"),
        (lambda content: content.replace(b'{"model"', b'{"model}', 1), "damaged"),
    ],
)
def test_damaged_metadata_is_a_bundle_error(files, damage, message, tmp_path):
    """
    A file that is no FlatBuffer, is cut off, or holds no JSON where it should is named and refused.
    """
    path, _, _ = files[Format.TFLITE]
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(damage(path.read_bytes()))

    with pytest.raises(BundleError, match=message):
        read_metadata(broken)


def test_foreign_file_has_no_metadata_of_ours(files, tmp_path):
    """
    A TFLite file of another tool is told from a damaged one.
    """
    import flatbuffers

    path, _, _ = files[Format.TFLITE]
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    model.metadata = None
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    foreign = tmp_path / "foreign.tflite"
    foreign.write_bytes(bytes(builder.Output()))

    with pytest.raises(BundleError, match="written by another tool"):
        read_metadata(foreign)
