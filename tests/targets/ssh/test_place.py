"""Commands at a machine that ssh reaches: started there, waited for over cuts, and not believed without a look."""

import threading
import time

import pytest
from ssh_server import needs_sshd

from coordatt_deploy.errors import TargetError
from coordatt_deploy.progress import Stages
from coordatt_deploy.targets.places import Order, Travelling, open_place
from coordatt_deploy.targets.ssh import jobs

pytestmark = needs_sshd


@pytest.fixture
def photos(tmp_path):
    """A folder of the user's, with a link in it."""
    folder = tmp_path / "my 'photos'"
    folder.mkdir()
    (folder / "a b.txt").write_text("one")
    (folder / "link.txt").symlink_to(folder / "a b.txt")
    return folder


def run(server, words=(), *, writes=False, stopped=None, tool=None):
    return open_place(server.address, stopped=stopped, tool=tool).run(
        Order("show", tuple(words), writes=writes), Stages()
    )


def appears(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)
    return True


def cut_at(server, name):
    """Cut the connection once the command has come so far."""
    appears(server.folder / name)
    return server.cut()


def leftovers(server):
    return [path.name for path in (server.home / ".cache/coordatt-deploy/jobs").iterdir()]


def test_command_reads_what_travelled(server, photos):
    """
    Words arrive as they are, files under their name, links as what they lead to; nothing is left there but the store.
    """
    server.install(script='printf "%s|" "$@"; cat -- "$2/link.txt"; echo why >&2; exit 1\n')
    got = run(server, ["it's; exit 7", Travelling(photos, follow_links=True)])
    assert (1, "why", 3) == (got.status, got.reason, got.sent_bytes)
    assert got.document.decode().startswith("show|it's; exit 7|1/my 'photos'|--json|")
    assert [] == leftovers(server)
    assert 0 == run(server, [Travelling(photos, follow_links=True)]).sent_bytes


def test_link_in_a_bundle_does_not_travel(server, photos):
    """
    A link in what may come from anybody is refused.
    """
    server.install()
    with pytest.raises(Exception, match="symbolic link") as told:
        run(server, [Travelling(photos)])
    assert 2 == told.value.exit_code
    assert [] == leftovers(server)


def test_document_is_what_the_command_wrote(server):
    """
    With --output the document is that file, whatever is printed; without one there is none.
    """
    server.install(script='echo noise; shift 2; [ "$1" = --output ] && echo "{}" >"$2"\n')
    assert b"{}\n" == run(server, writes=True).document
    server.install(script="echo noise; exit 3\n")
    assert (3, None) == ((got := run(server, writes=True)).status, got.document)


def test_machine_without_the_tool_and_without_python(server, tmp_path):
    """
    What is missing there is told, with the command that brings it.
    """
    with pytest.raises(TargetError, match=f"has no coordatt-deploy; put it there with: .* --setup {server.address}"):
        run(server)
    with pytest.raises(TargetError, match="has no ~/mine/tool that can be run"):
        run(server, tool="~/mine/tool")
    small = tmp_path / "small"
    small.mkdir()
    for name in ("sh", "cat", "uname", "tar", "df", "xargs", "sha256sum", "mkdir", "find", "tr", "rm", "chmod"):
        (small / name).symlink_to(f"/usr/bin/{name}")
    server.write_login(PATH=str(small))
    with pytest.raises(TargetError, match=r"has no python3; install Python 3.11 or later there"):
        run(server)


def test_tool_of_the_users_own_choice(server):
    """
    A tool that the file names is taken, and ~/ is the home folder there.
    """
    (server.home / "my tool").write_text("#!/bin/sh\necho mine\n")
    (server.home / "my tool").chmod(0o755)
    assert b"mine\n" == run(server, tool="~/my tool").document


def test_cut_connection_is_waited_over(server):
    """
    A command whose connection is cut twice goes on there, runs once, and gives all that it printed.
    """
    server.install(
        script=f'echo ran >>"{server.folder}/runs"; for n in 1 2 3 4 5 6; do echo $n; sleep 0.5;'
        f' touch "{server.folder}/at$n"; done\n'
    )
    cuts = []
    thread = threading.Thread(target=lambda: cuts.extend(cut_at(server, f"at{number}") for number in (1, 4)))
    thread.start()
    got = run(server)
    thread.join()
    assert (0, b"1\n2\n3\n4\n5\n6\n") == (got.status, got.document)
    assert "ran\n" == (server.folder / "runs").read_text()
    assert [True, True] == [count > 0 for count in cuts]
    assert [] == leftovers(server)


def test_machine_that_does_not_come_back(server, monkeypatch):
    """
    A machine that is gone for good is given up after a bounded number of tries.
    """
    monkeypatch.setattr(jobs, "WAITS_S", (0.1, 0.1))
    server.install(script=f"touch {server.folder}/began; sleep 60\n")
    thread = threading.Thread(target=lambda: appears(server.folder / "began") and server.stop())
    thread.start()
    with pytest.raises(TargetError, match="nothing answers at its port"):
        run(server)
    thread.join()


def test_command_that_is_killed_there(server):
    """
    A command that is ended from outside has no result, and is told as such.
    """
    server.install(script='echo half; kill -9 "$PPID"; sleep 20\n')
    with pytest.raises(TargetError, match="was ended from outside before it was done"):
        run(server)
    assert [] == leftovers(server)


def test_work_that_is_given_up_ends_there(server):
    """
    When the rest is given up, the command there is ended too, and its folder goes.
    """
    server.install(
        script=f'trap "touch {server.folder}/ended; exit 1" TERM; touch {server.folder}/began; sleep 60 & wait\n'
    )
    stopped = threading.Event()
    thread = threading.Thread(target=lambda: appears(server.folder / "began") and stopped.set())
    thread.start()
    with pytest.raises(TargetError, match="ended with the rest"):
        run(server, stopped=stopped)
    thread.join()
    assert appears(server.folder / "ended")
    assert [] == leftovers(server)


def test_answer_without_end_is_refused(server, monkeypatch):
    """
    A document that is greater than any of ours is not taken.
    """
    monkeypatch.setattr("coordatt_deploy.targets.ssh.place.MOST_BYTES", 1000)
    server.install(script="yes | head -c 200000\n")
    with pytest.raises(TargetError, match="more than 66,536 bytes"):
        run(server)
