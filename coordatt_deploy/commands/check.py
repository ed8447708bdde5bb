"""``coordatt-deploy check``."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from coordatt_deploy.commands.options import PATH, bundle_argument, gathered, json_option
from coordatt_deploy.commands.output import print_result


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What to hold the bundle to, and where the verdicts go.

    Attributes:
        budgets: The file of budgets.
        junit: A further file for the verdicts.
        annotations: Print them as GitHub's runners read them; None where GITHUB_ACTIONS says so.
    """

    budgets: Path = Path("budgets.toml")
    junit: Path | None = None
    annotations: bool | None = None


@click.command()
@bundle_argument
@gathered(
    CheckOptions(),
    click.option(
        "--budgets",
        type=PATH,
        default=Path("budgets.toml"),
        help="The file of budgets.  [default: budgets.toml]",
    ),
    click.option("--junit", type=PATH, help="Write the verdicts there as JUnit XML as well."),
    click.option(
        "--annotations/--no-annotations",
        default=None,
        help="Print GitHub annotations as well.  [default: where GITHUB_ACTIONS is true]",
    ),
)
@json_option
def check(options: CheckOptions, bundle: Path, as_json: bool) -> None:
    """Hold a bundle's files to budgets.

    Sections of the file are [size], [latency], [instructions], [parity], [accuracy], [operators], [partitions],
    [memory] and [cold_start]; a line names files and what they are held to: onnx.fp32 = "12 ms", or "1.05 x baseline".
    Nothing is run: figures are those that parity, profile and evaluate left. Exit code 1 where a budget is exceeded,
    and where one cannot be decided unless the file says undecided = "pass".

    \b
    Example:
        coordatt-deploy check mobilenetv2_ca_035.digits --budgets budgets.toml --junit budgets.xml
    """
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.release.check import check as held
    from coordatt_deploy.report.budgets import annotations, junit
    from coordatt_deploy.report.terminal.budgets import show_budgets
    from coordatt_deploy.report_file import check_folder, write_text

    if options.junit is not None:
        check_folder(options.junit)
    result = held(open_bundle(bundle), options.budgets)
    if options.junit is not None:
        write_text(options.junit, junit(result))
    if as_json:
        print_result(result)
    else:
        show_budgets(result)
    annotated = os.environ.get("GITHUB_ACTIONS") == "true" if options.annotations is None else options.annotations
    for line in annotations(result) if annotated else ():
        click.echo(line, err=as_json)
    sys.exit(result.exit_code)
