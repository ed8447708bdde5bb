"""``--metric FILE.py:FUNCTION``: what a function gets, what becomes of its number, and how its mistakes are told."""

import csv
import json
import sys

import numpy as np
import pytest
from colours import BLIND_TO_BLUE, COLOURS, RIGHT, evaluated, reported, run

from coordatt_deploy.errors import MetricError, UsageError
from coordatt_deploy.evaluation.run import EvaluationPlan, evaluate_bundle
from coordatt_deploy.evaluation.user_metric import load_metric
from coordatt_deploy.progress import Stages
from coordatt_deploy.report.write import write_page

DISTANCE = """
def distance(outputs, label):
    return abs(outputs["logits"][0, label] - 0.8)

distance.higher_is_better = False
"""
AT_ONCE = """
import numpy as np

def spread(outputs, labels, images):
    assert len(outputs) == len(labels) == len(images)
    assert all(image.name.endswith(".png") and (image.height, image.width) == (8, 8) for image in images)
    return np.std([o["logits"][0, label] for o, label in zip(outputs, labels)])

spread.higher_is_better = True
spread.per_image = False
"""


@pytest.fixture
def metric(tmp_path):
    """Writes the file of a metric, and returns what names a function in it."""

    def write(text, function, name="metric.py"):
        (tmp_path / name).write_text(text)
        return f"{tmp_path / name}:{function}"

    return write


def test_the_score_is_the_mean_over_images(bundle, photos, metric):
    """
    Of the reference and of every file, with the paired interval; less is better here, so that more is a drop.
    """
    opened, folder = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(4)
    found = evaluated(opened, folder, metric=metric(DISTANCE, "distance"), max_drop=0.05)
    reference, right, blind = found.subjects

    assert reference.score == pytest.approx(right.score, abs=1e-6)
    assert blind.score_difference.value == pytest.approx(blind.score - reference.score)
    assert 4 == blind.score_difference.greater
    assert (None, True, False) == (reference.passed, right.passed, blind.passed)
    low, high = blind.score_difference.interval
    assert low < blind.score_difference.value < high
    record = found.record()
    assert (4, 0) == (record.subjects[2].lost, record.subjects[2].gained)
    assert (None, None) == (record.max_drop_points, record.subjects[2].difference_points)
    assert (0.05, False) == (record.max_drop, record.passed)
    assert 1 == found.exit_code


def test_a_function_may_want_all_images_at_once(bundle, photos, metric):
    """
    With what is known of each image; the interval comes of leaving out groups of them.
    """
    opened, folder = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(9)
    found = evaluated(opened, folder, metric=metric(AT_ONCE, "spread"))
    reference, right, blind = found.subjects

    assert 0 < reference.score == pytest.approx(right.score, rel=1e-5)
    assert blind.score > 2 * reference.score
    low, high = blind.score_difference.interval
    assert 0 < low < blind.score_difference.value < high
    assert blind.score_difference.lower is None


@pytest.mark.slow
@pytest.mark.parametrize(("text", "function"), [(DISTANCE, "distance"), (AT_ONCE, "spread")])
def test_several_processes_give_the_same_figures(bundle, photos, metric, text, function):
    """
    The function is imported in each of them.
    """
    opened, folder, named = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(9), metric(text, function)
    records = [
        evaluate_bundle(opened, EvaluationPlan(str(folder), workers=workers, metric=named), Stages()).record()
        for workers in (1, 2)
    ]

    assert records[0] == records[1]


