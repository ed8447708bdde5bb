"""Versions on a board: its own shell runs the scripts here, and is killed before every command of theirs."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest

from coordatt_deploy.errors import TargetError
from coordatt_deploy.files import sha256
from coordatt_deploy.targets.ssh.connection import Answer
from coordatt_deploy.targets.ssh.releases import Releases, ReleasesThere

TOOLS = ("mkdir", "mv", "rm", "rmdir", "ln", "cat", "sed", "tail", "sync", "chmod", "find", "cut", "tr", "readlink",
         "sha256sum", "wc", "stat")  # fmt: skip
BUSYBOX = shutil.which("busybox")


class Shell:
    """A ``Connection`` to this machine: what ssh would hand to the shell there is handed to one here.

    Attributes:
        die_at: Before its so many-th command the shell is killed, as if the power failed; None for never.
        sh: The shell. BusyBox's own looks for no command on the PATH: it is never killed.
    """

    address = "ssh://board"

    def __init__(self, folder: Path, tools: Path | None = None):
        self.die_at: int | None = None
        self.sh = str(tools / "sh") if tools else "/bin/sh"
        self._count = folder / "count"
        self._path = folder / "bin"
        self._path.mkdir()
        for name in TOOLS:
            real = f"{tools / name}" if tools else shutil.which(name)
            shim = self._path / name
            shim.write_text(
                f'#!/bin/sh\nif [ -n "$DIE_AT" ]; then echo x >>{self._count}\n'
                f'[ "$(/usr/bin/wc -l <{self._count})" -eq "$DIE_AT" ] && kill -9 $PPID && exit 1; fi\n'
                f'exec {real} "$@"\n'
            )
            shim.chmod(0o755)

    def _env(self):
        self._count.unlink(missing_ok=True)
        return {"PATH": f"{self._path}:/nowhere", "DIE_AT": "" if self.die_at is None else str(self.die_at)}

    def run(self, argv, *, stdin=None, **_):
        done = subprocess.run([self.sh, *argv[1:]], input=stdin or b"", capture_output=True, env=self._env())
        return Answer(done.returncode, done.stdout, done.stderr.decode())

    @contextmanager
    def held(self, argv):
        process = subprocess.Popen(
            [self.sh, *argv[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._env() | {"DIE_AT": ""},
        )
        try:
            yield process.stdout.readline().decode().rstrip("\n")
        finally:
            process.stdin.close()
            process.wait(10)
            process.stdout.close()


@pytest.fixture(params=["sh", "busybox"])
def shell(request, tmp_path):
    if request.param == "busybox":
        if BUSYBOX is None:
            pytest.skip("busybox is not installed")
        (tmp_path / "busybox").mkdir()
        subprocess.run([BUSYBOX, "--install", "-s", tmp_path / "busybox"], check=True)
        return Shell(tmp_path, tmp_path / "busybox")
    return Shell(tmp_path)


@pytest.fixture
def there(shell, tmp_path):
    return Releases(shell, PurePosixPath(tmp_path / "it's a board"))


def bring(there, token, content):
    """Do what comes before a version gets its name; return what its files are."""
    folder = Path(there.incoming(token))
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "onnx files").mkdir(parents=True)
    (folder / "manifest.json").write_text(content)
    (folder / "onnx files" / "it's.onnx").write_text(content * 2)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def put(there, version, keep=3):
    """Deploy a version whose files say its name."""
    with there.locked("ann") as token:
        status = there.status()
        if version not in status.whole:
            if version in status.taken:
                there.set_aside(token, version)
            hashes = bring(there, token, version)
            assert there.why_not_whole(there.incoming(token), hashes) is None
            there.admit(token, version, hashes)
        there.switch(token, version, status.with_current(version))
        prune(there, token, status, version, keep)


def prune(there, token, status, version, keep):
    store = SimpleNamespace(folders=SimpleNamespace(store=there.root / "store"))
    there.prune(token, store, status.kept(version, keep))


def back(there):
    with there.locked("ann") as token:
        status = there.status()
        assert there.why_not_whole(there.folder(status.before), there.hashes(status.before)) is None
        there.switch(token, status.before, status.back_to(status.before))


def current(there):
    """What an app finds behind ``current``: all of one version."""
    folder = Path(there.root) / "current"
    said = (folder / "manifest.json").read_text()
    assert said * 2 == (folder / "onnx files" / "it's.onnx").read_text()
    assert 0o755 == folder.resolve().stat().st_mode & 0o777
    return said


def names(there):
    return {path.name for path in (Path(there.root) / "releases").iterdir()} | {
        path.name for path in Path(there.root).iterdir()
    }


def test_versions_come_stay_and_go(there):
    """
    The last ones stay, and a rollback goes back one at a time, as far as they reach.
    """
    for version in ("net-a", "net-b", "net-c", "net-d"):
        put(there, version)
        assert version == current(there) == there.status().current
    status = there.status()
    assert ("net-a", "net-b", "net-c", "net-d") == status.history
    assert {"net-b", "net-c", "net-d"} == status.whole == status.taken
    back(there)
    assert "net-c" == current(there)
    back(there)
    assert "net-b" == current(there)
    assert there.status().before is None
    put(there, "net-e", keep=2)
    assert ("net-b", "net-e") == tuple(name for name in there.status().history if name in there.status().whole)
    assert {"net-b", "net-b.sha256", "net-e", "net-e.sha256", "releases", "current", "history"} == names(there)


def test_what_is_current_again_has_the_one_in_between_before_it(there):
    """
    A, B, and A once more: back is B.
    """
    for version in ("net-a", "net-b", "net-a"):
        put(there, version)
    assert "net-b" == there.status().before
    back(there)
    assert "net-b" == current(there)
    assert "net-a" == there.status().before


@pytest.mark.parametrize("change", ["other bytes", "missing", "more", "link"])
def test_what_is_not_what_was_sent_is_said(there, change):
    """
    Whichever way it differs.
    """
    with there.locked("ann") as token:
        hashes = bring(there, token, "net-a")
        folder = Path(there.incoming(token))
        {
            "other bytes": lambda: (folder / "manifest.json").write_text("net-A"),
            "missing": (folder / "manifest.json").unlink,
            "more": lambda: (folder / "onnx files" / "more").touch(),
            "link": lambda: (folder / "more").symlink_to("/etc/passwd"),
        }[change]()

        assert there.why_not_whole(there.incoming(token), hashes) is not None


def test_a_kill_at_any_moment_leaves_current_on_a_whole_version(shell, there):
    """
    Before every command of the scripts; the next deployment goes on, and nothing is left over in the end.
    """
    shell.sh = "/bin/sh"
    put(there, "net-a")
    put(there, "net-b")
    seen, ended = set(), 0
    for step in range(1, 60):
        before = current(there)
        goal = "net-c" if before != "net-c" else "net-b"
        died = False
        with there.locked("ann") as token:
            status = there.status()
            hashes = None if goal in status.whole else bring(there, token, goal)
            shell.die_at = step
            try:
                if hashes is not None:
                    if goal in status.taken:
                        there.set_aside(token, goal)
                    there.admit(token, goal, hashes)
                there.switch(token, goal, status.with_current(goal))
                prune(there, token, status, goal, 1)
            except TargetError:
                died = True
            shell.die_at = None
        now = current(there)
        assert now in (before, goal)
        assert now == there.status().current == there.status().history[-1]
        seen.add((died, now == goal))
        ended = 0 if died else ended + 1
        if ended == 2:  # one of a version that was there, one of one that was not
            break
    assert {(True, False), (True, True), (False, True)} == seen
    put(there, "net-d", keep=1)
    assert {"net-d", "net-d.sha256", "releases", "current", "history"} == names(there)


def test_a_killed_rollback_leaves_the_one_or_the_other(shell, there):
    """
    And it can be done again, or not, as the version that is current says.
    """
    shell.sh = "/bin/sh"
    for step in range(1, 9):
        for version in ("net-a", "net-b"):
            put(there, version)
        with there.locked("ann") as token:
            status = there.status()
            shell.die_at = step
            with suppress(TargetError):
                there.switch(token, "net-a", status.back_to("net-a"))
            shell.die_at = None
        after = there.status()
        assert after.current == current(there) == after.history[-1]
        assert "net-a" == (after.before if after.current == "net-b" else after.current)


def test_the_second_at_once_is_told_who_is_first(there):
    """
    And what the first one does goes on; then it is free.
    """
    put(there, "net-a")
    with there.locked("ann on desk since today") as token:
        with pytest.raises(TargetError, match=r"ann on desk since today; run this again"), there.locked("bob"):
            pass
        hashes = bring(there, token, "net-b")
        there.admit(token, "net-b", hashes)
        there.switch(token, "net-b", there.status().with_current("net-b"))
    with there.locked("bob"):
        pass
    assert ".lock" not in names(there)


@pytest.mark.parametrize("left", ["a process that is gone", "another start of the machine", "nothing, an hour ago",
                                  "a takeover that was killed"])  # fmt: skip
def test_a_stale_lock_is_recognised(there, left):
    """
    Its holder is a process of the board; where that is gone, one of those who find it takes the lock.
    """
    lock = Path(there.root) / ".lock"
    lock.mkdir(parents=True)
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout.strip()
    if left != "nothing, an hour ago":
        pid = os.getpid() if left == "another start of the machine" else gone
        (lock / "holder").write_text(f"{pid}\nsome-other-boot.12345.\nann\ntoken\n")
    if left == "a takeover that was killed":
        (lock / "taken").mkdir()
        os.utime(lock / "taken", (time.time() - 3600,) * 2)
    os.utime(lock, (time.time() - 3600,) * 2)

    with there.locked("bob"):
        assert "bob" == (lock / "holder").read_text().splitlines()[2]
    assert not lock.exists()


def test_a_lock_that_was_just_taken_is_none_that_is_stale(there):
    """
    Its holder has not written its name yet.
    """
    (Path(there.root) / ".lock").mkdir(parents=True)
    with pytest.raises(TargetError, match="is being changed by another command"), there.locked("bob"):
        pass


def test_who_lost_the_lock_changes_nothing_more(there):
    """
    Such as a command that slept for an hour.
    """
    put(there, "net-a")
    with there.locked("ann") as token:
        hashes = bring(there, token, "net-b")
        there.admit(token, "net-b", hashes)
        holder = Path(there.root) / ".lock" / "holder"
        holder.write_text("1\n2\nbob\nanother token\n")
        with pytest.raises(TargetError, match="the lock there was lost"):
            there.switch(token, "net-b", ("net-a", "net-b"))
    assert "net-a" == current(there)
    assert "bob" == holder.read_text().splitlines()[2]


def test_a_list_that_was_cut_off_admits_nothing(there):
    """
    The connection ended in the midst of it: a version without its list is none.
    """
    with there.locked("ann") as token:
        bring(there, token, "net-a")
        argv_of = there.connection.run
        there.connection.run = lambda argv, **options: argv_of(argv, **options | {"stdin": options["stdin"][:-8]})
        with pytest.raises(TargetError, match="the list was cut off"):
            there.admit(token, "net-a", {"manifest.json": "0" * 64})
        there.connection.run = argv_of
        assert ReleasesThere() == there.status()


@pytest.mark.parametrize("what", ["folder", "file", "a link elsewhere", "a link up"])
def test_a_current_that_is_none_of_ours_is_left_alone(there, what):
    """
    Nobody asked for it to be replaced.
    """
    put(there, "net-a")
    place = Path(there.root) / "current"
    place.unlink()
    {"folder": place.mkdir, "file": place.touch, "a link elsewhere": lambda: place.symlink_to("/etc"),
     "a link up": lambda: place.symlink_to("releases/../../x")}[what]()  # fmt: skip

    assert "move it away" in there.status().blocked


def test_a_hostile_board_says_nothing_that_is_believed(there):
    """
    Names that are none, escapes and paths are passed over or shown as text; a flood ends.
    """
    says = b"current releases/../../etc\nhistory ../x\nwhole \x1b[2J\nwhole net-a;rm\ntaken /etc\nnonsense\n\xff\xfe"
    there.connection.run = lambda *_, **__: Answer(0, says, "")

    found = there.status()
    assert (None, (), frozenset(), frozenset()) == (found.current, found.history, found.whole, found.taken)
    assert "\x1b" not in found.blocked
    assert there.why_not_whole(there.root, {"a": "0" * 64}) is not None
    with pytest.raises(TargetError, match="is damaged"):
        there.hashes("net-a")
    there.connection.run = lambda *_, **__: Answer(0, b"", "")
    assert there.why_not_whole(there.root, {"a": "0" * 64}) is not None
