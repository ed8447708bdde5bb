"""Preprocessing and labels of the user: options, and files of either."""

import pytest
from zoo_requests import zoo

from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.errors import UsageError
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.preprocessing import (
    PreprocessingChanges,
    changes_from,
    parse_numbers,
    read_labels,
    read_preprocessing,
)


def test_preprocessing_of_the_users_own():
    """
    Options over the model's own values; without them the assumption is said.
    """
    given = PreprocessingChanges(mean=(0.5,) * 3, std=(0.5,) * 3, colour="BGR", input_range=(-1.0, 1.0))

    source = resolve(zoo("official_block:build", input_size=(64, 48), preprocessing=given))

    assert Preprocessing((64, 48), (0.5,) * 3, (0.5,) * 3, "BGR", input_range=(-1.0, 1.0)) == source.spec.preprocessing
    assert not any("assumed" in note for note in source.notes)
    assert any("assumed to be ImageNet's" in note for note in resolve(zoo("official_block:build")).notes)


@pytest.mark.parametrize(("document", "text"), [
    ('{"maen": [0.5]}', "unknown key 'maen'; did you mean mean"),
    ('{"mean": [0.5, 0.5]}', "mean has 2 numbers; the model takes 3 channels"),
    ('{"mean": "0.5"}', "mean is '0.5'; expected as many numbers as channels"),
    ('{"mean": [0.5, null, 0.5]}', "expected as many numbers as channels"),
    ('{"colour": "grey"}', "colour is GREY; the model takes 3 channels"),
    ('{"std": [1, 0, 1]}', "std .* positive"),
    ('{"colour": "RBG"}', "colour is 'RBG'; did you mean RGB"),
    ('{"resize": "bilinaer"}', "did you mean bilinear"),
    ('{"crop_ratio": true}', "crop_ratio is True; expected a number"),
    ('{"crop_ratio": 2.5}', "crop_ratio is 2.5"),
    ('{"input_range": [1, 0]}', "input_range is 1 to 0"),
    ('{"size": [32, 32]}', "preprocessing gives images of 32x32, but the input is 64x64"),
    ("[1, 2]", "holds a list; expected an object"),
    ("{", "is no JSON text"),
])  # fmt: skip
def test_a_bad_preprocessing_file_is_answered_by_key(document, text, tmp_path):
    """
    Typos by the nearest name, values by what was expected.
    """
    path = tmp_path / "preprocessing.json"
    path.write_text(document)

    with pytest.raises(UsageError, match=text):
        resolve(zoo("official_block:build", preprocessing=read_preprocessing(path)))


def test_a_preprocessing_file_may_be_that_of_a_manifest(tmp_path):
    """
    One number stands for all channels, however many the model has; words are taken in any case.
    """
    path = tmp_path / "preprocessing.json"
    path.write_text('{"size": [64, 48], "mean": 0.5, "std": [0.25, 0.5, 1], "colour": "bgr", "crop": "Center"}')

    expected = PreprocessingChanges((64, 48), (0.5,), (0.25, 0.5, 1.0), colour="BGR", crop="center")

    assert expected == read_preprocessing(path)


def test_options_win_over_the_preprocessing_file(tmp_path):
    """
    What an option says replaces the file's value; what neither says stays the model's.
    """
    (tmp_path / "preprocessing.json").write_text('{"mean": 0.25, "resize": "nearest"}')
    base = Preprocessing((64, 48), std=(2.0, 2.0, 2.0))

    changes = read_preprocessing(tmp_path / "preprocessing.json").overridden_by(changes_from({"mean": 0.5}))

    assert Preprocessing((8, 8), (0.5,) * 3, (2.0,) * 3, resize="nearest") == changes.applied_to(base, (8, 8))
    assert changes
    assert not PreprocessingChanges()


def test_numbers_on_the_command_line():
    """
    Commas between them; anything else is refused by the option's name.
    """
    assert (0.5, -1.0, 2.0) == parse_numbers("0.5,-1, 2", "--mean")
    for text in ("", "a,b", "0.5;0.5", "nan,0,0"):
        with pytest.raises(UsageError, match="--mean is"):
            parse_numbers(text, "--mean")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat\ndog\n", ("cat", "dog")),
        ("\ufeffcat\r\n dog \r\n\r\n", ("cat", "dog")),
        ('["cat", "dog"]', ("cat", "dog")),
        ('{"1": "dog", "0": "cat"}', ("cat", "dog")),
    ],
)
def test_labels_are_lines_or_json(text, expected, tmp_path):
    """
    As torchvision, Keras and plain lists have them.
    """
    (tmp_path / "labels").write_text(text, encoding="utf-8")

    assert expected == read_labels(tmp_path / "labels")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected a name for each class"),
        ("cat\n\ndog", "expected a name for each class"),
        ("cat\ncat", "'cat' occurs twice"),
        ('["cat", 1]', "expected a name for each class"),
        ('["cat"', "is no JSON text"),
        ('{"a": "cat"}', "the keys must be the classes' numbers"),
    ],
)
def test_bad_labels_are_refused(text, problem, tmp_path):
    """
    A name that is missing would shift all that follow.
    """
    (tmp_path / "labels").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=problem):
        read_labels(tmp_path / "labels")
    with pytest.raises(UsageError, match="does not exist"):
        read_labels(tmp_path / "nowhere")
