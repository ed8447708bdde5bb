"""``coordatt-deploy doctor``."""

import click

from coordatt_deploy.commands.options import gathered, json_option
from coordatt_deploy.commands.output import print_notes, print_result
from coordatt_deploy.commands.places import PlaceOptions, place_options
from coordatt_deploy.errors import UsageError


@click.command()
@click.option(
    "--setup",
    "to_set_up",
    metavar="TARGET",
    help="Build what a target needs: qemu-arm64, or ssh://[USER@]HOST[:PORT]. No root needed.",
)
@gathered(PlaceOptions(), *place_options("Say what another machine has:"))
@click.option("--empty-cache", is_flag=True, help="Remove what earlier builds have made and kept.")
@json_option
def doctor(places: PlaceOptions, to_set_up: str | None, empty_cache: bool, as_json: bool) -> None:
    """Say what this machine has and what is missing.

    With --setup ssh://HOST, a virtual environment with this package and its runtimes is made there, from wheels: from
    the index that the machine has, or else from wheels that are downloaded here for its Python and CPU.

    \b
    Example:
        coordatt-deploy doctor
        coordatt-deploy doctor --setup qemu-arm64
        coordatt-deploy doctor --setup ssh://pi@pi4.local
        coordatt-deploy doctor --target ssh://pi@pi4.local
        coordatt-deploy doctor --empty-cache
    """
    fleet = places.places()
    if places.one is not None and fleet is None:
        raise UsageError(f"doctor tells of {places.one} without --target; leave it out")
    if fleet is not None and fleet.emulated:
        raise UsageError(f"doctor tells of {fleet.emulated[0]} without --target; leave it out")
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.inspection.installation import installation
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal.doctor import show_doctor, show_emptied
    from coordatt_deploy.stage_cache.store import default_cache
    from coordatt_deploy.targets.places import open_place

    if to_set_up is not None:
        with console.bars() as stages:
            done = open_place(to_set_up).set_up(stages)
        print_notes(done)
    if fleet is not None:
        # they bring what judges
        from coordatt_deploy.commands.orders import show
        from coordatt_deploy.fleet.run import examine_places

        with console.bars() as stages:
            result = examine_places(fleet, stages)
        show(result, as_json=as_json)
    cache = default_cache()
    emptied = cache.empty() if empty_cache else None
    findings = installation(cache.status())
    if as_json:
        print_result(findings)
    else:
        show_doctor(findings, findings.targets, findings.cache)
        if emptied is not None:
            show_emptied(emptied)
