"""``deploy``: to a real sshd on the loopback, with the real proof there; what fails keeps its old version."""

import json
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_bundle import FLOAT_ONNX, float_bundle
from ssh_server import SshServer, needs_sshd

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import TargetError
from coordatt_deploy.fleet.deploy import DeployPlan, deploy, why_not_proven
from coordatt_deploy.fleet.deploy_result import DeployState
from coordatt_deploy.fleet.plan import FleetHost
from coordatt_deploy.formats import Format
from coordatt_deploy.parity.result import ParityResult
from coordatt_deploy.progress import Stages
from coordatt_deploy.targets.ssh.connection import CONFIG, Answer

pytestmark = needs_sshd
TOOL = Path(sys.executable).parent / "coordatt-deploy"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A board; its home folder has what shells stumble over in its name."""
    folder = tmp_path_factory.mktemp("sshd")
    path = f"{TOOL.parent}:/usr/bin:/bin"
    server = SshServer(folder, home='Ann\'s "home" $(folder)', path=path, env={"HOME_OF_CACHE": "x"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CONFIG, str(server.config))
        yield server
    server.stop()


@pytest.fixture
def board(server):
    """The board with nothing on it."""
    for path in server.home.iterdir():
        subprocess.run(["chmod", "-R", "u+w", path], check=True)
        shutil.rmtree(path)
    return server


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Three versions of one network."""
    folder = tmp_path_factory.mktemp("versions")
    found = []
    for name in ("one", "two", "three"):
        root = float_bundle(folder / name)
        manifest = json.loads((root / "manifest.json").read_text())
        manifest["notes"] = [name]
        (root / "manifest.json").write_text(json.dumps(manifest))
        (root / "reports").mkdir()
        (root / "reports" / "parity.json").write_text("{}")
        (root / "reference").mkdir()
        found.append(root)
    return found


def run(*arguments):
    """The exit code and the document."""
    done = CliRunner().invoke(main, ["deploy", *map(str, arguments), "--json"], catch_exceptions=False)
    return done.exit_code, json.loads(done.stdout)


def current(home, folder="coordatt-deploy"):
    """The note of the bundle that is current, all of whose hashes hold."""
    return open_bundle(home / folder / "current").manifest.notes[0]


def names(folder):
    return {path.name for path in folder.iterdir()}


def tree(home):
    return sorted((path.relative_to(home).as_posix(), path.lstat().st_mtime_ns) for path in home.rglob("*"))


def test_a_bundle_is_proven_there_and_becomes_current(board, bundles):
    """
    With labels, preprocessing and what proves it; neither the reference nor reports travel.
    """
    code, document = run(bundles[0], "--target", board.address)

    assert 0 == code, document
    (there,) = document["boards"]
    assert ("switched", None, document["version"], True) == (
        there["state"],
        there["before"],
        there["now"],
        there["proven"],
    )
    assert "one" == current(board.home)
    place = board.home / "coordatt-deploy" / "current"
    assert f"releases/{document['version']}" == str(place.readlink())
    assert {"manifest.json", "golden", "onnx"} == names(place)
    assert open_bundle(bundles[0]).manifest.model == open_bundle(place).manifest.model

    code, document = run(bundles[0], "--target", board.address)
    assert (0, "already current", 0) == (code, document["boards"][0]["state"], document["boards"][0]["sent_bytes"])