def test_the_command_shows_and_keeps_it(bundle, photos, metric):
    """
    In the table, the document and the page, in its own unit; the runs of top-1 stay beside it.
    """
    opened, folder, named = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(4), metric(DISTANCE, "distance")
    assert 0 == run("evaluate", opened.root, "--dataset", folder, "--workers", 1).exit_code
    result = run("evaluate", opened.root, "--dataset", folder, "--workers", 1, "--metric", named, "--max-drop", 0.01)
    document = reported(opened.root)
    page = write_page(opened).read_text().partition("Accuracy on labelled images")[2]

    assert 1 == result.exit_code, result.output
    assert "distance" in result.stdout
    assert "worse by" in result.stdout
    assert ("distance", named) == (document["metric"]["name"], document["metric"]["file"])
    assert "At most 0.01 of distance may be lost" in page
    runs = json.loads((opened.root / "reports" / "evaluate.json").read_text())["runs"]
    assert {"accuracy": 3, named: 3} == {
        kind: [run["kind"] for run in runs].count(kind) for kind in ("accuracy", named)
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(outputs, label):\n    return 1.0\n", "f does not say whether a higher value is better"),
        ("def f(outputs, label):\n    return 1.0\nf.higher_is_better = 'no'\n", "has higher_is_better = 'no'"),
        ("def f(outputs, label):\n    return 1.0\nf.higher_is_better = f.per_image = 1\n", "with True or False"),
        ("def f(outputs):\n    return 1.0\nf.higher_is_better = True\n", r"takes outputs; it is called with"),
        ("def f(a, b, c, d):\n    return 1.0\nf.higher_is_better = True\n", r"takes a, b, c, d"),
        ("def g(outputs, label):\n    return 1.0\n", "there is no function 'f' in metric.py; did you mean g|known: g"),
        ("f = 3\n", "there is no function 'f'"),
        ("def f(outputs, label:\n    return 1.0\n", r"SyntaxError.* at .*metric.py:1 \(def f"),
        ("import nowhere_at_all\n", r"ModuleNotFoundError: No module named 'nowhere_at_all' at .*metric.py:1"),
    ],
)
def test_what_is_no_metric_is_refused_before_anything_runs(bundle, photos, metric, text, message):
    """
    Exit code 2, what was expected, and the line of the file where there is one.
    """
    opened = bundle()
    with pytest.raises(UsageError, match=message):
        evaluated(opened, photos(1), metric=metric(text, "f"))

    assert not (opened.root / "reports" / "evaluate.json").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"raises ZeroDivisionError: division by zero at .*metric.py:2 \(return 1 / 0\)"),
        ("raise SystemExit(0)", r"raises SystemExit: 0 at .*metric.py:2"),
        ("return outputs['logit']", r"raises KeyError: 'logit' at .*metric.py:2"),
        ("return float('nan')", r"gives nan for deep blue/\d.png of reference; expected a finite number"),
        ("return float('inf')", r"gives inf"),
        ("return outputs['logits']", r"gives a ndarray of shape \(1, 3\)"),
        ("return 'good'", r"gives a str"),
        ("return None", r"gives None"),
    ],
)
def test_mistakes_of_the_function_are_one_line(bundle, photos, metric, body, message):
    """
    Exit code 2 with file and line; no traceback, and no report is left behind.
    """
    named = metric(f"def f(outputs, label):\n    {body}\nf.higher_is_better = True\n", "f")
    opened = bundle()
    folder = photos(1)
    result = run("evaluate", opened.root, "--dataset", folder, "--workers", 1, "--metric", named)

    assert 2 == result.exit_code, result.output
    assert "Traceback" not in result.output
    with pytest.raises(MetricError, match=message):
        evaluated(opened, folder, metric=named)
    assert not (opened.root / "reports" / "evaluate.json").exists()


@pytest.mark.slow
def test_mistakes_in_another_process_are_told_like_those_in_this_one(bundle, photos, metric):
    """
    File and line of the function, whichever process called it.
    """
    named = metric("def f(outputs, label):\n    return 1 / 0\nf.higher_is_better = True\n", "f")
    with pytest.raises(MetricError, match=r"ZeroDivisionError: division by zero at .*metric.py:2 \(return 1 / 0\)"):
        evaluate_bundle(bundle(), EvaluationPlan(str(photos(4)), workers=2, metric=named), Stages())


@pytest.mark.parametrize(
    "value", ["np.float32(0.5)", "np.array(0.5)", "np.bool_(True)", "True", "1", "torch.tensor(0.5)"]
)
def test_numbers_of_every_library_count(bundle, photos, metric, value):
    """
    A scalar of NumPy or torch, a whole number, or yes and no.
    """
    text = f"import numpy as np, torch\ndef f(outputs, label):\n    return {value}\nf.higher_is_better = True\n"
    found = evaluated(bundle(), photos(2), metric=metric(text, "f"))

    assert found.subjects[0].score in (0.5, 1.0)
    assert found.subjects[1].score_difference.interval is None


