"""Accuracy on labelled images, with a network whose answers are known: it names the colour that fills an image."""

import json
import math
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.bundle import finish, open_bundle, writing
from coordatt_deploy.cli import main
from coordatt_deploy.data import digits
from coordatt_deploy.data.digits import read_all
from coordatt_deploy.data.labelled import LabelsBy, open_dataset
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import DeployError, MissingDependencyError, UsageError
from coordatt_deploy.evaluation import run as evaluation_run
from coordatt_deploy.evaluation.paired import NOT_FINITE, PairedDifference, mid_p, placed, score_interval
from coordatt_deploy.evaluation.reports import read_reports
from coordatt_deploy.evaluation.run import EvaluationPlan, evaluate_bundle
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.saved_graph import save_graph
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.progress import Stages
from coordatt_deploy.report.write import write_page

COLOURS = {"red": (200, 10, 20), "green": (10, 200, 20), "deep blue": (10, 20, 200)}
IMAGE = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")
LOGITS = TensorSpec("logits", (1, 3), "float32", "NC")
RIGHT = np.eye(3, dtype=np.float32)
BLIND_TO_BLUE = np.diag([1.0, 1.0, 0.0]).astype(np.float32)


class Colours(nn.Module):
    """Logits are the mean of each channel, weighted."""

    def __init__(self, weight=RIGHT):
        super().__init__()
        self.head = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))

    def forward(self, image):
        return self.head(image.mean((2, 3)))


def save_onnx(path, weight):
    """Write the same network as an ONNX file."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, IMAGE.shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, LOGITS.shape)],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.fixture
def bundle(tmp_path):
    """Writes a bundle with an ONNX artifact for each named weight."""

    def write(labels=tuple(COLOURS), *, reference=True, outputs=(LOGITS,), **weights):
        spec = ModelSpec("colours", Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3), labels, source_sha256="0" * 64)
        graph = capture(Colours().eval(), (torch.rand(1, 3, 8, 8),), input_names=["image"], output_names=["logits"])
        with writing(tmp_path / "bundle", spec.source_sha256) as staging:
            (staging / "onnx").mkdir(exist_ok=True)
            if reference:
                (staging / "reference").mkdir(exist_ok=True)
                save_graph(graph, staging / "reference")
            artifacts = []
            for name, weight in (weights or {"right": RIGHT}).items():
                path = staging / "onnx" / f"{name}.onnx"
                save_onnx(path, weight)
                path.with_suffix(".layers.json").write_text("{}")
                artifacts.append(
                    Artifact(
                        f"onnx/{name}.onnx", Format.ONNX, Precision.FP32, None, None, path.stat().st_size,
                        sha256(path), (IMAGE,), (LOGITS,), f"onnx/{name}.layers.json",
                    )
                )  # fmt: skip
            finish(staging, Manifest(spec, (IMAGE,), outputs, tuple(artifacts)))
        return open_bundle(tmp_path / "bundle")

    return write


@pytest.fixture
def photos(tmp_path):
    """Writes a folder of images of one colour each, a little apart; returns it."""

    def write(each=4, names=tuple(COLOURS)):
        generator = np.random.default_rng(0)
        for name, colour in zip(names, COLOURS.values(), strict=False):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            for index in range(each):
                pixels = np.clip(np.array(colour) + generator.integers(-9, 9, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
        return tmp_path / "photos"

    return write


def evaluated(bundle, dataset, **options):
    return evaluate_bundle(bundle, EvaluationPlan(str(dataset), workers=1, **options), Stages())


def reported(root):
    """What the bundle's report knows, as the command prints it."""
    reports = read_reports((root / "reports" / "evaluate.json").read_text())
    return json.loads(dump(reports.result()))


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# the judge


