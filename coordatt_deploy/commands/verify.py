"""``coordatt-deploy verify``."""

import sys
from pathlib import Path

import click

from coordatt_deploy.commands.options import bundle_argument, json_option
from coordatt_deploy.commands.output import print_result


@click.command()
@bundle_argument
@json_option
def verify(bundle: Path, as_json: bool) -> None:
    """Say whether a bundle's files are as they were written, by their hashes alone.

    Nothing is run and nothing is written. Exit code 1 where a file is missing or was changed; each is named.

    \b
    Example:
        coordatt-deploy verify mobilenetv2_ca_035.digits
    """
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import FileState, open_bundle, verified
    from coordatt_deploy.report.terminal.console import line, new_console

    found = verified(open_bundle(bundle, verify=False))
    if as_json:
        print_result(found)
    else:
        console = new_console()
        for item in found.files:
            if item.state is not FileState.AS_WRITTEN:
                console.print(line(f"{item.path}: {item.state}", style="bold red"))
        wrong = sum(item.state is not FileState.AS_WRITTEN for item in found.files)
        count = f"{len(found.files)} file{'s' if len(found.files) != 1 else ''}"
        console.print(
            line(
                f"{bundle}: {count}, all as written" if found.intact else f"{bundle}: {wrong} of {count} not as written"
            )
        )
    sys.exit(0 if found.intact else 1)
