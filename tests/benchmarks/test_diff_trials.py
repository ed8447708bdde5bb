"""The trials of ``diff``: what they call equal and slowed is so, and what was tried before is not tried again."""

import json

import numpy as np
from small_bundle import FLOAT_ONNX, float_bundle

from benchmarks import diff_trials
from benchmarks.diff_trials import made
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.runtimes import runtime


def outputs(bundle):
    (artifact,) = bundle.manifest.artifacts
    image = bundle.golden("inputs")["image"][0]
    with runtime(artifact.format).open_artifact(bundle.path(artifact.path), artifact) as runner:
        return runner.infer({"image": image})["logits"]


def test_the_files_compute_the_same_and_are_other_bytes(tmp_path):
    """
    A word of metadata changes the hash alone, an identity convolution the graph, and neither what comes out.
    """
    source = open_bundle(float_bundle(tmp_path / "net"))
    (file,) = source.manifest.artifacts
    equal = made(source, file, tmp_path / "equal", ("copy",))
    slowed = made(source, file, tmp_path / "slowed", (), 3)

    assert 3 == len({item.manifest.artifacts[0].sha256 for item in (source, equal, slowed)})
    np.testing.assert_array_equal(outputs(source), outputs(equal))
    np.testing.assert_array_equal(outputs(source), outputs(slowed))
    assert slowed.path(FLOAT_ONNX).stat().st_size > equal.path(FLOAT_ONNX).stat().st_size


def test_trials_go_on_where_they_ended(tmp_path, monkeypatch, capsys):
    """
    Two of three are there already: one is run, and all three are counted.
    """
    row = {
        "kind": "equal",
        "verdict": "no difference",
        "options": [],
        "ratio": 1.0,
        "batches": 12,
        "seconds": 20,
        "load": 0,
    }
    (tmp_path / "made.json").write_text("{}\n")
    (tmp_path / "trials.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    run = []
    monkeypatch.setattr(diff_trials, "trial", lambda _folder, kind, _options: run.append(kind) or row)
    monkeypatch.setattr("sys.argv", ["diff_trials", "none", str(tmp_path), "--equal", "3", "--slowed", "0"])
    diff_trials.main()

    assert ["equal"] == run
    assert "equal: {'no difference': 3} of 3" in capsys.readouterr().out
    assert 3 == len((tmp_path / "trials.jsonl").read_text().splitlines())
