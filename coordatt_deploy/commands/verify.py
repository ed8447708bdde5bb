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

    BUNDLE is a folder, or the .zip file of "bundle pack"; in that reports are compared as well. Nothing is run and
    nothing is written. Exit code 1 where a file is missing or was changed; each is named.

    \b
    Example:
        coordatt-deploy verify mobilenetv2_ca_035.digits
        coordatt-deploy verify mobilenetv2_ca_035.digits.zip
    """
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import FileState, open_bundle, verified
    from coordatt_deploy.packing.archive import verified_archive
    from coordatt_deploy.plurals import counted, of_total, verb
    from coordatt_deploy.report.terminal.console import new_console, say
    from coordatt_deploy.report.terminal.tables import show_below

    found = verified_archive(bundle) if bundle.is_file() else verified(open_bundle(bundle, verify=False))
    if as_json:
        print_result(found)
    else:
        console, total = new_console(), len(found.files)
        wrong = [item for item in found.files if item.state is not FileState.AS_WRITTEN]
        if wrong:
            text = f"{bundle}: {of_total(len(wrong), total, 'file')} {verb(len(wrong), 'is')} not as written"
            say(console, text, style="bold red")
        else:
            say(console, f"{bundle}: {counted(total, 'file')}, all as written", style="bold green")
        for item in wrong:
            show_below(console, f"{item.path}: {item.state}", style="red")
    sys.exit(0 if found.intact else 1)
