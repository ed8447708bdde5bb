"""``coordatt-deploy doctor``."""

import click

from coordatt_deploy.commands.options import json_option
from coordatt_deploy.commands.output import print_document
from coordatt_deploy.documents import object_of, to_json


@click.command()
@click.option("--setup", "to_set_up", metavar="TARGET", help="Build what a target needs: qemu-arm64. No root needed.")
@click.option("--empty-cache", is_flag=True, help="Remove what earlier builds have made and kept.")
@json_option
def doctor(to_set_up: str | None, empty_cache: bool, as_json: bool) -> None:
    """Say what this machine has and what is missing.

    \b
    Example:
        coordatt-deploy doctor
        coordatt-deploy doctor --setup qemu-arm64
        coordatt-deploy doctor --empty-cache
    """
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy import targets
    from coordatt_deploy.inspection.installation import examine
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal.doctor import show_doctor, show_emptied
    from coordatt_deploy.stage_cache.store import default_cache

    if to_set_up is not None:
        with console.bars() as stages:
            targets.setup(to_set_up, stages.progress)
    cache = default_cache()
    emptied = cache.empty() if empty_cache else None
    findings, statuses, kept = examine(), targets.statuses(), cache.status()
    if as_json:
        print_document(object_of(findings) | {"targets": to_json(statuses), "cache": to_json(kept)})
    else:
        show_doctor(findings, statuses, kept)
        if emptied is not None:
            show_emptied(emptied)
