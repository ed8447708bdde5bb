"""Writing a bundle in its own folder: whatever ends it, and whenever, the old or the new one is there."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.bundle import open_bundle, save_golden
from coordatt_deploy.bundle_writing import check_free, check_texts, finish, writing
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.files import sha256, write_whole
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.journal import JOURNAL, settled
from coordatt_deploy.locks import take_lock
from coordatt_deploy.manifest import Manifest

SPEC = ModelSpec("net", Preprocessing((32, 48)), labels=("a", "b"), source_sha256="0" * 64)
IMAGE = TensorSpec("image", (1, 3, 32, 48), "float32", "NCHW")
LOGITS = TensorSpec("logits", (1, 2), "float32", "NC")
MANY_STEPS = 400  # more than writing takes; a loop over steps ends with the one that is not interrupted


def fill(staging: Path, content: str) -> None:
    """Write a bundle with a file, a package and golden values that all say *content*; drop what an earlier one had."""
    model, package = staging / "onnx" / "net.onnx", staging / "coreml" / "net.mlpackage"
    layers = staging / "onnx" / "net.layers.json"
    for folder in (model.parent, package / "Data" / content, staging / "golden" / f"set-aside-{content}"):
        folder.mkdir(parents=True, exist_ok=True)
    for old in ("old", "new"):  # what the other one had, in a folder of its own
        if old != content and (package / "Data" / old).is_dir():
            (package / "Data" / old / "weight.bin").unlink()
            (package / "Data" / old).rmdir()
            (staging / "golden" / f"set-aside-{old}" / "x.npz").unlink()
    shutil.rmtree(staging / "tflite", ignore_errors=True)
    if content == "new":
        (staging / "tflite").mkdir(exist_ok=True)
        (staging / "tflite" / "net.tflite").write_text(content)
    model.write_text(content)
    layers.write_text("{}")
    (package / "Manifest.json").write_text(content)
    (package / "Data" / content / "weight.bin").write_text(content)
    (staging / "golden" / f"set-aside-{content}" / "x.npz").write_text(content)
    save_golden(staging / "golden" / "outputs.npz", {"logits": [np.full((1, 2), float(len(content)))]})
    artifacts = tuple(
        Artifact(path.relative_to(staging).as_posix(), kind, Precision.FP32, None, None, 3, sha256(path), (IMAGE,),
                 (LOGITS,), "onnx/net.layers.json")
        for kind, path in ((Format.ONNX, model), (Format.COREML, package))
    )  # fmt: skip
    finish(staging, Manifest(SPEC, (IMAGE,), (LOGITS,), artifacts, notes=(content,)))


def write(root: Path, content: str) -> None:
    with writing(root, SPEC.source_sha256) as staging:
        fill(staging, content)


def content(root: Path) -> str:
    """Open the bundle, every hash checked, and return what it says; all of it must say the same."""
    opened = open_bundle(root)
    (said,) = opened.manifest.notes
    paths = {path for path in opened.manifest.files if "set-aside" in path}
    assert {f"golden/set-aside-{said}/x.npz"} == paths
    assert (said == "new") == ("tflite/net.tflite" in opened.manifest.files)
    assert said == opened.path("onnx/net.onnx").read_text()
    assert said == opened.path(f"coreml/net.mlpackage/Data/{said}/weight.bin").read_text()
    return said


def names(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


@pytest.fixture
def old(tmp_path):
    write(tmp_path / "net", "old")
    (tmp_path / "net" / "reports").mkdir()
    (tmp_path / "net" / "reports" / "parity.json").write_text("{}")
    return tmp_path / "net"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the folder of the new bundle holds when nothing disturbs its writing: (over the old one, from nothing)."""
    root = tmp_path_factory.mktemp("whole")
    write(root / "over", "old")
    write(root / "over", "new")
    write(root / "fresh", "new")
    return names(root / "over"), names(root / "fresh")


