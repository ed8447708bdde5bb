"""Put the help of every command on the page of commands, as the command itself prints it."""

from typing import Final

import click
from mkdocs.structure.pages import Page

from coordatt_deploy.cli import main
from coordatt_deploy.commands.config import TABLES, options_of

KEYS: Final = """What `--config` takes, by table ([how](../how-to/repeat.md)):

| table | key | |
|---|---|---|
"""
PAGE: Final = "reference/commands.md"
WIDTH: Final = 78  # columns that fit on the page


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Add a section for each command; called by MkDocs for each page."""
    if page.file.src_uri != PAGE:
        return markdown
    context = click.Context(main, info_name="coordatt-deploy", terminal_width=WIDTH, max_content_width=WIDTH)
    sections = [markdown]
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None  # noqa: S101 - it was listed
        with click.Context(
            command, info_name=name, parent=context, terminal_width=WIDTH, max_content_width=WIDTH
        ) as inner:
            sections.append(f"## {name}\n\n```text\n{command.get_help(inner)}\n```\n")
            if isinstance(command, click.Group):
                sections += [_subcommand(inner, command.commands[each]) for each in command.list_commands(inner)]
        if name == "build":
            sections.append(_keys(command))
    return "\n".join(sections)


def _subcommand(group: click.Context, command: click.Command) -> str:
    """The help of a command of a group, without a line of its own in the page's contents."""
    with click.Context(
        command, info_name=command.name, parent=group, terminal_width=WIDTH, max_content_width=WIDTH
    ) as inner:
        return f"```text\n{command.get_help(inner)}\n```\n"


def _keys(command: click.Command) -> str:
    """The keys of the file that ``--config`` names, as a table."""
    options = options_of(command)
    rows = [
        f"| `[{table}]` | `{key}` | {(options[key].help or '').replace('|', chr(92) + '|')} |"
        for table, keys in TABLES.items()
        for key in keys
    ]
    return KEYS + "\n".join(rows) + "\n"
