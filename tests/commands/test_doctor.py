import json

import pytest

from coordatt_deploy.conversion.golden import Roundings
from coordatt_deploy.inspection import installation
from coordatt_deploy.stage_cache.keys import StageKey
from coordatt_deploy.stage_cache.store import default_cache


def test_doctor_names_versions_and_remedies(run):
    """
    The document holds the host and every package.
    """
    document = json.loads(run("doctor", "--json").output)

    assert {"host", "parts"} <= set(document)
    assert "2.13.0" in next(part["version"] for part in document["parts"] if part["name"] == "torch")


def test_an_unknown_target_is_not_set_up(run):
    """
    Exit 2 and the nearest.
    """
    result = run("doctor", "--setup", "qemu-arm")

    assert 2 == result.exit_code
    assert "did you mean qemu-arm64" in result.output


@pytest.mark.parametrize(
    ("installed", "shown"),
    [
        ({"ai_edge_litert": "2.3.0"}, ("ai-edge-litert", "2.3.0", None)),
        ({"tflite_runtime": "2.14.0"}, ("tflite-runtime", "2.14.0", None)),
        ({}, ("ai-edge-litert", None, "pip install 'coordatt-deploy[runtime]'")),
    ],
    ids=["new", "old", "none"],
)
def test_an_older_runtime_stands_in(monkeypatch, installed, shown):
    """
    A board with tflite-runtime can run TFLite files: nothing is missing there.
    """
    monkeypatch.setattr(installation, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(installation, "version", lambda name: installed[name.replace("-", "_")])

    (part,) = [part for part in installation.examine().parts if part.purpose == "running TFLite"]

    assert shown == (part.name, part.version, part.remedy)


def test_the_cache_of_builds_is_shown_and_emptied(run, tmp_path):
    """
    How many results, where; and none after it was emptied.
    """
    cache, made = default_cache(), tmp_path / "made"
    made.write_text("x")
    cache.keep(StageKey("convert", "made", {}), tmp_path, ["made"], Roundings())

    held = json.loads(run("doctor", "--json").output)["cache"]
    emptied = run("doctor", "--empty-cache").output

    assert (str(cache.folder), 1, None) == (held["folder"], held["entries"], held["problem"])
    assert "removed 1 result" in emptied
    assert "cache of builds: 0 results" in emptied
