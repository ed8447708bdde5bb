import json
import os
import subprocess

import onnxruntime
import pytest
from click.testing import CliRunner
from fuzzing.bases import small_bundle

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.files import files_below
from coordatt_deploy.report_file import ReportFile, check_folder

QUICK = ("--warmups", "1", "--samples", "20", "--min-seconds", "0.01")
COMMANDS = {
    "parity": ("--outputs-only",),
    "profile": QUICK,
    "evaluate": ("--dataset", "photos"),
    "report": (),
}


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of one file that anybody may write."""
    return small_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def read_only(bundle, tmp_path):
    """The same bundle, on a medium that can only be read."""
    if os.geteuid() != 0:
        pytest.fail("this mounts a file system: run it as root")
    place = tmp_path / "medium"
    place.mkdir()
    subprocess.run(["mount", "--bind", str(bundle), str(place)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def contents(root):
    return {path: path.read_bytes() for path in files_below(root)}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_kept_is_refused_before_the_work(command, read_only, monkeypatch):
    """
    No file is opened in its runtime; the text names the option that helps.
    """

    def opened(*_):
        raise AssertionError("the work was begun")

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)

    result = run(command, read_only, *COMMANDS[command])

    assert 2 == result.exit_code
    assert "can only be read; name a file with --output" in result.output


@pytest.mark.parametrize("command", ["parity", "profile", "report"])
def test_a_bundle_that_can_only_be_read_is_judged_into_a_file(command, read_only, tmp_path):
    """
    The document is whole, the bundle as it was.
    """
    before, file = contents(read_only), tmp_path / "kept"

    result = run(command, read_only, *COMMANDS[command], "--output", file)

    assert 0 == result.exit_code, result.output
    assert before == contents(read_only)
    if command != "report":
        assert ["onnx/small_fp32.onnx"] == [item["artifact"] for item in json.loads(file.read_text())["runs"]]


def test_a_file_apart_leaves_the_bundle_as_it_is(bundle, tmp_path):
    """
    Also where it could be written: neither the report nor the JUnit file changes; --junit writes one all the same.
    """
    before = contents(bundle)

    result = run(
        "parity", bundle, "--outputs-only", "--output", tmp_path / "parity.json", "--junit", tmp_path / "j.xml"
    )

    assert 0 == result.exit_code, result.output
    assert before == contents(bundle)
    assert "<testsuite" in (tmp_path / "j.xml").read_text()


@pytest.mark.parametrize("option", ["--output", "--junit", "--markdown"])
def test_a_file_that_cannot_be_written_is_told_before_the_work(bundle, tmp_path, option):
    """
    Its folder is not there, or it is a folder.
    """
    missing = run("parity", bundle, option, tmp_path / "nowhere" / "file")
    folder = run("parity", bundle, option, tmp_path)

    assert (2, 2) == (missing.exit_code, folder.exit_code)
    assert "there is no folder" in missing.output
    assert "it is a folder; name a file" in folder.output


def test_runs_are_added_in_the_bundle_and_stand_alone_outside(bundle, tmp_path):
    """
    What is in reports/ is gone on with; a file of the user's is not read, whatever is in it.
    """
    file = tmp_path / "mine.json"
    file.write_text("mine")
    opened = open_bundle(bundle)

    assert "none" != ReportFile(opened, "parity.json").earlier(str, "none")
    assert "none" == ReportFile(opened, "nothing.json").earlier(str, "none")
    assert "none" == ReportFile(opened, "parity.json", file).earlier(str, "none")


def test_a_bundle_that_changed_meanwhile_is_reported_nowhere(tmp_path):
    """
    Neither inside nor apart.
    """
    opened = open_bundle(small_bundle(tmp_path))
    document = json.loads((opened.root / "manifest.json").read_text())
    document["artifacts"][0]["sha256"] = "0" * 64
    (opened.root / "manifest.json").write_text(json.dumps(document))

    for output in (None, tmp_path / "apart.json"):
        file = ReportFile(opened, "parity.json", output)
        with pytest.raises(BundleError, match="was written by another command meanwhile"), file.replacing():
            file.write("{}")
    assert not (tmp_path / "apart.json").exists()


def test_a_file_of_the_users_may_be_new(tmp_path):
    """
    Only its folder has to be there.
    """
    check_folder(tmp_path / "new.json")

    with pytest.raises(UsageError, match="there is no folder"):
        check_folder(tmp_path / "nowhere" / "new.json")
