"""Files that travel by their hash to a real sshd."""

import hashlib
import os
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from ssh_server import needs_sshd

from coordatt_deploy.data.images import find_images
from coordatt_deploy.errors import LostConnectionError, TargetError, UsageError
from coordatt_deploy.targets.ssh import files as ssh_files
from coordatt_deploy.targets.ssh.address import parse_address
from coordatt_deploy.targets.ssh.connection import Connection
from coordatt_deploy.targets.ssh.files import RemoteFiles, hashes_of, listed

pytestmark = needs_sshd


@pytest.fixture
def there(server):
    with Connection(parse_address(server.address), connect_s=5) as connection:
        yield RemoteFiles(connection)


@pytest.fixture
def folder(tmp_path):
    """Files with odd names; two of the same bytes, an empty one, and one that travels alone."""
    root = tmp_path / "bundle"
    for name, data in {
        "it's/a \"b\" c.txt": b"odd", "empty": b"", "-n": b"odd", "deep/er/é": b"\0\n", "big": os.urandom(3 << 20),
    }.items():  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def names(folder):
    return [path.name for path in Path(folder).iterdir()]


def by_hash(root):
    files = listed(root)
    hashes = hashes_of(files)
    return hashes, {hashes[name]: path for name, path in files.items()}


def test_only_what_is_missing_travels(there, server, folder):
    """
    Files arrive whole under their hash; the second time none travels, after a change one.
    """
    _, files = by_hash(folder)
    sent = there.send(files)
    assert (4, 0) == (sent.files, sent.known)
    assert (3 << 20) + 5 == sent.bytes
    store = server.home / ".cache/coordatt-deploy/store"
    assert set(files) == {path.name for path in store.iterdir()}
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in store.iterdir())
    assert (0, 4) == ((again := there.send(files)).files, again.known)
    (folder / "empty").write_bytes(b"more")
    assert (1, 4, 3) == ((more := there.send(by_hash(folder)[1])).files, more.bytes, more.known)