@given(gained=st.integers(0, 60), lost=st.integers(0, 60), agreed=st.integers(0, 2000))
def test_interval_holds_the_difference_and_is_a_mirror(gained, lost, agreed):
    """
    The interval lies within [-1, 1], around the difference itself, and exchanging the two turns it over.
    """
    images = gained + lost + agreed or 1
    low, high = score_interval(gained, lost, images)
    other_low, other_high = score_interval(lost, gained, images)

    assert -1 <= low <= (gained - lost) / images <= high <= 1
    assert math.isclose(low, -other_high, abs_tol=1e-9)
    assert math.isclose(high, -other_low, abs_tol=1e-9)


@given(gained=st.integers(0, 20), lost=st.integers(0, 20), agreed=st.integers(0, 500), more=st.integers(2, 20))
def test_more_images_of_the_same_kind_tell_more(gained, lost, agreed, more):
    """
    Every image several times over gives the same difference and a narrower interval.
    """
    images = gained + lost + agreed or 1
    few = score_interval(gained, lost, images)
    many = score_interval(gained * more, lost * more, images * more)

    assert many[1] - many[0] < few[1] - few[0]


def test_published_interval():
    """
    1 gained and 7 lost of 21: Tango's interval in Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014).
    """
    low, high = score_interval(1, 7, 21)

    assert (-0.517, -0.026) == (round(low, 3), round(high, 3))


@pytest.mark.parametrize("images", [1, 10, 360, 2000])
def test_without_a_difference_the_interval_still_has_a_width(images):
    """
    Where no image tells the two apart, the bounds are z² / (n + z²): few images prove little.
    """
    bound = 1.959964**2 / (images + 1.959964**2)

    assert score_interval(0, 0, images) == pytest.approx((-bound, bound), abs=1e-6)


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.01), (0.01, 0.01), (0.10, 0.02)])
def test_coverage_is_the_nominal_one(lost, gained):
    """
    Of many draws with a known difference, about 95 % of the intervals hold it, computed over all likely outcomes.
    """
    images = 300
    draws = np.random.default_rng(0).multinomial(images, [lost, gained, 1 - lost - gained], 2000)
    held = [low <= gained - lost <= high for b, c, _ in draws for low, high in [score_interval(c, b, images)]]

    assert 0.935 <= np.mean(held) <= 0.98


def test_mid_p_by_hand():
    """
    One of eight: 2 (P(0) + P(1) / 2) = 2 (1 + 4) / 256; even splits tell nothing.
    """
    assert mid_p(1, 7) == pytest.approx(10 / 256)
    assert mid_p(7, 1) == pytest.approx(10 / 256)
    assert 1.0 == mid_p(4, 4) == mid_p(0, 0)
    assert 0 < mid_p(0, 5000) < 1e-300 or mid_p(0, 5000) == 0.0


def test_drop_is_judged_exactly_at_the_limit():
    """
    Five of a thousand are half a point: within 0.5, beyond 0.49.
    """
    pair = PairedDifference(1000, lost=7, gained=2)

    assert -0.5 == pair.points
    assert not pair.exceeds(0.5)
    assert pair.exceeds(0.49)
    assert not PairedDifference(1000, lost=0, gained=9).exceeds(0.0)


@pytest.mark.parametrize("counts", [(0, 0, 0), (3, 2, 2), (3, -1, 0)])
def test_impossible_counts_are_refused(counts):
    """
    More differences than images, or none at all to count.
    """
    with pytest.raises(ValueError, match="cannot be"):
        PairedDifference(*counts)


def test_equal_logits_are_taken_in_order_and_nan_names_nothing():
    """
    As argmax does in an app; NaN and infinity are never right.
    """
    logits = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, np.nan, 9.0], [np.inf, 0.0, 0.0]])
    classes, places = placed(logits, np.array([0, 1, 2, 0]))

    assert [0, 0, NOT_FINITE, NOT_FINITE] == classes.tolist()
    assert [0, 1, 3, 3] == places.tolist()


@settings(max_examples=30)
@given(st.data())
def test_first_place_is_argmax(data):
    """
    The right class has place 0 exactly where argmax names it, ties included.
    """
    logits = np.array(data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1)), float)
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(logits), max_size=len(logits))))
    classes, places = placed(logits, labels)

    assert np.argmax(logits, axis=1).tolist() == classes.tolist()
    assert (classes == labels).tolist() == (places == 0).tolist()


