import json

import pytest

from coordatt_deploy.models import list_models


def test_models_as_json(run):
    """
    One strict document that begins with its schema version.
    """
    result = run("models", "--json")
    document = json.loads(result.output, parse_constant=pytest.fail)
    by_name = {item["name"]: item for item in document["models"]}

    assert ("schema_version", 1) == next(iter(document.items()))
    assert list(list_models()) == [item["name"] for item in document["models"]]
    assert 3_950_648 == by_name["mobilenetv2_ca_100"]["parameters"]
    assert {"name", "parameters", "macs", "attention", "trained", "input_size"} <= set(by_name["mobilenetv2_100"])


def test_models_as_a_table(run):
    """
    A row each.
    """
    result = run("models")

    assert 0 == result.exit_code
    assert all(name in result.output for name in list_models())


def test_models_of_one_attention_block(run):
    """
    By the tag in the names or by the kind; none are the plain backbones.
    """

    def names(*arguments):
        return [item["name"] for item in json.loads(run("models", "--json", *arguments).output)["models"]]

    assert all("_gc" in name for name in names("--attention", "gc"))
    assert names("--attention", "gc") == names("--attention", "global_context") != []
    assert ["efficientnet_b0_plain"] == names("--attention", "none", "--family", "efficientnet")
    item = next(item for item in json.loads(run("models", "--json").output)["models"]
                if item["name"] == "mobilenext_se_050")  # fmt: skip
    assert ("mobilenext", "squeeze_excite", "classification") == (item["family"], item["attention"], item["task"])


@pytest.mark.parametrize(("word", "remedy"), [("ecca", "did you mean eca"), ("timm_coord", "--model-args")])
def test_unknown_attention_block_is_bad_usage(run, word, remedy):
    """
    With the nearest names, or the way to a block that no model is named after.
    """
    result = run("models", "--attention", word)

    assert 2 == result.exit_code
    assert remedy in result.output


def test_table_fits_eighty_columns(run, monkeypatch):
    """
    No row is wider, so none is folded on a narrow terminal.
    """
    monkeypatch.setenv("COLUMNS", "80")

    lines = run("models").output.splitlines()

    assert 80 >= max(map(len, lines))
    assert [] == [name for name in list_models() if not any(name in line.split() for line in lines)]
