"""The golden data of a bundle."""

import copy

from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.conversion.golden import golden_inputs, write_golden


def test_written_again_it_keeps_what_was_set_aside_for_artifacts(shared_graph, tmp_path):
    """
    Its own files of an earlier export go; a folder of calibration images belongs to artifacts that stay.
    """
    golden = golden_inputs(shared_graph.inputs, Preprocessing(size=(32, 48)), ())
    aside = tmp_path / "golden" / "set-aside-1" / "inputs.npz"
    for path in (aside, tmp_path / "golden" / "stale.npz", tmp_path / "golden" / "images" / "stale.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"earlier")

    write_golden(tmp_path, golden, shared_graph, copy.deepcopy(shared_graph.module).double())

    assert aside.read_bytes() == b"earlier"
    assert not list((tmp_path / "golden").rglob("stale*"))
    assert (tmp_path / "golden" / "outputs.npz").exists()