def died_at(step: int, work) -> bool:
    """Run *work* in a process that is gone, as if killed, before its *step*-th change of a file; False if it ended."""
    process = os.fork()
    if process == 0:
        count = 0

        def watch(event: str, arguments: tuple) -> None:
            nonlocal count
            changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "fcntl.flock")
            opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if changes or opens:
                count += 1
                if count == step:
                    os._exit(9)

        sys.addaudithook(watch)
        try:
            work()
        except BaseException:  # noqa: BLE001 - a forked process must not go on with the tests
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_the_old_or_the_new_bundle(old, whole):
    """
    Before every single change of a file; the next to open it finds all of one of them, and nothing else in the folder.
    """
    seen = []
    for step in range(1, MANY_STEPS):
        died = died_at(step, lambda: write(old, "new"))
        seen.append(content(old))

        assert not any(name.startswith(".") for name in names(old)), step
        assert ["net"] == [path.name for path in old.parent.iterdir()]
        if not died:
            break
        write(old, "old")
        assert {"reports", "reports/parity.json"} < names(old)
    assert whole[0] | {"reports", "reports/parity.json"} == names(old)
    assert {"old", "new"} == set(seen)
    assert seen == sorted(seen, reverse=True), "after the first new one no old one"
    assert 40 < step < MANY_STEPS - 1


@pytest.mark.slow
def test_a_kill_at_any_step_of_a_first_writing_leaves_none_or_all(tmp_path, whole):
    """
    And the next writing takes the place, whatever was left there.
    """
    for step in range(1, MANY_STEPS):
        root = tmp_path / str(step) / "net"
        root.parent.mkdir()
        died = died_at(step, lambda root=root: write(root, "new"))
        try:
            found = content(root)
        except BundleError:
            found = None

        assert found in (None, "new")
        write(root, "new")
        assert whole[1] == names(root)
        assert ["net"] == [path.name for path in root.parent.iterdir()]
        if not died:
            break
    assert found == "new"


def test_a_kill_while_a_kill_is_mended_is_mended_as_well(old, whole):
    """
    The journal can be gone on with any number of times.
    """
    leave_half_written(old)
    for second in range(1, MANY_STEPS):
        if not died_at(second, lambda: settled(old)):
            break
        assert (old / "manifest.json").is_file()

    assert second > 3
    assert "new" == content(old)
    assert whole[0] | {"reports", "reports/parity.json"} == names(old)


def leave_half_written(root: Path) -> None:
    """Let a process die when some of its files are in their place: before its last rename, that of the manifest."""
    process = os.fork()
    if process == 0:

        def watch(event: str, arguments: tuple) -> None:
            if event == "os.rename" and arguments[1] == str(root / "manifest.json"):
                os._exit(9)

        sys.addaudithook(watch)
        write(root, "new")
        os._exit(0)
    assert 9 == os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert (root / JOURNAL).exists()
    assert "new" == (root / "onnx" / "net.onnx").read_text()


@pytest.mark.slow
def test_readers_at_any_moment_see_a_whole_bundle(old):
    """
    While another process writes the old and the new one in turn: every hash right at every opening.
    """
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "import test_bundle_writing as t\n"
        "for turn in range(60): t.write(Path(sys.argv[2]), ('new', 'old')[turn % 2])"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(Path(__file__).parent), str(old)])
    seen = set()
    opened = 0
    while process.poll() is None:
        seen.add(open_bundle(old).manifest.notes)
        opened += 1

    assert 0 == process.returncode
    assert {("old",), ("new",)} == seen
    assert opened > 60


@pytest.fixture
def mount(tmp_path):
    """A small file system in memory, of two megabytes, at ``tmp_path / "mounted"``."""
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.usefixtures("root_only")
def test_a_bundle_may_be_a_mounted_folder(mount):
    """
    Its folder cannot be renamed; nothing is made beside it.
    """
    write(mount, "old")
    write(mount, "new")

    assert "new" == content(mount)
    assert ["mounted"] == [path.name for path in mount.parent.iterdir()]


@pytest.mark.usefixtures("root_only")
def test_a_full_disk_leaves_the_old_bundle(mount):
    """
    What is new is staged first, and vanishes.
    """
    write(mount, "old")
    before = names(mount)

    with pytest.raises(OSError, match="No space left"), writing(mount, SPEC.source_sha256) as staging:
        (staging / "large").write_bytes(bytes(4 << 20))

    assert "old" == content(mount)
    assert before == names(mount)


