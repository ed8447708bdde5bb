"""What commands print: a result as one JSON document on stdout, notes on stderr."""

import json
from collections.abc import Iterable, Mapping

import click

from coordatt_deploy.documents import SCHEMA_VERSION


def print_document(document: Mapping[str, object]) -> None:
    """Print strict JSON that begins with its schema version, the document's own or the current one.

    Raises:
        ValueError: A number in it is not finite.
    """
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION} | dict(document), indent=2, allow_nan=False))


def print_notes(notes: Iterable[str]) -> None:
    """Say on stderr what was assumed, renamed or left out."""
    for note in notes:
        click.echo(f"note: {note}", err=True)
