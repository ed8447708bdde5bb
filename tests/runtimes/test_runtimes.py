"""What holds for the runners of every format."""

import subprocess
import sys

import numpy as np
import pytest
from small_network import feeds_for, image_of, reference

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes import runtime


def test_outputs_are_those_of_the_model(file):
    """
    A runner gives the artifact's outputs by their stable names, measured, with the runtime's name and version.
    """
    path, description, _ = file
    image = image_of(1)

    with runtime(description.format).open_artifact(path, description) as runner:
        actual = runner.infer(feeds_for(description, image))

    assert ["logits"] == list(actual)
    np.testing.assert_allclose(actual["logits"], reference(image)[1], rtol=1e-5, atol=1e-5)
    assert Origin.MEASURED is runner.origin
    package, version = runner.runtime.split(" ")
    assert package in {"onnxruntime", "ai-edge-litert", "tflite-runtime"}
    assert version[0].isdigit()
    assert description.inputs == runner.inputs
    assert description.outputs == runner.outputs


def test_inner_tensors_come_by_name(file):
    """
    A runner opened with inner tensors gives them beside the outputs, which stay what they are.
    """
    path, description, inner = file
    image = image_of(2)
    with runtime(description.format).open_artifact(path, description) as runner:
        plain = runner.infer(feeds_for(description, image))

    with runtime(description.format).open_artifact(path, description, tensors=(inner, "logits", inner)) as runner:
        actual = runner.infer(feeds_for(description, image))

    assert {"logits", inner} == set(actual)
    np.testing.assert_allclose(actual["logits"], plain["logits"], rtol=1e-5, atol=1e-5)
    features = actual[inner] if description.format is Format.ONNX else actual[inner].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(features, reference(image)[0], rtol=1e-5, atol=1e-5)


def test_results_are_the_callers_to_keep(file):
    """
    A second run does not write into what the first one gave, nor does a runner that is closed.
    """
    path, description, inner = file
    with runtime(description.format).open_artifact(path, description, tensors=(inner,)) as runner:
        first = runner.infer(feeds_for(description, image_of(3)))
        kept = {name: array.copy() for name, array in first.items()}
        second = runner.infer(feeds_for(description, image_of(4)))

    for name, array in kept.items():
        np.testing.assert_array_equal(array, first[name])
        assert not np.array_equal(array, second[name])
    with pytest.raises(ValueError, match="closed"):
        runner.infer(feeds_for(description, image_of(3)))


def test_runs_repeat_bit_for_bit(file):
    """
    The same feed gives the same bits, in one runner and in another with the same number of threads.
    """
    path, description, _ = file
    results = []
    for _ in range(2):
        with runtime(description.format).open_artifact(path, description, threads=2) as runner:
            results += [runner.infer(feeds_for(description, image_of(5)))["logits"] for _ in range(2)]

    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_feeds_need_not_be_contiguous(file):
    """
    A transposed view is fed as what it shows, not as what lies in memory.
    """
    path, description, _ = file
    feeds = feeds_for(description, image_of(6))
    view = {"image": np.asfortranarray(feeds["image"])}

    with runtime(description.format).open_artifact(path, description) as runner:
        expected, actual = runner.infer(feeds)["logits"], runner.infer(view)["logits"]

    np.testing.assert_array_equal(expected, actual)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {}, "no array was given for input image"),
        (lambda feeds: {"imgae": feeds["image"]}, "no input 'imgae'; did you mean image"),
        (lambda feeds: feeds | {"mask": feeds["image"]}, "no input 'mask'"),
        (lambda feeds: {"image": feeds["image"].astype(np.float64)}, "image is float64, the artifact takes float32"),
        (lambda feeds: {"image": feeds["image"][:, :, 1:]}, r"image has shape \(.*, the artifact takes \("),
        (lambda feeds: {"image": feeds["image"][0]}, r"image has shape \(., ., .\)"),
        (lambda feeds: {"image": np.concatenate([feeds["image"]] * 2)}, r"image has shape \(2"),
    ],
)
def test_wrong_feeds_are_refused(file, change, message):
    """
    What does not fit is a usage error that says what was received and what is taken.
    """
    path, description, _ = file

    with (
        runtime(description.format).open_artifact(path, description) as runner,
        pytest.raises(UsageError, match=message),
    ):
        runner.infer(change(feeds_for(description, image_of(7))))


@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"not a model", lambda c: c[:40], lambda c: c[:-40]])
def test_damaged_files_are_bundle_errors(file, damage, tmp_path):
    """
    An empty file, text and a truncated file are named instead of crashing the process.
    """
    path, description, _ = file
    broken = tmp_path / "broken.bin"
    broken.write_bytes(damage(path.read_bytes()))

    with pytest.raises(BundleError, match=r"cannot open broken\.bin"):
        runtime(description.format).open_artifact(broken, description)


def test_missing_file_is_a_bundle_error(file, tmp_path):
    """
    A file that is not there is named.
    """
    _, description, _ = file

    with pytest.raises(BundleError, match="nothing"):
        runtime(description.format).open_artifact(tmp_path / "nothing", description)


def test_unknown_inner_tensor_is_a_bundle_error(file):
    """
    A layer map that names a tensor the file doesn't have belongs to another file.
    """
    path, description, _ = file

    with pytest.raises(BundleError, match="nowhere"):
        runtime(description.format).open_artifact(path, description, tensors=("nowhere",))


def test_fewer_than_one_thread_is_refused(file):
    """
    Zero threads, which some runtimes read as all cores, is a usage error.
    """
    path, description, _ = file

    with pytest.raises(UsageError, match="threads is 0"):
        runtime(description.format).open_artifact(path, description, threads=0)


def test_runtimes_and_metadata_need_no_torch(files):
    """
    The lower half of the pipeline runs where neither torch nor a converter is installed.
    """
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'onnx', 'litert_torch', 'ai_edge_quantizer', 'coremltools']))\n"
        "from pathlib import Path\n"
        "from coordatt_deploy.runtimes.tflite import metadata as tflite_file, runner as litert\n"
        "print(litert.operators(Path(sys.argv[1])).partitions, tflite_file.read_metadata(Path(sys.argv[1]))['model'])\n"
    )
    path, _, _ = files[Format.TFLITE]
    finished = subprocess.run([sys.executable, "-c", script, str(path)], check=True, text=True, capture_output=True)

    assert "1 small\n" == finished.stdout
