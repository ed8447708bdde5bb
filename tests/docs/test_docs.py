"""The README and docs speak of the command line that is there."""

import re
import shlex
from pathlib import Path

import click
import pytest

from coordatt_deploy.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _commands(text):
    """Every ``coordatt-deploy …`` line of a page, its comment and its prompt left out."""
    lines = re.findall(r"^(?:\$ )?(?:\.venv/bin/)?coordatt-deploy (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_of_a_page_is_understood(page):
    """
    The command exists, and so does every option it is shown with.
    """
    for name, *words in _commands(page.read_text(encoding="utf-8")):
        if name.startswith("-"):
            continue
        assert name in COMMANDS, f"{page.name}: {name}"
        command = main.get_command(click.Context(main), name)
        if isinstance(command, click.Group) and words:
            assert words[0] in command.commands, f"{page.name}: {name} {words[0]}"
            command = command.commands[words[0]]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - known
        assert set() == unknown, f"{page.name}: coordatt-deploy {name} {' '.join(words)}"


def test_the_readme_lists_every_command():
    """
    One row each, and none of commands that are not there.
    """
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Commands")[2].partition("\n## ")[0]

    assert set(COMMANDS) == set(re.findall(r"^\| `([a-z-]+)[ `]", table, re.MULTILINE))


def test_links_lead_to_files_of_the_repository():
    """
    A page that was moved is a broken promise.
    """
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