@pytest.mark.slow
def test_only_what_is_missing_travels_and_the_last_versions_stay(board, bundles):
    """
    Of another version of the same files its manifest; --rollback goes back and says to what.
    """
    arguments = ("--target", board.address, "--no-parity", "--keep", 2)
    versions = []
    for bundle in bundles:
        code, document = run(bundle, *arguments)
        assert 0 == code
        versions.append(document["version"])
    assert 3 == len(set(versions))
    assert document["boards"][0]["sent_bytes"] == (bundles[2] / "manifest.json").stat().st_size
    assert document["boards"][0]["proven"] is None
    releases = board.home / "coordatt-deploy" / "releases"
    assert {name for version in versions[1:] for name in (version, f"{version}.sha256")} == names(releases)
    store = board.home / ".cache" / "coordatt-deploy" / "store"
    assert 1 not in {file.stat().st_nlink for file in store.iterdir()}, "nothing of the first version alone is kept"

    code, document = run("--rollback", "--target", board.address)
    assert (0, "rolled back", versions[2], versions[1]) == (
        code, *(document["boards"][0][key] for key in ("state", "before", "now")))  # fmt: skip
    assert "two" == current(board.home)
    code, document = run(bundles[2], "--rollback", "--target", board.address)
    assert (3, "left as it was") == (code, document["boards"][0]["state"])
    assert f"is {versions[1]}, not {versions[2]}" in document["boards"][0]["reason"]
    code, document = run("--rollback", "--target", board.address)
    assert 3 == code
    assert "no version before" in document["boards"][0]["reason"]
    assert "two" == current(board.home)


@pytest.mark.slow
def test_a_dry_run_changes_nothing(board, bundles):
    """
    It says what would be done, for a rollback as well.
    """
    run(bundles[0], "--target", board.address, "--no-parity")
    run(bundles[1], "--target", board.address, "--no-parity")
    before = tree(board.home)
    for arguments in ((bundles[2],), (bundles[1],), ("--rollback",)):
        code, document = run(*arguments, "--target", board.address, "--dry-run")
        assert (0, "would change") == (code, document["boards"][0]["state"]), document
        assert document["boards"][0]["reason"]
    assert before == tree(board.home)


def test_without_the_tool_there_only_hashes_are_compared_and_only_if_asked(board, bundles, tmp_path):
    """
    Exit code 3 with the line that installs it; --no-parity goes on, and the table says so.
    """
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        f'[hosts.pi]\naddress = "{board.address}"\ntool = "/nowhere/coordatt-deploy"\nfolder = "a b/it\'s"\n'
    )
    code, document = run(bundles[0], "--targets", fleet)
    assert (3, "left as it was") == (code, document["boards"][0]["state"])
    assert "has no /nowhere/coordatt-deploy" in document["boards"][0]["reason"]
    assert "or compare hashes alone: --no-parity" in document["boards"][0]["reason"]

    done = CliRunner().invoke(main, ["deploy", str(bundles[0]), "--targets", str(fleet), "--no-parity"])
    assert 0 == done.exit_code, done.output
    assert "hashes alone, not proven" in " ".join(done.output.split())
    assert "one" == current(board.home, "a b/it's")


@pytest.mark.slow
def test_chosen_artifacts_travel_alone(board, tmp_path):
    """
    The others' bytes, maps and entries in the manifest stay here.
    """
    bundle = float_bundle(tmp_path / "net", also=(Format.TFLITE,))
    code, document = run(bundle, "--target", board.address, "--format", "onnx")

    assert (0, [FLOAT_ONNX]) == (code, document["artifacts"])
    place = board.home / "coordatt-deploy" / "current"
    assert [FLOAT_ONNX] == [item.path for item in open_bundle(place).manifest.artifacts]
    assert not (place / "tflite").exists()


@pytest.mark.slow
def test_what_the_board_cannot_open_is_not_proven(board, tmp_path):
    """
    Though the other file passes: nothing becomes current, and what the board says of it is shown.
    """
    bundle = float_bundle(tmp_path / "net", also=(Format.TFLITE,))
    code, document = run(bundle, "--target", board.address)

    assert (3, "left as it was", None) == (code, document["boards"][0]["state"], document["boards"][0]["now"])
    assert document["boards"][0]["reason"].startswith("cannot prove parity: Error: net.tflite is no TFLite file"), (
        document
    )
    assert not (board.home / "coordatt-deploy" / "current").exists()


