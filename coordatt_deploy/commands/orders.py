"""A command that other places are to run: its words, and what is shown of what came back."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from coordatt_deploy.bundle import REPORTS, open_bundle
from coordatt_deploy.commands.output import print_result
from coordatt_deploy.fleet.plan import Fleet
from coordatt_deploy.fleet.result import FleetResult
from coordatt_deploy.fleet.run import judge_at_places
from coordatt_deploy.formats import Format
from coordatt_deploy.report.terminal import console
from coordatt_deploy.report.terminal.fleet import show_fleet
from coordatt_deploy.report.write import write_summaries
from coordatt_deploy.targets.places import Order, Travelling

Value = str | int | float | bool | Path | None


def word(name: str, *values: Value) -> list[str | Travelling]:
    """Return an option with each of its values; nothing for None, the name alone for True.

    A path is one of the user's own, which travels; links in it are followed.
    """
    words: list[str | Travelling] = []
    for value in values:
        if value is None or value is False:
            continue
        words.append(name)
        if isinstance(value, Path):
            words.append(Travelling(value, follow_links=True))
        elif value is not True:
            words.append(str(value))
    return words


def judged_at_places(
    command: str,
    bundle: Path,
    fleet: Fleet,
    words: Sequence[str | Travelling],
    formats: Sequence[Format],
    output: Path | None,
    *,
    as_json: bool,
    leave_out: tuple[str, ...] = (REPORTS,),
) -> NoReturn:
    """Run a judge at every place, show what came back, and end with the exit code.

    Args:
        command: ``parity``, ``profile`` or ``evaluate``.
        bundle: What is judged.
        fleet: The places.
        words: Of the command, but the bundle.
        formats: That are asked for; empty for all.
        output: A file for all that comes back, in place of the bundle's reports.
        as_json: Whether it is printed as a document.
        leave_out: What of the bundle does not travel.
    """
    with console.bars() as stages:
        opened = open_bundle(bundle)
        order = Order(command, (Travelling(bundle, leave_out=leave_out), *words))
        result = judge_at_places(opened, fleet, order, stages, formats=formats or tuple(Format), output=output)
    for place in result.places if output is None else ():
        verdicts = None if place.found is None else place.found.parity
        if verdicts is not None and (judged := verdicts.result(place.place)) is not None:
            write_summaries(opened, judged)
    if as_json:
        print_result(result)
    else:
        show_fleet(result, opened)
    sys.exit(result.exit_code)


def show(result: FleetResult, *, as_json: bool) -> NoReturn:
    """Print what came back from many places that is not of a bundle, and end with the exit code."""
    if as_json:
        print_result(result)
    else:
        show_fleet(result)
    sys.exit(result.exit_code)