def test_images_behind_links_travel_as_they_are_counted_here(tmp_path):
    """
    A folder that a second link leads to is one folder, here and there; what cannot travel is refused, not left out.
    """
    images = tmp_path / "images"
    for name in ("elsewhere/cat/a.png", "images/dog/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for name, goal in (("cat", tmp_path / "elsewhere/cat"), ("cats", tmp_path / "elsewhere/cat"), ("dog/up", images)):
        (images / name).symlink_to(goal)
    (images / ".lock").symlink_to("nobody@1")
    assert {*find_images(images)} == {*listed(images, follow_links=True).values()}
    (images / "dog/c.png").symlink_to("nowhere.png")
    assert images / "dog/c.png" in find_images(images)
    with pytest.raises(UsageError, match=r"c\.png is no file or a link that leads nowhere, and cannot travel"):
        listed(images, follow_links=True)


@pytest.mark.parametrize("linked", [False, True])
def test_folder_is_put_together(there, server, folder, linked):
    """
    A folder there has every file under its name, in the place of what was there before.
    """
    hashes, files = by_hash(folder)
    there.send(files)
    end = PurePosixPath(server.home) / "a b's" / "bundle"
    there.place(hashes, end, linked=linked)
    assert {name: path.read_bytes() for name, path in listed(folder).items()} == {
        path.relative_to(end).as_posix(): path.read_bytes()
        for path in (server.home / "a b's/bundle").rglob("*") if path.is_file()
    }  # fmt: skip
    there.place({"only": hashes["-n"]}, end, linked=linked)
    assert ["only"] == names(end)
    assert b"odd" == there.read(end / "only", most_bytes=3)
    with pytest.raises(TargetError, match="more than 2 bytes"):
        there.read(end / "only", most_bytes=2)
    there.remove(end)
    assert [] == names(end.parent)


@pytest.mark.parametrize("cut", [0, -1, -70])
def test_list_that_was_cut_off_makes_no_folder(there, server, folder, monkeypatch, cut):
    """
    A list that loses its end, or all of it, on the way is refused; the folder that was there before stays as it was.
    """
    hashes, files = by_hash(folder)
    there.send(files)
    end = PurePosixPath(server.home) / "bundle"
    there.place({"only": hashes["-n"]}, end, linked=True)
    whole = ssh_files._bytes
    monkeypatch.setattr(ssh_files, "_bytes", lambda text: whole(text)[:cut])
    with pytest.raises(TargetError, match="cut off"):
        there.place(hashes, end, linked=True)
    assert ["only"] == names(end)
    assert ["bundle"] == [name for name in names(server.home) if not name.startswith(".")]


def test_damaged_file_of_the_store_is_sent_again(there, server, folder):
    """
    What lies there under a hash and has other bytes is not taken for it.
    """
    hashes, files = by_hash(folder)
    there.send(files)
    stored = server.home / ".cache/coordatt-deploy/store" / hashes["-n"]
    stored.chmod(0o600)
    stored.write_bytes(b"od")
    assert (1, 3) == ((again := there.send(files)).files, again.known)
    assert b"odd" == stored.read_bytes()


def test_file_that_changes_on_the_way_is_refused(there, server, folder):
    """
    What arrives with other bytes than were announced is not kept.
    """
    wrong = {"0" * 64: folder / "-n", "1" * 64: folder / "empty"}
    with pytest.raises(TargetError, match="did not take what was sent"):
        there.send(wrong)
    with pytest.raises(TargetError, match="did not take what was sent"):
        there.send({"0" * 64: folder / "big"})
    assert [] == names(server.home / ".cache/coordatt-deploy/store")


def test_cut_transfer_is_gone_on_with(there, server, folder, monkeypatch):
    """
    A connection that is cut in the midst leaves whole files only, and what they were is not sent again.
    """
    monkeypatch.setattr(ssh_files, "BATCH_FILES", 1)
    _, files = by_hash(folder)
    receive, calls = RemoteFiles._receive, []

    def cut_third(self, batch, *rest):
        calls.append(batch)
        if len(calls) == 3:
            server.cut()
        receive(self, batch, *rest)

    monkeypatch.setattr(RemoteFiles, "_receive", cut_third)
    store = server.home / ".cache/coordatt-deploy/store"
    try:
        there.send(files)
    except LostConnectionError:
        assert {path.name for path in store.iterdir()} < set(files)
        assert (2, 2) == ((rest := there.send(files)).files, rest.known)
    assert set(files) == {path.name for path in store.iterdir()}


def test_full_disk_says_what_is_needed(there, server, folder, tmp_path):
    """
    A disk that is too small is told with what is needed and what is free, before anything travels; one that fills up
    meanwhile leaves nothing half.
    """
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small]).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        server.write_login(XDG_CACHE_HOME=str(small))
        full = RemoteFiles(there.connection)
        files = by_hash(folder)[1]
        with pytest.raises(TargetError, match=r"has no room at .*: 3,145,733 bytes are to be sent, and 2,0.* are free"):
            full.send(files)
        full._check_room = lambda *_: None  # the disk fills up after it was looked at
        with pytest.raises(TargetError, match="3,145,733 bytes are to be sent; free some there"):
            full.send(files)
        kept = [path for path in small.rglob("*") if path.is_file()]
        assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in kept)
        assert len(kept) < len(files)
        assert not [*small.rglob(".incoming*")]
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\nb", ""])
def test_path_out_of_the_folder_is_refused(there, name, server):
    """
    No file is put outside the folder.
    """
    with pytest.raises(UsageError, match="is no path inside a folder"):
        there.place({name: "0" * 64}, PurePosixPath(server.home) / "x")


def test_machine_that_lacks_a_command(server, tmp_path):
    """
    A machine without sha256sum is told, with what to install.
    """
    (tmp_path / "bin").mkdir()
    for name in ("cat", "uname", "tar", "df", "xargs", "sh"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    server.write_login(PATH=str(tmp_path / "bin"))
    with (
        Connection(parse_address(server.address)) as connection,
        pytest.raises(TargetError, match="lacks sha256sum; install coreutils"),
    ):
        RemoteFiles(connection)