# the dataset


def test_folders_are_labels_whatever_their_writing(photos):
    """
    Case, blanks and underscores make no difference; the order is that of the labels, not of the folders.
    """
    folder = photos(1, names=("RED", "Green", "deep_blue"))
    found = open_dataset(str(folder), tuple(COLOURS), 3)

    assert LabelsBy.NAME is found.labels_by
    assert {"RED/0.png": 0, "Green/0.png": 1, "deep_blue/0.png": 2} == {i.name: i.label for i in found.images}


def test_without_labels_folders_are_taken_in_order(photos):
    """
    Sorted as text, as torchvision's ImageFolder does.
    """
    found = open_dataset(str(photos(1)), None, 3)

    assert LabelsBy.ORDER is found.labels_by
    assert {"deep blue/0.png": 0, "green/0.png": 1, "red/0.png": 2} == {i.name: i.label for i in found.images}


def test_numbered_folders_are_not_guessed(tmp_path):
    """
    Eleven numbered folders without labels mean two things; each is had by asking for it.
    """
    for name in map(str, range(11)):
        (tmp_path / name).mkdir()
        Image.new("L", (2, 2)).save(tmp_path / name / "0.png")
    with pytest.raises(UsageError, match="--labels-by index"):
        open_dataset(str(tmp_path), None, 11)

    by_index = open_dataset(str(tmp_path), None, 11, LabelsBy.INDEX).images
    by_order = open_dataset(str(tmp_path), None, 11, LabelsBy.ORDER).images
    assert {"10/0.png": 10, "2/0.png": 2}.items() <= {image.name: image.label for image in by_index}.items()
    assert {"10/0.png": 2, "2/0.png": 3}.items() <= {image.name: image.label for image in by_order}.items()


@pytest.mark.parametrize(
    ("names", "labels", "classes", "way", "answer"),
    [
        (("red", "grean", "deep blue"), tuple(COLOURS), 3, None, "'grean': did you mean green"),
        (("0", "1", "7"), None, 3, LabelsBy.INDEX, "numbered 0 to 2"),
        (("a", "b", "c"), None, 4, None, "3 class folders (a, b, c), the model 4 classes"),
        (("a", "b", "c"), None, 3, LabelsBy.NAME, "no labels"),
        (("0", "1", "x"), tuple(COLOURS), 3, LabelsBy.INDEX, "no class of the model (x)"),
    ],
)
def test_labels_that_do_not_fit(photos, names, labels, classes, way, answer):
    """
    Named, with what the model has.
    """
    folder = photos(1, names=names)
    with pytest.raises(UsageError) as caught:
        open_dataset(str(folder), labels, classes, way)
    assert answer in str(caught.value)


def test_what_is_no_dataset(tmp_path):
    """
    A path that is not there, a file, an empty folder, images without class folders: each has its own answer.
    """
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "flat" / "a.png")
    for name, answer in (("none", "there is no dataset"), ("empty", "holds no image"), ("flat", "flat/CLASS/a.png"),
                         ("flat/a.png", "is a file")):  # fmt: skip
        with pytest.raises(UsageError, match=answer):
            open_dataset(str(tmp_path / name), None, 3)


def test_nothing_is_left_out_silently(photos):
    """
    Images outside class folders, folders without images, other files and classes without images are all told.
    """
    folder = photos(2, names=("red", "green"))
    Image.new("L", (2, 2)).save(folder / "stray.png")
    (folder / "notes.txt").write_text("later")
    (folder / "later").mkdir()
    text = "\n".join(open_dataset(str(folder), tuple(COLOURS), 3).notes)

    for part in ("stray.png", "later", "1 files do not end like an image", "1 of 3 classes have no image here: deep b"):
        assert part in text


