"""The system's ssh against a real sshd: what goes through, what is said when nothing does."""

import threading

import pytest
from ssh_server import needs_sshd

from coordatt_deploy.errors import LostConnectionError, MissingDependencyError, TargetError, UsageError
from coordatt_deploy.targets.ssh.address import SshAddress, parse_address
from coordatt_deploy.targets.ssh.connection import Connection
from coordatt_deploy.targets.ssh.files import folders_there

pytestmark = needs_sshd


@pytest.fixture
def connection(server):
    with Connection(parse_address(server.address), connect_s=5) as found:
        yield found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh://pi", SshAddress("pi")),
        ("ssh://ann@pi4.local:2222", SshAddress("pi4.local", "ann", 2222)),
        ("ssh://ann@[fe80::1%eth0]:22", SshAddress("fe80::1%eth0", "ann", 22)),
        ("ssh://my_board", SshAddress("my_board")),
    ],
)
def test_address_is_read_and_written(text, expected):
    """
    An address is read, and written as it was read.
    """
    assert expected == parse_address(text)
    assert text == str(expected)


@pytest.mark.parametrize(
    "text",
    [
        "pi", "ssh://", "ssh://-oProxyCommand=sh", "ssh://-l@pi", "ssh://a b", "ssh://pi\n", "ssh://pi/etc", "ssh://pi?x",
        "ssh://pi:0", "ssh://pi:65536", "ssh://pi:x", "ssh://pi:", "ssh://@pi", "ssh://ann;id@pi", "ssh://pi;id",
        "ssh://fe80::1", "ssh://[fe80::1", "ssh://[pi]", "ssh://[::1%-o]x", "ssh://pi\x1b[31m", "ssh://\u202epi",
    ],
)  # fmt: skip
def test_address_that_could_be_something_else_is_refused(text):
    """
    What ssh or a shell could take for an option, a path or a command is refused, with the form that is expected.
    """
    with pytest.raises(UsageError, match="ssh://"):
        parse_address(text)


def test_password_is_refused_and_not_repeated():
    """
    A password in an address is refused, and the message doesn't hold it.
    """
    with pytest.raises(UsageError, match="ssh-copy-id") as refused:
        parse_address("ssh://ann:hunter2@pi")
    assert "hunter2" not in str(refused.value)


def test_place_is_a_name():
    """
    Two machines behind one address are two places.
    """
    assert "pi4.local" == parse_address("ssh://ann@Pi4.local").place
    assert "127.0.0.1-2222" == parse_address("ssh://127.0.0.1:2222").place
    assert "fe80-1-eth0" == parse_address("ssh://[fe80::1%eth0]").place


def test_words_arrive_as_they_are(connection, server):
    """
    Blanks, quotes, dollars, line breaks and backslashes in words and in the home folder mean nothing to any shell.
    """
    words = ["a b", "it's", '"q"', "$HOME", "`id`", "x\ny", "\\", "*", "", "-n", "é", "; exit 7"]
    answer = connection.run(["printf", "%s\\0", *words])
    assert 0 == answer.status
    assert [*words, ""] == answer.stdout.decode().split("\0")
    assert f"{server.home}\n" == connection.run(["pwd"]).stdout.decode()


def test_stdin_status_and_stderr(connection, tmp_path):
    """
    A command reads what it is given, and its status and last words come back; also status 255, which is ssh's own.
    """
    blob = bytes(range(256)) * 5000
    (tmp_path / "blob").write_bytes(blob)
    assert blob == connection.run(["cat"], stdin=tmp_path / "blob", most_bytes=len(blob)).stdout
    assert b"" == connection.run(["cat"]).stdout
    failed = connection.run(["sh", "-c", "echo one >&2; echo two >&2; exit 3"])
    assert (3, "two") == (failed.status, failed.reason)
    assert 254 == connection.run(["sh", "-c", "exit 255"]).status
    with pytest.raises(TargetError, match="cannot list it: "):
        connection.check(["ls", "/nowhere"], "list it")


def test_greeting_of_a_login_shell_is_no_answer(connection, server):
    """
    What a login shell prints before a command is no part of its answer, however it ends; nor of the line of one that is
    held.
    """
    login = server.folder / "login"
    login.write_text(f"echo /etc; seq 1000; printf '/opt/x'\n{login.read_text()}")
    assert b"here\n" == connection.run(["echo", "here"], most_bytes=5).stdout
    assert b"" == connection.run(["true"]).stdout
    assert str(server.home) == str(folders_there(connection).home)
    with connection.held(["sh", "-c", "echo ready; cat >/dev/null"]) as said:
        assert "ready" == said


