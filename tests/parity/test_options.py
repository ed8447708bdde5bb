"""What ``parity`` takes from the user: tolerances and inputs; and artifacts that are not the bundle's own."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.data.arrays import read_inputs
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.parity.outputs import judge
from coordatt_deploy.parity.tolerances import TOLERANCES, for_untrained, read_tolerances, tolerance_of
from coordatt_deploy.runtimes import provenance

ONNX = Format.ONNX, Precision.FP32
SPEC = ModelSpec("net", Preprocessing((8, 6), (0.5,) * 3, (0.5,) * 3), source_sha256="ab" * 32)
IMAGE = TensorSpec("image", (1, 3, 8, 6), "float32", "NCHW")
MANIFEST = Manifest(SPEC, (IMAGE,), ())


def written(folder, text, name="tolerance.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_tolerance_of_one_kind_is_replaced(tmp_path):
    """
    What the file names changes, everything else keeps its built-in tolerance.
    """
    found = read_tolerances(written(tmp_path, 'reason = "lab"\n[onnx.fp32]\nmultiple = 99\n'))

    assert (99.0, "lab") == (found[ONNX].multiple, found[ONNX].reason)
    assert {key: value for key, value in TOLERANCES.items() if key != ONNX} == {
        key: value for key, value in found.items() if key != ONNX
    }


def test_tolerance_as_json(tmp_path):
    """
    The same keys in JSON.
    """
    text = json.dumps({"onnx": {"fp32": {"min_sqnr_db": 40, "min_top1_agreement": 0.9}}})
    found = read_tolerances(written(tmp_path, text, "tolerance.json"))[ONNX]

    assert (40.0, 0.9) == (found.min_sqnr_db, found.min_top1_agreement)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("[onnx.fp32]\nmultipel = 3", "unknown key 'multipel'; did you mean multiple"),
        ("[onx.fp32]\nmultiple = 3", "unknown format 'onx'; did you mean onnx"),
        ("[onnx.fp23]\nmultiple = 3", "no precision or recipe 'fp23'; did you mean fp32"),
        ("[tflite.static_wi8_ai9]\nmultiple = 3", "'static_wi8_ai9'; did you mean static_wi8_ai8"),
        ("[onnx.fp32]\nmultiple = '3'", "multiple is '3', expected a number"),
        ("[onnx.fp32]\nmultiple = true", "expected a number"),
        ("[onnx.fp32]\nmultiple = nan", "expected a number"),
        ("[onnx.fp32]\nmultiple = 0", "expected a number above 0"),
        ("[onnx.fp32]\nmin_top1_agreement = 95", "expected a share"),
        ("[onnx.fp32]\nmultiple = 3\nmin_sqnr_db = 3", "give multiple or min_sqnr_db"),
        ("onnx = 3", "expected a table"),
        ("[onnx]\nfp32 = 3", "expected a table"),
        ("reason = 3", "expected a text"),
        ("[onnx.fp32", "cannot be read as TOML"),
    ],
)
def test_slips_in_a_tolerance_file(tmp_path, text, answer):
    """
    Each is answered with what was expected, a misspelt name with the nearest.
    """
    with pytest.raises(UsageError) as caught:
        read_tolerances(written(tmp_path, text))
    assert answer in str(caught.value)


def test_tolerance_of_a_recipe(tmp_path):
    """
    Layers keep a multiple beside the decibels that outputs must reach; suffixes of the recipe's name change nothing.
    """
    text = "[tflite.static_wi8_ai8]\nmultiple = 7\nmin_sqnr_db = 18"
    found = read_tolerances(written(tmp_path, text))
    names = "static_wi8_ai8", "static_wi8_ai8_iofp32", "static_wi8_ai8_ioi8_float3"
    artifacts = [Artifact("net", Format.TFLITE, Precision.INT8, name, None, 1, "", (), (), "") for name in names]

    assert {(7.0, 18.0, None)} == {
        (item.multiple, item.min_sqnr_db, item.layer_sqnr_db)
        for item in (tolerance_of(artifact, found) for artifact in artifacts)
    }


def test_integer_outputs_of_random_weights_name_no_class(tmp_path):
    """
    They need decibels still, and the reason says why fewer; float, and what a user chose, stays, and so do layers.
    """
    chosen = read_tolerances(written(tmp_path, "[onnx.static_wi8_ai8]\nmin_sqnr_db = 18"))

    found = for_untrained(chosen)

    mine, float32 = (Format.ONNX, "static_wi8_ai8"), (Format.TFLITE, "fp32")
    assert (chosen[mine], chosen[float32]) == (found[mine], found[float32])
    old, new = chosen[Format.TFLITE, "static_wi8_ai8"], found[Format.TFLITE, "static_wi8_ai8"]
    assert (10.0, None, old.multiple) == (new.min_sqnr_db, new.min_top1_agreement, new.multiple)
    assert "the weights are random" in new.reason
    assert found[Format.COREML, "palettized_w4"].min_sqnr_db == TOLERANCES[Format.COREML, "palettized_w4"].min_sqnr_db
    reference = np.random.default_rng(0).standard_normal((4, 1, 10))
    for error, passes in ((0.2, True), (0.5, False)):
        off = [item + error for item in reference]
        assert judge("logits", off, list(reference), list(reference), new).passed is passes


def test_unknown_recipe():
    """
    It is said, not guessed.
    """
    artifact = Artifact("net", Format.ONNX, Precision.INT8, "ternary", None, 1, "", (), (), "")
    with pytest.raises(BundleError, match="of the recipe ternary"):
        tolerance_of(artifact, TOLERANCES)


def test_missing_tolerance_file(tmp_path):
    """
    It is named.
    """
    with pytest.raises(UsageError, match="there is no tolerance file"):
        read_tolerances(tmp_path / "none.toml")


def test_sqnr_and_agreement_judge_outputs():
    """
    min_sqnr_db stands in for the multiple; min_top1_agreement is asked for besides.
    """
    random = np.random.default_rng(0)
    reference = [random.standard_normal((1, 10)) for _ in range(4)]
    candidate = [value + 0.001 for value in reference]
    rounding = [value + 1e-7 for value in reference]
    built_in = TOLERANCES[ONNX]

    def passed(**changes):
        return judge("logits", candidate, reference, rounding, replace(built_in, **changes)).passed

    assert not passed()
    assert passed(min_sqnr_db=50.0)
    assert not passed(min_sqnr_db=70.0)
    wrong = [np.roll(value, 1) for value in reference]
    free = replace(built_in, min_sqnr_db=-100.0)
    assert judge("logits", wrong, reference, rounding, free).passed
    assert not judge("logits", wrong, reference, rounding, replace(free, min_top1_agreement=0.5)).passed


def saved(folder, **arrays):
    path = folder / "inputs.npz"
    np.savez(path, **arrays)
    return path


def test_cases_of_an_archive(tmp_path):
    """
    One case per entry of the first axis, batch first, in the model's type.
    """
    values = np.random.default_rng(0).uniform(-1, 1, (3, 3, 8, 6))
    found = read_inputs(saved(tmp_path, image=values), MANIFEST.inputs, MANIFEST.model.preprocessing)

    assert ("inputs[0]", "inputs[1]", "inputs[2]") == found.names
    assert [(1, 3, 8, 6)] * 3 == [case.shape for case in found.feeds["image"]]
    np.testing.assert_array_equal(values[2:].astype(np.float32), found.feeds["image"][2])


def test_cases_of_a_folder(tmp_path):
    """
    Images go through the model's preprocessing, in the order of their names.
    """
    (tmp_path / "b").mkdir()
    Image.new("RGB", (20, 20), (255, 255, 255)).save(tmp_path / "b" / "white.png")
    Image.new("L", (9, 30), 0).save(tmp_path / "a.jpg")
    found = read_inputs(tmp_path, MANIFEST.inputs, MANIFEST.model.preprocessing)

    assert ("a.jpg", "b/white.png") == found.names
    assert [(1, 3, 8, 6), (1, 3, 8, 6)] == [case.shape for case in found.feeds["image"]]
    assert 1.0 == found.feeds["image"][1].min()


@pytest.mark.parametrize(("axis", "at_once"), [(2, 1), (None, 2)])
def test_images_of_a_network_that_takes_several_at_once(tmp_path, axis, at_once):
    """
    A folder is read two by two, batch fixed or the least of a dynamic one; the last is joined by the first again.
    """
    for name, grey in (("a", 0), ("b", 128), ("c", 255)):
        Image.new("L", (8, 8), grey).save(tmp_path / f"{name}.png")
    spec = replace(MANIFEST.inputs[0], shape=(axis, *MANIFEST.inputs[0].shape[1:]))
    found = read_inputs(tmp_path, [spec], MANIFEST.model.preprocessing, at_once)

    assert ("a.png, b.png", "c.png, a.png") == found.names
    assert [(2, 3, 8, 6)] * 2 == [case.shape for case in found.feeds["image"]]
    np.testing.assert_array_equal([1.0, -1.0], found.feeds["image"][1].mean(axis=(1, 2, 3)))


GOOD = np.zeros((2, 3, 8, 6), np.float32)


@pytest.mark.parametrize(
    ("arrays", "answer"),
    [
        ({"imgae": GOOD}, "no such input; did you mean image"),
        ({"image": GOOD, "mask": GOOD}, "'mask'"),
        ({}, "has no array 'image'"),
        ({"image": GOOD.transpose(0, 2, 3, 1)}, "it looks like channels last"),
        ({"image": GOOD[:, :, :5]}, "has shape (2, 3, 5, 6), expected (cases, 3, 8, 6)"),
        ({"image": GOOD[0]}, "has shape (3, 8, 6)"),
        ({"image": GOOD[:0]}, "at least one"),
        ({"image": GOOD.astype(np.uint8)}, "is uint8, the model takes float32"),
        ({"image": GOOD + np.nan}, "144 values that are NaN or infinite"),
        ({"image": GOOD - np.inf}, "NaN or infinite"),
        ({"image": GOOD + 255}, "lies between 255 and 255; preprocessed images of this model lie between -1 and 1"),
    ],
)
def test_archives_that_do_not_fit(tmp_path, arrays, answer):
    """
    Names, shapes, types, NaN and ranges are refused with what was expected.
    """
    with pytest.raises(UsageError) as caught:
        read_inputs(saved(tmp_path, **arrays), MANIFEST.inputs, MANIFEST.model.preprocessing)
    assert answer in str(caught.value)


def test_archives_that_cannot_be_read(tmp_path):
    """
    A missing file, text and a pickle are refused; the pickle is not loaded.
    """
    np.savez(tmp_path / "pickle.npz", image=np.array([{"a": 1}], dtype=object))
    (tmp_path / "text.npz").write_text("not an archive", encoding="utf-8")
    for name in ("none.npz", "pickle.npz", "text.npz"):
        with pytest.raises(UsageError, match=name):
            read_inputs(tmp_path / name, MANIFEST.inputs, MANIFEST.model.preprocessing)


def test_an_array_without_a_name_is_the_only_input(tmp_path):
    """
    A plain .npy is read for a model of one input.
    """
    np.save(tmp_path / "plain.npy", GOOD)
    cases = read_inputs(tmp_path / "plain.npy", MANIFEST.inputs, MANIFEST.model.preprocessing)

    assert len(GOOD) == len(cases.names)
    np.testing.assert_array_equal(GOOD, np.concatenate(cases.feeds["image"]))


def test_folder_for_a_model_with_two_inputs(tmp_path):
    """
    Images cannot stand for both.
    """
    with pytest.raises(UsageError, match="image, mask"):
        read_inputs(tmp_path, (IMAGE, replace(IMAGE, name="mask")), MANIFEST.model.preprocessing)


@pytest.mark.parametrize(("found", "answer"), [("cd" * 32, "other weights"), ("", "weights that it does not name")])
def test_stale_artifact_is_refused(monkeypatch, tmp_path, found, answer):
    """
    A file made from other weights ends the command, and so does one that does not say.
    """
    artifact = Artifact("onnx/net.onnx", *ONNX, None, None, 1, "ef" * 32, (IMAGE,), (IMAGE,), "onnx/net.layers.json")
    monkeypatch.setattr(provenance, "source_sha256", lambda *_: found)
    with pytest.raises(BundleError, match=answer):
        provenance.check_provenance(tmp_path, artifact, MANIFEST)
    monkeypatch.setattr(provenance, "source_sha256", lambda *_: SPEC.source_sha256)
    provenance.check_provenance(tmp_path, artifact, MANIFEST)
