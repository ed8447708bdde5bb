"""Bundles as one file: the same bytes each time, and nothing of a hostile or damaged archive reaches the disk."""

import hashlib
import io
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_bundle import FLOAT_ONNX, float_bundle

from coordatt_deploy.bundle import FileState, open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.formats import Format
from coordatt_deploy.packing import entries
from coordatt_deploy.packing.archive import CHECKSUMS, open_archive, pack, unpack, verified_archive
from coordatt_deploy.packing.contents import Choice

SLACK = 5.0  # seconds of processor time that a refusal may take at most: a bomb that is unpacked takes more


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A bundle with a file that runs, a package, and a report."""
    root = float_bundle(tmp_path_factory.mktemp("packing") / "net", also=(Format.TFLITE,))
    (root / "reports").mkdir()
    (root / "reports" / "parity.json").write_text("{}")
    return root


@pytest.fixture
def bundle(written, tmp_path):
    return shutil.copytree(written, tmp_path / "net")


@pytest.fixture
def members(written, tmp_path):
    """What an archive of the bundle holds: bytes by name, in its order."""
    pack(open_bundle(written), tmp_path / "members.zip")
    with zipfile.ZipFile(tmp_path / "members.zip") as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def listing(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def checksums(content):
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in content.items() if name != CHECKSUMS}
    return json.dumps({"schema_version": 1, "files": hashes}).encode()


def zipped(content, *more):
    """An archive of *content* with true checksums, and entries of *more*: (ZipInfo or name, bytes)."""
    stream = io.BytesIO()
    extra = {name.filename if isinstance(name, zipfile.ZipInfo) else name: data for name, data in more}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, checksums(content | extra) if name == CHECKSUMS else data)
        for name, data in more:
            archive.writestr(name, data)
    return stream.getvalue()


def refused(folder, data, said):
    """Unpack *data*: one line that holds *said*, exit code 2, soon, and nothing in *folder* but the archive."""
    (folder / "work").mkdir()
    archive = folder / "work" / "net.zip"
    archive.write_bytes(data)
    begun = time.process_time()
    result = CliRunner().invoke(
        main, ["bundle", "unpack", str(archive), "--output-dir", str(folder / "work" / "out")], catch_exceptions=False
    )
    assert (2, 1) == (result.exit_code, result.output.count("\n")), result.output
    assert said in result.output
    assert time.process_time() - begun < SLACK
    assert ["net.zip"] == listing(folder / "work")
    with pytest.raises(BundleError):
        verified_archive(archive)


# What is packed ------------------------------------------------------------------------------------------------------


def test_a_bundle_comes_back_as_it_was(bundle, tmp_path):
    """
    Every byte of it, reports included; and packed again it is the same archive.
    """
    done = pack(open_bundle(bundle), tmp_path / "a.zip")
    back = unpack(tmp_path / "a.zip", tmp_path / "back")

    assert files(bundle) == files(tmp_path / "back")
    assert open_bundle(bundle).manifest == open_bundle(tmp_path / "back").manifest
    assert (done.content, done.files, done.artifacts) == (back.content, back.files, back.artifacts)
    again = pack(open_bundle(tmp_path / "back"), tmp_path / "b.zip")
    assert done.sha256 == again.sha256
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_neither_times_nor_permissions_nor_the_place_change_the_bytes(bundle, tmp_path):
    """
    Two machines that hold the same bundle give the same archive.
    """
    pack(open_bundle(bundle), tmp_path / "a.zip")
    moved = bundle.rename(tmp_path / "other name")
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    pack(open_bundle(moved), tmp_path / "b.zip")

    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_chosen_artifacts_take_what_belongs_to_them_and_no_more(bundle, tmp_path):
    """
    The manifest is cut to them; labels, preprocessing and golden inputs stay.
    """
    done = pack(open_bundle(bundle), tmp_path / "a.zip", Choice(artifacts=("net.onnx",), reports=False))
    unpack(tmp_path / "a.zip", tmp_path / "cut")

    there = open_bundle(tmp_path / "cut")
    assert (FLOAT_ONNX,) == done.artifacts == tuple(item.path for item in there.manifest.artifacts)
    assert open_bundle(bundle).manifest.model == there.manifest.model
    assert not any(name.startswith(("tflite", "reports")) for name in files(tmp_path / "cut"))
    assert {"golden/inputs.npz", "onnx/net.layers.json"} <= files(tmp_path / "cut").keys()


def test_an_artifact_that_is_not_there_is_refused_with_the_nearest(bundle, tmp_path):
    """
    Also a format of which the bundle has none; nothing is written.
    """
    with pytest.raises(UsageError, match=r"no artifact 'onnx/nte\.onnx'.*onnx/net\.onnx"):
        pack(open_bundle(bundle), tmp_path / "a.zip", Choice(artifacts=("onnx/nte.onnx",)))
    with pytest.raises(UsageError, match="it has onnx, tflite"):
        pack(open_bundle(bundle), tmp_path / "a.zip", Choice(formats=(Format.COREML,)))
    assert not (tmp_path / "a.zip").exists()


def test_a_package_is_cut_and_proven_as_one_artifact(tmp_path):
    """
    The manifest has one hash for a folder; each of its files is packed, and a change of one is seen.
    """
    root = float_bundle(tmp_path / "net", also=(Format.COREML,))
    manifest = json.loads((root / "manifest.json").read_text())
    (artifact,) = (item for item in manifest["artifacts"] if item["format"] == "coreml")
    package = root / artifact["path"]
    package.unlink()
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "weight.bin").write_bytes(b"weights")
    (package / "Data.txt").write_bytes(b"sorts before Data/ as a text, and behind it as a path")
    from coordatt_deploy.files import sha256

    artifact["sha256"] = sha256(package)
    (root / "manifest.json").write_text(json.dumps(manifest))
    pack(open_bundle(root), tmp_path / "a.zip")
    unpack(tmp_path / "a.zip", tmp_path / "back")
    open_bundle(tmp_path / "back")
    assert files(root) == files(tmp_path / "back")

    (package / "Data" / "weight.bin").write_bytes(b"Weights")
    with pytest.raises(BundleError, match=r"net\.mlpackage was changed"):
        pack(open_bundle(root, verify=False), tmp_path / "b.zip")


def test_a_damaged_bundle_is_not_packed(bundle, tmp_path):
    """
    The file is named, and neither an archive nor a part of one is left.
    """
    (bundle / "golden" / "inputs.npz").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"golden/inputs\.npz was changed"):
        pack(open_bundle(bundle, verify=False), tmp_path / "a.zip")
    (bundle / "golden" / "inputs.npz").unlink()
    with pytest.raises(BundleError, match=r"golden/inputs\.npz is missing"):
        pack(open_bundle(bundle, verify=False), tmp_path / "a.zip")
    assert ["net"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize(("name", "said"), [("net/a.zip", "lies in the bundle"), ("a.tar", "does not end in .zip"),
                                            ("none/a.zip", "is no folder")])  # fmt: skip
def test_where_no_archive_can_be_it_is_refused(bundle, tmp_path, name, said):
    """
    Before anything is read.
    """
    with pytest.raises(UsageError, match=said):
        pack(open_bundle(bundle), tmp_path / name)


def test_what_shrinks_too_much_is_stored_and_unpacked(bundle, tmp_path):
    """
    Packing never writes what unpacking takes for a bomb.
    """
    (bundle / "zeros.bin").write_bytes(bytes(3 << 20))
    pack(open_bundle(bundle), tmp_path / "a.zip")

    unpack(tmp_path / "a.zip", tmp_path / "back")
    assert files(bundle) == files(tmp_path / "back")


# What is unpacked ----------------------------------------------------------------------------------------------------


def test_the_plain_archive_of_the_hostile_ones_is_taken(members, tmp_path):
    """
    And so is one that another tool has packed again, with folders of their own and a data descriptor behind each file.
    """
    (tmp_path / "a.zip").write_bytes(zipped(members))
    unpack(tmp_path / "a.zip", tmp_path / "a")
    tree = tmp_path / "tree"
    for name, data in members.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    shutil.make_archive(str(tmp_path / "b"), "zip", tree)
    unpack(tmp_path / "b.zip", tmp_path / "b")

    assert {name: data for name, data in members.items() if name != CHECKSUMS} == files(tmp_path / "a")
    assert files(tmp_path / "a") == files(tmp_path / "b")


NAMES = {
    "../evil": "climbs",
    "golden/../../evil": "climbs",
    "./evil": "climbs",
    "golden//evil": "empty step",
    "/etc/evil": "absolute",
    "C:/evil": "colon",
    "golden\\..\\evil": "backslash",
    "\\\\server\\evil": "backslash",
    "golden/evil:stream": "colon",
    "golden/line\nbreak": "control character",
    "golden/\x1b[2Jscreen": "control character",
    "golden/\u202egnp.exe": "control character",
    "golden/NUL": "another name on Windows",
    "golden/aux.png": "another name on Windows",
    "golden/dot.": "another name on Windows",
    "GOLDEN/inputs.npz": "one file on some systems",
    "golden/INPUTS.npz": "one file on some systems",
    "manifest.json/evil": "a file and a folder",
    "a/" * 40 + "evil": "folders in one another",
    "x" * 300: "longer than",
    "y/" * 20 + "z" * 1200: "longer than",
    ".journal.json": "half written",
    ".staging-abcdefgh/new/evil": "half written",
    ".lock": "half written",
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:30])
def test_a_name_that_leads_elsewhere_or_is_two_things_is_refused(members, tmp_path, name):
    """
    Though its checksum is right, and whatever the system takes for a path.
    """
    refused(tmp_path, zipped(members, (name, b"evil")), NAMES[name])


def test_a_name_that_ends_early_for_some_readers_is_refused(members, tmp_path):
    """
    Python's reader cuts names at a NUL, others may not.
    """
    data = zipped(members, ("golden/evilXfile", b"evil")).replace(b"evilXfile", b"evil\0file")

    refused(tmp_path, data, "read as another one")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFDIR])
def test_what_is_no_regular_file_is_refused(members, tmp_path, kind):
    """
    Links above all: the next file would be written through it.
    """
    info = zipfile.ZipInfo("golden/link")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16

    refused(tmp_path, zipped(members, (info, b"/etc")), "regular files and folders, nothing else")


def test_a_name_that_stands_twice_is_refused(members, tmp_path):
    """
    Readers differ in which of the two they take.
    """
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = zipped(members, (FLOAT_ONNX, b"another"))

    refused(tmp_path, data, "stands there 2 times")


def test_entries_that_share_bytes_are_refused(members, tmp_path):
    """
    The directory names one file's bytes twice: the way to make terabytes of kilobytes.
    """
    data = bytearray(zipped(members, ("golden/a", b"0" * 1000), ("golden/b", b"1" * 1000)))
    places = {}
    at = data.index(b"PK\x01\x02")
    while (at := data.find(b"PK\x01\x02", at)) != -1:
        length = struct.unpack_from("<H", data, at + 28)[0]
        places[bytes(data[at + 46 : at + 46 + length])] = at
        at += 46
    data[places[b"golden/b"] + 42 : places[b"golden/b"] + 46] = data[
        places[b"golden/a"] + 42 : places[b"golden/a"] + 46
    ]

    refused(tmp_path, bytes(data), "share bytes")


def test_a_bomb_is_refused_before_it_is_unpacked(members, tmp_path):
    """
    100 MB of zeros in 100 kB; the directory alone tells.
    """
    refused(tmp_path, zipped(members, ("golden/zeros.bin", bytes(100 << 20))), "times is the most")


def changed_directory(data, name, offset, value, form="<L"):
    """The archive with another figure in the directory's entry of *name*."""
    data = bytearray(data)
    at = 0
    while (at := data.find(b"PK\x01\x02", at)) != -1:
        length = struct.unpack_from("<H", data, at + 28)[0]
        if bytes(data[at + 46 : at + 46 + length]) == name:
            struct.pack_into(form, data, at + offset, value)
            return bytes(data)
        at += 46
    raise AssertionError(name)


