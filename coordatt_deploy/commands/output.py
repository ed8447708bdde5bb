"""What commands print: a result as one JSON document on stdout, notes on stderr."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import click

from coordatt_deploy.documents import SCHEMA_VERSION, Document, JsonObject, JsonValue, dump, object_of, write
from coordatt_deploy.plain_text import plain
from coordatt_deploy.progress import VERBOSITY, Verbosity


def document_of(result: Document) -> JsonObject:
    """Return a result as an object that begins with its schema version, for use inside another."""
    return {"schema_version": result.VERSION} | object_of(result)


def print_result(result: Document) -> None:
    """Print a result as strict JSON that begins with its schema version."""
    click.echo(dump(result, indent=2), nl=False)


def print_document(document: Mapping[str, JsonValue]) -> None:
    """Print strict JSON that begins with its schema version, the document's own or the current one.

    Raises:
        ValueError: A number in it is not finite.
    """
    click.echo(write({"schema_version": SCHEMA_VERSION} | dict(document), indent=2), nl=False)


def print_notes(notes: Iterable[str]) -> None:
    """Say on stderr what was assumed, renamed or left out; nothing if quiet."""
    for note in () if VERBOSITY.get() is Verbosity.QUIET else notes:
        click.echo(f"note: {plain(note)}", err=True)


@contextmanager
def refusals_told() -> Iterator[None]:
    """Show which files could not be written where that is why the block fails: one line cannot hold it."""
    # The commands that write files have loaded it when they come here: see coordatt_deploy.cli.
    from coordatt_deploy.conversion.refusals import NothingWrittenError
    from coordatt_deploy.report.terminal.build import show_refused

    try:
        yield
    except NothingWrittenError as error:
        show_refused(error.refused)
        raise