def test_limit_draws_the_same_images_for_the_same_seed(photos):
    """
    And others for another seed.
    """
    whole = open_dataset(str(photos(20)), tuple(COLOURS), 3)
    names = [tuple(image.name for image in whole.limited(12, seed).images) for seed in (0, 0, 1)]

    assert names[0] == names[1] != names[2]
    assert 12 == len(set(names[0]))
    assert whole.limited(60, 0) is whole


def test_packaged_digits_fit_digits_only():
    """
    The held-out 360, or all; a model of other labels is refused.
    """
    assert 360 == len(open_dataset("digits", digits.LABELS, 10))
    everything = open_dataset("digits:all", None, 10)
    assert (1797, read_all().labels.tolist()) == (len(everything), everything.labels.tolist())
    assert "trained" in everything.notes[0]
    with pytest.raises(UsageError, match="labels 0 to 9"):
        open_dataset("digits", tuple(COLOURS), 3)


def test_all_digits_without_scikit_learn(monkeypatch):
    """
    Exit code 3, with the line that installs it.
    """

    def missing(name):
        raise ModuleNotFoundError(name=name.partition(".")[0])

    monkeypatch.setattr(digits, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"sklearn.*pip install 'coordatt-deploy"):
        open_dataset("digits:all", None, 10)


# the bundle


def test_accuracy_and_difference_are_what_the_network_does(bundle, photos):
    """
    The reference names every colour; the file that is blind to blue loses exactly the blue third.
    """
    found = evaluated(bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(4), max_drop=1.0)
    reference, right, blind = found.subjects

    assert (12, 12, 8) == (reference.correct, right.correct, blind.correct)
    assert (None, True, False) == (reference.passed, right.passed, blind.passed)
    assert (0, 4) == (right.difference.lost, blind.difference.lost)
    assert 1.0 == right.agreement
    assert right.sqnr_db > 100 > 60 > blind.sqnr_db
    assert blind.difference.points == pytest.approx(-100 / 3)
    low, high = blind.difference.interval_points
    assert low < -100 / 3 < high < 0
    assert {"deep blue/0.png", "deep blue/1.png", "deep blue/2.png", "deep blue/3.png"} == {
        change.image for change in blind.changed
    }
    assert 1 == found.exit_code


def test_document_is_strict_and_whole(bundle, photos):
    """
    reports/evaluate.json holds the runs of which --json prints the result, with no NaN in it.
    """
    opened = bundle(right=RIGHT, blind=BLIND_TO_BLUE)
    result = run("evaluate", opened.root, "--dataset", photos(4), "--workers", 1, "--json")
    printed = json.loads(result.stdout, parse_constant=pytest.fail)
    written = reported(opened.root)

    assert 0 == result.exit_code, result.output
    assert printed == written
    assert "schema_version" == next(iter(printed))
    assert [1.0, 1.0, 8 / 12] == [item["top1"] for item in printed["subjects"]]
    assert "reference" == printed["baseline"]
    assert printed["passed"] is None


def test_exit_code_and_words_beyond_the_limit(bundle, photos):
    """
    Exit code 1, with the points lost and allowed; within a wide limit 0.
    """
    opened = bundle(blind=BLIND_TO_BLUE)
    folder = photos(4)
    beyond = run("evaluate", opened.root, "--dataset", folder, "--workers", 1, "--max-drop", 0.5)
    within = run("evaluate", opened.root, "--dataset", folder, "--workers", 1, "--max-drop", 40)

    assert (1, 0) == (beyond.exit_code, within.exit_code)
    assert "33.33 points lost, 0.5 allowed" in beyond.stdout
    assert "within" in within.stdout


def test_two_processes_give_the_same_figures(bundle, photos):
    """
    However the images are shared out.
    """
    opened, folder = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(9)
    documents = [
        evaluate_bundle(opened, EvaluationPlan(str(folder), workers=workers), Stages()).record() for workers in (1, 2)
    ]

    assert documents[0] == documents[1]


