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