@pytest.mark.usefixtures("root_only")
def test_a_bundle_that_can_only_be_read_is_read_and_not_written(mount):
    """
    It is said at once, before the work.
    """
    write(mount, "old")
    subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)

    assert "old" == content(mount)
    with pytest.raises(UsageError, match="cannot be written: Read-only file system"):
        check_free(mount)
    with pytest.raises(UsageError, match="cannot be written: Read-only file system"):
        write(mount, "new")


@pytest.mark.usefixtures("root_only")
def test_half_written_media_that_can_only_be_read_give_the_new_bundle(mount):
    """
    A copy of what the journal leads to is read; the report that cannot be kept is refused, and the copy goes.
    """
    write(mount, "old")
    leave_half_written(mount)
    subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)

    opened = open_bundle(mount)

    assert ("new",) == opened.manifest.notes
    assert mount.name == opened.root.name
    assert mount != opened.root
    with pytest.raises(BundleError, match="no report is kept"):
        opened.write_report("parity.json", "{}")
    subprocess.run(["mount", "-o", "remount,rw", str(mount)], check=True)
    assert "new" == content(mount)
    assert not (mount / JOURNAL).exists()


@pytest.fixture
def root_only():
    """Mounting takes root; ``.ci/run`` has it, and elsewhere the same is done without a mount."""
    if os.geteuid() != 0:
        pytest.fail("these tests mount a file system: run them as root")


def test_another_users_bundle_is_read_and_not_written(old):
    """
    Without leave to write there: half written as it is, it gives the new one.
    """
    leave_half_written(old)
    for path in (old, *old.parents):
        if path == Path(tempfile.gettempdir()):
            break
        path.chmod(0o755)  # pytest's own folders are for their maker only
    process = os.fork()
    if process == 0:
        try:
            os.setuid(65534)  # nobody
            said = open_bundle(old).manifest.notes
            try:
                write(old, "old")
            except UsageError as error:
                os._exit(0 if said == ("new",) and "cannot be written: Permission denied" in str(error) else 2)
        except BaseException:  # noqa: BLE001 - a forked process must not go on with the tests
            os._exit(3)
        os._exit(4)

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert (old / JOURNAL).exists()


def test_the_second_writer_is_refused_at_once_and_told_who_is_first(old):
    """
    The first one's result is there in the end.
    """
    with writing(old, SPEC.source_sha256) as staging:
        fill(staging, "new")
        start = time.monotonic()
        for attempt in (lambda: write(old, "old"), lambda: check_free(old)):
            with pytest.raises(UsageError, match=f"is being written by process {os.getpid()} .*run this again"):
                attempt()
        waited = time.monotonic() - start
        assert "old" == content(old)

    assert "new" == content(old)
    assert waited < 20


def test_two_first_writers_of_one_folder_are_kept_apart(tmp_path):
    """
    Also where the folder is not there yet.
    """
    with writing(tmp_path / "net", SPEC.source_sha256) as staging:
        with pytest.raises(UsageError, match="is being written by"):
            write(tmp_path / "net", "old")
        fill(staging, "new")

    assert "new" == content(tmp_path / "net")


def test_the_working_folder_is_written_and_stays_what_it_is(old, monkeypatch):
    """
    As ``.`` or by its full name: a shell in it is not left in a folder that is gone.
    """
    monkeypatch.chdir(old)
    before = Path().stat().st_ino
    for target, said in ((Path(), "new"), (Path.cwd(), "old"), (Path("../net"), "new"), (Path("onnx/.."), "old")):
        write(target, said)

        assert said == content(target)
        assert before == Path().stat().st_ino == old.stat().st_ino


def test_the_folder_above_a_bundle_is_none(old, monkeypatch):
    """
    It is refused, and nothing is copied into itself.
    """
    monkeypatch.chdir(old)
    before = names(old.parent)

    with pytest.raises(UsageError, match="is no bundle"):
        write(Path(".."), "new")
    assert before == names(old.parent)


def test_a_link_to_a_bundle_stays_a_link(old, tmp_path):
    """
    The bundle that it leads to is written.
    """
    link = tmp_path / "link"
    link.symlink_to(old)
    write(link, "new")

    assert link.is_symlink()
    assert ("new", "new") == (content(old), content(link))