def test_corrupt_images_are_named_and_counted(bundle, photos):
    """
    Never fatal, never silently dropped: figures are over the others.
    """
    folder = photos(4)
    (folder / "red" / "0.png").write_bytes(b"not an image")
    (folder / "green" / "1.png").write_bytes((folder / "green" / "1.png").read_bytes()[:60])
    result = run("evaluate", bundle().root, "--dataset", folder, "--workers", 1)
    document = reported(folder.parent / "bundle")

    assert 0 == result.exit_code
    assert ["green/1.png", "red/0.png"] == [item["image"] for item in document["dataset"]["unreadable"]]
    assert (10, 12) == (document["dataset"]["images"], document["dataset"]["available"])
    assert 1.0 == document["subjects"][0]["top1"]
    assert "2 images could not be read" in result.stdout
    assert "red/0.png" in result.stdout


def test_only_corrupt_images(bundle, photos):
    """
    Then there is nothing to measure: exit code 2, and a name to look at.
    """
    folder = photos(1)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    result = run("evaluate", bundle().root, "--dataset", folder, "--workers", 1)

    assert 2 == result.exit_code
    assert "none of the 3 images" in result.stderr
    assert "deep blue/0.png" in result.stderr


def test_without_the_reference_the_float_file_is_the_measure(bundle, photos, monkeypatch):
    """
    A board has no torch: the document says what is compared with what, and why.
    """
    monkeypatch.setattr(evaluation_run, "find_spec", lambda name: None if name == "torch" else object())
    found = evaluated(bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(4))
    document = json.loads(dump(found.record()))

    assert "onnx/right.onnx" == document["baseline"]
    assert ["onnx/right.onnx", "onnx/blind.onnx"] == [item["path"] for item in document["subjects"]]
    assert 4 == document["subjects"][1]["lost"]
    assert any("instead of the float64 reference: torch is not installed" in note for note in document["notes"])


def test_a_board_needs_no_torch(bundle, photos):
    """
    With one runtime and neither torch nor onnx, the whole command runs: exit code 0, and the float file is the measure.
    """
    opened, folder = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(2)
    script = (
        "import sys, importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'torch', 'onnx', 'safetensors', 'sklearn', 'coremltools'}:\n"
        "            raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name in {'torch', 'safetensors'} else real(name)\n"
        "from coordatt_deploy.cli import main\n"
        "main(sys.argv[1:])"
    )
    arguments = ["evaluate", str(opened.root), "--dataset", str(folder), "--workers", "1", "--json"]
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)

    assert 0 == result.returncode, result.stderr
    assert "onnx/right.onnx" == json.loads(result.stdout)["baseline"]


def test_damaged_artifact_fails_without_spoiling_the_others(bundle, photos):
    """
    It has a reason in its place, the rest has figures, and the exit code is 1.
    """
    opened = bundle(right=RIGHT, blind=BLIND_TO_BLUE)
    (opened.root / "onnx" / "blind.onnx").write_bytes(b"no ONNX")
    found = evaluated(opened, photos(2))

    assert 6 == found.subjects[1].correct
    assert "cannot open blind.onnx" in found.subjects[2].problem
    assert (False, 1) == (found.subjects[2].passed, found.exit_code)


def test_missing_runtime_is_exit_code_three(bundle, photos, monkeypatch):
    """
    Said as "not run", never as a verdict.
    """

    def missing(kind):
        raise MissingDependencyError(f"opening {kind} artifacts needs it; run: pip install 'coordatt-deploy[runtime]'")

    monkeypatch.setattr("coordatt_deploy.evaluation.predict.runtime", missing)
    found = evaluated(bundle(), photos(2), max_drop=1.0)

    assert (3, None) == (found.exit_code, found.subjects[1].passed)
    assert "pip install" in found.subjects[1].problem