@pytest.mark.slow
def test_a_version_that_was_damaged_there_is_brought_again(board, bundles):
    """
    Beside the damaged one where that is current, and in its place where it is not.
    """
    arguments = ("--target", board.address, "--no-parity")
    version = run(bundles[0], *arguments)[1]["version"]
    releases = board.home / "coordatt-deploy" / "releases"

    def damage(name):
        (releases / name / "manifest.json").unlink()
        (releases / name / "manifest.json").write_text("{}")

    damage(version)
    code, document = run(bundles[0], *arguments)
    assert (0, "switched", f"{version}.2") == (code, document["boards"][0]["state"], document["boards"][0]["now"])
    assert "one" == current(board.home)
    run(bundles[1], *arguments)
    damage(f"{version}.2")
    code, document = run(bundles[0], *arguments)
    assert 0 == code, document
    assert "one" == current(board.home)
    second = run(bundles[1], *arguments)[1]["boards"][0]["now"]
    damage(second)
    run(bundles[2], *arguments)
    code, document = run("--rollback", *arguments[:2])
    assert (3, "left as it was") == (code, document["boards"][0]["state"])
    assert "is damaged there" in document["boards"][0]["reason"]
    assert "three" == current(board.home)


def slow_tool(board, seconds, count):
    """A tool that takes its time, the first *count* times."""
    tool = board.folder / "slow"
    marks = board.folder / "marks"
    marks.unlink(missing_ok=True)
    tool.write_text(
        f"#!/bin/sh\necho x >>{shlex.quote(str(marks))}\n"
        f'[ "$(wc -l <{shlex.quote(str(marks))})" -le {count} ] && sleep {seconds}\nexec {TOOL} "$@"\n'
    )
    tool.chmod(0o755)
    return tool, marks


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def in_thread(bundle, host):
    found = []
    thread = threading.Thread(target=lambda: found.append(deploy(open_bundle(bundle), [host], DeployPlan(), Stages())))
    thread.start()
    return thread, found


@pytest.mark.slow
def test_of_two_at_once_the_second_is_told_who_is_first(board, bundles):
    """
    And the first one is not disturbed.
    """
    tool, marks = slow_tool(board, 3, 1)
    host = FleetHost("pi", board.address, tool=str(tool))
    thread, found = in_thread(bundles[0], host)
    wait_for(marks)
    second = deploy(open_bundle(bundles[1]), [host], DeployPlan(), Stages())
    thread.join()

    assert (3, DeployState.LEFT) == (second.exit_code, second.boards[0].state)
    assert "is being changed by" in second.boards[0].reason
    assert 0 == found[0].exit_code
    assert "one" == current(board.home)
    assert 0 == deploy(open_bundle(bundles[1]), [host], DeployPlan(), Stages()).exit_code