def test_a_link_to_nothing_is_told(tmp_path):
    """
    And not followed.
    """
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    with pytest.raises(UsageError, match="is a link to nothing"):
        write(tmp_path / "link", "new")


def test_a_bundle_that_changed_since_it_was_read_is_not_written_over(old):
    """
    What was made of the old one does not join the new one.
    """
    read = open_bundle(old).manifest
    write(old, "new")

    with pytest.raises(UsageError, match="was written by another command"), writing(old, SPEC.source_sha256, read):
        pass
    assert "new" == content(old)


def test_a_report_on_files_that_were_exchanged_is_not_kept(old):
    """
    A verdict is on the bytes that the manifest names, or there is none.
    """
    opened = open_bundle(old)
    write(old, "new")

    with pytest.raises(BundleError, match=r"written by another command meanwhile: .*net\.onnx"), opened.reporting():
        pass


def test_a_report_on_files_that_stayed_is_kept(old):
    """
    The negative: an artifact that came beside them changes nothing of what was judged.
    """
    opened = open_bundle(old)
    with writing(old, SPEC.source_sha256) as staging:
        (staging / "more.txt").write_text("more")
        finish(staging, replace(opened.manifest, notes=("old",)))

    with opened.reporting():
        opened.write_report("parity.json", "{}")
    assert "{}" == (old / "reports" / "parity.json").read_text()


@pytest.mark.slow
def test_two_reports_at_once_lose_no_run(old):
    """
    Each reads, adds and writes while it is alone.
    """
    script = (
        "import sys; from pathlib import Path; from coordatt_deploy.bundle import open_bundle\n"
        "bundle = open_bundle(Path(sys.argv[1]))\n"
        "for turn in range(40):\n"
        "    with bundle.reporting():\n"
        "        file = bundle.root / 'reports' / 'runs.json'\n"
        "        earlier = file.read_text() if file.exists() else ''\n"
        "        bundle.write_report('runs.json', earlier + sys.argv[2])\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(old), letter]) for letter in "ab"]

    assert [0, 0] == [writer.wait() for writer in writers]
    text = (old / "reports" / "runs.json").read_text()
    assert (40, 40) == (text.count("a"), text.count("b"))
    assert {"parity.json", "runs.json"} == {path.name for path in (old / "reports").iterdir()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"moved": ["../../canary", "manifest.json"]}, "outside the bundle"),
        ({"removed": ["/etc/passwd"]}, "outside the bundle"),
        ({"removed": [".staging-aaaaaaaa/new/manifest.json"]}, "no file of the bundle"),
        ({"moved": ["manifest.json", "onnx/net.onnx"]}, "does not end with"),
        ({"moved": []}, "does not end with"),
        ({"staging": "../canary"}, "as its staging folder"),
        ({"staging": "golden"}, "as its staging folder"),
        ({"schema_version": 2}, "cannot be read"),
        ({"moved": 3}, "cannot be read"),
    ],
)
def test_a_strangers_journal_moves_nothing_that_is_not_the_bundles(old, change, said):
    """
    It is refused before anything is touched.
    """
    canary = old.parent / "canary"
    canary.write_text("alive")
    staged = old / ".staging-aaaaaaaa" / "new"
    staged.mkdir(parents=True)
    (staged / "manifest.json").write_text("{}")
    journal = {"schema_version": 1, "staging": ".staging-aaaaaaaa", "moved": ["manifest.json"], "removed": []}
    (old / JOURNAL).write_text(json.dumps(journal | change))
    before = names(old)

    with pytest.raises(BundleError, match=said):
        open_bundle(old)
    assert (before, "alive") == (names(old), canary.read_text())


@pytest.mark.parametrize("place", [".staging-aaaaaaaa/new/onnx", "onnx/link"])
def test_nothing_is_moved_through_a_link(old, place):
    """
    Of a bundle whose journal is finished no part leads elsewhere.
    """
    outside = old.parent / "outside"
    outside.mkdir()
    (outside / "net.onnx").write_text("alive")
    (old / ".staging-aaaaaaaa" / "new").mkdir(parents=True)
    (old / place).symlink_to(outside)
    journal = {"schema_version": 1, "staging": ".staging-aaaaaaaa", "moved": ["onnx/net.onnx", "manifest.json"],
               "removed": ["onnx/link/net.onnx"]}  # fmt: skip
    (old / JOURNAL).write_text(json.dumps(journal))

    with pytest.raises(BundleError):
        open_bundle(old)
    assert "alive" == (outside / "net.onnx").read_text()


