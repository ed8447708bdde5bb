"""Bundles of strangers: what in them is neither a regular file nor a folder is refused, and nothing behind it moves."""

import os
import shutil
import signal
import socket

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from coordatt_deploy import files
from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.bundle import open_bundle, save_golden
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.cli import main
from coordatt_deploy.data.images import load_image
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.files import files_below, make_folder, open_regular, sha256
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.manifest import GoldenCase, Manifest

SPEC = ModelSpec("net", Preprocessing((8, 8)), source_sha256="0" * 64)
IMAGE = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")
LOGITS = TensorSpec("logits", (1, 2), "float32", "NC")
WEIGHTS = "coreml/net_fp16.mlpackage/Data/weight.bin"
COMMANDS = (
    ("parity",),
    ("parity", "--outputs-only"),
    ("profile",),
    ("quantize", "--recipe", "dynamic_wi8_afp32"),
    ("evaluate", "--dataset", "digits"),
    ("inspect",),
    ("report",),
)


@pytest.fixture(autouse=True)
def no_hang():
    """Ends a test whose reader waits for a pipe."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def bundle(tmp_path):
    """A bundle with every folder that one can have."""
    with writing(tmp_path / "net", SPEC.source_sha256) as staging:
        for name in ("onnx", "tflite", "coreml/net_fp16.mlpackage/Data", "reference", "reports", "golden/images"):
            (staging / name).mkdir(parents=True)
        for name in ("golden/set-aside-abc", "tflite/set-aside-abc"):
            (staging / name).mkdir()
            (staging / name / "kept").write_text("kept")
        for name in ("onnx/net_fp32.onnx", WEIGHTS, "reference/graph.json", "reports/parity.json"):
            (staging / name).write_bytes(b"{}")
        (staging / "onnx/net_fp32.layers.json").write_text(LayerMap(()).dump())
        Image.new("RGB", (8, 8)).save(staging / "golden/images/black.png")
        save_golden(staging / "golden/inputs.npz", {"image": [np.zeros(IMAGE.shape, np.float32)]})
        for name in ("outputs", "rounding_fp32", "rounding_fp16"):
            save_golden(staging / f"golden/{name}.npz", {"logits": [np.zeros(LOGITS.shape)]})
        artifacts = tuple(
            Artifact(path, kind, precision, None, None, 2, sha256(staging / path), (IMAGE,), (LOGITS,),
                     "onnx/net_fp32.layers.json")
            for path, kind, precision in (
                ("onnx/net_fp32.onnx", Format.ONNX, Precision.FP32),
                ("coreml/net_fp16.mlpackage", Format.COREML, Precision.FP16),
            )
        )  # fmt: skip
        golden = (GoldenCase("black", "golden/images/black.png"),)
        finish(staging, Manifest(SPEC, (IMAGE,), (LOGITS,), artifacts, golden=golden))
    return tmp_path / "net"


def outside(bundle, name):
    """Put what *name* holds behind a link, and return where it lies and what is there."""
    canary = bundle.parent / "canary"
    (bundle / name).rename(canary)
    (bundle / name).symlink_to(canary)
    return canary


def state(path):
    found = [path, *path.rglob("*")] if path.is_dir() else [path]
    return {item: (item.lstat().st_mtime_ns, item.read_bytes() if item.is_file() else None) for item in found}


def refused(bundle, said):
    """Try the bundle in every way there is; each must end with one line that names what is wrong."""
    for verify in (True, False):
        with pytest.raises(BundleError, match=said):
            open_bundle(bundle, verify=verify)
    for command, *options in COMMANDS:
        result = CliRunner().invoke(main, [command, str(bundle), *options], catch_exceptions=False)
        assert (2, 1) == (result.exit_code, result.output.count("\n")), (command, result.output)
        assert said in result.output
        assert result.output.startswith("Error: ")


LINKED = (
    "golden",
    "tflite",
    "reports",
    "reference",
    "onnx",
    WEIGHTS,
    "golden/images/black.png",
    "golden/set-aside-abc",
    "reports/parity.json",
    "onnx/net_fp32.onnx",
    "onnx/net_fp32.layers.json",
    "manifest.json",
)


@pytest.mark.parametrize("name", LINKED)
def test_a_link_is_refused_and_what_is_behind_it_stays(bundle, name):
    """
    Whatever the command; with hashes checked or not.
    """
    canary = outside(bundle, name)
    before = state(canary)

    refused(bundle, f"'{name}' is a symbolic link")

    assert before == state(canary)
    assert {"net", "canary"} == {path.name for path in bundle.parent.iterdir()}


@pytest.mark.parametrize("name", ["reports/note", "coreml/net_fp16.mlpackage/Data/more.bin", "note"])
def test_a_link_that_no_hash_covers_is_refused(bundle, name):
    """
    Dangling, and where nothing in the manifest names it.
    """
    (bundle / name).symlink_to("nowhere")

    refused(bundle, f"'{name}' is a symbolic link")


@pytest.mark.parametrize(
    "name", ["manifest.json", "golden/images/black.png", "golden/outputs.npz", "reports/more", WEIGHTS]
)
def test_a_pipe_is_refused_at_once(bundle, name):
    """
    A reader of one would wait for ever.
    """
    (bundle / name).unlink(missing_ok=True)
    os.mkfifo(bundle / name)

    refused(bundle, f"'{name}' is a pipe")


def test_a_socket_is_refused(bundle, monkeypatch):
    """
    As everything that is no file.
    """
    monkeypatch.chdir(bundle)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("reports/socket")

        refused(bundle, "'reports/socket' is a socket")


def test_too_many_and_too_deep_is_refused(bundle, monkeypatch):
    """
    The look through a bundle has an end.
    """
    (bundle / "reports" / "/".join(["a"] * files.DEEPEST)).mkdir(parents=True)
    refused(bundle, f"folders more than {files.DEEPEST} deep")

    shutil.rmtree(bundle / "reports" / "a")
    monkeypatch.setattr(files, "MOST_ENTRIES", 10)
    refused(bundle, "more than 10 files and folders")


def test_a_whole_bundle_opens_also_through_a_link(bundle, tmp_path):
    """
    The negative: only what is inside counts.
    """
    (tmp_path / "link").symlink_to(bundle)

    assert open_bundle(bundle).manifest == open_bundle(tmp_path / "link").manifest
    assert open_bundle(tmp_path / "link").write_report("a.json", "{}").resolve() == bundle / "reports/a.json"


def test_a_report_is_not_written_through_a_link(bundle):
    """
    Nor is the folder of reports made where a file has its name.
    """
    opened = open_bundle(bundle)
    canary = outside(bundle, "reports")
    before = state(canary)

    with pytest.raises(BundleError, match="'reports' is a symbolic link"):
        opened.write_report("parity.json", "changed")
    with pytest.raises(BundleError, match=r"'net_fp32\.onnx' is a file"):
        make_folder(bundle / "onnx/net_fp32.onnx")

    assert before == state(canary)


def test_a_report_that_is_a_link_is_replaced_and_not_followed(bundle):
    """
    Put there after the opening.
    """
    opened = open_bundle(bundle)
    canary = outside(bundle, "reports/parity.json")

    opened.write_report("parity.json", "changed")

    assert ("{}", "changed") == (canary.read_text(), (bundle / "reports/parity.json").read_text())
    assert not (bundle / "reports/parity.json").is_symlink()


@pytest.mark.parametrize("name", ["golden", "tflite", "reports"])
def test_nothing_is_staged_over_a_link(bundle, name):
    """
    What a quantization writes and clears away never lies behind one.
    """
    canary = outside(bundle, name)
    before = state(canary)

    with pytest.raises(BundleError, match=f"'{name}' is a symbolic link"), writing(bundle, SPEC.source_sha256):
        pytest.fail("a folder to fill was given")

    assert before == state(canary)
    assert {"net", "canary"} == {path.name for path in bundle.parent.iterdir()}


def test_a_link_made_while_a_bundle_is_filled_is_not_finished(bundle):
    """
    The bundle that stood there stays; its folder has another time, since what is new is staged in it.
    """
    before = state(bundle)

    with pytest.raises(BundleError, match="'late' is a symbolic link"), writing(bundle, SPEC.source_sha256) as staging:
        (staging / "late").symlink_to(bundle)
        finish(staging, open_bundle(bundle).manifest)

    assert before | {bundle: state(bundle)[bundle]} == state(bundle)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("elsewhere"), lambda path: path.mkdir()])
def test_what_is_exchanged_after_the_opening_is_not_read(bundle, make):
    """
    Hashes, golden arrays and layer maps are read from regular files only.
    """
    opened = open_bundle(bundle)
    names = ("golden/outputs.npz", "onnx/net_fp32.layers.json", "golden/images/black.png")
    for name in names:
        (bundle / name).unlink()
        make(bundle / name)

    with pytest.raises(BundleError, match=r"'outputs\.npz' is a"):
        opened.golden("outputs")
    with pytest.raises(BundleError, match=r"'net_fp32\.layers\.json' is a"):
        opened.layers(opened.manifest.artifacts[0])
    with pytest.raises(BundleError, match="is a"):
        open_regular(bundle / names[0])
    with pytest.raises(UsageError, match=r"'black\.png' is a"):
        load_image(bundle / names[2], follow_link=False)


def test_a_users_own_image_may_be_a_link_but_no_pipe(tmp_path):
    """
    Photos are often linked; a pipe would wait for ever.
    """
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    os.mkfifo(tmp_path / "c.png")

    assert (3, 2) == load_image(tmp_path / "b.png").size
    with pytest.raises(UsageError, match=r"'c\.png' is a pipe"):
        load_image(tmp_path / "c.png")


def test_hashes_of_files_and_packages_are_as_ever(tmp_path):
    """
    Sorted by their paths; folders without files count for nothing, and what is no file is refused.
    """
    (tmp_path / "p/b").mkdir(parents=True)
    (tmp_path / "p/empty").mkdir()
    for name in ("a-b", "b/c", "b.txt"):
        (tmp_path / "p" / name).write_text(name)

    assert "923f7627" == sha256(tmp_path / "p")[:8]
    assert ["a-b", "b/c", "b.txt"] == [
        path.relative_to(tmp_path / "p").as_posix() for path in files_below(tmp_path / "p")
    ]

    os.mkfifo(tmp_path / "p/pipe")
    with pytest.raises(BundleError, match="'pipe' is a pipe"):
        sha256(tmp_path / "p")


def test_a_name_in_an_error_does_not_reach_the_terminal_as_it_is(bundle):
    """
    A line feed forges no second error, and an escape sequence clears no screen.
    """
    (bundle / "x\nError: all is well\x1b[2J\u202e").symlink_to("nowhere")

    result = CliRunner().invoke(main, ["parity", str(bundle)])

    assert 2 == result.exit_code
    assert 1 == result.output.count("\n")
    assert not {"\x1b", "\u202e"} & set(result.output)
