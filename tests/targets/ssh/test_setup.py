"""``doctor --setup ssh://…``: what a machine has to have, and a whole environment made there."""

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_bundle import float_bundle
from ssh_server import SshServer, needs_sshd

from coordatt_deploy import __version__
from coordatt_deploy.cli import main
from coordatt_deploy.documents import load
from coordatt_deploy.errors import MissingDependencyError, TargetError
from coordatt_deploy.fleet.result import FleetResult
from coordatt_deploy.progress import Stages
from coordatt_deploy.targets.ssh import setup
from coordatt_deploy.targets.ssh.address import parse_address
from coordatt_deploy.targets.ssh.connection import CONFIG, Connection
from coordatt_deploy.targets.ssh.setup import PythonThere, ask_python, wheels_for

pytestmark = needs_sshd


def with_python(server, script):
    """Let the machine's python3 be a script."""
    server.install()
    path = server.folder / "bin/python3"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def said(**values):
    known = {"version": [3, 11], "machine": "aarch64", "system": "linux", "libc": ["glibc", "2.36"]} | values
    return f"echo '{json.dumps(known)}'"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (said(version=[3, 9]), r"has Python 3\.9, and 3\.11 or later is needed; install it there"),
        ("echo broken >&2; exit 127", r"has no python3 that works \(broken\); install it there"),
        ("echo Welcome", "does not say what it is"),
        (said(version="3.11"), "does not say what it is"),
    ],
)
def test_python_that_does_not_do(server, script, told):
    """
    A missing, old or odd Python is told in a line with what to install.
    """
    with_python(server, script)
    with Connection(parse_address(server.address)) as connection, pytest.raises(TargetError, match=told):
        ask_python(connection)


def test_wheels_are_chosen_for_the_other_machine(server):
    """
    Wheels may be of the machine's C library or an older one; without glibc none is known.
    """
    with_python(server, said())
    with Connection(parse_address(server.address)) as connection:
        python = ask_python(connection)
    assert ("manylinux_2_36_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64") == (
        python.platforms[0], *python.platforms[-2:],
    )  # fmt: skip
    other = PythonThere((3, 12), "aarch64", "linux", ("", ""))
    assert () == other.platforms
    with pytest.raises(MissingDependencyError, match="no wheels are known for linux on aarch64 with no glibc"):
        wheels_for(other, Path("own.whl"), Path("nowhere"))


def test_setup_that_fails_leaves_the_environment_that_was_there(server, tmp_path, monkeypatch):
    """
    Also where it is of the same wheel; and a link that a killed setup left behind leads nothing astray.
    """
    with_python(
        server,
        f"""
if [ "$2" != venv ]; then {said()}; exit 0; fi
mkdir -p "$3/bin" && cd "$3/bin" || exit 1
printf '#!/bin/sh\ntest ! -e "$HOME/broken"\n' >python
printf '#!/bin/sh\necho version {__version__}\n' >coordatt-deploy
chmod +x *""",
    )
    wheel = tmp_path / "coordatt_deploy-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    monkeypatch.setattr(setup, "own_wheel", lambda _: wheel)
    data = server.home / ".local/share/coordatt-deploy"
    with Connection(parse_address(server.address)) as connection:
        setup.set_up(connection, Stages())
        (first,) = data.glob("venv-*")
        (server.home / "broken").touch()
        monkeypatch.setattr(setup, "wheels_for", lambda *_: [])
        with pytest.raises(TargetError, match="cannot install the wheels"):
            setup.set_up(connection, Stages())
        assert [first] == [*data.glob("venv-*")]
        assert first == (data / "venv").resolve()
        assert (data / "venv/bin/coordatt-deploy").is_file()
        (server.home / "broken").unlink()
        (data / "link.new").symlink_to(first.name)
        setup.set_up(connection, Stages())
        (second,) = data.glob("venv-*")
        assert first != second == (data / "venv").resolve()


@pytest.mark.slow
@pytest.mark.long
def test_machine_without_an_index_is_set_up(tmp_path, monkeypatch):
    """
    An environment without torch is made from wheels that are sent; then two places give one report.
    """
    server = SshServer(
        tmp_path / "board", home="home of ann",
        env={"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull},
    )  # fmt: skip
    monkeypatch.setenv(CONFIG, str(server.config))
    server.write_login(PATH=f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin")
    bundle = float_bundle(tmp_path / "net")
    try:
        made = CliRunner().invoke(main, ["doctor", "--setup", server.address, "--target", server.address, "--json"])
        assert 0 == made.exit_code, made.output
        assert "installed them there without an index" in made.stderr
        parts = load(FleetResult, made.stdout).places[0].found.installation.parts
        assert {"torch": None} == {part.name: part.version for part in parts if part.name == "torch"}
        for command in ("parity", "profile"):
            words = [command, str(bundle), "--target", "here", "--target", server.address, "--json"]
            words += ["--samples", "20", "--min-seconds", "0.05"] if command == "profile" else []
            done = CliRunner().invoke(main, words)
            assert 0 == done.exit_code, done.output
            assert [None, None] == [place.problem for place in load(FleetResult, done.stdout).places]
    finally:
        server.stop()
