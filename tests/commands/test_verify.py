"""``verify``: whether a bundle is as it was written, by hashes alone."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import coordatt_deploy
from coordatt_deploy.cli import main


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A bundle with one small file."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    root = tmp_path_factory.mktemp("verify") / "net"
    return coordatt_deploy.export(net, torch.zeros(1, 3, 8, 8), root, formats=["onnx"]).root


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


def verify(*arguments):
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


def test_a_bundle_as_it_was_written(copy):
    """
    One line, and exit code 0; reports are not among the hashed files.
    """
    (copy / "reports").mkdir(exist_ok=True)
    (copy / "reports" / "parity.json").write_text("{}")

    done = verify(copy)

    assert 0 == done.exit_code, done.output
    assert "all as written" in done.output


def test_what_was_changed_or_is_missing_is_named(copy):
    """
    All of it, with exit code 1, on the terminal and as a document.
    """
    onnx = next((copy / "onnx").glob("*.onnx"))
    onnx.write_bytes(onnx.read_bytes() + b"0")
    (copy / "golden" / "inputs.npz").unlink()

    done, document = verify(copy), json.loads(verify(copy, "--json").stdout)

    assert 1 == done.exit_code
    assert f"onnx/{onnx.name}: changed" in done.output
    assert "golden/inputs.npz: missing" in done.output
    assert not document["intact"]
    states = {item["path"]: item["state"] for item in document["files"]}
    assert ("changed", "missing") == (states[f"onnx/{onnx.name}"], states["golden/inputs.npz"])


def test_what_is_no_bundle_is_bad_input(tmp_path):
    """
    Exit code 2, in one line.
    """
    done = verify(tmp_path)

    assert 2 == done.exit_code
    assert "no manifest.json" in done.output
