"""``coordatt-deploy schema``: what documents look like, for those who read them with other tools."""

import json
from pathlib import Path

import pytest

from coordatt_deploy.commands.schema import DOCUMENTS, document_type
from coordatt_deploy.documents import write
from coordatt_deploy.json_schema import schema

FOLDER = Path(__file__).parents[2] / "docs" / "schema"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_schemas_in_the_docs_are_those_of_the_code(name):
    """
    A changed type needs `make schemas`, so that the change is seen by whoever reads the documents.
    """
    assert write(schema(document_type(name)), indent=2) == (FOLDER / f"{name}.json").read_text(encoding="utf-8")


def test_no_schema_is_left_behind():
    """
    Each file in the folder is a document of the code.
    """
    assert set(DOCUMENTS) == {path.stem for path in FOLDER.glob("*.json")}


def test_the_command_prints_it(run):
    """
    One JSON document on stdout, exit code 0.
    """
    result = run("schema", "manifest")

    assert 0 == result.exit_code
    assert {"const": 1} == json.loads(result.stdout)["properties"]["schema_version"]


def test_an_unknown_document_is_answered_with_the_nearest(run):
    """
    Exit code 2 and the name that was meant.
    """
    result = run("schema", "manifset")

    assert 2 == result.exit_code
    assert "manifest" in result.stderr