def test_what_earlier_versions_left_is_mended(old):
    """
    They renamed whole folders: a bundle that is only there under its other name is moved back; their rest goes.
    """
    aside = old.parent / ".net.old-abcd_123"
    aside.mkdir()
    old.rename(aside / "bundle")
    (old.parent / ".net.partial-abcd_123").mkdir()

    assert "old" == content(old)
    assert ["net"] == [path.name for path in old.parent.iterdir()]


def test_what_only_looks_like_a_leftover_stays(old):
    """
    The negative: names that were never ours.
    """
    kept = (".net.old", ".net.partial-x", ".other.old-abcd_123", "net.old-abcd_123")
    for name in kept:
        (old.parent / name).mkdir()
    write(old, "new")

    assert {"net", *kept} == {path.name for path in old.parent.iterdir()}


def test_texts_that_no_encoding_has_are_written_whole(tmp_path):
    """
    Halves of a pair, from file names that are no UTF-8: as escapes, and nothing is left beside the file.
    """
    write_whole(tmp_path / "report.html", "a\udc80b")

    assert "a\\udc80b" == (tmp_path / "report.html").read_text()
    assert ["report.html"] == [path.name for path in tmp_path.iterdir()]


def test_what_a_kill_left_of_a_text_is_removed_by_the_next(tmp_path):
    """
    What another process writes at the moment stays.
    """
    (tmp_path / ".report.html.partial-aaaaaaaa").write_text("ha")
    held = tmp_path / ".report.html.partial-bbbbbbbb"
    held.write_text("half")
    with take_lock(held):
        write_whole(tmp_path / "report.html", "whole")

        assert {"report.html", held.name} == {path.name for path in tmp_path.iterdir()}
    write_whole(tmp_path / "report.html", "whole")
    assert {"report.html"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "manifest",
    [
        Manifest(replace(SPEC, name="net\udc80"), (IMAGE,), (LOGITS,)),
        Manifest(replace(SPEC, labels=("a", "\ud800")), (IMAGE,), (LOGITS,)),
        Manifest(SPEC, (replace(IMAGE, name="\udcff"),), (LOGITS,)),
    ],
)
def test_names_that_no_file_can_hold_are_refused_before_the_work(manifest):
    """
    Halves of a pair in the model's name, in labels, in names of inputs.
    """
    with pytest.raises(UsageError, match=r"is no text that a file can hold"):
        check_texts(manifest)


def test_a_command_line_of_any_bytes_can_be_kept():
    """
    It is read back as Python shows it, since no document may hold half of a surrogate pair.
    """
    manifest = Manifest(SPEC, (IMAGE,), (LOGITS,), command="export --output-dir \udcff")
    check_texts(manifest)

    assert "export --output-dir \\udcff" == Manifest.parse(manifest.dump()).command


def test_a_thread_of_this_process_is_no_second_writer(old):
    """
    A lock belongs to whoever took it, not to the process.
    """
    refused = []

    def attempt():
        try:
            write(old, "new")
        except UsageError as error:
            refused.append(str(error))

    with writing(old, SPEC.source_sha256) as staging:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        fill(staging, "new")

    assert 1 == len(refused)


def test_a_folder_of_several_files_can_go(old):
    """
    The first that goes leaves the folder, the last takes it along.
    """
    with writing(old, SPEC.source_sha256) as staging:
        (staging / "golden" / "more").mkdir(parents=True)
        for name in "abc":
            (staging / "golden" / "more" / name).write_text(name)
        fill(staging, "new")
    assert "golden/more/b" in names(old)

    with writing(old, SPEC.source_sha256) as staging:
        shutil.rmtree(staging / "golden" / "more")
        fill(staging, "new")

    assert "new" == content(old)
    assert "golden/more" not in names(old)
