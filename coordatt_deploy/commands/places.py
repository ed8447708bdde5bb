"""``--target``, ``--targets`` and ``--group``: where a command's work is done."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

from coordatt_deploy.commands.options import PATH
from coordatt_deploy.errors import UsageError

if TYPE_CHECKING:
    from coordatt_deploy.fleet.plan import Fleet

P = ParamSpec("P")
HERE = "here"


@dataclass(frozen=True, slots=True)
class PlaceOptions:
    """Where the work is done.

    Attributes:
        targets: As they were written; empty for this machine.
        fleet: A file of places.
        group: Only those of the file that are in it.
    """

    targets: tuple[str, ...] = ()
    fleet: Path | None = None
    group: str | None = None

    @property
    def one(self) -> str | None:
        """The emulated machine that this process does the work with; None for this machine."""
        return next((text for text in self.targets if text != HERE), None)

    def refuse(self, given: Mapping[str, object]) -> None:
        """Refuse options that are about one place.

        Args:
            given: The value of each, by its name; None where it was not given.

        Raises:
            UsageError: One was given.
        """
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name} is for one place, and several or another machine are asked for; leave it out")

    def places(self) -> "Fleet | None":
        """Return the places; None where this process does the work itself: here, or on one emulated machine.

        Raises:
            UsageError: A target or the file is wrong, or the group is of no file.
        """
        if self.fleet is None and self.group is not None:
            raise UsageError("--group names places of a file; give it too: --targets fleet.toml")
        if self.fleet is None and (not self.targets or (len(self.targets) == 1 and "://" not in self.targets[0])):
            return None
        # When the options are right, what does the work: see coordatt_deploy.cli.
        from coordatt_deploy.fleet.plan import Fleet, fleet_of, joined, read_fleet

        own = fleet_of(self.targets)
        if self.fleet is None:
            return own
        file = read_fleet(self.fleet)
        return joined(own, Fleet(file.group(self.group), file.at_once))


def place_options(text: str) -> tuple[Callable[[Callable[P, None]], Callable[P, None]], ...]:
    """Return the options of ``PlaceOptions``; *text* says what ``--target`` is for."""
    return (
        click.option(
            "--target",
            "targets",
            multiple=True,
            help=f"{text} qemu-arm64, qemu-arm64:CPU, here, or over SSH ssh://[USER@]HOST[:PORT]. Repeatable.",
        ),
        click.option("--targets", "fleet", type=PATH, help="A TOML file of places: fleet.toml."),
        click.option("--group", help="Only the places of that file that are in this group."),
    )
