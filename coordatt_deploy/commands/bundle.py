"""``coordatt-deploy bundle``."""

from dataclasses import dataclass
from pathlib import Path

import click

from coordatt_deploy.commands.options import (
    PATH,
    artifact_option,
    bundle_argument,
    format_option,
    gathered,
    json_option,
)
from coordatt_deploy.commands.output import print_result
from coordatt_deploy.formats import Format


@dataclass(frozen=True, slots=True)
class PackOptions:
    """What is packed, and where.

    Attributes:
        output: The archive; None for the bundle's name with ``.zip`` behind it, in the working folder.
        formats: Empty for all.
        artifacts: Empty for all.
        reference: Whether the captured graph goes with them.
        reports: Whether results do.
    """

    output: Path | None = None
    formats: tuple[Format, ...] = ()
    artifacts: tuple[str, ...] = ()
    reference: bool = True
    reports: bool = True


@click.group()
def bundle() -> None:
    """Pack a bundle into one file, and unpack it.

    The file is a .zip with a sha256 of everything in it. "verify" checks it where it is.

    \b
    Example:
        coordatt-deploy bundle pack mobilenetv2_ca_035.digits
        coordatt-deploy bundle unpack mobilenetv2_ca_035.digits.zip
    """


@bundle.command()
@bundle_argument
@gathered(
    PackOptions(),
    click.option("--output", type=PATH, metavar="FILE.zip", help="The archive.  [default: BUNDLE.zip, here]"),
    format_option("Only these."),
    artifact_option(),
    click.option(
        "--reference/--no-reference",
        default=True,
        help="Whether the captured graph goes along, which only machines with torch can use.  [default: it does]",
    ),
    click.option("--reports/--no-reports", default=True, help="Whether results go along.  [default: they do]"),
)
@json_option
def pack(options: PackOptions, bundle: Path, as_json: bool) -> None:
    """Write BUNDLE into one .zip file, with a checksum of everything in it.

    The same bundle gives the same bytes, whenever and wherever it is packed with the same zlib. Every hash is compared
    on the way: a bundle that is damaged is refused. A file that is there is replaced when the new one is whole.

    \b
    Example:
        coordatt-deploy bundle pack mobilenetv2_ca_035.digits
        coordatt-deploy bundle pack mobilenetv2_ca_035.digits --format onnx --no-reference --output board.zip
    """
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.packing.archive import SUFFIX, pack
    from coordatt_deploy.packing.contents import Choice
    from coordatt_deploy.plurals import counted
    from coordatt_deploy.report.terminal.console import new_console, say

    opened = open_bundle(bundle, verify=False)  # what is packed is hashed on the way
    output = options.output or Path(f"{bundle.resolve().name}{SUFFIX}")
    done = pack(opened, output, Choice(options.formats, options.artifacts, options.reference, options.reports))
    if as_json:
        print_result(done)
    else:
        console = new_console()
        what = f"{counted(done.files, 'file')}, {counted(len(done.artifacts), 'artifact')}"
        say(console, f"{output}: {what}, {done.bytes:,} of {done.unpacked_bytes:,} bytes", style="bold green")
        say(console, f"sha256 {done.sha256}")


@bundle.command()
@click.argument("file", type=PATH)
@click.option(
    "--output-dir",
    type=PATH,
    help="The bundle's folder, which must not be there yet.  [default: FILE without .zip, here]",
)
@json_option
def unpack(file: Path, output_dir: Path | None, as_json: bool) -> None:
    """Make a bundle of FILE, which "bundle pack" wrote.

    FILE may come from anybody: paths that lead out, links, names that are one file on some systems, and more or larger
    files than a bundle has are refused before anything is unpacked. Each file is compared with its hash as it is
    written, and the folder takes its place when all of it is there.

    \b
    Example:
        coordatt-deploy bundle unpack mobilenetv2_ca_035.digits.zip
        coordatt-deploy bundle unpack board.zip --output-dir net
    """
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.packing.archive import SUFFIX, unpack
    from coordatt_deploy.plurals import counted
    from coordatt_deploy.report.terminal.console import new_console, say

    name = file.name[: -len(SUFFIX)] if file.name.lower().endswith(SUFFIX) else f"{file.name}.bundle"
    done = unpack(file, output_dir or Path(name or "bundle"))
    if as_json:
        print_result(done)
    else:
        what = f"{counted(done.files, 'file')}, {counted(len(done.artifacts), 'artifact')}"
        say(new_console(), f"{done.bundle}: {what}, {done.unpacked_bytes:,} bytes, all as packed", style="bold green")