@pytest.mark.slow
def test_a_connection_that_is_cut_in_the_midst_is_made_again(board, bundles):
    """
    While the board proves: nothing half is taken for whole, and the second try switches.
    """
    tool, marks = slow_tool(board, 3, 1)
    run(bundles[0], "--target", board.address, "--no-parity")
    thread, found = in_thread(bundles[1], FleetHost("pi", board.address, tool=str(tool)))
    wait_for(marks)
    assert "one" == current(board.home)
    assert board.cut() > 0
    thread.join()

    (there,) = found[0].boards
    assert (DeployState.SWITCHED, True) == (there.state, there.proven), there
    assert "two" == current(board.home)
    assert not any(name.startswith(".") for name in names(board.home / "coordatt-deploy" / "releases"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("net",), "deploy needs boards"),
        (("net", "--target", "ssh://-oProxyCommand=touch x"), "is no name of a machine"),
        (("net", "--target", "ssh://a", "--group", "pilot"), "give it too: --targets"),
        (("--target", "ssh://a"), "deploy needs a BUNDLE"),
        (("--rollback", "--keep", "2", "--target", "ssh://a"), "leave out --no-parity and --keep"),
        (("--rollback", "--target", "here"), "deploy needs boards that ssh reaches, and --target is 'here'"),
        (("--rollback", "--format", "onnx", "--target", "ssh://a"), "give the BUNDLE too"),
        (("--rollback", "--target", "here", "--target", "ssh://a"), "is not reached over SSH"),
        (("net", "--target", "ssh://a"), "is no bundle"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_usage_is_one_line(arguments, said, tmp_path, monkeypatch):
    """
    Exit code 2, before anything is reached.
    """
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["deploy", *arguments], catch_exceptions=False)

    assert (2, 1) == (done.exit_code, done.output.count("\n")), done.output
    assert said in done.output


def verdict(**changes):
    """What a board says of one artifact that passed."""
    item = {"path": "onnx/net.onnx", "sha256": "0" * 64, "format": "onnx", "precision": "fp32", "recipe": None,
            "target_cpu": None, "runtime": "onnxruntime 1.22", "origin": "measured", "passed": True}  # fmt: skip
    document = {"schema_version": 1, "passed": True, "target": None, "cases": [], "artifacts": [item | changes]}
    return json.dumps(document).encode()


def twice(first, second):
    """What a board says that judged both."""
    document = json.loads(first)
    return json.dumps(document | {"artifacts": document["artifacts"] + json.loads(second)["artifacts"]}).encode()


ARTIFACTS = {"onnx/net.onnx": "0" * 64}


def test_a_board_that_proves_everything_is_believed():
    """
    The document as the command writes it, its exit code, and the bytes that were sent.
    """
    assert why_not_proven(Answer(0, verdict(), ""), ARTIFACTS) is None


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (1, verdict(), "calls it failed"),
        (0, verdict(passed=False, problem="\x1b[2Jdiffers\nby much"), r"\\x1b\[2Jdiffers\\nby much"),
        (0, verdict(passed=None), "not proven"),
        (0, verdict(sha256="1" * 64), "other bytes"),
        (0, verdict(path="onnx/other.onnx"), "was not judged"),
        (0, verdict().replace(b'"passed": true, "target"', b'"passed": false, "target"'), "calls it failed"),
        (0, twice(verdict(passed=False), verdict()), "judged one artifact twice"),
        (0, dump(ParityResult(True, None, (), ())).encode(), "was not judged"),
    ],
)
def test_what_is_not_proven_to_the_last_artifact_is_not_proven(status, said, reason):
    """
    Whatever else the board says.
    """
    found = why_not_proven(Answer(status, said, ""), ARTIFACTS)
    assert found is not None
    assert re.search(reason, found)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"<html><script>alert(1)</script></html>",
        b"[" * 200_000,
        b'{"schema_version": 1}',
        b'{"schema_version": 99}',
        verdict(passed="yes"),
        verdict(path=["onnx/net.onnx"]),
        pickle.dumps({"passed": True}),
        b"\x1b]0;title\x07{}",
        b'{"schema_version": ' + b"9" * 100_000 + b"}",
    ],
    ids=lambda said: ascii(said[:20]),
)
def test_an_answer_that_is_no_verdict_is_refused_in_one_line(said):
    """
    Nor is anything of it run, nor printed as it is.
    """
    with pytest.raises(TargetError) as error:
        why_not_proven(Answer(0, said, ""), ARTIFACTS)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("status", [2, 3, 70, 127, 137])
def test_a_command_that_judged_nothing_is_said(status):
    """
    With what it said last, as text.
    """
    with pytest.raises(TargetError, match=r"cannot prove parity: no \\x1b\[2Jmemory"):
        why_not_proven(Answer(status, verdict(), "noise\nno \x1b[2Jmemory\n"), ARTIFACTS)


# Twenty boards -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True).returncode:
        pytest.skip("a small disk is mounted by root alone")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def other_sums(board):
    """A tool whose runtime computes otherwise: each output of ONNX Runtime is a thousandth off."""
    folder = board.folder / "otherwise"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import onnxruntime\n"
        "class Session(onnxruntime.InferenceSession):\n"
        "    def run(self, *args, **options):\n"
        "        return [value * 1.001 for value in super().run(*args, **options)]\n"
        "onnxruntime.InferenceSession = Session\n"
    )
    tool = board.folder / "otherwise.sh"
    tool.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(folder))} exec {TOOL} "$@"\n')
    tool.chmod(0o755)
    return tool


