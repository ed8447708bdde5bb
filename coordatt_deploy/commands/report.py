"""``coordatt-deploy report``."""

from pathlib import Path

import click

from coordatt_deploy.commands.options import PATH, bundle_argument, json_option
from coordatt_deploy.commands.output import print_document


@click.command()
@bundle_argument
@click.option("--output", type=PATH, help="The file.  [default: BUNDLE/reports/report.html]")
@json_option
def report(bundle: Path, output: Path | None, as_json: bool) -> None:
    """Write everything known of a bundle into one HTML file.

    Verdicts, agreement layer by layer, latency with every sample, sizes, operators, machine and versions. The file
    needs no network and no script, and reads on a phone and on paper. Run parity and profile before.

    \b
    Example:
        coordatt-deploy report mobilenetv2_ca_035.digits
    """
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.logs import logged
    from coordatt_deploy.report.write import write_page

    opened = open_bundle(bundle)
    with logged("report"):
        path = write_page(opened, output)
    if as_json:
        print_document({"report": str(path)})
    else:
        click.echo(path)