def test_login_shell_that_runs_nothing_is_told(connection, server):
    """
    A login shell that ends by itself, content, is not taken for the command that it was to run.
    """
    connection.connect()
    (server.folder / "login").write_text("echo under repair\nexit 0\n")
    with pytest.raises(TargetError, match="did not run true: its login shell said 'under repair'"):
        connection.run(["true"])


def test_many_commands_share_one_connection(connection, server):
    """
    The second command doesn't log in again.
    """
    for _ in range(3):
        connection.run(["true"])
    log = (server.folder / "sshd.log").read_text()
    assert 1 == log.count("Accepted publickey")


def test_too_long_an_answer_is_refused(connection):
    """
    A machine that answers without end is cut off.
    """
    with pytest.raises(TargetError, match="more than 1,000 bytes"):
        connection.run(["yes"], most_bytes=1000)
    assert b"here\n" == connection.run(["echo", "here"]).stdout


def test_too_slow_an_answer_is_given_up(connection):
    """
    A command that takes too long is given up.
    """
    with pytest.raises(TargetError, match=r"did not finish sleep in 0\.5 s"):
        connection.run(["sleep", "20"], timeout_s=0.5)


def test_stderr_of_another_machine_steers_no_terminal(connection):
    """
    Escapes in what a machine says are shown and not obeyed, and it is cut to a line.
    """
    reason = connection.run(["sh", "-c", "printf '\\033[2Jx%01000d' 0 >&2; exit 1"]).reason
    assert reason.startswith("\\x1b[2Jx")
    assert len(reason) == 300


def test_connection_that_is_cut_is_told_and_made_again(connection, server):
    """
    A cut in the midst of a command is an error of its own kind; the next command connects again.
    """
    connection.run(["true"])
    cut = threading.Timer(0.5, server.cut)
    cut.start()
    with pytest.raises(LostConnectionError, match="the connection was lost"):
        connection.run(["sleep", "20"])
    cut.join()
    assert b"back\n" == connection.run(["echo", "back"]).stdout


def test_nothing_at_the_port(connection, server):
    """
    A machine that does not answer is told in one line, with exit code 3.
    """
    server.stop()
    with pytest.raises(TargetError, match="nothing answers at its port; is sshd running") as told:
        connection.run(["true"])
    assert 3 == told.value.exit_code
    assert "\n" not in str(told.value)


def test_host_key_that_changed(connection, server):
    """
    A machine with another key than the known one is not used.
    """
    server.know_host("stranger")
    with pytest.raises(TargetError, match=r"its host key is not the one that is known.*ssh-keygen -R"):
        connection.run(["true"])


def test_host_key_that_is_not_known(connection, server):
    """
    A machine that the user never accepted is not used, and nobody is asked.
    """
    server.know_host(None)
    with pytest.raises(TargetError, match=r"its host key is not known; compare and accept it once by hand: ssh -p"):
        connection.run(["true"])


def test_no_key_that_is_accepted(connection, server):
    """
    A machine that doesn't accept the user's key is told, with how to let it know the key.
    """
    (server.folder / "authorized_keys").write_text((server.folder / "stranger.pub").read_text())
    with pytest.raises(TargetError, match=r"lets nobody in with the keys that ssh has.*ssh-copy-id"):
        connection.run(["true"])


def test_name_that_nobody_knows(server):
    """
    A mistyped name is told as such; one of the user's ssh configuration is found.
    """
    with (
        Connection(parse_address("ssh://no-such-board.invalid")) as connection,
        pytest.raises(TargetError, match="no machine of this name is known"),
    ):
        connection.run(["true"])
    server.know_host("host")
    with Connection(parse_address("ssh://board")) as connection:
        assert b"there\n" == connection.run(["echo", "there"]).stdout


def test_without_ssh_here(server, monkeypatch):
    """
    Without ssh here, the line says what to install.
    """
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        Connection(parse_address(server.address)) as connection,
        pytest.raises(MissingDependencyError, match="apt-get install openssh-client"),
    ):
        connection.run(["true"])