@pytest.mark.slow
def test_of_twenty_boards_three_fail_and_keep_their_version(board, bundles, tmp_path, small_disk):
    """
    A full disk, a runtime that computes otherwise, a port where nothing answers: seventeen switch, each of the three is
    said with its reason, and all that were switched go back.
    """
    lines = ["at_once = 2", ""]
    for number in range(20):
        address, folder = board.address, f"boards/{number}"
        tool = TOOL
        if number == 3:
            folder = str(small_disk)
        if number == 7:
            tool = board.folder / "tool"
        if number == 11:
            address = "ssh://127.0.0.1:1"
        lines += [f"[hosts.b{number}]", f'address = "{address}"', f'folder = "{folder}"', f'tool = "{tool}"',
                  'groups = ["pilot"]']  # fmt: skip
    fleet = tmp_path / "fleet.toml"
    fleet.write_text("\n".join(lines))
    # The first version comes to all but the one that never answers; then the disk fills up, and a runtime changes.
    (board.folder / "tool").unlink(missing_ok=True)
    (board.folder / "tool").symlink_to(TOOL)
    code, first = run(bundles[0], "--targets", fleet, "--group", "pilot", "--no-parity")
    assert (3, 19) == (code, sum(item["state"] == "switched" for item in first["boards"])), first
    with (small_disk / "full").open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(512))
    (board.folder / "tool").unlink()
    (board.folder / "tool").symlink_to(other_sums(board))

    code, document = run(bundles[1], "--targets", fleet, "--group", "pilot")

    boards = {item["host"]: item for item in document["boards"]}
    assert 1 == code, "the parity failure counts more than what was not reached"
    assert [f"b{number}" for number in range(20)] == list(boards)
    switched = {name for name, item in boards.items() if item["state"] == "switched" and item["proven"]}
    assert {f"b{number}" for number in range(20)} - {"b3", "b7", "b11"} == switched, boards
    for number in range(20):
        place = small_disk if number == 3 else board.home / "boards" / str(number)
        name = f"b{number}"
        if number == 11:
            assert not place.exists()
            continue
        assert ("two" if name in switched else "one") == open_bundle(place / "current").manifest.notes[0]
        assert first["version"] == boards[name]["before"]
        assert (document if name in switched else first)["version"] == boards[name]["now"]
    assert ("left as it was", True) == (boards["b3"]["state"], "No space left" in boards["b3"]["reason"]), boards["b3"]
    assert ("parity failed", False) == (boards["b7"]["state"], boards["b7"]["proven"])
    assert FLOAT_ONNX in boards["b7"]["reason"]
    assert ("left as it was", False) == (boards["b11"]["state"], boards["b11"]["known"])
    assert "nothing answers at its port" in boards["b11"]["reason"]

    code, document = run(bundles[1], "--rollback", "--targets", fleet)
    assert 3 == code
    assert 17 == sum(item["state"] == "rolled back" for item in document["boards"])
    assert all("one" == current(board.home, f"boards/{number}") for number in range(20) if number not in (3, 11))


@pytest.mark.slow
def test_a_kill_of_the_command_at_any_moment_leaves_a_whole_version(board, bundles):
    """
    Early, late and in between; the next one goes on at once, whatever the killed one left.
    """
    run(bundles[2], "--target", board.address, "--no-parity")
    command = [TOOL, "deploy", "--target", board.address, "--no-parity", "--json"]
    begun = time.monotonic()
    subprocess.run([*command, bundles[0]], check=True, capture_output=True)
    seconds = time.monotonic() - begun
    seen = set()
    moments = 12
    for moment in range(moments):
        bundle, name = (bundles[1], "two") if current(board.home) != "two" else (bundles[0], "one")
        before = current(board.home)
        process = subprocess.Popen([*command, bundle], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds * (0.2 + 0.8 * moment / moments))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = current(board.home)
        assert now in (before, name)
        seen.add(now == name)
        if moment % 4 == 3:
            code, document = run(bundles[2], "--target", board.address, "--no-parity", "--keep", 1)
            assert 0 == code, document
            assert "three" == current(board.home)
    assert False in seen
    subprocess.run([*command, bundles[1]], check=True, capture_output=True)
    assert "two" == current(board.home)
    assert not any(name.startswith(".") for name in names(board.home / "coordatt-deploy" / "releases"))