def test_wrong_classes_raise_a_doubt(bundle, photos):
    """
    Where the reference itself is no better than a guess, labels or preprocessing are the likely culprit.
    """
    names = ("green", "deep blue", "red")
    found = evaluated(bundle(), photos(40, names=names))

    assert 0 == found.subjects[0].correct
    assert any("do the folders' classes" in note for note in found.notes)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("--dataset", "missing"), "there is no dataset at missing"),
        (("--dataset", "digits"), "the digits have the labels 0 to 9"),
        (("--dataset", "digits", "--format", "tflite"), "has no artifact in tflite (it has: onnx)"),
        (("--dataset", "digits", "--limit", 0), "--limit is 0"),
        (("--dataset", "digits", "--workers", 0), "--workers is 0"),
        (("--dataset", "digits", "--max-drop", -1), "--max-drop is -1"),
        (("--dataset", "digits", "--max-drop", "nan"), "--max-drop is nan"),
        (("--dataset", "digits", "--labels-by", "nam"), "did you mean name"),
        (("--dataset", "digits", "--target", "qemu-arm"), "qemu-arm64"),
        ((), "--dataset"),
    ],
)
def test_slips_on_the_command_line(bundle, photos, arguments, answer):
    """
    Exit code 2, with what was expected, and no report is left behind.
    """
    opened = bundle()
    if "tflite" in arguments:
        arguments = ("--dataset", photos(1), *arguments[2:])
    result = run("evaluate", opened.root, *arguments)

    assert 2 == result.exit_code, result.output
    assert answer in result.stderr.replace("\n", " ")
    assert not (opened.root / "reports" / "evaluate.json").exists()


def test_a_detector_has_no_accuracy(bundle, photos):
    """
    A model without (1, classes) is refused by what it gives.
    """
    boxes = replace(LOGITS, name="boxes", shape=(1, 4, 8, 8))
    with pytest.raises(UsageError, match=r"gives boxes \(1, 4, 8, 8\)"):
        evaluated(bundle(outputs=(boxes,)), photos(1))


def test_a_dead_worker_is_told(bundle, photos, monkeypatch):
    """
    What the system ends for want of memory does not hang the command, and leaves advice.
    """

    class Dying(ThreadPoolExecutor):
        def __init__(self, count, *_, **__):
            super().__init__(count)

        def submit(self, *_, **__):
            future = Future()
            future.set_exception(BrokenProcessPool())
            return future

    monkeypatch.setattr("coordatt_deploy.evaluation.predict.ProcessPoolExecutor", Dying)
    with pytest.raises(DeployError, match="--workers 1"):
        evaluate_bundle(bundle(), EvaluationPlan(str(photos(20)), workers=2), Stages())


def test_report_shows_the_accuracy(bundle, photos):
    """
    The HTML report has a section, with hostile names as inert text.
    """
    opened = bundle(right=RIGHT, blind=BLIND_TO_BLUE)
    folder = photos(4)
    (folder / "red" / "<script>.png").write_bytes(b"")
    evaluated(opened, folder, max_drop=1.0)
    text = write_page(opened).read_text()
    renamed = replace(opened.manifest.artifacts[0], sha256="0" * 64)
    newer = replace(opened, manifest=replace(opened.manifest, artifacts=(renamed,)))

    assert "Accuracy on labelled images" in text
    assert "66.67%" in text
    assert "At most 1 points may be lost" in text
    assert "&lt;script&gt;.png" in text
    assert "<script" not in text
    assert "older file" not in text
    assert "right.onnx: figures of an older file" in write_page(newer).read_text()


@pytest.mark.slow
def test_packaged_weights_on_the_packaged_digits(tmp_path):
    """
    The embedded default's float files are right on as many held-out digits as its recipe says.
    """
    root = tmp_path / "digits"
    assert 0 == run("export", "--format", "onnx", "--format", "tflite", "--output-dir", root).exit_code
    result = run("evaluate", root, "--dataset", "digits", "--max-drop", 0.0, "--json")
    document = json.loads(result.stdout)

    assert 0 == result.exit_code, result.output
    assert [357, 357, 357] == [item["correct"] for item in document["subjects"]]
    assert all(item["agreement"] == 1.0 for item in document["subjects"][1:])
