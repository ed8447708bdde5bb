"""``coordatt-deploy report``."""

from pathlib import Path

import click

from coordatt_deploy.commands.options import PATH, bundle_argument, json_option
from coordatt_deploy.commands.output import print_document
from coordatt_deploy.documents import JsonValue


@click.command()
@bundle_argument
@click.option("--output", type=PATH, help="The file.  [default: BUNDLE/reports/report.html]")
@click.option(
    "--add",
    "added",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="Keep in the bundle what parity, profile or evaluate wrote on another machine, such as Core ML's on a Mac.",
)
@click.option("--as", "place", metavar="NAME", help="What to call that machine.  [default: its processor]")
@click.option("--csv", "table", type=PATH, help="Write what every place says of every file there as well, as CSV.")
@json_option
def report(
    bundle: Path, output: Path | None, added: tuple[Path, ...], place: str | None, table: Path | None, as_json: bool
) -> None:
    """Write everything known of a bundle into one HTML file.

    Verdicts, agreement layer by layer, latency with every sample, sizes, operators, machine and versions. The file
    needs no network and no script, and reads on a phone and on paper. Run parity and profile before. Where several
    places were asked, they stand side by side, and those that stand out are named.

    \b
    Example:
        coordatt-deploy report mobilenetv2_ca_035.digits
        coordatt-deploy report mobilenetv2_ca_035.digits --add parity-mac.json --as macmini-m2
        coordatt-deploy report mobilenetv2_ca_035.digits --csv places.csv
    """
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.added_results import add, read_addition
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.errors import UsageError
    from coordatt_deploy.logs import logged
    from coordatt_deploy.plurals import counted
    from coordatt_deploy.report.write import write_csv, write_page

    if place is not None and not added:
        raise UsageError("--as names the machine that --add is from; give --add FILE too")
    opened = open_bundle(bundle)
    with logged("report"):
        additions = [read_addition(opened, path, place) for path in added]
        add(opened, additions)
        path = write_page(opened, output)
        written = None if table is None else write_csv(opened, table)
    if as_json:
        kept: list[JsonValue] = [
            {"file": f"reports/{item.name}", "place": item.place, "command": item.command} for item in additions
        ]
        document: dict[str, JsonValue] = {"report": str(path), "added": kept}
        if written is not None:
            document["csv"] = str(written)
        print_document(document)
        return
    for item in additions:
        runs = counted(len(item.reports.runs), "run")
        click.echo(f"added {runs} of {item.command} on {item.place} as reports/{item.name}", err=True)
    click.echo(path)
