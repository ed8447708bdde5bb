"""The worked example of a metric: it is the page's own text that runs, and it gives what mAP is."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from colours import run
from PIL import Image

from coordatt_deploy.evaluation.user_metric import EvaluatedImage, load_metric

PAGE = (Path(__file__).parents[2] / "docs" / "accuracy.md").read_text(encoding="utf-8")
IMAGES = [EvaluatedImage(f"{number}.jpg", 10, 10) for number in range(2)]
BOXES = np.array([[0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0.52, 0.5, 0.92, 0.9]])


@pytest.fixture
def example(tmp_path):
    """The file of the page, as it stands there, loaded as the command loads it."""
    (text,) = re.findall(r"```python\n# map.py\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "map.py").write_text(text)
    return load_metric(f"{tmp_path / 'map.py'}:mean_average_precision")


def detections(*scores):
    """What a detector gives at the three boxes: scores of two classes for each, and of the background."""
    values = np.array([[1 - max(pair), *pair] for pair in scores])
    return {"boxes": BOXES[None].astype(np.float32), "scores": values[None].astype(np.float32)}


def labels(*pairs):
    return [{"box": BOXES[index].tolist(), "class": kind} for index, kind in pairs]


@pytest.mark.parametrize(
    ("outputs", "there", "expected"),
    [
        # both boxes found, and the copy of the second suppressed
        ([((0.9, 0), (0.8, 0), (0.7, 0))], [((0, 1), (1, 1))], 1.0),
        # one of two is found: recall ends at a half
        ([((0.9, 0), (0, 0), (0, 0))], [((0, 1), (1, 1))], 0.5),
        # a wrong box is surer than the right one: half of what is found is right
        ([((0.6, 0), (0.9, 0), (0, 0))], [((0, 1),)], 0.5),
        # the mean over classes: 1 for the first, 0 for the second
        ([((0.9, 0), (0, 0), (0, 0))], [((0, 1), (1, 2))], 0.5),
        # the right place in the wrong image
        ([((0.9, 0), (0, 0), (0, 0)), ((0, 0), (0, 0), (0, 0))], [(), ((0, 1),)], 0.0),
    ],
)
def test_it_is_mean_average_precision(example, outputs, there, expected):
    """
    By hand: found, missed, surer and wrong, another class, another image.
    """
    found = example.of_all([detections(*row) for row in outputs], [labels(*row) for row in there], IMAGES, "x")

    assert expected == pytest.approx(found)
    assert (True, False, False) == (example.higher_is_better, example.per_image, example.takes_image)


@pytest.mark.slow
def test_it_scores_a_detector(tmp_path):
    """
    The whole way: a detector that decodes its boxes, a labels.json, and the command of the page.
    """
    (text,) = re.findall(r"```python\n# map.py\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "map.py").write_text(text.replace("SCORE = 0.05", "SCORE = 0.0").replace("IOU = 0.5", "IOU = 0.01"))
    street = tmp_path / "street"
    street.mkdir()
    chance = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(chance.integers(0, 255, (64, 64, 3), np.uint8)).save(street / f"{number}.png")
    known = {f"{number}.png": [{"box": [0.0, 0.0, 1.0, 1.0], "class": 1}] for number in range(4)}
    (street / "labels.json").write_text(json.dumps(known))
    options = ("--model-args", '{"decode": true, "num_classes": 3}', "--input-size", "64", "--precision", "fp32")
    model = ("--model", "ssdlite320_mobilenetv2_ca_100", "--format", "onnx", "--output-dir", tmp_path / "bundle")
    assert 0 == run("export", *model, *options).exit_code
    metric = ("--metric", f"{tmp_path / 'map.py'}:mean_average_precision", "--max-drop", 0.01)
    result = run("evaluate", tmp_path / "bundle", "--dataset", street, *metric, "--workers", 1, "--json")

    assert 0 == result.exit_code, result.output
    document = json.loads(result.stdout)
    scores = [item["score"] for item in document["subjects"]]
    assert 0 < scores[0] <= 1
    assert scores[1] == pytest.approx(scores[0], abs=0.01)
