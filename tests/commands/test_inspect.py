import json

import pytest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mobilenetv2_ca_10",), "did you mean mobilenetv2_ca_100"),
        (("mobilenetv2_ca_100", "--input-size", "8"), "between 32 and 4096"),
        (("mobilenetv2_ca_100", "--input-size", "5000"), "between 1 and 4096"),
        (("mobilenetv2_ca_100", "--dynamic-size", "96"), "give MIN:MAX in pixels"),
        (("net.pth",), "is a file of weights"),
        (("nowhere.onnx",), "nowhere.onnx"),
        ((".",), "is no bundle"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, said):
    """
    Exit 2 and what is possible.
    """
    result = run("inspect", *arguments)

    assert 2 == result.exit_code, result.output
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_backbone_as_json(run):
    """
    One document that begins with its schema version; the size is the one that was asked for.
    """
    document = json.loads(run("inspect", "mobilenetv2_ca_035", "--input-size", "64x32", "--json").stdout)

    assert ("schema_version", 1) == next(iter(document.items()))
    assert [1, 3, 64, 32] == document["inputs"][0]["shape"]


@pytest.mark.parametrize("name", ["notes.txt", "photo.png", "net.json"])
def test_a_file_that_is_no_model_is_said_to_be_that(run, tmp_path, name):
    """
    Not an unknown model with a list of all that are known: one line that says what models are named by.
    """
    (tmp_path / name).write_bytes(b"hello")

    for arguments in (("inspect", name), ("export", "--model", name)):
        result = run(*arguments)

        assert 2 == result.exit_code
        assert f"{name} is there, and is no model" in result.output
        assert "mobilenetv2_ca_035" not in result.output
