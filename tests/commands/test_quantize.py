import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing, RangeMethod, TensorSpec
from coordatt_deploy.bundle import open_bundle, save_golden
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.cli import main
from coordatt_deploy.conversion import calibration, jobs
from coordatt_deploy.conversion.calibration import Calibration, calibration_of
from coordatt_deploy.conversion.plan import ExportPlan, QuantizePlan
from coordatt_deploy.documents import to_json
from coordatt_deploy.errors import UsageError
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import FORMATS, Format, Precision
from coordatt_deploy.graph.saved_graph import save_graph
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.quantization.recipes import Mode, Recipe, parse, save_recipe

SPEC = ModelSpec("tiny", Preprocessing((32, 48)), source_sha256="0123abcd")


@pytest.fixture(scope="module")
def empty(shared_graph, tmp_path_factory):
    """A bundle with its reference and no artifact."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    with writing(folder, SPEC.source_sha256) as staging:
        (staging / "reference").mkdir()
        save_graph(shared_graph, staging / "reference")
        (staging / "golden").mkdir()
        for name in ("inputs", "outputs", "rounding_fp32", "rounding_fp16"):
            save_golden(staging / "golden" / f"{name}.npz", {})
        logits = TensorSpec("logits", (1, 5), "float32", "NC")
        finish(staging, Manifest(SPEC, shared_graph.inputs, (logits,)))
    return folder


@pytest.fixture
def bundle(empty, tmp_path):
    shutil.copytree(empty, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(40):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 64)).save(folder / f"{index:02d}.png")
    return folder


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def state(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "static_wi8_ai8 needs calibration data"),
        (("--recipe", "int4"), "unknown recipe 'int4'; did you mean int8"),
        (("--recipe", "palettized_w4", "--format", "onnx"), "formats that have it: coreml"),
        (("--recipe", "static_wi8_ai16", "--format", "coreml"), "formats that have it: tflite"),
        (("--recipe", "static_wi4_ai8"), "unknown recipe"),
        (("--recipe", "absent.json"), "absent.json"),
        (("--calibration-data", "absent"), "no calibration data at absent"),
        (("--calibration-data", "."), "holds no image"),
        (("--calibration-data", "digits", "--calibration-count", "3"), "--calibration-count is 3"),
        (("--calibration-data", "digits", "--ranges", "mean"), "unknown range method 'mean'"),
        (("--recipe", "palettized_w6", "--calibration-data", "digits"), "calibration data changes nothing"),
        (("--format", "onxx"), "did you mean onnx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_usage_is_one_line_and_changes_nothing(bundle, tmp_path, monkeypatch, arguments, said):
    """
    Exit code 2, what is possible, and the bundle as it was.
    """
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = state(bundle)

    result = run("quantize", bundle, *arguments)

    assert 2 == result.exit_code
    assert said in result.output
    assert "Traceback" not in result.output
    assert before == state(bundle)


def test_a_folder_that_is_no_bundle(tmp_path):
    """
    It says how to make one.
    """
    result = run("quantize", tmp_path)

    assert 2 == result.exit_code
    assert "coordatt-deploy build" in result.output


def test_a_bundle_without_reference(bundle):
    """
    On a board there is nothing to quantize from.
    """
    shutil.rmtree(bundle / "reference")
    with writing(bundle, SPEC.source_sha256) as staging:
        finish(staging, open_bundle(bundle, verify=False).manifest)

    result = run("quantize", bundle, "--calibration-data", "digits")

    assert 3 == result.exit_code
    assert "has no reference/" in result.output


def test_a_missing_converter(bundle, monkeypatch):
    """
    Said before work begins, with the line that installs it.
    """
    monkeypatch.setitem(
        FORMATS, Format.TFLITE, replace(FORMATS[Format.TFLITE], converter="litert_torch_of_another_planet")
    )

    result = run("quantize", bundle, "--format", "tflite", "--calibration-data", "digits")

    assert 3 == result.exit_code
    assert "pip install 'coordatt-deploy[tflite]'" in result.output


def test_only_the_embedded_weights_know_digits(bundle):
    """
    A user's own model is never calibrated on the packaged digits unasked.
    """
    manifest = open_bundle(bundle).manifest
    plan = QuantizePlan((parse("static_wi8_ai8"),))

    assert calibration.own_dataset(manifest.model.source_sha256) is None
    assert "digits" == calibration_of(QuantizePlan(plan.recipes, calibration="digits"), manifest).source


def test_a_recipe_goes_to_every_format_that_has_it():
    """
    Of those that the bundle has, or those that were named.
    """
    plan = QuantizePlan((parse("static_wi8_ai8"), parse("palettized_w6")))

    pairs = [(str(kind), recipe.name) for kind, recipe in plan.pairs(tuple(Format))]

    expected = [(name, "static_wi8_ai8") for name in ("onnx", "tflite", "coreml", "executorch")]
    assert [*expected, ("coreml", "palettized_w6")] == pairs


def test_precisions_of_an_export_are_recipes_of_the_same_stage():
    """
    What an exporter writes itself stays its own; int8 takes the range method that was asked for.
    """
    wanted = (Precision.FP32, Precision.FP16, Precision.INT8)
    plan = ExportPlan(formats=(Format.TFLITE,), precisions=wanted, ranges=RangeMethod.MSE)

    assert [(Format.TFLITE, Precision.FP32, None)] == list(plan.jobs())
    assert ["weight_only_wfp16_afp32", "static_wi8_ai8"] == [recipe.name for _, recipe in plan.recipes()]
    assert {RangeMethod.MSE} == {recipe.ranges for _, recipe in plan.recipes()}
    with pytest.raises(UsageError, match="executorch has no precision fp16 here; it has: fp32, int8"):
        ExportPlan(formats=(Format.EXECUTORCH,), precisions=(Precision.FP16,)).jobs()


def test_export_to_int8_without_data_is_refused_before_anything_is_converted(tmp_path):
    """
    A user's own model: exit code 2, and no bundle.
    """
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())\n"
    )

    result = run(
        "export", "--model", f"{tmp_path / 'net.py'}:net", "--precision", "int8", "--format", "onnx",
        "--input-size", "16", "--output-dir", tmp_path / "out",
    )  # fmt: skip

    assert 2 == result.exit_code, result.output
    assert "--calibration-data" in result.output
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def quantized(empty, photos, tmp_path_factory):
    """One static ONNX file in a copy of the bundle, from photographs."""
    folder = tmp_path_factory.mktemp("quantized") / "tiny"
    shutil.copytree(empty, folder)
    result = run("quantize", folder, "--format", "onnx", "--calibration-data", photos, "--seed", 3, "--json")
    assert 0 == result.exit_code, result.output
    return folder, json.loads(result.stdout), photos


@pytest.mark.slow
def test_the_artifact_joins_the_bundle(quantized):
    """
    Named after its recipe, described in the manifest with its calibration, hashes in order.
    """
    folder, document, photos = quantized
    bundle = open_bundle(folder)
    (artifact,) = bundle.manifest.artifacts
    said = to_json(bundle.manifest.quantization[artifact.path])

    assert "onnx/tiny_static_wi8_ai8_arm64.onnx" == artifact.path
    assert ("int8", "static_wi8_ai8") == (artifact.precision.value, artifact.recipe)
    assert document["quantization"] == to_json(bundle.manifest.quantization)
    assert 1 == document["schema_version"]
    calibration = said["calibration"]
    assert (str(photos), 32, 3, 8) == tuple(calibration[key] for key in ("source", "count", "seed", "set_aside"))
    assert any("only" in note for note in calibration["notes"])
    assert said["equalise"]["chains"] > 0
    assert said["rounding"]["layers"]
    assert bundle.layers(artifact).coverage > 0.9


@pytest.mark.slow
def test_parity_judges_it_on_the_images_set_aside(quantized):
    """
    It passes there, though the golden images of the bundle are of another kind.
    """
    folder, _, _ = quantized

    result = run("parity", folder, "--outputs-only", "--json")

    assert 0 == result.exit_code, result.output
    (verdict,) = json.loads(result.stdout)["artifacts"]
    assert verdict["passed"]
    assert verdict["sqnr_db"] > 20


@pytest.mark.slow
def test_a_changed_weight_fails_parity(quantized, tmp_path):
    """
    The negative: the int8 weights of the last layer turned upside down, and the hash made to fit.
    """
    import onnx

    folder = tmp_path / "tiny"
    shutil.copytree(quantized[0], folder)
    manifest = open_bundle(folder).manifest
    path = folder / manifest.artifacts[0].path
    model = onnx.load(str(path))
    tensor = next(t for t in model.graph.initializer if "head" in t.name and len(t.dims) == 2)
    tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
    path.write_bytes(model.SerializeToString())
    text = (folder / "manifest.json").read_text().replace(manifest.artifacts[0].sha256, sha256(path))
    (folder / "manifest.json").write_text(text)

    result = run("parity", folder, "--outputs-only")

    assert 1 == result.exit_code, result.output


@pytest.mark.slow
def test_again_replaces_and_forgets_what_was_set_aside(quantized, tmp_path):
    """
    The same seed gives the same bytes; other data takes the place of the old, images set aside included.
    """
    folder = tmp_path / "tiny"
    shutil.copytree(quantized[0], folder)
    before = open_bundle(folder).manifest.artifacts[0].sha256
    arguments = ("quantize", folder, "--format", "onnx", "--calibration-data", quantized[2])

    assert 0 == run(*arguments, "--seed", 3).exit_code
    assert before == open_bundle(folder).manifest.artifacts[0].sha256
    other = run(*arguments, "--seed", 4)
    assert 0 == other.exit_code, other.output

    bundle = open_bundle(folder)
    (artifact,) = bundle.manifest.artifacts
    assert before != artifact.sha256
    used = bundle.manifest.quantization[artifact.path].held_out.folder
    assert [used] == [path.name for path in (folder / "golden").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_a_recipe_file_is_replayed(bundle, tmp_path):
    """
    Layers in float are counted in the artifact's name and written into the manifest.
    """
    recipe = Recipe(Mode.WEIGHT_ONLY, "int8", "fp32", float_layers=("head",))
    save_recipe(recipe, tmp_path / "recipe.json")

    result = run("quantize", bundle, "--format", "onnx", "--recipe", tmp_path / "recipe.json")

    assert 0 == result.exit_code, result.output
    manifest = open_bundle(bundle).manifest
    assert "weight_only_wi8_afp32_float1" == manifest.artifacts[0].recipe
    assert ["head"] == list(manifest.quantization[manifest.artifacts[0].path].recipe.float_layers)


@pytest.mark.parametrize("untrained", [True, False])
def test_random_weights_are_not_rounded_on_data(untrained, tmp_path):
    """
    It takes minutes and gains an accuracy that they do not have; the recipe in the manifest says so, its name stays.
    """
    recipe = parse("static_wi8_ai8")
    manifest = Manifest(replace(SPEC, untrained=untrained), (), ())

    (job,) = jobs.plan_jobs(QuantizePlan((recipe,)), [(Format.TFLITE, recipe)], manifest, tmp_path, Calibration())

    assert (recipe.name, not untrained) == (job.recipe.name, job.recipe.adjust)
