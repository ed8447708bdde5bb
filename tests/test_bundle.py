import json

import numpy as np
import pytest

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.bundle import open_bundle, save_golden
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.files import inside
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.manifest import Manifest

SPEC = ModelSpec("net", Preprocessing((32, 48)), labels=("a", "b"), source_sha256="0" * 64)
IMAGE = TensorSpec("image", (1, 3, 32, 48), "float32", "NCHW")
LOGITS = TensorSpec("logits", (1, 2), "float32", "NC")


@pytest.fixture
def bundle(tmp_path):
    """A bundle with one artifact, written the way the pipeline does it."""
    with writing(tmp_path / "net", SPEC.source_sha256) as staging:
        (staging / "onnx").mkdir()
        (staging / "onnx" / "net_fp32.onnx").write_bytes(b"model")
        (staging / "onnx" / "net_fp32.layers.json").write_text("{}")
        (staging / "golden").mkdir()
        save_golden(staging / "golden" / "outputs.npz", {"logits": [np.ones((1, 2)), np.zeros((1, 2))]})
        from coordatt_deploy.files import sha256

        artifact = Artifact("onnx/net_fp32.onnx", Format.ONNX, Precision.FP32, None, None, 5,
                            sha256(staging / "onnx" / "net_fp32.onnx"), (IMAGE,), (LOGITS,),
                            "onnx/net_fp32.layers.json")  # fmt: skip
        finish(staging, Manifest(SPEC, (IMAGE,), (LOGITS,), (artifact,)))
    return tmp_path / "net"


def test_a_bundle_opens_as_it_was_written(bundle):
    """
    Manifest, golden arrays in order, every hash right.
    """
    opened = open_bundle(bundle)

    assert SPEC == opened.manifest.model
    assert [1.0, 0.0] == [value[0, 0] for value in opened.golden("outputs")["logits"]]
    assert {"onnx/net_fp32.layers.json", "golden/outputs.npz"} == set(opened.manifest.files)


def test_the_manifest_begins_with_its_schema(bundle):
    """
    An integer, first.
    """
    document = json.loads((bundle / "manifest.json").read_text())

    assert ("schema_version", 1) == next(iter(document.items()))


@pytest.mark.parametrize("file", ["onnx/net_fp32.onnx", "golden/outputs.npz", "onnx/net_fp32.layers.json"])
def test_one_changed_byte_is_named(bundle, file):
    """
    The message says which file.
    """
    content = bytearray((bundle / file).read_bytes())
    content[-1] ^= 1
    (bundle / file).write_bytes(content)

    with pytest.raises(BundleError, match=f"{file} was changed"):
        open_bundle(bundle)


def test_a_missing_file_is_named(bundle):
    """
    The message says which file.
    """
    (bundle / "onnx" / "net_fp32.onnx").unlink()

    with pytest.raises(BundleError, match=r"net_fp32\.onnx is missing"):
        open_bundle(bundle)


def test_reports_are_not_covered(bundle):
    """
    Writing a report does not damage the bundle.
    """
    opened = open_bundle(bundle)
    opened.write_report("parity.json", "{}")

    assert opened.manifest == open_bundle(bundle).manifest


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"schema_version": 2}', '{"schema_version": "1"}', '{"schema_version": 1}']
)
def test_a_damaged_or_foreign_manifest_is_refused(bundle, text):
    """
    Truncated, of another schema, or lacking everything: one line.
    """
    (bundle / "manifest.json").write_text(text)

    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "onnx/../../x", "C:\\x", "..\\x", ""])
def test_a_path_that_leaves_the_folder_is_refused(bundle, path):
    """
    Before anything is read.
    """
    document = json.loads((bundle / "manifest.json").read_text())
    document["artifacts"][0]["path"] = path
    (bundle / "manifest.json").write_text(json.dumps(document))

    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(bundle)


def test_a_link_that_leaves_the_folder_is_refused(bundle, tmp_path):
    """
    A harmless name may be a link.
    """
    (tmp_path / "secret").write_text("secret")
    (bundle / "onnx" / "link").symlink_to(tmp_path / "secret")

    with pytest.raises(BundleError, match="outside the bundle"):
        inside(bundle, "onnx/link")


def test_an_interrupted_writing_leaves_nothing(tmp_path):
    """
    Neither the bundle nor a temporary folder.
    """
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "net", "0") as staging:
        (staging / "half").write_text("")
        raise KeyboardInterrupt

    assert [] == list(tmp_path.iterdir())


def test_an_interrupted_second_export_leaves_the_first_bundle(bundle):
    """
    The old bundle stays as it was.
    """
    with pytest.raises(OSError, match="full"), writing(bundle, SPEC.source_sha256) as staging:
        (staging / "onnx" / "net_fp32.onnx").write_bytes(b"")
        raise OSError("disk full")

    assert open_bundle(bundle).manifest.artifacts
    assert ["net"] == [path.name for path in bundle.parent.iterdir()]


def test_a_bundle_of_other_weights_is_refused(bundle):
    """
    Artifacts of different weights never share a folder.
    """
    with pytest.raises(UsageError, match="other weights"), writing(bundle, "1" * 64):
        pass


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    """
    Nobody's files are replaced.
    """
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"")

    with pytest.raises(UsageError, match="is no bundle"), writing(tmp_path / "photos", "0"):
        pass
    assert (tmp_path / "photos" / "me.jpg").exists()


def test_pickled_arrays_are_refused(bundle):
    """
    A golden file that holds objects runs no code.
    """
    np.savez(bundle / "golden" / "outputs.npz", **{"000/logits": np.array([{"a": 1}], dtype=object)})

    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(bundle, verify=False).golden("outputs")
