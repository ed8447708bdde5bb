"""``coordatt-deploy deploy``."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import click

from coordatt_deploy.commands.options import PATH, artifact_option, format_option, gathered, json_option
from coordatt_deploy.commands.output import print_result
from coordatt_deploy.commands.places import PlaceOptions
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """What goes where, and what becomes of it there.

    Attributes:
        places: The boards.
        formats: Empty for all.
        artifacts: Empty for all.
        folder: On the boards; None for the usual one.
        keep: Versions that stay there.
        parity: Whether each board has to prove the bundle.
        rollback: Whether boards go back to the version before.
        dry_run: Whether boards are only asked what would be done.
    """

    places: PlaceOptions = field(default_factory=PlaceOptions)
    formats: tuple[Format, ...] = ()
    artifacts: tuple[str, ...] = ()
    folder: str | None = None
    keep: int = 3
    parity: bool = True
    rollback: bool = False
    dry_run: bool = False


@click.command()
@click.argument("bundle", type=PATH, required=False)
@gathered(
    DeployOptions(),
    click.option("--target", "targets", multiple=True, help="A board: ssh://[USER@]HOST[:PORT]. Repeatable."),
    click.option("--targets", "fleet", type=PATH, help="A TOML file of boards: fleet.toml."),
    click.option("--group", help="Only the boards of that file that are in this group."),
    format_option("Only these."),
    artifact_option(),
    click.option(
        "--folder", metavar="PATH", help="On the boards, from the home folder there.  [default: coordatt-deploy]"
    ),
    click.option(
        "--keep",
        type=click.IntRange(min=1),
        default=3,
        help="Versions that stay there, with the current.  [default: 3]",
    ),
    click.option(
        "--parity/--no-parity",
        default=True,
        help="Whether each board proves the bundle before it switches; without that hashes alone are compared."
        "  [default: it does]",
    ),
    click.option(
        "--rollback", is_flag=True, help="Switch to the version before; with a BUNDLE only where that is current."
    ),
    click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing."),
)
@json_option
def deploy(options: DeployOptions, bundle: Path | None, as_json: bool) -> None:
    """Bring a bundle to boards: copy, prove it there, switch; or roll back.

    On each board the files that it lacks are copied over SSH and compared with their hashes, parity is proven by its
    own runtimes, and then the link "current" is exchanged in one step. A board on which anything fails keeps its
    version. Exit code 1 if parity failed on a board, else 3 if one could not be reached or was left as it was.

    \b
    Example:
        coordatt-deploy deploy mobilenetv2_ca_035.digits --target ssh://ann@pi4.local
        coordatt-deploy deploy mobilenetv2_ca_035.digits --targets fleet.toml --group pilot --format tflite
        coordatt-deploy deploy --rollback --targets fleet.toml --group pilot
    """
    if bundle is None and not options.rollback:
        raise UsageError("deploy needs a BUNDLE; only --rollback does without")
    if options.rollback and (not options.parity or options.keep != DeployOptions().keep):
        raise UsageError("--rollback neither proves nor removes a version; leave out --no-parity and --keep")
    if bundle is None and (options.formats or options.artifacts):
        raise UsageError(
            "--format and --artifact say which version of a bundle is meant; give the BUNDLE too, or leave them out to"
            " go back to whatever was there before"
        )
    fleet = options.places.places()
    if fleet is None:
        got = f", and --target is {options.places.targets[0]!r}" if options.places.targets else ""
        raise UsageError(
            f"deploy needs boards that ssh reaches{got}; give --target ssh://HOST, or a file of them: --targets"
            " fleet.toml"
        )
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.fleet import deploy as run
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal.deploy import show_deployment

    plan = run.DeployPlan(
        choice=replace(run.TRAVELS, formats=options.formats, artifacts=options.artifacts),
        folder=options.folder or run.FOLDER,
        keep=options.keep,
        parity=options.parity,
        dry_run=options.dry_run,
        at_once=fleet.at_once,
    )
    opened = None if bundle is None else open_bundle(bundle, verify=False)  # what travels is hashed
    with console.bars() as stages:
        if options.rollback or opened is None:
            result = run.roll_back(fleet.hosts, plan, stages, opened)
        else:
            result = run.deploy(opened, fleet.hosts, plan, stages)
    if as_json:
        print_result(result)
    else:
        show_deployment(result)
    sys.exit(result.exit_code)
