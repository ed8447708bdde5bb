import json

import pytest

from coordatt_deploy.commands.output import print_document, print_notes


def test_a_document_begins_with_its_schema_version(capsys):
    """
    The document's own, wherever it stands in it, or the current one.
    """
    print_document({"a": 1})
    assert [("schema_version", 1), ("a", 1)] == list(json.loads(capsys.readouterr().out).items())
    print_document({"a": 1, "schema_version": 7})
    assert [("schema_version", 7), ("a", 1)] == list(json.loads(capsys.readouterr().out).items())


def test_a_document_is_strict(capsys):
    """
    The negative: NaN is no JSON.
    """
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_document({"a": float("nan")})
    assert "" == capsys.readouterr().out


def test_notes_go_to_stderr(capsys):
    """
    Stdout belongs to results.
    """
    print_notes(("assumed", "renamed"))

    assert ("", "note: assumed\nnote: renamed\n") == capsys.readouterr()