def test_sizes_that_lie_are_refused(members, tmp_path):
    """
    Less than there is: what is read is cut there, and its checksum is another. More: it ends early. Far more: at once.
    """
    more = ("golden/noise.bin", os.urandom(3000))
    data = zipped(members, more)
    uncompressed = 24  # place of the size in an entry
    for number, (size, said) in enumerate(
        {2999: "is damaged", 3001: "noise.bin", entries.MOST_FILE_BYTES: "times is the most", 0: "noise.bin"}.items()
    ):
        (tmp_path / str(number)).mkdir()
        lying = changed_directory(data, b"golden/noise.bin", uncompressed, size)
        archive = tmp_path / str(number) / "a.zip"
        archive.write_bytes(lying)
        with pytest.raises(BundleError, match=said):
            unpack(archive, tmp_path / str(number) / "out")
        assert ["a.zip"] == listing(archive.parent)


def test_a_hundred_thousand_entries_are_refused_at_once(tmp_path):
    """
    Also where the end of the directory claims few of them.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(100_000):
            archive.writestr(f"golden/{number}", b"")
    refused(tmp_path, stream.getvalue(), "more than 4 GB")  # that many need the other form of directory

    many = entries.MOST_FILES + 1
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(many):
            archive.writestr(f"golden/{number}", b"")
    (tmp_path / "b").mkdir()
    refused(tmp_path / "b", stream.getvalue(), f"holds {many:,} files")
    lying = bytearray(stream.getvalue())
    struct.pack_into("<HH", lying, len(lying) - 14, 3, 3)
    (tmp_path / "c").mkdir()
    refused(tmp_path / "c", bytes(lying), f"holds {many:,} files")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_compression_is_refused(members, tmp_path, method):
    """
    Fewer decoders, fewer holes.
    """
    info = zipfile.ZipInfo("golden/other")
    info.compress_type = method
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(info, b"other" * 100)
    refused(tmp_path, stream.getvalue(), "another way than deflate")


def test_an_encrypted_file_is_refused(members, tmp_path):
    """
    By its flag; nobody is asked for a password.
    """
    data = changed_directory(zipped(members, ("golden/secret", b"secret")), b"golden/secret", 8, 1, "<H")

    refused(tmp_path, data, "encrypted")


def test_what_the_checksums_do_not_list_is_refused(members, tmp_path):
    """
    Nor may they list what is not there, be missing, be no JSON, or say of a file what the manifest does not.
    """
    cases = {
        "has no hash": lambda content: content | {"golden/more": b"more"},
        "no 'reports/parity.json'": lambda content: {k: v for k, v in content.items() if k != "reports/parity.json"},
        f"holds no {CHECKSUMS}": lambda content: {k: v for k, v in content.items() if k != CHECKSUMS},
        "is damaged": lambda content: content | {CHECKSUMS: b"[" * 100_000},
    }
    for number, (said, change) in enumerate(cases.items()):
        (tmp_path / str(number)).mkdir()
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in change(members).items():
                archive.writestr(name, data)
        refused(tmp_path / str(number), stream.getvalue(), said)
    (tmp_path / "other").mkdir()
    refused(
        tmp_path / "other", zipped(members | {FLOAT_ONNX: b"another network"}), "do not agree about 'onnx/net.onnx'"
    )


def test_of_a_damaged_archive_the_file_is_named(members, tmp_path):
    """
    One byte in the midst of a file, with the checksum of the .zip format made right; verify says the same.
    """
    data = members["golden/inputs.npz"]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(
                name, data[:50] + bytes([data[50] ^ 1]) + data[51:] if name == "golden/inputs.npz" else content
            )
    archive = tmp_path / "net.zip"
    archive.write_bytes(stream.getvalue())

    with pytest.raises(BundleError, match=r"net\.zip is refused: golden/inputs\.npz was changed"):
        unpack(archive, tmp_path / "out")
    assert ["members.zip", "net.zip"] == listing(tmp_path)
    done = CliRunner().invoke(main, ["verify", str(archive)])
    assert 1 == done.exit_code
    assert "golden/inputs.npz: changed" in done.output
    states = {item.path: item.state for item in verified_archive(archive).files}
    assert {"golden/inputs.npz"} == {path for path, state in states.items() if state is not FileState.AS_WRITTEN}


def test_every_changed_byte_and_every_cut_is_refused_or_harmless(members, tmp_path):
    """
    The same bundle or none comes of it, whichever byte it is; never another one, and never a part.
    """
    good = zipped(members)
    archive, target, whole = tmp_path / "net.zip", tmp_path / "out", files_of(members)
    taken = 0
    for at in [*range(0, len(good), 97), *range(len(good) - 60, len(good))]:
        for data in (good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :], good[:at]):
            archive.write_bytes(data)
            try:
                unpack(archive, target)
            except BundleError:
                assert not target.exists()
            else:
                taken += 1
                assert whole == files(target)
                shutil.rmtree(target)
    assert ["members.zip", "net.zip"] == listing(tmp_path)
    assert 0 < taken < 100, "times and such may change"


def files_of(members):
    return {name: data for name, data in members.items() if name != CHECKSUMS}


@pytest.mark.parametrize("what", ["nothing", "text", "folder", "pipe"])
def test_what_is_no_archive_is_bad_input(tmp_path, what):
    """
    In one line, and a pipe keeps nobody waiting.
    """
    place = tmp_path / "net.zip"
    {"nothing": lambda: None, "text": lambda: place.write_text("no archive at all, but long enough for its end"),
     "folder": place.mkdir, "pipe": lambda: os.mkfifo(place)}[what]()  # fmt: skip
    result = CliRunner().invoke(main, ["bundle", "unpack", str(place), "--output-dir", str(tmp_path / "out")])

    assert (2, 1) == (result.exit_code, result.output.count("\n")), result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["file", "folder", "link to nothing"])
def test_what_is_there_is_never_overwritten(bundle, tmp_path, what):
    """
    Exit code 2, and it stays.
    """
    pack(open_bundle(bundle), tmp_path / "a.zip")
    place = tmp_path / "out"
    {"file": place.touch, "folder": place.mkdir, "link to nothing": lambda: place.symlink_to("none")}[what]()
    with pytest.raises(UsageError, match="exists"):
        unpack(tmp_path / "a.zip", place)
    assert not list(place.iterdir()) if what == "folder" else os.path.lexists(place)


def test_a_full_disk_leaves_nothing(bundle, tmp_path, monkeypatch):
    """
    One line, exit code 2; neither a folder nor a part of one.
    """
    pack(open_bundle(bundle), tmp_path / "a.zip")
    monkeypatch.setattr(os, "fsync", full)
    result = CliRunner().invoke(
        main, ["bundle", "unpack", str(tmp_path / "a.zip"), "--output-dir", str(tmp_path / "out")]
    )

    assert (2, 1) == (result.exit_code, result.output.count("\n")), result.output
    assert "No space left on device" in result.output
    assert {"net", "a.zip"} == {path.name for path in tmp_path.iterdir()}


def full(_):
    raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("work", ["pack", "unpack"])
def test_a_kill_at_any_moment_leaves_nothing_half(bundle, tmp_path, work):
    """
    The archive, or the folder, is whole or not there; the next run removes what the killed one left.
    """
    archive = tmp_path / "a.zip"
    pack(open_bundle(bundle), archive)
    whole = archive.read_bytes()
    for step in range(1, 400):
        target = tmp_path / "out.zip" if work == "pack" else tmp_path / "out"

        def run(target=target):
            pack(open_bundle(bundle), target) if work == "pack" else unpack(archive, target)

        died = died_at(step, run)
        if target.exists():
            assert whole == target.read_bytes() if work == "pack" else files(bundle) == files(target)
            target.unlink() if work == "pack" else shutil.rmtree(target)
        if not died:
            break
        if step % 10 == 1:
            run()
            assert {"net", "a.zip", target.name} == {path.name for path in tmp_path.iterdir()}
            target.unlink() if work == "pack" else shutil.rmtree(target)
    assert 5 < step < 399


def died_at(step, work):
    """Run *work* in a process that is gone, as if killed, before its *step*-th change of a file; False if it ended."""
    process = os.fork()
    if process == 0:
        count = 0

        def watch(event, arguments):
            nonlocal count
            changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "fcntl.flock")
            if changes or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            work()
        except BaseException:  # noqa: BLE001 - a forked process must not go on with the tests
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_an_archive_is_read_in_bounded_memory(members, tmp_path):
    """
    A directory that claims small files over deflated gigabytes costs no more than a block at a time.
    """
    info = zipfile.ZipInfo("golden/zeros.bin")
    info.compress_type = zipfile.ZIP_DEFLATED
    data = changed_directory(zipped(members, (info, bytes(400 << 20))), b"golden/zeros.bin", 24, 1000)
    (tmp_path / "bomb.zip").write_bytes(data)
    script = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from coordatt_deploy.packing.archive import unpack\nfrom coordatt_deploy.errors import BundleError\n"
        "import coordatt_deploy.manifest\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except BundleError as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "bomb.zip", tmp_path / "out"], capture_output=True,
                          text=True, check=True)  # fmt: skip
    said, mebibytes = done.stdout.strip().rsplit("\n", 1)

    assert "golden/zeros.bin" in said
    assert int(mebibytes) < 60
    assert not (tmp_path / "out").exists()


def test_an_opened_archive_says_what_it_holds(members, tmp_path):
    """
    Without anything being written.
    """
    (tmp_path / "a.zip").write_bytes(zipped(members))
    with open_archive(Path(tmp_path / "a.zip")) as packed:
        assert [FLOAT_ONNX, "tflite/net.tflite"] == [item.path for item in packed.manifest.artifacts]
        assert members["golden/inputs.npz"] == b"".join(packed.blocks("golden/inputs.npz"))
