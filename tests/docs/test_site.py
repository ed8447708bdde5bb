"""The documentation as a site: it builds without a warning, and its reference is made from the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import coordatt_deploy
from coordatt_deploy import api
from coordatt_deploy.cli import main

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder / "site"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={"NO_MKDOCS_2_WARNING": "1", "PATH": ""}
    )
    assert 0 == done.returncode, done.stderr
    assert "WARNING" not in done.stderr
    return folder / "site"


def text_of(page):
    """What a reader sees, without tags."""
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


def test_every_command_is_there_with_its_options(site):
    """
    As it prints them itself.
    """
    text = text_of(site / "reference" / "commands" / "index.html")

    assert all(f"Usage: coordatt-deploy {name}" in text for name in main.list_commands(None))
    assert "--dynamic-batch" in text


def test_every_public_name_is_there(site):
    """
    With its arguments and errors.
    """
    text = text_of(site / "reference" / "python" / "index.html")

    assert all(name in text for name in coordatt_deploy.__all__ if not name.startswith("_"))
    assert all(name in text for name in vars(api.Bundle) if not name.startswith("_"))
    assert text.count("Raises:") >= 6


def test_a_broken_link_ends_it(tmp_path):
    """
    The negative: a page that does not exist.
    """
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("[gone](gone.md)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: broken\nstrict: true\n")

    done = subprocess.run([sys.executable, "-m", "mkdocs", "build"], cwd=tmp_path, capture_output=True, text=True)

    assert 0 != done.returncode
    assert "gone.md" in done.stderr
