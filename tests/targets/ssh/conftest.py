"""A real sshd with a home folder that no careless quoting survives."""

import pytest
from ssh_server import SshServer

from coordatt_deploy.targets.ssh.connection import CONFIG


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A machine whose home folder has blanks and quotes in its path."""
    found = SshServer(tmp_path / "board", home='Ann\'s "home" $(x) é')
    monkeypatch.setenv(CONFIG, str(found.config))
    yield found
    found.stop()