def test_a_file_with_nan_fails_and_not_the_metric(bundle, photos, metric):
    """
    Where outputs hold NaN, a number that is not finite is the file's fault: it fails, and the others have figures.
    """
    broken = RIGHT.copy()
    broken[0, 0] = np.nan
    found = evaluated(bundle(right=RIGHT, broken=broken), photos(2), metric=metric(DISTANCE, "distance"))

    assert found.subjects[1].score is not None
    assert (False, 1) == (found.subjects[2].passed, found.exit_code)
    assert "NaN or infinity in its outputs" in found.subjects[2].problem


def test_a_score_that_needs_all_images_has_no_interval(bundle, photos, metric):
    """
    A function that is undefined of fewer images keeps its score, and the reason stands beside it.
    """
    text = (
        "def f(outputs, labels):\n    assert len(labels) == 12\n    return 0.5\n"
        "f.higher_is_better, f.per_image = True, False\n"
    )
    found = evaluated(bundle(), photos(4), metric=metric(text, "f")).subjects[1]

    assert (0.5, None) == (found.score, found.score_difference.interval)
    assert "no interval" in found.warning


def test_outputs_that_do_not_fit_into_memory_are_refused(bundle, photos, metric, monkeypatch):
    """
    With the two ways out.
    """
    monkeypatch.setattr("coordatt_deploy.evaluation.predictions.KEPT_BYTES", 100)
    with pytest.raises(MetricError, match=r"give --limit, or a metric with per_image = True"):
        evaluated(bundle(), photos(4), metric=metric(AT_ONCE, "spread"))


def test_labels_of_every_kind_reach_the_function(tmp_path, bundle, photos, metric):
    """
    Values of a labels.json, rows of a labels.csv, and arrays of an archive, for the same images: the same score.
    """
    folder = photos(2)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    colours = {name: COLOURS[name.partition("/")[0]] for name in names}
    text = """
import numpy as np
def error(outputs, label):
    if isinstance(label[0], dict):
        label = [label[0][channel] for channel in "rgb"]
    return float(np.abs(outputs["logits"][0] - np.array(label) / 255).max())
error.higher_is_better = False
"""
    named, opened = metric(text, "error"), bundle()
    scores = []
    (folder / "labels.json").write_text(json.dumps({name: list(colour) for name, colour in colours.items()}))
    scores.append(evaluated(opened, folder, metric=named))
    (folder / "labels.json").unlink()
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "r", "g", "b"), *((name, *colour) for name, colour in colours.items())])
    scores.append(evaluated(opened, folder, metric=named))
    from PIL import Image

    images = np.stack([np.asarray(Image.open(folder / name)) for name in names])
    np.savez(tmp_path / "set.npz", images=images, labels=np.array([colours[name] for name in names], float))
    scores.append(evaluated(opened, tmp_path / "set.npz", metric=named))

    assert 1 == len({item.subjects[0].score for item in scores})
    assert 0 < scores[0].subjects[0].score < 0.05
    assert {"values"} == {item.record().dataset.labels_by for item in scores}


def test_other_labels_need_a_metric(bundle, photos):
    """
    Neither classes nor masks: exit code 2 says what to give.
    """
    folder = photos(1)
    (folder / "labels.json").write_text('{"red/0.png": [1, 2]}')
    result = run("evaluate", bundle().root, "--dataset", folder)

    assert 2 == result.exit_code
    assert "give --metric FILE.py:FUNCTION" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize("named", ["mean", "nowhere.py:f", "folder:f"])
def test_a_metric_that_is_not_there(bundle, photos, named):
    """
    Exit code 2 with what can be given.
    """
    result = run("evaluate", bundle().root, "--dataset", photos(1), "--metric", named)

    assert 2 == result.exit_code
    assert "FILE.py:FUNCTION" in result.stderr.replace("\n", " ")


def test_a_metric_is_not_taken_from_a_module_of_its_name(metric, monkeypatch):
    """
    A file called like a module that is imported already, json.py say, is imported as itself.
    """
    monkeypatch.setattr(sys, "path", [*sys.path])  # the folder of the file must not be found by later tests
    named = metric("def f(outputs, label):\n    return 7\nf.higher_is_better = True\n", "f", name="json.py")

    assert 7 == load_metric(named).function({}, 0)
